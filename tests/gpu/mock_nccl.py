# SPDX-License-Identifier: Apache-2.0
"""A mock of NCCL: collectives of mock CUDA tensors by gloo; CPU tensors are refused as by NCCL."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch.futures import Future

ALLREDUCE, BROADCAST = dist.AllreduceOptions(), dist.BroadcastOptions()
BARRIER = dist.BarrierOptions()

TIMEOUTS: list[timedelta] = []
"""Of the process groups created."""
CALLS: list[str] = []


def done(value: Any) -> Any:
    """Return a collective that has finished."""
    future: Future[Any] = Future()
    future.set_result(value)
    return vars(import_module("torch._C._distributed_c10d"))["_create_work_from_future"](future)


def to_cpu(tensors: Any) -> list[torch.Tensor]:
    """Copy tensors of the current device to the CPU; refuse others as NCCL does."""
    for tensor in tensors:
        if tensor.device.type != "cuda":
            raise RuntimeError(f"No backend type associated with device type {tensor.device.type}")
        if tensor.device.index != torch.cuda.current_device():
            raise RuntimeError(
                f"a tensor of {tensor.device} in the process of cuda:{torch.cuda.current_device()}"
            )
    return [tensor.detach().cpu().contiguous() for tensor in tensors]


ProcessGroup: Any = dist.ProcessGroup
AllreduceOptions: Any = dist.AllreduceOptions


def make_gloo(store: Any, rank: int, size: int, limit: timedelta) -> Any:
    """Return a gloo group; torch's type stubs lack its methods."""
    return dist.ProcessGroupGloo(store, rank, size, limit)


class MockNccl(ProcessGroup):
    """A process group on mock CUDA devices."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        TIMEOUTS.append(timeout)
        limit = timedelta(seconds=int(os.environ.get("MOCK_NCCL_SECONDS", "300")))
        self.inner = make_gloo(store, rank, size, limit)

    def getBackendName(self) -> str:  # noqa: N802
        return "nccl"

    @property
    def pg_name(self) -> str:
        return "mock_nccl"

    def allreduce(self, tensors: Any, opts: Any = ALLREDUCE) -> Any:
        CALLS.append("allreduce")
        copies = to_cpu(tensors)
        if isinstance(opts, dist.ReduceOp | dist.ReduceOp.RedOpType):
            made = AllreduceOptions()
            made.reduceOp = opts
            opts = made
        made = AllreduceOptions()
        average = opts.reduceOp == dist.ReduceOp.AVG
        made.reduceOp = dist.ReduceOp.SUM if average else opts.reduceOp
        self.inner.allreduce(copies, made).wait()
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.detach().copy_(copy / self.size() if average else copy)
        return done(tensors)

    def allreduce_coalesced(self, tensors: Any, opts: Any = None) -> Any:
        made = AllreduceOptions()
        made.reduceOp = opts.reduceOp
        for tensor in tensors:
            self.allreduce([tensor], made)
        return done(tensors)

    def broadcast(self, tensors: Any, opts: Any = BROADCAST) -> Any:
        CALLS.append("broadcast")
        copies = to_cpu(tensors)
        self.inner.broadcast(copies, opts).wait()
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.detach().copy_(copy)
        return done(tensors)

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        CALLS.append("allgather")
        copies = to_cpu(inputs)
        made = [[torch.empty_like(copies[0]) for _ in range(self.size())]]
        self.inner.allgather(made, copies).wait()
        for target, source in zip(outputs[0], made[0], strict=True):
            target.detach().copy_(source)
        return done(outputs)

    def _allgather_base(self, output: Any, given: Any, opts: Any = None) -> Any:
        CALLS.append("_allgather_base")
        (copy,) = to_cpu([given])
        made = [[torch.empty_like(copy) for _ in range(self.size())]]
        self.inner.allgather(made, [copy]).wait()
        output.detach().copy_(torch.cat([one.reshape(-1) for one in made[0]]).reshape(output.shape))
        return done(output)

    all_gather_single = _allgather_base
    all_gather = allgather
    all_reduce = allreduce

    def barrier(self, opts: Any = BARRIER) -> Any:
        CALLS.append("barrier")
        self.inner.barrier().wait()
        return done(None)


def install() -> None:
    """Register the backend and make accelerate use it in place of NCCL."""
    dist.Backend.register_backend(
        "mocknccl",
        lambda store, rank, size, timeout: MockNccl(store, rank, size, timeout),
        devices=["cuda"],
    )
    dist.distributed_c10d._get_object_coll_device = lambda group=None: "cuda"
    from torch.distributed import distributed_c10d

    kept_timeout = distributed_c10d._get_default_timeout
    nccl = timedelta(minutes=10)
    distributed_c10d._get_default_timeout = lambda backend: (
        nccl if str(backend) == "mocknccl" else kept_timeout(backend)
    )
    from accelerate.state import PartialState

    kept = PartialState._prepare_backend

    def prepare(
        self: Any, cpu: bool = False, sagemaker_dp: bool = False, backend: str | None = None
    ) -> Any:
        found, kind = kept(self, cpu, sagemaker_dp, backend)
        return ("mocknccl" if found == "nccl" else found), kind

    PartialState._prepare_backend = prepare


def without_timer() -> None:
    """Remove DDP's logger, which needs CUDA's timer."""
    from types import SimpleNamespace

    from torch.nn.parallel import DistributedDataParallel

    kept = DistributedDataParallel.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        kept(self, *args, **kwargs)
        assert self.device_ids == [torch.cuda.current_device()], self.device_ids
        self.logger = SimpleNamespace(
            set_runtime_stats_and_log=lambda: None,
            set_error_and_log=lambda text: None,
            _set_static_graph=lambda: None,
            _set_uneven_input_join=lambda: None,
        )

    DistributedDataParallel.__init__ = init  # type: ignore[method-assign]
