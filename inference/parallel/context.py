"""Context parallelism: several processes compute one sequence, each a part of its tokens.

The tokens are split with the hooks of diffusers (`diffusers.hooks.context_parallel`), and attention
sees all of them by Ulysses (Jacobs et al. 2023, arXiv 2309.14509): before each attention the
processes exchange tokens for heads, and back after it (`diffusers.models.attention_dispatch`).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from inference.parallel.layout import Layout
from inference.runtime import LONGEST_WAIT, InputError

if TYPE_CHECKING:
    import torch

AXES = ("data", "ring", "ulysses")
"""The dimensions of the device mesh, as diffusers names them; ring has one process."""


def share(tokens: int, processes: int) -> int:
    """Return the tokens of one process: all have the same number, the last ones with padding."""
    return -(-tokens // processes)


def missing(tokens: int, processes: int) -> int:
    """Return the tokens of padding that make a number divisible by the processes."""
    return -tokens % processes


def check_heads(heads: int, context: int, name: str) -> None:
    """Check that Ulysses can deal the heads of attention out to the processes.

    Raises:
        InputError: their number is not divisible.
    """
    if heads % context == 0:
        return
    fitting = [number for number in range(2, heads + 1) if heads % number == 0][:6]
    numbers = ", ".join(map(str, fitting))
    raise InputError(
        f"parallel.context: {name} has {heads} attention heads, which {context} processes cannot "
        f"share equally; take one of {numbers}"
    )


def device_mesh(layout: Layout, device: torch.device) -> Any:
    """Return the mesh (data, ring, ulysses) of all processes; all of them call this together.

    FSDP2 shards over `mesh["data"]`, or over all of it flattened.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if device.type == "cuda":
        torch.cuda.set_device(device)  # which NCCL takes
    # Groups of their own: drawing has one for small objects on the CPU, and by default NCCL's end
    # processes that wait for more than ten minutes, as for the first one, which saves.
    backend = dist.get_default_backend_for_device(device.type)
    kinds: Any = dist
    is_nccl = backend == "nccl"
    options = (
        kinds.ProcessGroupNCCL.Options() if is_nccl else kinds.ProcessGroupGloo.Options(backend)
    )
    options._timeout = LONGEST_WAIT
    mesh = init_device_mesh(
        device.type,
        (layout.data_size, 1, layout.context),
        mesh_dim_names=AXES,
        backend_override=dict.fromkeys(AXES, (backend, options)),
    )
    mesh[AXES[1:]]._flatten(backend_override=(backend, options))
    return mesh


def parallel_config(layout: Layout, device: torch.device) -> Any:
    """Return diffusers' config of the groups of processes; all of them call this together.

    `ModelMixin.enable_parallelism` would make it, too, but fails without a GPU, and cannot be
    undone.
    """
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig

    # diffusers 0.42.1 calls a function that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", ".*all_gather_tensor. is deprecated", FutureWarning)
    config = ParallelConfig(
        context_parallel_config=ContextParallelConfig(ulysses_degree=layout.context)
    )
    mesh = device_mesh(layout, device)
    config.setup(layout.rank, layout.processes, device, mesh=mesh)
    return config
