"""Files of tensors: read without running what is in them, written whole and byte for byte equal."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inference.files.atomic import sync, write_atomically
from inference.files.hashes import (
    read_header,
)
from inference.runtime import ArtifactError

EMBEDDING_PICTURES = (".png", ".webp", ".avif", ".jxl")
"""Endings of embeddings in pictures."""


PICKLES = (".pt", ".ckpt", ".pth", ".bin")

FORMATS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Number formats by their names in safetensors headers."""


class _Callback:
    """Stands for a class of pytorch-lightning, by whose name old checkpoints keep their state."""


UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError,
    AttributeError,
)  # fmt: skip
"""What reading damaged or harmful pickles ends in."""

SAFE_CLASSES: list[Any] = [
    torch.nn.ParameterDict,  # old embeddings
    (_Callback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),  # SD 1.4's .ckpt
]
"""What pickles may name beside tensors and plain data; none of it does anything."""


class TensorFile(NamedTuple):
    """A file of tensors, each read when it is asked for."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    read: Callable[[str], Tensor]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata (none in pickles).

    Pickles are read with `weights_only`, so nothing in them is run.

    Raises:
        ArtifactError: not a safetensors file or a pickle of tensors.
    """
    if path.suffix in PICKLES:
        content = read_pickle(path)
        return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}, {}
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def open_tensors(path: Path) -> TensorFile:
    """The same, without holding all tensors in memory at once where the file allows it.

    Raises:
        ArtifactError: not a safetensors file or a pickle of tensors.
    """
    if path.suffix in PICKLES:
        tensors, _ = read_tensors(path)
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        return TensorFile(shapes, {}, tensors.__getitem__)
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
    return TensorFile(shapes, metadata, file.get_tensor)


def read_pickle(path: Path) -> dict[Any, Any]:
    """The dict in a pickle, or under its `state_dict` or `module` (SAT's); nothing in it is run.

    Raises:
        ArtifactError: it is no pickle, holds more than data, or no dict.
    """
    try:
        with torch.serialization.safe_globals(SAFE_CLASSES), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    for inner in ("state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(inner), dict):
            content = content[inner]
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: expected a dict, found a {type(content).__name__}")
    return content


def unreadable(path: Path, error: Exception) -> ArtifactError:
    """The error for a file that its reader refused."""
    size = path.stat().st_size
    asked_for = re.search(r"GLOBAL (\S+)", str(error))
    if asked_for:
        return ArtifactError(
            f"{path}: cannot be read as a pickle ({size} bytes): it asks for {asked_for[1]}, and "
            "only data is read from pickles, since anything else could run programs on this "
            "machine. If you trust where it comes from, convert it to safetensors there"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    kind = "a pickle" if path.suffix in PICKLES else "safetensors"
    return ArtifactError(f"{path}: cannot be read as {kind} ({size} bytes): {reason}")


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file; equal for equal input.

    safetensors itself writes metadata in an order that differs from process to process.
    """
    raw = safetensors.torch.save(tensors)
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if metadata:
        header = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes what `serialize` makes, one tensor after another: no second copy is held in memory."""
    assert sys.byteorder == "little", "safetensors files are little-endian"
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    start = 0
    for key in order:
        tensor = tensors[key]
        end = start + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[key] = {"dtype": FORMATS[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key in order:
                flat = tensors[key].detach().cpu().contiguous().reshape(-1)
                flat.view(torch.uint8).numpy().tofile(file)

    write_atomically(path, write)


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a folder of another name, makes it durable, then puts it in place.

    Args:
        target: the folder's final path; what is there is replaced.
        write: fills the new, empty folder that it is given.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    replaced = target.with_name(f".{target.name}.replaced")
    for left_over in (unfinished, replaced):  # by a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        unfinished.mkdir()
        write(unfinished)
        for entry in [*unfinished.rglob("*"), unfinished]:
            sync(entry)
        if target.exists():
            target.rename(replaced)
        unfinished.rename(target)
        sync(target.parent)
    finally:
        for left_over in (unfinished, replaced):
            shutil.rmtree(left_over, ignore_errors=True)
