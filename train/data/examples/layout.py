"""The sizes of the images of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from train.config import Size
from train.data.examples.picture_buckets import Place, SizeRule
from train.data.pictures import CorruptImages, Known, picture_facts
from train.data.sources import Picture


class Layout:
    """A place for each image, 16 bytes in memory."""

    def __init__(self, places: Sequence[Place]) -> None:
        sides = [(*place.size, *(place.scaled or (0, 0))) for place in places]
        self.sides = np.array(sides, np.int32).reshape(-1, 4)
        """(n, 4): height and width of the example, then of the scaled picture or 0."""

    def __len__(self) -> int:
        return len(self.sides)

    def __add__(self, other: "Layout") -> "Layout":
        both = Layout([])
        both.sides = np.concatenate([self.sides, other.sides])
        return both

    def place(self, index: int) -> Place:
        """Return the place of an image."""
        height, width, *scaled = self.sides[index].tolist()
        return Place(Size(height, width), Size(*scaled) if scaled[0] else None)

    @property
    def sizes(self) -> list[Size]:
        """Return all sizes that occur."""
        return [Size(*sides) for sides in np.unique(self.sides[:, :2], axis=0).tolist()]

    @property
    def numbers(self) -> np.ndarray:
        """Return (n,): the index of each image's size in `sizes`."""
        return np.unique(self.sides[:, :2], axis=0, return_inverse=True)[1].reshape(-1)


ResizeRule = tuple[SizeRule, str]
"""The size rule of a subset's images, and its `resize`."""


def assign_buckets(
    paths: Sequence[Path], subsets: Sequence[str], rules: Mapping[str, ResizeRule]
) -> Layout:
    """Return the places of images.

    Args:
        paths: the files of the images.
        subsets: the name of each image's subset.
        rules: rules of the subsets, by name. With `resize: own_size` images keep their sizes.

    Raises:
        InputError: the base model does not accept the sizes of the recipe.
        DataError: images cannot be read, or are too small; all are listed.
    """
    for rule, _ in rules.values():
        rule.check()
    facts = picture_facts(paths, Known.SIZE).check()
    corrupt = CorruptImages(len(paths), remedy="")
    known: dict[tuple[int, int, str], Place] = {}
    places: list[Place] = []
    for index, (path, subset) in enumerate(zip(paths, subsets, strict=True)):
        width, height = facts.size(index)
        place = known.get((width, height, subset))
        if place is None:
            with corrupt.gathered(path):
                place = _place(width, height, *rules[subset])
                known[width, height, subset] = place
        if place is not None:
            places.append(place)
    corrupt.refuse()
    return Layout(places)


def _place(width: int, height: int, rule: SizeRule, resize: str) -> Place:
    if resize == "own_size":
        return replace(rule, buckets=None).place(width, height)
    if rule.buckets is None:
        return Place(Size(rule.resolution, rule.resolution))
    place = rule.place(width, height)
    return place if resize == "cover" else Place(place.size)


def paired_class_images(
    pictures: Sequence[Picture], groups: Sequence[Sequence[Size]]
) -> tuple[list[Picture], Layout]:
    """Return class images at the sizes of the images that they are paired with.

    In each group of sizes an image is assigned to the nearest aspect ratio. A size without images
    borrows all of the nearest size that has some, so that images may occur more than once.

    Args:
        pictures: the class images.
        groups: the sizes of each resolution; no size is in two groups.

    Returns:
        The images, with repetitions, and their places.

    Raises:
        DataError: images cannot be read; all are listed.
    """
    facts = picture_facts([picture.path for picture in pictures], Known.SIZE).check()
    own = np.array([np.divide(*facts.size(index)) for index in range(len(pictures))])
    indices: list[np.ndarray] = []
    places: list[Place] = []
    for sizes in groups:
        ratios = np.array([size.width / size.height for size in sizes])
        chosen = np.abs(own[:, None] - ratios).argmin(1)
        taken, numbers = np.unique(chosen), [chosen]
        indices.append(np.arange(len(pictures)))
        for number in np.setdiff1d(np.arange(len(sizes)), taken):
            lender = taken[np.abs(ratios[taken] - ratios[number]).argmin()]
            indices.append(np.flatnonzero(chosen == lender))
            numbers.append(np.full(len(indices[-1]), number))
        places += [Place(sizes[number]) for number in np.concatenate(numbers).tolist()]
    return [pictures[index] for index in np.concatenate(indices).tolist()], Layout(places)
