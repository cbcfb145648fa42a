"""Whether the files that a training recipe names exist: asked before the heavy libraries load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from inference.models import check_place
from train.common import DataError
from train.config import is_address

if TYPE_CHECKING:
    from train.config import TrainRecipe


def check_places(recipe: TrainRecipe) -> None:
    """Check that the base model, the folders of data and the thumbnail exist.

    Addresses, hub ids and patterns are left to those who read them.

    Raises:
        InputError: one does not exist; the message names its key.
    """
    check_place(recipe.base_model.path)
    for key, path in data_places(recipe):
        if not is_address(path) and "{" not in path and not _exists(path):
            raise DataError(f"{key}: {path!r} is not a folder")
    thumbnail = recipe.metadata.thumbnail
    if thumbnail is not None and not Path(thumbnail).expanduser().is_file():
        raise DataError(f"metadata.thumbnail: no such file: {thumbnail!r}")


def data_places(recipe: TrainRecipe) -> Iterator[tuple[str, str]]:
    """Yield the keys and paths of a recipe's data."""
    data = recipe.data
    subsets = {f"data.subsets.{name}.path": one and one.path for name, one in data.subsets.items()}
    concepts = {
        f"data.concepts.{name}.instance_data_dir": one and one.instance_data_dir
        for name, one in data.concepts.items()
    }
    held_back = recipe.validation.path if recipe.validation is not None else None
    places = {"data.path": data.path, **subsets, **concepts, "validation.path": held_back}
    for key, path in places.items():
        if path:
            yield key, path


def _exists(path: str) -> bool:
    """Return whether something is there, or may be: what cannot be looked at is reported later."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return True
