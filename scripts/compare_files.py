"""Whether two folders hold the same results: tensors, pixels, texts; and where the first differs.

Each file is read into plain values (`scripts/compare_readers.py`), without what names a moment, a
version or a commit; then they are compared exactly, numbers by their bytes. Only the pictures
of an MP4 have a tolerance (`LOSSY`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.compare_readers import LossyFrame, read, stable, without_volatile

IGNORED = {
    "environment.json": "versions, commit, command line, machine",
    "manifest.json": "sizes and hashes of files that are compared themselves",
    "artifacts.json": "the same of artifacts",
    "*recipe.yaml": "keys of recipes may be added and renamed",
    "logs": "TensorBoard: times and speed",
}
"""Files and folders of results that are not compared, and why."""

LOSSY = 4.0
"""Levels by which frames of an MP4 may differ on average. H.264 at CRF 17, encoded twice by one
revision from the same frames, came out in two versions that are up to 2.5 apart; neighbouring
frames of the demos are 5 to 13 apart. The frames that it was made of are compared exactly."""

CONTEXT, WIDTH = 20, 80
"""Characters of a text before its first difference, and of a value at all, in a message."""

SHOWN = 3
"""Keys that are named in a message."""

RENAMED_PLAN_KEYS: dict[str, str] = {}
"""Key of an older plan (`memory.away`, `stages.*.repeated`) -> its key now."""

LEFT_OUT_OF_PLANS = ("disk.free", "probe")
"""Keys of plans that depend on the moment."""


def compare_folders(old: Path, new: Path) -> tuple[int, list[str]]:
    """Return the number of files in a folder, and a line for each that differs."""
    before, after = files_of(old), files_of(new)
    lines = [f"{name}: only in the old tree" for name in sorted(before.keys() - after.keys())]
    lines += [f"{name}: only in the new tree" for name in sorted(after.keys() - before.keys())]
    for name in sorted(before.keys() & after.keys()):
        found = difference(read(before[name]), read(after[name]))
        if found:
            lines.append(f"{name}: {found}")
    return len(before), lines


def compare_plans(old: Path, new: Path) -> tuple[int, list[str]]:
    """Return the number of keys in a plan's JSON file, and a line for what differs first."""
    before, after = plan_of(old, RENAMED_PLAN_KEYS), plan_of(new, {})
    found = difference(before, after)
    return len(before), [found] if found else []


def plan_of(path: Path, renamed: dict[str, str]) -> dict[str, Any]:
    """Return a plan's leaves by their dotted keys of today."""
    leaves = dict(leaves_of(json.loads(path.read_text(encoding="utf-8")), ""))
    names = {key: new_name(key, renamed) for key in leaves}
    return {
        names[key]: value
        for key, value in leaves.items()
        if not is_below(names[key], LEFT_OUT_OF_PLANS)
    }


def leaves_of(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested mappings and lists; empty ones are leaves."""
    if isinstance(value, list):
        value = dict(enumerate(value)) or value
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for name, inner in value.items():
        yield from leaves_of(inner, joined(key, name))


def new_name(key: str, renamed: dict[str, str]) -> str:
    """Return a key with its front replaced if that was renamed."""
    parts = key.split(".")
    for old, new in renamed.items():
        front, rest = parts[: old.count(".") + 1], parts[old.count(".") + 1 :]
        if fnmatch(".".join(front), old):
            stars = (part for part, sign in zip(front, old.split("."), strict=True) if sign == "*")
            return ".".join([next(stars) if one == "*" else one for one in new.split(".")] + rest)
    return key


def is_below(key: str, names: Sequence[str]) -> bool:
    """Return whether a dotted key is one of some names, or lies below one."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that are compared, by their names without a time."""
    files = {
        path.relative_to(folder): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() or path.is_symlink()
    }
    return {
        without_volatile(place.as_posix()): path
        for place, path in files.items()
        if not any(fnmatch(part, pattern) for part in place.parts for pattern in IGNORED)
    }


def difference(old: Any, new: Any, where: str = "") -> str:
    """Return where two nested values differ first, and how; empty if they are the same."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return numbers_difference(old, new, where)
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return arrays_difference(old, new, where)
    if isinstance(old, LossyFrame) and isinstance(new, LossyFrame):
        return frames_difference(old.pixels, new.pixels, where)
    if isinstance(old, dict) and isinstance(new, dict):
        return mapping_difference(old, new, where)
    if isinstance(old, list) and isinstance(new, list):
        return mapping_difference(dict(enumerate(old)), dict(enumerate(new)), where)
    if type(old) is type(new) and (old == new or repr(old) == repr(new)):
        return ""
    start = 0
    if isinstance(old, str) and isinstance(new, str):
        pairs = enumerate(zip(old, new, strict=False))
        same = next((place for place, (a, b) in pairs if a != b), min(len(old), len(new)))
        start = max(0, same - CONTEXT)
    return f"{where}: {shown(old, start)} became {shown(new, start)}"


def mapping_difference(old: dict[Any, Any], new: dict[Any, Any], where: str) -> str:
    """Return the first value in which two mappings differ, and the first keys of only one."""
    gone = [joined(where, key) for key in old if key not in new]
    come = [joined(where, key) for key in new if key not in old]
    found = (difference(old[key], new[key], joined(where, key)) for key in old if key in new)
    said = [next((line for line in found if line), "")]
    said += [f"{len(gone)} gone: {', '.join(gone[:SHOWN])}"] if gone else []
    said += [f"{len(come)} added: {', '.join(come[:SHOWN])}"] if come else []
    return "; ".join(line for line in said if line)


def joined(where: str, key: object) -> str:
    """Return a key below another one."""
    return f"{where}.{key}" if where else str(key)


def arrays_difference(old: np.ndarray, new: np.ndarray, where: str) -> str:
    """Compare arrays; those of texts and objects by their values."""
    if old.dtype.kind in "USO" or new.dtype.kind in "USO":
        return difference(stable(old.tolist()), stable(new.tolist()), where)
    if old.dtype != new.dtype:
        return f"{where}: {old.dtype} became {new.dtype}"
    return numbers_difference(torch.from_numpy(old.copy()), torch.from_numpy(new.copy()), where)


def frames_difference(old: np.ndarray, new: np.ndarray, where: str) -> str:
    """Compare frames of an MP4 by their mean absolute difference in levels."""
    if old.shape != new.shape:
        return f"{where}: {old.shape} became {new.shape}"
    apart = np.abs(old.astype(np.int16) - new).mean()
    return f"{where}: {apart:.1f} levels apart, at most {LOSSY:g} allowed" if apart > LOSSY else ""


def numbers_difference(old: Tensor, new: Tensor, where: str) -> str:
    """Compare tensors by type, shape and bytes, so that NaN equals NaN and 0 differs from -0."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        kinds = (f"{one.dtype} {tuple(one.shape)}" for one in (old, new))
        return f"{where}: {' became '.join(kinds)}"
    one, two = (value.contiguous().reshape(-1).view(torch.uint8) for value in (old, new))
    if torch.equal(one, two):
        return ""
    size = old.element_size()
    apart = (one != two).reshape(-1, size).any(1)
    place = int(apart.nonzero()[0])
    values = (value.reshape(-1)[place].item() for value in (old, new))
    largest = (old.double() - new.double()).abs().reshape(-1)[apart].max().item()
    return (
        f"{where}: {int(apart.sum())} of {old.numel()} numbers differ, by at most {largest:.3g}; "
        f"the first is number {place}: {' became '.join(map(str, values))}"
    )


def shown(value: object, start: int = 0) -> str:
    """Return a value for a message, short; of a text what follows `start`."""
    text = repr(value[start:] if isinstance(value, str) else value)
    text = f"…{text}" if start else text
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
