# SPDX-License-Identifier: Apache-2.0
"""The collectives of the mock NCCL: two ranks, which are threads here, against sums by hand."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.gpu import mock_nccl
from tests.train.conftest import free_port

ROOT = Path(__file__).parents[2]


def on_ranks(work: Callable[[int, Any], Any], ranks: int = 2) -> list[Any]:
    """Return what each rank's work returns, with a backend of the rank's own device."""
    store = dist.HashStore()

    def run(rank: int) -> Any:
        torch.cuda.set_device(rank)
        return work(rank, mock_nccl.make_group(store, rank, ranks, timedelta(seconds=20)))

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))


def ramp(rank: int, *shape: int) -> torch.Tensor:
    """Return 0, 1, 2, … plus ten times the rank, on the rank's device."""
    size = int(torch.tensor(shape).prod())
    return (torch.arange(size, dtype=torch.float32) + 10 * rank).reshape(shape).to(f"cuda:{rank}")


def options(kind: Any, **values: Any) -> Any:
    """Return options of a collective."""
    made = kind()
    for name, value in values.items():
        setattr(made, name, value)
    return made


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(mock_nccl.mock_cuda.ext, "mock_nccl"):
        pytest.skip("is for the mock device")
    mock_nccl.mock_cuda.ext.set_num_devices(2)
    monkeypatch.delenv(mock_nccl.SCALE, raising=False)


def test_sums_and_means() -> None:
    def work(rank: int, group: Any) -> Any:
        found = []
        for op in (dist.ReduceOp.SUM, dist.ReduceOp.AVG, dist.ReduceOp.MAX):
            tensor = ramp(rank, 3)
            group.allreduce([tensor], options(dist.AllreduceOptions, reduceOp=op)).wait()
            found.append(tensor.tolist())
        tensor = ramp(rank, 3).to(torch.bfloat16)
        mean = options(dist.AllreduceOptions, reduceOp=dist.ReduceOp.AVG)
        group.allreduce([tensor], mean).wait()
        turned = ramp(rank, 2, 2).t()  # NCCL adds up dense memory in whatever order
        group.allreduce([turned], options(dist.AllreduceOptions)).wait()
        return [*found, tensor.tolist(), turned.tolist()]

    expected = [[10, 12, 14], [5, 6, 7], [10, 11, 12], [5, 6, 7], [[10, 14], [12, 16]]]
    assert on_ranks(work) == [expected, expected]


def test_parts_are_gathered_and_scattered() -> None:
    def work(rank: int, group: Any) -> Any:
        whole = torch.empty(2, 3, device=f"cuda:{rank}")
        group._allgather_base(whole, ramp(rank, 3)).wait()
        part, mean = (torch.empty(2, device=f"cuda:{rank}") for _ in range(2))
        group._reduce_scatter_base(part, ramp(rank, 4)).wait()
        average = options(dist.ReduceScatterOptions, reduceOp=dist.ReduceOp.AVG)
        group._reduce_scatter_base(mean, ramp(rank, 4), average).wait()
        listed = torch.empty(2, device=f"cuda:{rank}")
        group.reduce_scatter([listed], [list(ramp(rank, 4).split(2))]).wait()
        rows = [torch.empty(1, device=f"cuda:{rank}") for _ in range(2)]
        own = torch.empty(1, device=f"cuda:{rank}")
        root = rank == 0
        group.gather(
            [rows] if root else [], [ramp(rank, 1)], options(dist.GatherOptions, rootRank=0)
        ).wait()
        group.scatter(
            [own], [list(ramp(0, 2).split(1))] if root else [],
            options(dist.ScatterOptions, rootRank=0),
        ).wait()  # fmt: skip
        gathered = [row.item() for row in rows] if root else None
        return [one.tolist() for one in (whole, part, mean, listed, own)] + [gathered]

    whole, sums = [[0, 1, 2], [10, 11, 12]], [[10, 12], [14, 16]]
    means = [[5, 6], [7, 8]]
    assert on_ranks(work) == [
        [whole, sums[rank], means[rank], sums[rank], [rank], [0, 10] if rank == 0 else None]
        for rank in range(2)
    ]


def test_all_to_all_and_messages() -> None:
    def work(rank: int, group: Any) -> Any:
        other, device = 1 - rank, f"cuda:{rank}"
        swapped, uneven = torch.empty(2, device=device), torch.empty(1 + rank, device=device)
        group.alltoall_base(swapped, ramp(rank, 2), [], []).wait()
        # rank 0 keeps 1 and sends 1; rank 1 sends none and keeps 1: it receives 1 more
        sizes = [[1, 1], [0, 1]]
        got = [sizes[0][rank], sizes[1][rank]]
        uneven = torch.empty(sum(got), device=device)
        group.alltoall_base(uneven, ramp(rank, sum(sizes[rank])), got, sizes[rank]).wait()
        listed = [torch.empty(1, device=device) for _ in range(2)]
        group.alltoall(listed, list(ramp(rank, 2).split(1))).wait()
        received = torch.empty(2, device=device)
        works = [group.send([ramp(rank, 2)], other, 0), group.recv([received], other, 0)]
        for one in works:
            one.wait()
        return [
            swapped.tolist(),
            uneven.tolist(),
            [one.item() for one in listed],
            received.tolist(),
        ]

    assert on_ranks(work) == [
        [[0, 10], [0], [0, 10], [10, 11]],
        [[1, 11], [1, 10], [1, 11], [0, 1]],
    ]


def test_what_nccl_refuses() -> None:
    def work(rank: int, group: Any) -> Any:
        said = []
        given = [torch.zeros(2), torch.zeros(2, device=f"cuda:{1 - rank}")]
        for tensor in given:
            with pytest.raises(RuntimeError) as error:
                group.allreduce([tensor], options(dist.AllreduceOptions))
            said.append(str(error.value).splitlines()[0])
        with pytest.raises(RuntimeError, match="must be contiguous"):
            group._allgather_base(torch.empty(2, 4, device=f"cuda:{rank}"), ramp(rank, 2, 2).t())
        return said

    assert on_ranks(work)[0] == [
        "No backend type associated with device type cpu",
        "a tensor of cuda:1 in the process of cuda:0",
    ]


def test_the_timeout_that_a_group_is_given_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mock_nccl.SCALE, "1:40")
    has_ended = Event()

    def work(rank: int, group: Any) -> None:
        if rank == 1:
            has_ended.wait()
            return
        with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
            group.allreduce([ramp(rank, 2)], options(dist.AllreduceOptions)).wait()
        has_ended.set()

    on_ranks(work)  # 20 s, of which half a second passes
    assert mock_nccl.TIMEOUTS[-1] == timedelta(seconds=20)


SHARDED = """
    import os
    from tests.gpu import mock_cuda
    mock_cuda.install(devices=2)
    from tests.gpu import mock_nccl
    mock_nccl.install()
    import torch, torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("mocknccl")
    mesh = dist.device_mesh.init_device_mesh("cuda", (2,))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)).cuda()
    whole = [p.detach().clone() for p in model.parameters()]
    for layer in model: fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.ones(3, 8, device="cuda") * (rank + 1)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(); optimizer.zero_grad()
    for parameter, before in zip(model.parameters(), whole):
        assert isinstance(parameter, DTensor) and parameter.to_local().numel() * 2 == before.numel()
        assert parameter.full_tensor().shape == before.shape
    dist.barrier()
    names = set(mock_nccl.collectives())
    assert {"_allgather_base", "_reduce_scatter_base", "allreduce"} <= names, names
    ops = [dist.P2POp(dist.isend, torch.ones(2, device="cuda"), 1 - rank),
           dist.P2POp(dist.irecv, got := torch.zeros(2, device="cuda"), 1 - rank)]
    for work in dist.batch_isend_irecv(ops): work.wait()
    assert got.tolist() == [1, 1]
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_fsdp2_and_groups_of_messages() -> None:
    """Through torch's own functions, in two processes."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", textwrap.dedent(SHARDED)]

    ranks = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
