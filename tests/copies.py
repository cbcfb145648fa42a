"""Copies of a model for tests that change it, at a tenth of the cost of building or `deepcopy`."""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

SHARED = (FunctionType, BuiltinFunctionType, type)
"""What copies share with the original, as they do with `deepcopy`."""


class Master:
    """An object as it is now: its tensors, and the rest of it pickled."""

    def __init__(self, original: Any) -> None:
        self.kept: list[Any] = []
        file = io.BytesIO()
        _Pickler(file, self.kept).dump(original)
        self.pickled = file.getvalue()

    def copy(self) -> Any:
        """Return another copy; a tensor that occurs twice does so in the copy."""
        return _Unpickler(io.BytesIO(self.pickled), self.kept).load()


class _Pickler(pickle.Pickler):
    """Puts numbers in the place of tensors and of what is shared."""

    def __init__(self, file: io.BytesIO, kept: list[Any]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.kept = kept
        self.numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, (torch.Tensor, *SHARED)):
            return None
        if id(obj) not in self.numbers:
            self.numbers[id(obj)] = len(self.kept)
            self.kept.append(_copied(obj) if isinstance(obj, torch.Tensor) else obj)
        return self.numbers[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Puts new copies of the tensors in the place of their numbers."""

    def __init__(self, file: io.BytesIO, kept: list[Any]) -> None:
        super().__init__(file)
        self.kept = kept
        self.made: dict[int, torch.Tensor] = {}

    def persistent_load(self, pid: Any) -> Any:
        found = self.kept[pid]
        if not isinstance(found, torch.Tensor):
            return found
        if pid not in self.made:
            self.made[pid] = _copied(found)
        return self.made[pid]


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a leaf with the same values and strides."""
    copy = tensor.detach().clone()
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(copy, tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad)


def copied(build: Callable[P, T]) -> Callable[P, T]:
    """Build once for the same arguments; every call gets a copy."""
    masters: dict[str, Master] = {}

    @functools.wraps(build)
    def copy(*args: P.args, **kwargs: P.kwargs) -> T:
        key = repr((args, sorted(kwargs.items())))
        if key not in masters:
            masters[key] = Master(build(*args, **kwargs))
        return masters[key].copy()

    return copy


_remembered: set[str] = set()
"""Folders of base models that no test changes."""


def remember_reading(folder: Path, *classes: Any) -> None:
    """Have `from_pretrained` of these classes read a folder's parts once and then copy them.

    The same arguments give the same values; other folders are read as ever.
    """
    _remembered.add(str(folder))
    for kind in classes:
        if not hasattr(kind.from_pretrained, "masters"):
            kind.from_pretrained = classmethod(_reading_once(kind.from_pretrained.__func__))


def _reading_once(read: Callable[..., Any]) -> Callable[..., Any]:
    masters: dict[str, Master] = {}

    @functools.wraps(read)
    def from_pretrained(kind: Any, *args: Any, **options: Any) -> Any:
        if not args or str(args[0]) not in _remembered:
            return read(kind, *args, **options)
        key = repr((kind, args, sorted(options.items())))
        if key not in masters:
            masters[key] = Master(read(kind, *args, **options))
        return masters[key].copy()

    from_pretrained.masters = masters  # type: ignore[attr-defined]
    return from_pretrained
