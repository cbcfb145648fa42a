"""Files as other programs see them: read without Limner's readers, changed, and written again."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file


@dataclass
class Tensors:
    """A safetensors file: its tensors and its metadata."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> Tensors:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return Tensors(load_file(path), header.get("__metadata__", {}))


def write(path: Path, file: Tensors) -> None:
    save_file(file.tensors, path, file.metadata)


def records(path: Path) -> dict[str, bytes]:
    """The records of a zip file by name."""
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def write_records(path: Path, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, value in content.items():
            file.writestr(name, value)


def classes(pickled: bytes) -> set[str]:
    """The names that a pickle imports, as `module name`; nothing of it is executed."""
    found, texts = set(), []
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            found.add(argument)
        elif opcode.name == "STACK_GLOBAL":
            found.add(" ".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
    return found


def unpickled(path: Path) -> Any:
    return torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)


def must_fail(check: Callable[..., None], *arguments: Any) -> None:
    """The proof that a check sees a change."""
    with pytest.raises(AssertionError):
        check(*arguments)
