"""Pictures that validation looks at and training does not: a share by name, or another folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.data.errors import DataError
from train.data.folder import Picture, fingerprint
from train.data.shards import folders_of

if TYPE_CHECKING:
    from train.config import TrainRecipe
    from train.data.sources import Sources

RANGE = 2**56
"""Numbers of pictures lie below."""


@dataclass(frozen=True)
class HeldBack:
    """What validation looks at."""

    pictures: list[Picture] = field(default_factory=list)
    """By their numbers."""
    numbers: dict[Path, int] = field(default_factory=dict)
    """A number of each, which follows from its name and the seed; noise is drawn by it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What environment.json tells of another folder; a resumed run must have the same."""


def hold_back(
    recipe: TrainRecipe, sources: Sources, find: Callable[[TrainRecipe], Sources]
) -> Sources:
    """The sources with what is held back, and without it among what is learned.

    Args:
        recipe: the run's.
        sources: all that it has.
        find: finds the pictures of another folder.

    Raises:
        DataError: nothing would be left to be learned; pictures of the other folder cannot be used.
    """
    config = recipe.validation
    if config is None:
        return sources
    if config.path is not None:
        source = {"path": config.path, "subsets": {}, "concepts": {}, "concepts_list": None}
        if recipe.data.streaming is not None:  # which is the run's own
            source |= {"streaming": None, "revision": None}
        other = replace(recipe.data, **source)
        found = find(replace(recipe, data=other)).pictures
        root = Path(config.path)
        facts = {
            "validation_pictures": len(found),
            "validation_fingerprint": fingerprint(found, root),
        }
        numbers = {one.path: number_of(one, [root], config.seed) for one in found}
        return replace(sources, held_back=chosen(numbers, found, config.max_examples, facts))
    assert config.split is not None
    roots = roots_of(sources)
    numbers = {one.path: number_of(one, roots, config.seed) for one in sources.pictures}
    limit = max(config.split * RANGE, min(numbers.values()) + 1)  # one at least
    inside = [one for one in sources.pictures if numbers[one.path] < limit]
    if len(inside) == len(sources.pictures):
        raise DataError(
            f"validation.split: {config.split} of {len(inside)} pictures holds all of them back; "
            "take a smaller share, another validation.seed, or validation.path"
        )
    left = [one for one in sources.pictures if numbers[one.path] >= limit]
    held = chosen(numbers, inside, config.max_examples, {})
    return replace(sources, pictures=left, held_back=held)


def chosen(
    numbers: dict[Path, int], pictures: Sequence[Picture], limit: int | None, facts: dict[str, Any]
) -> HeldBack:
    """Those with the lowest numbers."""
    ordered = sorted(pictures, key=lambda one: (numbers[one.path], one.path))[:limit]
    return HeldBack(ordered, {one.path: numbers[one.path] for one in ordered}, facts)


def number_of(picture: Picture, roots: Sequence[Path], seed: int) -> int:
    """Evenly distributed in 0 … 2^56-1; follows from a name within its folder, and the seed."""
    root = next((root for root in roots if picture.path.is_relative_to(root)), None)
    name = picture.path.relative_to(root) if root is not None else picture.path
    said = f"{seed}\n{name.as_posix()}".encode()
    digest = hashlib.blake2b(said, digest_size=7, person=b"validation").digest()
    return int.from_bytes(digest)


def roots_of(sources: Sources) -> list[Path]:
    """The folders that a run's pictures were found in."""
    folders = [sources.config.path, *(one.config.instance_data_dir for one in sources.concepts)]
    folders += [one.config.path for one in sources.subsets]
    streamed = folders_of(picture.path for picture in sources.pictures)
    return [*streamed, *(Path(folder) for folder in folders if folder is not None)]
