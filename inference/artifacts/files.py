"""Files of tensors: read without running what is in them, written whole and byte for byte equal."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inference.artifacts.base import ArtifactError
from inference.artifacts.embedding_picture import PICTURES, read_picture

PICKLES = (".pt", ".ckpt", ".pth", ".bin")


def read_keys(path: Path) -> list[str]:
    """Names of the tensors in a file; of a safetensors file only the header is read.

    Of a pickle all keys of its dict as text, or of the dict under `state_dict`; of a picture those
    of the embedding that it carries.
    """
    if path.suffix in PICTURES:
        return [*(read_picture(path) or {})]
    if path.suffix in PICKLES:
        return [str(key) for key in read_pickle(path)]
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


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


def read_pickle(path: Path) -> dict[Any, Any]:
    """The dict in a pickle, or the one under its `state_dict`; nothing in it is run.

    Raises:
        ArtifactError: it is no pickle, holds more than data, or no dict.
    """
    try:
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):  # old embeddings
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError) as error:
        raise unreadable(path, error) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
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
            make_durable(entry)
        if target.exists():
            target.rename(replaced)
        unfinished.rename(target)
        make_durable(target.parent)
    finally:
        for left_over in (unfinished, replaced):
            shutil.rmtree(left_over, ignore_errors=True)


def make_durable(path: Path) -> None:
    """Has the system put a file's or folder's content on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
