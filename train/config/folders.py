"""Folders of a recipe that must not lie within each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inference.runtime import InputError
from train.config.containers import is_address
from train.config.rules import Faults

if TYPE_CHECKING:
    from train.config.recipe import TrainRecipe

Named = Iterator[tuple[str, str | None]]
"""(recipe key, path)."""


def learned_folders(recipe: TrainRecipe) -> Named:
    """Yield the folders that are searched for images to learn."""
    data = recipe.data
    yield "data.path", data.path
    for name, subset in data.named_subsets.items():
        if subset.metadata_file is None:  # else it has exactly the images that the file names
            yield f"data.subsets.{name}.path", subset.path
    try:
        for name, concept in data.named_concepts.items():
            yield f"data.concepts.{name}.instance_data_dir", concept.instance_data_dir
            if concept.has_prior:
                yield f"data.concepts.{name}.class_data_dir", concept.class_data_dir
    except InputError:  # the checks of data report it
        return


def other_folders(recipe: TrainRecipe) -> Named:
    """Yield the folders whose images are not to be learned."""
    data = recipe.data
    yield "output_dir", recipe.output_dir
    yield "data.cache_dir", data.cache_dir
    if data.streaming is not None:
        yield "data.streaming.folder", data.streaming.folder
    if recipe.validation is not None:
        yield "validation.path", recipe.validation.path


def folder_faults(recipe: TrainRecipe) -> Faults:
    """Yield folders of results, caches and validation images that would be learned along.

    What lies in a hidden folder within the data is not searched.
    """
    learned = [(key, path) for key, path in learned_folders(recipe) if is_folder(path)]
    for key, path in other_folders(recipe):
        if not path or is_address(path):
            continue
        for outer_key, outer in learned:
            if outer and is_searched(path, outer):
                yield key, _within(key, path, outer_key, outer)
                break
    yield from _validated(recipe, learned)


def _validated(recipe: TrainRecipe, learned: Sequence[tuple[str, str | None]]) -> Faults:
    """Yield data that lie within the folder of validation images."""
    whole = recipe.validation.path if recipe.validation is not None else None
    if not whole or not is_folder(whole):
        return
    for key, path in learned:
        if path and _resolved(path) != _resolved(whole) and is_searched(path, whole):
            yield (
                key,
                f"{path!r} lies within validation.path {whole!r}, so that the images that are "
                "learned would be validated; take folders side by side",
            )


def _within(key: str, path: str, outer_key: str, outer: str) -> str:
    what = {"validation.path": "its images"}.get(key, "images that are written to it")
    return (
        f"{path!r} lies within {outer_key} {outer!r}, which is searched too, so that {what} would "
        "be learned; take folders side by side"
    )


def is_folder(path: str | None) -> bool:
    """Return whether a path is a folder on this disk."""
    return bool(path) and not is_address(path) and os.path.isdir(path or "")  # noqa: PTH112


def is_searched(path: str, root: str) -> bool:
    """Return whether a search of `root` comes to a path, which need not exist."""
    inner, outer = _resolved(path), _resolved(root)
    if not inner.is_relative_to(outer):
        return False
    return not any(part.startswith(".") for part in inner.relative_to(outer).parts)


def _resolved(path: str) -> Path:
    return Path(os.path.realpath(path))
