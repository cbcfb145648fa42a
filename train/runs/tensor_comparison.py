"""Differences between the tensors of two files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inference.files import UNREADABLE, load_data, reason_of
from inference.runtime import InputError

TENSOR_FILES = (".safetensors", ".pt")


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that differs between two files."""

    name: str
    what: str
    """Empty, or a difference other than values: it is missing, its shape, its dtype."""
    largest: float | None = None
    """The largest difference of two values."""
    norm: float | None = None
    """The root of the sum of squared differences."""
    relative: float | None = None
    """`norm` divided by the norm of the first tensor."""


def different_tensors(first: Path, second: Path) -> list[TensorDifference]:
    """Return the tensors of two files that differ, largest difference first; none of other files.

    Raises:
        InputError: a file is damaged.
    """
    if first.suffix.lower() not in TENSOR_FILES:
        return []
    ours, theirs = read_tensors(first), read_tensors(second)
    found = []
    for name in {**ours, **theirs}:
        if name not in ours or name not in theirs:
            found.append(
                TensorDifference(name, f"only in the {'second' if name in theirs else 'first'}")
            )
        elif (one := difference(name, ours[name](), theirs[name]())) is not None:
            found.append(one)
    return sorted(found, key=lambda one: -(math.inf if one.largest is None else one.largest))


def difference(name: str, first: Any, second: Any) -> TensorDifference | None:
    """Return how two tensors (or other values) differ; None if they do not."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return None if first == second else TensorDifference(name, f"{first!r}, {second!r}")
    if first.shape != second.shape:
        return TensorDifference(name, f"shapes {list(first.shape)}, {list(second.shape)}")
    what = "" if first.dtype == second.dtype else f"{first.dtype}, {second.dtype}"
    if not what and torch.equal(first, second):
        return None
    distance = (first.double() - second.double()).flatten()
    if not what and not distance.numel():
        return None
    size = float(first.double().norm())
    norm = float(distance.norm())
    largest = float(distance.abs().max()) if distance.numel() else 0.0
    return TensorDifference(name, what, largest, norm, norm / size if size else None)


def read_tensors(path: Path) -> dict[str, Callable[[], Any]]:
    """Return functions that return the tensors of a file; those of .safetensors read it only then.

    Raises:
        InputError: it is damaged.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            file = safe_open(path, "pt")
            return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118
        content = load_data(path)
        return {name: (lambda value=value: value) for name, value in _flat(content)}
    except (*UNREADABLE, SafetensorError) as error:
        raise InputError(f"{path}: damaged: {reason_of(error)}") from error


def _flat(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value in nested mappings and lists, with a dotted name."""
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, value in items:
        inner = f"{name}.{key}" if name else str(key)
        if isinstance(value, Mapping | list | tuple):
            yield from _flat(value, inner)
        else:
            yield inner, value
