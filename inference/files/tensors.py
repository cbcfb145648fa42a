"""Tensor files: read without executing code in them, written atomically and reproducibly."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
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
"""Suffixes of images that can contain an embedding."""


PICKLES = (".pt", ".ckpt", ".pth", ".bin")

FORMATS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Data types by their names in safetensors headers."""


class _Callback:
    """Stands in for a class of pytorch-lightning that old checkpoints name in their state."""


UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError,
    AttributeError, struct.error, RecursionError,
)  # fmt: skip
"""Errors that reading damaged or malicious pickles can raise."""

SAFE_CLASSES: list[Any] = [
    torch.nn.ParameterDict,  # old embeddings
    (_Callback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),  # SD 1.4's .ckpt
]
"""Classes that pickles may name besides tensors and plain data; none of them has side effects."""


class TensorFile(NamedTuple):
    """A tensor file that reads each tensor on access."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    read: Callable[[str], Tensor]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, on the CPU, and its metadata (empty for pickles).

    Pickles are read with `weights_only`, so no code in them is executed.

    Raises:
        ArtifactError: not a safetensors file or a pickle of tensors, or see `check_tensors`.
    """
    if path.suffix in PICKLES:
        tensors, metadata = _pickled_tensors(path), {}
    else:
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                metadata = dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise unreadable(path, error) from error
    check_tensors(path, tensors)
    return tensors, metadata


def _pickled_tensors(path: Path) -> dict[str, Tensor]:
    content = read_pickle(path)
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


MOST_LEVELS = 16
"""Maximum nesting of mappings and lists in an artifact's pickle; hypernetworks have 3."""


def check_tensors(path: Path, content: Any, name: str = "", level: int = 0) -> None:
    """Check that all tensors in the mappings and lists of a file are what an artifact has.

    Raises:
        ArtifactError: one has no values of its own, or is not finite; the message names it.
    """
    if isinstance(content, Tensor):
        if problem := _unusable(content):
            raise ArtifactError(f"{path}: tensor {name[:100]!r} {problem}")
    elif isinstance(content, dict | list | tuple):
        if level == MOST_LEVELS:
            raise ArtifactError(f"{path}: has more than {MOST_LEVELS} nested levels")
        members = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in members:
            check_tensors(path, value, f"{name}.{key}" if name else str(key), level + 1)


def _unusable(tensor: Tensor) -> str | None:
    """Return what is wrong with a tensor of an artifact; None if it can be used."""
    if tensor.is_meta:
        return "has a shape, but no values (meta); write the file anew from the original"
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else "sparse"
        return f"is {kind}; expected a dense one (tensor.to_dense(), tensor.dequantize())"
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > stored:
        return f"is expanded: {tensor.numel()} values of which {stored} are stored"
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() == 1):
        return f"has the data type {tensor.dtype}; expected fp32, fp16 or bf16"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return "has values that are not finite (NaN or infinite): it would draw black or noise"
    return None


def open_tensors(path: Path) -> TensorFile:
    """Open a tensor file without loading all tensors at once, where the format allows it.

    Raises:
        ArtifactError: not a safetensors file or a pickle of tensors.
    """
    if path.suffix in PICKLES:
        tensors = _pickled_tensors(path)
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
    """Return the dict in a pickle, or under its `state_dict` or `module` (SAT); executes no code.

    Raises:
        ArtifactError: it is not a pickle, contains more than data, or has no dict.
    """
    try:
        with torch.serialization.safe_globals(SAFE_CLASSES):
            content = load_data(path, mmap=zipfile.is_zipfile(path))
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    for inner in ("state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(inner), dict):
            content = content[inner]
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: expected a dict, found a {type(content).__name__}")
    return content


def load_data(path: Path, mmap: bool = False) -> Any:
    """Return the tensors and plain data of a pickle; code in it is not executed.

    Raises:
        Any of UNREADABLE: it is damaged, or contains something else.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def unreadable(path: Path, error: Exception) -> ArtifactError:
    """Return the error for a file that cannot be read."""
    size = path.stat().st_size
    asked_for = re.search(r"GLOBAL (\S+)", str(error))
    if asked_for:
        return ArtifactError(
            f"{path}: cannot be read as a pickle ({size} bytes): it asks for {asked_for[1]}, and "
            "only data is read from pickles, since anything else could run programs on this "
            "machine. If you trust where it comes from, convert it to safetensors there"
        )
    kind = "a pickle" if path.suffix in PICKLES else "safetensors"
    return ArtifactError(f"{path}: cannot be read as {kind} ({size} bytes): {reason_of(error)}")


def reason_of(error: Exception) -> str:
    """Return the first line of an error, without torch's advice to read pickles with their code."""
    text = str(error).strip()
    if found := re.search(r"WeightsUnpickler error: (.+)", text):
        return found[1]
    if "weights_only" in text or "Weights only" in text:
        return "it is no pickle of tensors and plain data"
    return text.splitlines()[0] if text else type(error).__name__


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return the bytes of a safetensors file; equal for equal input.

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
    """Write what `serialize` returns, one tensor at a time, without a second copy in memory."""
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
    """Let `write` fill a folder with a temporary name, flush it to disk, then rename it.

    Args:
        target: the folder's final path; an existing one is replaced.
        write: fills the new, empty folder that it receives.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    replaced = target.with_name(f".{target.name}.replaced")
    for left_over in (unfinished, replaced):  # left by a process that was killed
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
