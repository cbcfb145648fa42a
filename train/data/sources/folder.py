"""A folder of images with captions."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from inference.media import sequence_files
from inference.prompts import misread
from inference.recipe import RecipeWarning, cut
from inference.runtime import InputError, require
from train.common import DataError
from train.config import CaptionConfig, ContainerConfig, DataConfig
from train.data.containers import (
    METADATA,
    READ_BY_EXTRA,
    ROWS,
    TABLES,
    exists,
    file_state,
    files_within,
    is_row,
    left_out_line,
    looks_like_data,
    name_within,
    picture_extensions,
    walk,
)
from train.data.pictures import add_root
from train.data.sources.caption_files import CaptionFiles
from train.data.sources.captions import longest_choice, plain_caption
from train.data.sources.listing import containers_at, no_folder, pictures_in, warn_unused
from train.data.sources.mask_files import parted
from train.data.sources.metadata import matched, read_metadata

COLUMN = "column"
FALLBACK = "fallback"


@dataclass(frozen=True)
class Picture:
    """An image's file and its captions."""

    path: Path
    captions: tuple[str, ...]
    """One of them is drawn each time; empty if the objective needs none."""
    mask: Path | None = None
    """The file with loss weights of its parts (data.masks)."""
    subset: str = ""
    """Name of its subset; empty if there are none."""
    told_by: str = field(default="", compare=False, kw_only=True)
    """Source of the captions: the extension of a caption file, `metadata.jsonl`, `column` (of a
    table) or `fallback`."""


NUMBERED = re.compile(r"([0-9]{1,3})_(.+)")
"""Names of kohya's folders, `REPEATS_class tokens`; four digits are more likely a year."""


def find_pictures(
    config: DataConfig,
    captioned: bool,
    left_out: Counter[str] | None = None,
    key: str = "data.path",
) -> list[Picture]:
    """Return all usable images of the folder, sorted by path.

    Args:
        config: the folder and the sources of captions.
        captioned: whether the objective needs captions.
        left_out: gets the number of files left out that look like data, by kind.
        key: the recipe key of the folder.

    Raises:
        DataError: no folder, no image, or images without a caption or a mask.
    """
    assert config.path is not None
    paths = picture_files(config.path, key, config, left_out)
    paths, masks = parted(paths, Path(config.path), config.masks, left_out)
    hint_at_kohya(paths, Path(config.path), key)
    if captioned:
        captions = read_metadata(config.path, config, key)
        pictures = with_captions(paths, captions, config.captions, left_out=left_out)
    else:
        pictures = [Picture(path, ()) for path in paths]
    return [replace(one, mask=masks.get(one.path)) for one in pictures]


def hint_at_kohya(paths: Sequence[Path], root: Path, key: str) -> None:
    """Warn if the images are in folders that kohya would read as `REPEATS_class tokens`."""
    parts = {path.relative_to(root).parts for path in paths if path.is_relative_to(root)}
    folders = sorted({one[0] for one in parts if len(one) > 1})
    if folders and all(len(one) > 1 for one in parts) and all(map(NUMBERED.fullmatch, folders)):
        shown = ", ".join(folders[:3]) + (", …" if len(folders) > 3 else "")
        warnings.warn(
            f"{key}: all folders in {str(root)!r} are named as kohya's, REPEATS_class tokens "
            f"({shown}), which has no effect on {key}; data.kohya_folders={root} repeats them "
            "and takes their words as captions",
            RecipeWarning,
            stacklevel=3,
        )


def picture_files(
    folder: str,
    key: str,
    source: ContainerConfig | None = None,
    left_out: Counter[str] | None = None,
) -> list[Path]:
    """Return the images of a folder (see `files_in`), or of its containers.

    Args:
        folder: as `data.path`.
        key: its recipe key.
        source: what to read from containers.
        left_out: see `find_pictures`.

    Raises:
        DataError: there is none.
    """
    source = source or ContainerConfig()
    containers = containers_at(folder, key, source, left_out)
    warn_unused(containers, folder, key, source)
    if not containers:
        return files_in(folder, key, left_out)
    for place in [Path(folder)] if Path(folder).is_dir() else containers:
        add_root(place)
    endings = picture_extensions()
    if not (paths := pictures_in(containers, endings, source, left_out)):
        count = sum(
            1 for one in containers if one.suffix.lower() not in TABLES for _ in files_within(one)
        )
        raise DataError(
            f"{key}: no pictures in {folder!r}: looked for names ending in "
            f"{', '.join(endings)}; found {count} other files"
        )
    return paths


def files_in(folder: str, key: str, left_out: Counter[str] | None = None) -> list[Path]:
    """Return the images of a folder, recursively, sorted by path; at least one.

    Raises:
        DataError: no folder, or no image that can be read; `key` is the recipe key of the folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise no_folder(folder, key)
    add_root(root)
    omitted: Counter[str] = Counter()
    paths, others, endings = [], 0, picture_extensions()
    for path in walk(root, omitted):
        ending = path.suffix.lower()
        if ending in endings:
            paths.append(path)
            continue
        others += 1
        omitted[ending] += looks_like_data(path.name)
    if not paths:
        _require_formats(omitted, key)
        raise DataError(
            f"{key}: no pictures in {folder!r}: looked for files ending in "
            f"{', '.join(endings)}, in folders within it too; found {others} other files"
            + (f"; {left_out_line(omitted)}" if omitted.total() else "")
        )
    if left_out is not None:
        left_out += omitted
    return paths


def _require_formats(found: Counter[str], key: str) -> None:
    """Raise DataError if there are images that only an extra reads, and it is not installed."""
    for ending, (module, library) in READ_BY_EXTRA.items():
        if found[ending]:
            try:
                require(module, f"{ending} pictures", library, "formats")
            except InputError as error:
                raise DataError(f"{key}: {error}") from error


def fingerprint(pictures: list[Picture], root: Path, template: Sequence[str] = ()) -> str:
    """Return a hash of images' names, sizes on the disk and captions, and a template.

    It changes with each of them.
    """
    digest = hashlib.blake2b(repr(tuple(template)).encode(), digest_size=16)
    for picture in pictures:
        name = name_within(picture.path, root)
        digest.update(repr((name, size_on_disk(picture.path), picture.captions)).encode())
        if picture.mask is not None:
            digest.update(repr(("mask", size_on_disk(picture.mask))).encode())
    return digest.hexdigest()


def size_on_disk(path: Path) -> int | list[tuple[str, int]]:
    """Return the bytes of a file; for a clip folder, names and bytes of its images."""
    if not path.is_dir():
        return file_state(path)[0]
    return [(file.name, file.stat().st_size) for file in sorted(sequence_files(path))]


def with_captions(
    paths: list[Path],
    described: dict[Path, tuple[str, ...]],
    config: CaptionConfig,
    what: str = "pictures",
    key: str = "data.captions",
    metadata: str = METADATA,
    left_out: Counter[str] | None = None,
) -> list[Picture]:
    """Assign captions to each image; all images without one are listed together.

    Args:
        paths: the files of the images.
        described: captions from metadata, which take precedence over files.
        config: sources of captions.
        what: what messages call the images.
        key: recipe key of `config`.
        metadata: file that `described` is from.
        left_out: gets the number of rows of metadata whose image does not exist.

    Raises:
        DataError: images have none.
    """
    described, lost = matched(described, paths)
    if left_out is not None:
        left_out[ROWS] += sum(not exists(path) for path in lost)
    pictures, bare, beside = [], [], CaptionFiles(config)
    for path in paths:
        captions, told_by = described.get(path) or (), COLUMN if is_row(path) else metadata
        if not captions:
            captions, told_by = beside.look(path)
        if not captions and config.fallback is not None:
            captions, told_by = (config.fallback,), FALLBACK
        if captions:
            captions = tuple(f"{config.prefix}{text}{config.suffix}" for text in captions)
            pictures.append(Picture(path, captions, told_by=told_by))
        else:
            bare.append(path)
    effect = f"they are learned without words ({key}.fallback gives them some)"
    effect = effect if config.fallback is None else f"they have {key}.fallback"
    beside.warn_of_empty(len(paths), what, effect)
    warn_of_syntax(pictures, what, config, key)
    fallen = [picture.path for picture in pictures if picture.told_by == FALLBACK]
    if hint := beside.hint(bare or fallen, key):
        hint = f". {hint}"
        if not bare:
            few = f"{key}.fallback: {len(fallen)} of {len(paths)} {what} have it"
            warnings.warn(few + hint, RecipeWarning, stacklevel=2)
    if bare:
        shown = ", ".join(str(path) for path in bare[:3]) + (", …" if len(bare) > 3 else "")
        endings = ", ".join(config.extensions)
        looked = f"files of the same name ending in {endings}, and for {metadata}"
        if is_row(bare[0]):
            looked = "a column of texts (data.columns.text)"
        raise DataError(
            f"{len(bare)} of {len(paths)} {what} have no caption: {shown}. Looked for {looked}; "
            f'{key}.fallback="…" gives them one' + hint
        )
    return pictures


def warn_of_syntax(pictures: Sequence[Picture], what: str, config: CaptionConfig, key: str) -> None:
    """Warn about captions that prompts read differently than they are learned.

    Args:
        pictures: the images.
        what: what messages call them.
        config: how captions are processed.
        key: the recipe key of the captions' settings.
    """
    seen: dict[str, list[str]] = {}
    for picture in pictures:
        for text in picture.captions:
            if misread(text) and (reading := misread(_learned(text, config))):
                seen.setdefault(reading, []).append(text)
                break
    for reading, texts in seen.items():
        message = (
            f"{key}: captions of {len(texts)} of {len(pictures)} {what} are learned as they are "
            f"written, while in prompts {reading}; there write \\ before such signs: "
            f"{cut(texts[0])!r}"
        )
        warnings.warn(message, RecipeWarning, stacklevel=3)


def _learned(caption: str, config: CaptionConfig) -> str:
    """Return a caption without the signs that its processing removes."""
    return plain_caption(longest_choice(caption) if config.wildcards else caption, config)
