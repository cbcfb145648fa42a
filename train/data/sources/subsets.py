"""Subsets: the images of each, how they become examples, and their repeats."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from inference.runtime import check_readable
from train.common import DataError
from train.config import ExampleConfig, SubsetConfig, TrainRecipe
from train.data.containers import (
    METADATA,
    exists,
    nfc,
    parsed_json,
    picture_extensions,
    read_text,
    windows_parts,
)
from train.data.pictures import sound_paths
from train.data.sources.captions import asks_for_captions, read_template
from train.data.sources.folder import Picture, fingerprint, picture_files, with_captions
from train.data.sources.mask_files import parted
from train.data.sources.metadata import read_metadata
from train.data.sources.texts import check_caption


@dataclass(frozen=True)
class Subset:
    """A part of the images and how they become examples. Without a name: all of them."""

    name: str
    config: SubsetConfig
    template: tuple[str, ...]
    pictures: list[Picture] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Return a hash of the images, their captions and repeats."""
        said = self.name, str(self.config.repeats), str(self.config.is_reg), *self.template
        return fingerprint(self.pictures, Path(self.config.path or ""), said)


def default_subset(config: ExampleConfig, template: Sequence[str]) -> Subset:
    """Return all images as one subset, with the settings of a recipe without subsets."""
    own = {one.name: vars(config)[one.name] for one in fields(ExampleConfig)}
    return Subset("", SubsetConfig(**own), tuple(template))


def at_resolution(subset: Subset, run: ExampleConfig, stage: ExampleConfig) -> Subset:
    """Return a subset with the resolution of a stage, unless the subset has its own."""
    if subset.config.resolution not in (None, run.resolution):
        return subset
    return replace(subset, config=replace(subset.config, resolution=stage.resolution))


def find_subsets(recipe: TrainRecipe, left_out: Counter[str]) -> list[Subset]:
    """Return the recipe's subsets with their images, those of class images last.

    Args:
        recipe: the recipe.
        left_out: gets the number of files left out that look like data, by kind.

    Raises:
        DataError: folders or captions cannot be used; those of all subsets are reported together.
    """
    found: list[Subset] = []
    faults: list[str] = []
    for name, config in recipe.data.named_subsets.items():
        try:
            found.append(_find(name, config, recipe, left_out))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    return sorted(found, key=lambda subset: subset.config.is_reg)


def _find(name: str, config: SubsetConfig, recipe: TrainRecipe, left_out: Counter[str]) -> Subset:
    key = f"data.subsets.{name}"
    word = recipe.objective.word or recipe.name
    template = read_template(config.captions.template, word, f"{key}.captions")
    if config.metadata_file is not None:
        captions = kohya_metadata(Path(config.metadata_file), config, f"{key}.metadata_file")
        paths, metadata = sorted(captions), Path(config.metadata_file).name
    else:
        assert config.path is not None
        paths = picture_files(config.path, f"{key}.path", config, left_out)
        captions, metadata = read_metadata(config.path, config, f"{key}.path"), METADATA
    masks_key = "data.masks" if config.masks == recipe.data.masks else f"{key}.masks"
    root = Path(config.path or "")
    paths, masks = parted(paths, root, config.masks, left_out, masks_key)
    try:
        digests = recipe.data.cache == "disk" and recipe.data.caches_latents
        paths = sound_paths(paths, recipe.data.broken_pictures, digests)
    except DataError as error:
        raise DataError(f"{key}: {error}") from None
    if recipe.objective.learns_from_captions and asks_for_captions(template):
        pictures = with_captions(
            paths,
            captions,
            config.captions,
            key=f"{key}.captions",
            metadata=metadata,
            left_out=left_out,
        )
    else:
        pictures = [Picture(path, ()) for path in paths]
    return Subset(
        name,
        config,
        template,
        [replace(one, subset=name, mask=masks.get(one.path)) for one in pictures],
    )


def kohya_metadata(file: Path, config: SubsetConfig, key: str) -> dict[Path, tuple[str, ...]]:
    """Return the images that a kohya metadata json names, and their captions.

    An image is named by its path, as it is or within the subset's folder, with or without its
    extension; paths that Windows wrote are read too. Its tags are appended to its caption, as in
    `FineTuningDataset` of kohya's `library/train_util.py`; `train_resolution`, of images scaled in
    advance, is ignored.

    Raises:
        DataError: it cannot be read, is no such file, or images are missing; `key` is its
            recipe key.
    """
    check_readable(file, key)
    try:
        text = read_text(file)
    except OSError as error:
        raise DataError(f"{key}: {str(file)!r} cannot be read: {error.strerror}") from error
    except DataError as error:  # a folder, or in another encoding
        raise DataError(f"{key}: {error}") from error
    entries = parsed_json(text, f"{key}: {str(file)!r}")
    if not isinstance(entries, dict) or not entries:
        raise DataError(f'{key}: {str(file)!r}: expected {{"picture": {{"caption": …}}, …}}')
    found: dict[Path, tuple[str, ...]] = {}
    missing: list[str] = []
    for name, entry in entries.items():
        if not Path(name).name:
            raise DataError(f"{key}: {str(file)!r}: {name!r} names no picture; take it out")
        if (path := _named(name, config.path)) is None:
            missing.append(name)
            continue
        try:
            found[path] = _caption(entry)
        except ValueError as error:
            raise DataError(f"{key}: {str(file)!r}: {name}: {error}") from None
        for text in found[path]:
            check_caption(text, f"{key}: {str(file)!r}: {name}")
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        where = f"in {config.path!r}" if config.path else "from the working folder"
        raise DataError(
            f"{key}: {str(file)!r}: {len(missing)} of its {len(entries)} pictures are not there: "
            f"{shown}. Looked for them as they are named, and {where}; `path` (kohya: image_dir) "
            "says what folder their names begin in"
        )
    return found


def _named(name: str, folder: str | None) -> Path | None:
    """Return the image that a metadata json means; see `kohya_metadata`."""
    home = Path(folder or "")
    names = {name, nfc(name), unicodedata.normalize("NFD", name)}
    places = [path for one in sorted(names) for path in (Path(one), home / one)]
    parts = windows_parts(name) or ()
    places += [home.joinpath(*parts[start:]) for start in range(len(parts))]
    for path in places:
        if exists(path):
            return path
        for ending in picture_extensions() if path.name else ():
            if exists(longer := path.with_name(path.name + ending)):
                return longer
    return None


def _caption(entry: Any) -> tuple[str, ...]:
    """Return the caption of an entry, followed by its tags.

    Raises:
        ValueError: it is not an object, or they are not text.
    """
    if not isinstance(entry, dict):
        raise ValueError("expected an object with caption or tags")
    said = [entry.get(name) for name in ("caption", "tags")]
    if not all(one is None or isinstance(one, str) for one in said):
        raise ValueError("caption and tags must be text")
    words = [" ".join(one.split()) for one in said if one]
    return (", ".join(words),) if any(words) else ()


def slots_of(pictures: Sequence[Picture], subsets: dict[str, Subset], first: int) -> np.ndarray:
    """Return the index of the image in each slot of an epoch, int32: repeats are adjacent.

    Args:
        pictures: the images, in order.
        subsets: subsets with their repeats, by name.
        first: index of the first image.
    """
    counts = {name: subset.config.repeats for name, subset in subsets.items()}
    repeats = np.fromiter((counts.get(one.subset, 1) for one in pictures), np.int32, len(pictures))
    return np.repeat(np.arange(first, first + len(pictures), dtype=np.int32), repeats)
