"""Hashes that identify models and artifacts, by A1111's and kohya's rules."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from inference.files.hash_cache import remembered
from inference.runtime import InputError

LARGEST_HEADER = 100_000_000
"""Maximum header size in bytes; the limit of the safetensors format."""


ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Files with the weights of a peft adapter."""


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: `__metadata__`, dtype and shape of every tensor.

    Raises:
        InputError: it is not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, path.stat().st_size - 8):
                raise ValueError(f"its header cannot have {length} bytes")
            header = json.loads(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {error}") from error
    return header


def sha256(path: Path, after_header: bool = False) -> str:
    """Return the SHA-256 of a file, cached while it is unchanged; for large files also on disk.

    Args:
        path: the file.
        after_header: of a safetensors file, hash only what follows the header: the same weights
            with other metadata have the same hash.
    """
    status = path.stat()
    return _sha256(path.resolve(), after_header, status.st_size, status.st_mtime_ns)


@lru_cache
def _sha256(path: Path, after_header: bool, size: int, changed: int) -> str:
    kind = "sha256 after header" if after_header else "sha256"
    return remembered(path, kind, _take_after_header if after_header else _take)


def _take(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _take_after_header(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def old_hash(path: Path) -> str:
    """Return A1111's model hash until January 2023: 8 digits, of 64 KiB from the second MiB on.

    A file that ends before has the hash of empty data: `e3b0c442`.
    """
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def lora_legacy_hash(path: Path) -> str:
    """Return kohya's `sshs_legacy_hash` from the metadata, otherwise the file's `old_hash`."""
    if path.suffix.lower() != ".safetensors":
        return old_hash(path)
    return read_header(path).get("__metadata__", {}).get("sshs_legacy_hash") or old_hash(path)


def lora_hash(path: Path) -> str:
    """Return A1111's hash of a LoRA (it shows 12 digits): from the metadata, or of its weights."""
    if path.suffix.lower() != ".safetensors":
        return sha256(path)
    status = path.stat()
    said = _said_hash(path.resolve(), status.st_size, status.st_mtime_ns)
    return said or sha256(path, after_header=True)


@lru_cache(maxsize=4096)
def _said_hash(path: Path, size: int, changed: int) -> str | None:
    """Return the hash in a LoRA's metadata; cached while the file is unchanged."""
    said = read_header(path).get("__metadata__", {}).get("sshs_model_hash")
    return said if isinstance(said, str) else None


def weights_file(folder: Path) -> Path | None:
    """Return the weight file of a model part, the first of several; None if there is none."""
    usual = folder / "diffusion_pytorch_model.safetensors"
    found = [usual, *sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.bin"))]
    return next((file for file in found if file.is_file()), None)


def adapter_file(folder: Path) -> Path | None:
    """Return the weight file of a peft adapter; of one for several parts that of the denoiser."""
    inner = sorted(one for one in folder.iterdir() if one.is_dir())
    inner.sort(key=lambda one: one.name not in ("unet", "transformer"))
    files = [place / name for place in (folder, *inner) for name in ADAPTER_FILES]
    return next((file for file in files if file.is_file()), None)


def artifact_hash(path: Path, kind: str) -> str | None:
    """Return A1111's hash of an artifact; for a folder, the hash of its UNet's weights."""
    if path.is_dir() and kind == "lora":
        file = adapter_file(path)
        return lora_hash(file) if file else None
    if path.is_dir():
        file = weights_file(path / "unet")
        return sha256(file) if file else None
    return lora_hash(path) if kind == "lora" else sha256(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's mapping; empty if the file does not exist.

    Raises:
        InputError: it is no JSON mapping.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping, found a {type(content).__name__}")
    return content
