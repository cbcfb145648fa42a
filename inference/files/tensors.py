"""Tensor files: read without executing code in them, written atomically and reproducibly."""

from __future__ import annotations

import json
import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inference.files.atomic import sync, write_atomically
from inference.files.hashes import read_header
from inference.files.temporary import set_aside, unfinished
from inference.files.tensor_checks import refuse_not_finite, sound, sound_content
from inference.runtime import ArtifactError, naming

EMBEDDING_PICTURES = (".png", ".webp", ".avif", ".jxl")
"""Suffixes of images that can contain an embedding."""


PICKLES = (".pt", ".ckpt", ".pth", ".bin")

FORMATS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Data types by their names in safetensors headers."""


LARGEST_AT_ONCE = 1 << 26
"""Maximum bytes of a safetensors file that is read as a whole, not tensor by tensor."""


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
        ArtifactError: not a safetensors file or a pickle of tensors, or a tensor cannot be used.
    """
    if path.suffix.lower() in PICKLES:
        content = read_pickle(path)
        return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}, {}
    if path.is_file() and path.stat().st_size <= LARGEST_AT_ONCE and (found := _at_once(path)):
        return found
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {
                key: sound(path, key, file.get_tensor(key))
                for key in file.keys()  # noqa: SIM118
            }
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def _at_once(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return what `read_tensors` does, some times faster; None if that has to say what is wrong.

    Sorted by name, as safe_open lists them; safetensors.torch.load has no order.
    """
    try:
        content = path.read_bytes()
        read = safetensors.torch.load(content)
        metadata = _metadata(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())
    except (SafetensorError, OSError, LookupError, ValueError):
        return None
    return {key: sound(path, key, read[key]) for key in sorted(read)}, metadata


def _metadata(header: str) -> dict[str, str]:
    """Return the metadata in a header of a safetensors file; without the rest if it comes first."""
    begin = '{"__metadata__":'
    if header.startswith(begin):
        return dict(json.JSONDecoder().raw_decode(header, len(begin))[0])
    return dict(json.loads(header).get("__metadata__") or {})


def open_tensors(path: Path) -> TensorFile:
    """Open a tensor file without loading all tensors at once, where the format allows it.

    Raises:
        ArtifactError: not a safetensors file or a pickle of tensors.
    """
    if path.suffix.lower() in PICKLES:
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
    return TensorFile(shapes, metadata, lambda key: sound(path, key, file.get_tensor(key)))


def read_pickle(path: Path) -> dict[Any, Any]:
    """Return the dict in a pickle, or under its `state_dict` or `module` (SAT); executes no code.

    Raises:
        ArtifactError: it is not a pickle, contains more than data, has no dict, or a tensor in it
            cannot be used.
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
    return sound_content(path, content)


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
    kind = "a pickle" if path.suffix.lower() in PICKLES else "safetensors"
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

    Raises:
        NotFiniteError: a value is not finite.
    """
    refuse_not_finite(tensors)
    raw = safetensors.torch.save(tensors)
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if metadata:
        header = {"__metadata__": dict(sorted(metadata.items())), **header}
    return framed_header(_json(header)) + raw[8 + length :]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write what `serialize` returns, one tensor at a time, without a second copy in memory.

    Raises:
        NotFiniteError: a value is not finite.
    """
    refuse_not_finite(tensors)
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    header |= header_entries(tensors)

    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as file:
            file.write(framed_header(_json(header)))
            for data in tensor_bytes(tensors):
                data.tofile(file)

    write_atomically(path, write)


def header_entries(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the tensors' entries in a safetensors header, in the order of their bytes."""
    entries: dict[str, Any] = {}
    end = 0
    for key in _order(tensors):
        tensor, start = tensors[key], end
        end += tensor.nbytes
        kind, shape = FORMATS[tensor.dtype], list(tensor.shape)
        entries[key] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    return entries


def framed_header(header: str) -> bytes:
    """Return the beginning of a safetensors file: the header's length and its padded text."""
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensors: Mapping[str, Tensor]) -> Iterator[np.ndarray]:
    """Yield the bytes of the tensors that have any, one tensor at a time, in the file's order."""
    assert sys.byteorder == "little", "safetensors files are little-endian"
    for key in _order(tensors):
        flat = tensors[key].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy()


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda key: (-tensors[key].itemsize, key))


def _json(header: dict[str, Any]) -> str:
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False)


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder with a hidden name, flush it to disk, then rename it.

    Args:
        target: the folder's final path; an existing one is replaced.
        write: fills the new, empty folder that it receives.

    Raises:
        OSError: it cannot be written.
    """
    with unfinished(target) as folder, naming(target, folder):
        folder.mkdir()
        write(folder)
        for entry in [*folder.rglob("*"), folder]:
            sync(entry)
        with set_aside(target):
            folder.rename(target)
            sync(target.parent)
