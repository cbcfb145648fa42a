"""Possible problems of a run's images: small ones, duplicates, near-duplicates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from train.data import Clip, Examples, Facts, Known, Picture, picture_facts
from train.plan.likeness import alike, equal

MOST_NAMED = 10
"""Maximum number of small images listed."""


@dataclass(frozen=True)
class SmallPicture:
    """An image that is smaller than its examples."""

    picture: str
    width: int
    height: int
    scale: float
    """Factor by which it is scaled up."""


@dataclass(frozen=True)
class Duplicates:
    """Images that occur several times."""

    same: list[list[str]]
    """Files with the same bytes."""
    near: list[list[str]]
    """Images that look alike (scaled, compressed again, …), by their perceptual hashes; of files
    with the same bytes only the first one is listed."""
    plain: int
    """Images with too little content for such a hash."""
    is_complete: bool
    """False if very many have similar hashes: some near-duplicates may be missing."""


@dataclass(frozen=True)
class PictureLint:
    """The lints of a run's images."""

    small: int
    """Images that are scaled up for their largest examples."""
    smallest: list[SmallPicture] = field(default_factory=list)
    """Those that are scaled up most."""
    duplicates: Duplicates | None = None
    """None without --check-pictures."""
    broken: list[str] = field(default_factory=list)
    """Errors of images that could not be read."""


def lint_pictures(
    pictures: Sequence[Picture],
    stages: Sequence[Examples],
    is_thorough: bool,
    seen: Callable[[], object] | None = None,
) -> PictureLint:
    """Check the images, or use their metadata in the index beside them.

    Args:
        pictures: the images of the run.
        stages: the examples of each stage.
        is_thorough: whether to search for duplicates, for which all bytes are read and all images
            decoded, once.
        seen: called after each image that was read.
    """
    paths = [picture.path for picture in pictures]
    clips = [one for one in pictures if isinstance(one, Clip)]
    wanted = Known.DIGEST if clips else Known.SIZE
    if is_thorough and not clips:
        wanted |= Known.DIGEST | Known.LIKENESS
    facts = picture_facts(paths, wanted, seen) if is_thorough or not clips else None
    sizes = {one.path: (one.facts.width, one.facts.height) for one in clips}
    if facts is not None and not clips:
        sound = [number for number in range(len(paths)) if number not in facts.faults]
        sizes = {paths[number]: facts.size(number) for number in sound}
    small = small_pictures(sizes, stages)
    return PictureLint(
        small=len(small),
        smallest=small[:MOST_NAMED],
        duplicates=duplicates(paths, facts) if facts is not None and is_thorough else None,
        broken=[] if facts is None else [str(fault) for fault in facts.faults.values()],
    )


def small_pictures(
    sizes: dict[Path, tuple[int, int]], stages: Sequence[Examples]
) -> list[SmallPicture]:
    """Return images that any stage scales up, those that are scaled up most first.

    An example of h x w is covered: the scale is max(w / width, h / height).
    """
    scales: dict[Path, float] = {}
    for examples in stages:
        for index, picture in enumerate(examples.pictures):
            if (size := sizes.get(picture.path)) is None:
                continue
            height, width = examples.shape(index)[-2:]
            scale = max(width / size[0], height / size[1])
            if scale > max(1, scales.get(picture.path, 1)):
                scales[picture.path] = scale
    order = sorted(scales.items(), key=lambda one: (-one[1], one[0]))
    return [SmallPicture(str(path), *sizes[path], round(scale, 2)) for path, scale in order]


def duplicates(paths: Sequence[Path], facts: Facts) -> Duplicates:
    """Return files with the same bytes, and images that look alike."""
    sound = [number for number in range(len(paths)) if number not in facts.faults]
    digests = facts.records["digest"]
    same = equal([digests[number].tobytes() for number in sound])
    again = {number for group in same for number in group[1:]}
    near, plain, is_complete = [], 0, True
    known = (facts.records["known"][sound] & Known.LIKENESS) > 0
    if known.all():
        own = [place for place in range(len(sound)) if place not in again]
        found = alike(facts.records["likeness"][[sound[place] for place in own]])
        near = [[str(paths[sound[own[place]]]) for place in group] for group in found.groups]
        plain, is_complete = found.plain, found.is_complete
    names = [[str(paths[sound[place]]) for place in group] for group in same]
    return Duplicates(names, near, plain, is_complete)
