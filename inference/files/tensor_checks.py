"""Tensors that are not written, since they are not finite, and those that are not read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.runtime import ArtifactError

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Data types by their names in recipes and options."""

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
"""Data types of 8 bits whose values fp16 holds exactly."""

LARGEST_REPEATED = 1 << 24
"""Maximum bytes of a tensor that repeats stored elements; a tiny file could stand for terabytes."""


DEEPEST = 4
"""Maximum depth of the tensors in a pickle: a hypernetwork's are in a dict in a tuple in a dict."""


LARGEST_TOGETHER = 1 << 16
"""Maximum values of a tensor that is checked together with others."""


class NotFiniteError(ArtifactError):
    """Tensors that are to be written are not finite, maybe only after rounding."""


def refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise NotFiniteError if a value of a tensor to be written is NaN or infinite."""
    faulty = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if not faulty:
        return
    dtype = tensors[faulty[0]].dtype
    remedy = "the training that made them diverged: take a lower learning rate, or an earlier file"
    if dtype == torch.float16:
        largest = f"{torch.finfo(dtype).max:g}"
        remedy = (
            f"fp16 holds numbers up to {largest}; bf16 and fp32 hold larger ones "
            f"(saving.save_precision of a run, --dtype of a conversion). If that does not help, "
            f"{remedy}"
        )
    raise NotFiniteError(
        f"{len(faulty)} of {len(tensors)} tensors are not finite (NaN or infinite) in "
        f"{NAMES.get(dtype, str(dtype))}, the first is {faulty[0]!r}: {remedy}"
    )


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all values of all tensors are finite; small tensors are checked together."""
    waiting: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() > LARGEST_TOGETHER:
            if not is_finite(tensor):
                return False
        else:
            waiting.setdefault((tensor.dtype, tensor.device), []).append(tensor.flatten())
    return all(is_finite(torch.cat(several)) for several in waiting.values())


def sound(path: Path, name: object, tensor: Tensor) -> Tensor:
    """Return a tensor of a file as a plain one; that of 8-bit floats in fp16, which holds them.

    Raises:
        ArtifactError: it has no values, is sparse, quantized or complex, or repeats too much.
    """
    where = f"{path}: {str(name)!r}"
    if tensor.is_meta:
        raise ArtifactError(f"{where} has no values (it is on the meta device); save it with them")
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = str(tensor.layout).removeprefix("torch.")
        raise ArtifactError(f"{where} is no dense tensor ({kind}); save it after to_dense()")
    if tensor.is_quantized or tensor.is_complex():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ArtifactError(f"{where} is of the type {kind}; expected floating point or integers")
    size = tensor.numel() * tensor.element_size()
    if not tensor.is_contiguous() and size > tensor.untyped_storage().nbytes():
        if size > LARGEST_REPEATED:
            raise ArtifactError(
                f"{where} repeats {tensor.untyped_storage().nbytes()} stored bytes to {size}; save "
                "it after contiguous()"
            )
        tensor = tensor.contiguous()
    return tensor.half() if tensor.dtype in FLOAT8 else tensor


def sound_content(path: Path, content: dict[Any, Any]) -> dict[Any, Any]:
    """Return the content of a pickle with `sound` tensors, as deep as artifacts have any.

    Raises:
        ArtifactError: a tensor cannot be used.
    """
    known: dict[int, Any] = {}

    def made_sound(value: Any, name: object, depth: int) -> Any:
        if isinstance(value, Tensor):
            return sound(path, name, value)
        if depth == DEEPEST or not isinstance(value, dict | list | tuple):
            return value
        if id(value) not in known:
            known[id(value)] = value  # of a container that contains itself
            if isinstance(value, dict):
                inner = {key: made_sound(one, key, depth + 1) for key, one in value.items()}
            else:
                inner = [made_sound(one, name, depth + 1) for one in value]
                inner = tuple(inner) if isinstance(value, tuple) else inner
            known[id(value)] = inner
        return known[id(value)]

    return made_sound(content, "", 0)
