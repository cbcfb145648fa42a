# SPDX-License-Identifier: Apache-2.0
"""A mock of NCCL: collectives of mock CUDA tensors by gloo; CPU tensors are refused as by NCCL.

MOCK_NCCL_SCALE=25:600 lets 25 s pass for each 600 s of a group's time-out. MOCK_NCCL_WATCHDOG=1
lets a failed or late collective abort the process, as NCCL's watchdog does, or wait for good with
TORCH_NCCL_ASYNC_ERROR_HANDLING=0.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tests.gpu import mock_cuda

TIMEOUTS: list[timedelta] = []
"""Of the process groups created, as they were asked for."""

SCALE = "MOCK_NCCL_SCALE"


def scale() -> float:
    """Return the seconds that pass here for each second of a time-out; 1 without the variable."""
    here, there = os.environ.get(SCALE, "1:1").split(":")
    return float(here) / float(there)


def make_group(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """Return a backend for mock CUDA devices, see mock_nccl.hpp."""
    TIMEOUTS.append(timeout)
    gloo: Any = dist.ProcessGroupGloo
    return mock_cuda.ext.mock_nccl(gloo(store, rank, size, timeout * scale()), scale())


def collectives() -> list[str]:
    """Return the names of the collectives that this process has called, in their order."""
    return mock_cuda.ext.collectives()


def install() -> None:
    """Register the backend and make accelerate use it in place of NCCL."""
    dist.Backend.register_backend("mocknccl", make_group, devices=["cuda"])
    dist.Backend.default_device_backend_map["cuda"] = "mocknccl"
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
