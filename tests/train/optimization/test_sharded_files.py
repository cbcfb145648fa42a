"""Checkpoints in shards: their format, and reading them whole or in shares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from inference.files import is_finite
from train.common import RunDirectoryError
from train.common.weights import own_rows
from train.optimization.strategies.base import Content
from train.optimization.strategies.files import write_content
from train.optimization.strategies.sharded_files import load_shards, read_either, write_shards
from train.runs.checkpoint_files import CheckpointWriter, damage


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    place = f"file://{tmp_path.with_suffix('.store')}"
    dist.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def content(seed: int, is_divided: bool, steps: int = 2) -> Content:
    """A small network after some steps, and averages of its weights."""
    torch.manual_seed(seed)
    network: Any = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
    if is_divided:
        mesh = init_device_mesh("cpu", (1,))
        for layer in network:
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1 * (seed + 1))
    averages = [own_rows(one).detach().clone() + seed for one in network.parameters()]
    for _ in range(steps):
        network(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return Content(network, optimizer, averages, {"lr_scheduler": {"last_epoch": seed}})


def everything(one: Content) -> list[Tensor]:
    states = one.optimizer.state_dict()["state"]
    kept = [value for number in sorted(states) for value in states[number].values()]
    assert one.averages is not None
    tensors = [*one.objective.state_dict().values(), *kept, *one.averages]
    return [own_rows(tensor).clone() for tensor in tensors]


def all_finite(tensors: Any) -> bool:
    return all(is_finite(own_rows(tensor)) for tensor in tensors)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("writes_shards", [True, False])
@pytest.mark.parametrize("reads_shares", [True, False])
def test_shards_and_whole_files_are_read_by_both(
    writes_shards: bool, reads_shares: bool, tmp_path: Path
) -> None:
    written = content(0, is_divided=writes_shards)
    writer = CheckpointWriter(tmp_path)
    (write_shards if writes_shards else write_content)(writer, written)
    writer.seal(2, {})
    assert damage(tmp_path, 2) == []
    assert (tmp_path / "trained.safetensors").exists() != writes_shards
    restored = content(1, is_divided=reads_shares, steps=1)
    others = read_either(tmp_path, restored, all_finite)
    assert others == {"lr_scheduler": {"last_epoch": 0}}
    assert restored.optimizer.param_groups[0]["lr"] == 0.1
    pairs = zip(everything(written), everything(restored), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    kinds = {type(one) for one in restored.optimizer.state_dict()["state"][0].values()}
    assert (DTensor in kinds) == reads_shares


@pytest.mark.usefixtures("alone")
def test_what_is_written_is_no_pickle(tmp_path: Path) -> None:
    """The place of each share stands in the header; optimizer.pt has no weights."""
    writer = CheckpointWriter(tmp_path)
    written = content(0, is_divided=True)
    write_shards(writer, written)
    assert set(writer.files) == {"shard-00001-of-00001.safetensors", "optimizer.pt"}
    with safe_open(tmp_path / "shard-00001-of-00001.safetensors", "pt") as file:
        places = json.loads(file.metadata()["DCP_SHARDING_INFO"])
        assert set(places) == set(file.keys())
    assert places["trained.safetensors/0.weight"] == {"saved_offsets": [0, 0]}
    kept = torch.load(tmp_path / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert {key for one in kept.values() for key in one} == {"step"}


def test_two_shards_written_by_hand_are_one_tensor(tmp_path: Path) -> None:
    """Rows 0 and 1 in the first, row 2 in the second, as torch divides three rows."""
    rows = torch.arange(6.0).reshape(3, 2)
    for number, first, last in ((1, 0, 2), (2, 2, 3)):
        places = {"a/b": {"saved_offsets": [first, 0]}}
        file = tmp_path / f"shard-0000{number}-of-00002.safetensors"
        metadata = {"DCP_SHARDING_INFO": json.dumps(places)}
        save_file({"a/b": rows[first:last].clone()}, file, metadata)
    found = {"a/b": torch.zeros(3, 2)}
    load_shards(tmp_path, found)
    assert torch.equal(found["a/b"], rows)
    with pytest.raises(RunDirectoryError, match="its shards cannot be read"):
        load_shards(tmp_path, {"a/c": torch.zeros(3, 2)})


@pytest.mark.usefixtures("alone")
def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    written = content(0, is_divided=True)
    assert written.averages is not None
    written.averages[1][0] = torch.nan
    write_shards(CheckpointWriter(tmp_path), written)
    with pytest.raises(RunDirectoryError, match="is not finite"):
        read_either(tmp_path, content(1, is_divided=True), all_finite)
