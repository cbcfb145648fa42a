"""Whole tensors in the files of a checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from inference.files import framed_header, header_entries, is_finite, sound, tensor_bytes
from inference.runtime import ArtifactError
from train.common import RunDirectoryError
from train.optimization.strategies.base import Content
from train.runs import CheckpointWriter, HashedFile

TRAINED = "trained.safetensors"
OPTIMIZER = "optimizer.pt"
AVERAGES = "ema.safetensors"


def write_content(writer: CheckpointWriter, content: Content) -> None:
    """Write the tensors of a process that has all of them whole."""
    averages = content.averages
    if averages is not None:
        averages = {str(i): value for i, value in enumerate(averages)}
    state = {"optimizer": content.optimizer.state_dict(), **content.others}
    write_whole(writer, content.objective.state_dict(), state, averages)


def write_whole(
    writer: CheckpointWriter,
    trained: Mapping[str, Tensor],
    state: Mapping[str, Any],
    averages: Mapping[str, Tensor] | None,
) -> None:
    """Write whole tensors: the objective's, the optimizer's state beside `Content.others`, the EMA.

    Raises:
        OSError: a file cannot be written.
    """
    with writer.file(TRAINED) as file:
        write_tensors(trained, file)
    with writer.file(OPTIMIZER) as file:
        torch.save(dict(state), file)  # pyright: ignore[reportArgumentType]
    if averages is not None:
        with writer.file(AVERAGES) as file:
            write_tensors(averages, file)


def read_content(folder: Path, content: Content) -> dict[str, Any]:
    """Restore what `write_content` wrote; return `Content.others`.

    Raises:
        RunDirectoryError: a tensor in it is not finite, or no plain one.
    """
    content.objective.load_state_dict(trained_tensors(folder / TRAINED))
    state = read_state(folder)
    content.optimizer.load_state_dict(state.pop("optimizer"))
    if content.averages is not None:
        averages = trained_tensors(folder / AVERAGES)
        for i, shadow in enumerate(content.averages):
            shadow.data.copy_(averages[str(i)])
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """Return the optimizer's state beside `Content.others`, on the CPU.

    Raises:
        RunDirectoryError: a tensor in it is no plain one.
    """
    state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    check_content(folder / OPTIMIZER, state)
    return state


def trained_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's safetensors file.

    Raises:
        RunDirectoryError: one is not finite, or no plain tensor.
    """
    tensors = {}
    for name, tensor in load_file(path).items():
        tensors[name] = checked(path, name, tensor)
        if not is_finite(tensors[name]):
            raise RunDirectoryError(
                f"{path}: {name!r} is not finite (NaN or infinite), so the run cannot continue from"
                " it; delete this checkpoint to continue from the one before"
            )
    return tensors


def check_content(path: Path, content: object, name: object = "") -> None:
    """Check all tensors in the nested content of a pickle.

    Raises:
        RunDirectoryError: one is no plain tensor.
    """
    if isinstance(content, Tensor):
        checked(path, name, content)
    elif isinstance(content, dict):
        for key, value in content.items():
            check_content(path, value, key)
    elif isinstance(content, list | tuple):
        for value in content:
            check_content(path, value, name)


def checked(path: Path, name: object, tensor: Tensor) -> Tensor:
    """Return a tensor as a plain one.

    Raises:
        RunDirectoryError: it has no values, is sparse or of another kind that no run writes.
    """
    try:
        return sound(path, name, tensor)
    except ArtifactError as error:
        raise RunDirectoryError(f"{error}; or delete this checkpoint") from error


def write_tensors(tensors: Mapping[str, Tensor], file: HashedFile) -> None:
    """Write a safetensors file one tensor after the other, so that none is held twice.

    A tensor with two names (T5's embedding) is written twice.

    Raises:
        OSError: the file cannot be written.
    """
    file.write(framed_header(json.dumps(header_entries(tensors), separators=(",", ":"))))
    for data in tensor_bytes(tensors):
        file.write(data)
