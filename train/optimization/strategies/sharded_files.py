"""Checkpoints in shards: each process writes its shares (torch.distributed.checkpoint).

`shard-00001-of-00002.safetensors` … have the shares, in the format of DCP's
`HuggingFaceStorageWriter`: the place of each in its tensor stands in the header. So no pickle
describes them, as `.metadata` of DCP's own format is one, and each file is hashed while it is
written. `optimizer.pt` has the parameter groups, and what the optimizer keeps of no tensor's shape.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from inference.files import framed_header, header_entries, tensor_bytes
from train.common import RunDirectoryError, own_rows
from train.optimization.strategies.base import Content
from train.optimization.strategies.files import (
    AVERAGES,
    OPTIMIZER,
    TRAINED,
    check_content,
    trained_tensors,
)
from train.runs import CheckpointWriter

SHARDING = "DCP_SHARDING_INFO"
OFFSETS = "saved_offsets"


def write_shards(writer: CheckpointWriter, content: Content) -> None:
    """Write this process's shares; all processes call it.

    Raises:
        OSError: one of them cannot write.
    """
    state = content.optimizer.state_dict()
    tensors = named_tensors(content, state)
    try:
        save(tensors, storage_writer=ShardWriter(writer), planner=DefaultSavePlanner())
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise OSError(str(first)) from error
    if not writer.is_first:
        return
    small = {
        number: {key: value for key, value in one.items() if not isinstance(value, DTensor)}
        for number, one in state["state"].items()
    }
    others = {"optimizer": {**state, "state": small}, **content.others}
    with writer.file(OPTIMIZER) as file:
        torch.save(others, file)  # pyright: ignore[reportArgumentType]


def read_either(
    folder: Path, content: Content, all_finite: Callable[[Iterable[Tensor]], bool]
) -> dict[str, Any]:
    """Restore a checkpoint of shards or of whole tensors, into either; return `Content.others`.

    Args:
        folder: the checkpoint's.
        content: what takes the values.
        all_finite: returns whether tensors are finite in all processes.

    Raises:
        RunDirectoryError: a tensor in it is not finite, or no plain one.
    """
    others = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    check_content(folder / OPTIMIZER, others)
    state = others.pop("optimizer")
    targets = {f"{TRAINED}/{name}": one for name, one in content.objective.state_dict().items()}
    targets |= averages_of(content)
    parameters = [one for group in content.optimizer.param_groups for one in group["params"]]
    if is_sharded(folder):
        for name, one in stored_tensors(folder).items():
            kind, _, place = name.partition("/")
            if kind == OPTIMIZER:
                number, key = place.split("/")
                made = torch.empty_like(parameters[int(number)], dtype=one.properties.dtype)
                state["state"].setdefault(int(number), {})[key] = made.detach()
                targets[name] = made.detach()
        load_shards(folder, targets)
    else:
        for number, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameters[number].shape:
                    values[key] = share_like(value, parameters[number])
        for file in (TRAINED, AVERAGES) if content.averages is not None else (TRAINED,):
            for name, value in trained_tensors(folder / file).items():
                fill(targets[f"{file}/{name}"], value)
    content.optimizer.load_state_dict(state)
    if not all_finite(targets.values()):
        raise RunDirectoryError(
            f"{folder}: a tensor is not finite (NaN or infinite), so the run cannot continue from "
            "it; delete this checkpoint to continue from the one before"
        )
    return others


def is_sharded(folder: Path) -> bool:
    """Return whether a checkpoint has shards in place of whole tensors."""
    return not (folder / TRAINED).is_file()


def stored_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Return shape and dtype of the tensors whose shares a checkpoint has."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: one for name, one in found.items() if isinstance(one, TensorStorageMetadata)}


def load_shards(folder: Path, targets: dict[str, Tensor]) -> None:
    """Read tensors, whole ones or this process's shares of them, from a checkpoint of shards.

    Raises:
        RunDirectoryError: one is missing, or has another shape.
    """
    filled = {name: one for name, one in targets.items() if own_rows(one).numel()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            load(
                filled,
                storage_reader=HuggingFaceStorageReader(str(folder)),
                planner=DefaultLoadPlanner(),
                no_dist=True,
            )
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            raise RunDirectoryError(
                f"{folder}: its shards cannot be read ({first}); delete this checkpoint to "
                "continue from the one before"
            ) from error


def named_tensors(content: Content, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what is written in shards, by names.

    Args:
        content: of the checkpoint.
        state: the optimizer's.
    """
    named: dict[str, Tensor] = {
        f"{TRAINED}/{name}": one for name, one in content.objective.state_dict().items()
    }
    for number, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, DTensor):
                named[f"{OPTIMIZER}/{number}/{key}"] = value
    return named | averages_of(content)


def averages_of(content: Content) -> dict[str, Tensor]:
    """Return the averages by names, divided as their parameters are."""
    if content.averages is None:
        return {}
    pairs = zip(content.objective.parameters(), content.averages, strict=True)
    return {
        f"{AVERAGES}/{number}": as_divided(average, parameter)
        for number, (parameter, average) in enumerate(pairs)
    }


def as_divided(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a share of a tensor as part of it, if it is divided as a parameter is."""
    if not isinstance(parameter, DTensor):
        return value
    shape, stride = parameter.shape, parameter.stride()
    mesh, places = parameter.device_mesh, parameter.placements
    return DTensor.from_local(value, mesh, places, run_check=False, shape=shape, stride=stride)


def share_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor divided as a parameter is."""
    if not isinstance(parameter, DTensor):
        return value
    made = torch.empty_like(parameter, dtype=value.dtype).detach()
    fill(made, value)
    return made


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, or this process's rows of it, into a target."""
    if isinstance(target, DTensor):
        size = -(-len(value) // target.device_mesh.size())
        first = size * target.device_mesh.get_local_rank()
        value = value[first : first + size]
    own_rows(target).copy_(value)


class ShardWriter(StorageWriter):
    """Writes the shares of one process into one file, through a checkpoint's writer."""

    def __init__(self, writer: CheckpointWriter) -> None:
        self.writer = writer

    def reset(self, checkpoint_id: Any = None) -> None:
        """Do nothing: a writer is for one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the folder exists."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, Tensor] = {}
        places: dict[str, dict[str, list[int]]] = {}
        for item in plan.items:
            share = planner.resolve_data(item)
            assert isinstance(share, Tensor)
            if not share.numel():
                continue
            tensors[item.index.fqn] = share
            offset = item.index.offset or [0] * share.ndim
            places[item.index.fqn] = {OFFSETS: list(offset)}
        rank, count = dist.get_rank() + 1, dist.get_world_size()
        header = {"__metadata__": {SHARDING: json.dumps(places)}, **header_entries(tensors)}
        with self.writer.file(f"shard-{rank:05d}-of-{count:05d}.safetensors") as file:
            file.write(framed_header(json.dumps(header, separators=(",", ":"))))
            for data in tensor_bytes(tensors):
                file.write(data)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, 0, None) for item in plan.items])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Do nothing: the manifest of the checkpoint lists its files."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True
