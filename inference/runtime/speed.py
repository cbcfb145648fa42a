"""Levers of speed: number formats, kernels, memory layout and compilation."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn

from inference.runtime.errors import InputError

TF32 = (8, 0)
"""Compute capability from which NVIDIA's GPUs have TF32: Ampere."""

SWITCHES = {
    "flash": "enable_flash_sdp",
    "efficient": "enable_mem_efficient_sdp",
    "cudnn": "enable_cudnn_sdp",
}
"""Kernels of fused attention besides `math`, and their switches in `torch.backends.cuda`."""

ON_CPUS = ("auto", "flash", "math")
"""Kernels of fused attention that PyTorch has for CPUs."""

CODE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
TEMPORARY = "torchinductor_"
"""The beginning of the name of PyTorch's own folder."""

COMPILERS = ("g++", "clang++", "c++")

VARIANTS = 64
"""Versions of one function that are compiled, before the others are computed as they are; each
width of a UNet and each layer's set of LoRAs makes one. PyTorch's limit of 8 is for one network."""


class Speed(Protocol):
    """The levers of a recipe: `inference.config.SpeedConfig`."""

    @property
    def tf32(self) -> bool: ...

    @property
    def cudnn_benchmark(self) -> bool: ...

    @property
    def channels_last(self) -> bool: ...

    @property
    def attention(self) -> str: ...

    @property
    def compile(self) -> str: ...


def choose_kernels(speed: Speed, device: torch.device, kind: type[Warning]) -> None:
    """Set number formats and kernels of this process; those that do not exist here are named.

    Args:
        speed: the recipe's levers. Defaults change nothing.
        device: what computes.
        kind: the class of warnings.
    """

    def warn(key: str, problem: str) -> None:
        warnings.warn(f"speed.{key}: {problem}", kind, stacklevel=3)

    is_cuda = device.type == "cuda"
    for key, is_set in (("tf32", speed.tf32), ("cudnn_benchmark", speed.cudnn_benchmark)):
        if is_set and not is_cuda:
            warn(key, f"has no effect on {device.type}: it is for CUDA's GPUs")
    if is_cuda and speed.tf32:
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < TF32:
            gpu = torch.cuda.get_device_name(device)
            warn("tf32", f"has no effect on {gpu}, which is older than Ampere")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if is_cuda and speed.cudnn_benchmark:
        torch.backends.cudnn.benchmark = True
    if speed.attention == "auto":
        return
    if not is_cuda and speed.attention not in ON_CPUS:
        warn("attention", f"{speed.attention} has no effect on {device.type}: take flash or math")
        return
    switches = vars(torch.backends.cuda)
    for name, switch in SWITCHES.items():
        switches[switch](name == speed.attention)
    torch.backends.cuda.enable_math_sdp(True)


def arrange(parts: Iterable[nn.Module], speed: Speed) -> None:
    """Store the convolutions of parts with channels last, if configured; values do not change."""
    if speed.channels_last:
        for part in parts:
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_denoiser(denoiser: nn.Module, speed: Speed, device: torch.device) -> None:
    """Let a denoiser be compiled at its first evaluation, if configured; its weights keep names.

    Raises:
        InputError: there is no compiler, or the denoiser has no repeated blocks.
    """
    if speed.compile == "none":
        return
    check_compiler(device)
    keep_compiled_code()
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for block in [denoiser] if speed.compile == "whole" else repeated_blocks(denoiser):
        block.compile()


def keep_compiled_code() -> None:
    """Let compiled code be kept in the user's cache, unless the user names another folder.

    PyTorch keeps it in the folder of temporary files, and writes that into the variable itself.
    """
    own = Path(os.environ.get(CODE_FOLDER, tempfile.gettempdir()))
    is_temporary = own.parent == Path(tempfile.gettempdir()) and own.name.startswith(TEMPORARY)
    if CODE_FOLDER not in os.environ or is_temporary:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ[CODE_FOLDER] = str(home / "limner" / "inductor")


def repeated_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """Return the blocks that a network of diffusers repeats, as it names them.

    Raises:
        InputError: it has none.
    """
    known = vars(type(denoiser))
    names = cast("list[str]", known.get("_repeated_blocks") or known.get("_no_split_modules") or [])
    found = [one for one in denoiser.modules() if type(one).__name__ in names]
    if not found:
        raise InputError(
            f"speed.compile: blocks: {type(denoiser).__name__} names no repeated blocks; take whole"
        )
    return found


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile can make code for a device.

    Raises:
        InputError: it cannot; the message says what is missing.
    """
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise InputError(
                "speed.compile: needs Triton on a GPU, which comes with PyTorch for CUDA on Linux "
                "(pip install triton; triton-windows on Windows); or take none"
            )
        return
    own = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([own] if own else COMPILERS)):
        raise InputError(
            f"speed.compile: needs a C++ compiler on a CPU, and there is no {own or 'g++'} here "
            "(Debian: apt install g++); or take none"
        )


def uncompiled(speed: Speed) -> AbstractContextManager[object]:
    """Compute without compiled code inside the context, to the digits of a recipe without it."""
    return nullcontext() if speed.compile == "none" else torch.compiler.set_stance("force_eager")
