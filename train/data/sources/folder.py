"""A folder of pictures with captions."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from inference.recipe import RecipeWarning
from train.common import DataError
from train.config import CaptionConfig, ContainerConfig, DataConfig
from train.data.containers import (
    METADATA,
    PICTURE_EXTENSIONS,
    TABLES,
    file_state,
    files_within,
    is_row,
    name_within,
    walk,
)
from train.data.pictures import add_root
from train.data.sources.caption_files import CaptionFiles
from train.data.sources.listing import containers_at, pictures_in, tell_idle
from train.data.sources.mask_files import parted
from train.data.sources.metadata import read_metadata

COLUMN = "column"
FALLBACK = "fallback"


@dataclass(frozen=True)
class Picture:
    """A picture's file and what may be said of it."""

    path: Path
    captions: tuple[str, ...]
    """One of them is drawn each time; empty where the objective needs none."""
    mask: Path | None = None
    """The file that says which of its places count (data.masks)."""
    subset: str = ""
    """Name of its subset; empty where there are none."""
    told_by: str = field(default="", compare=False, kw_only=True)
    """Where captions are from: the ending of a caption file, `metadata.jsonl`, `column` (of
    a table) or `fallback`."""


def find_pictures(config: DataConfig, captioned: bool) -> list[Picture]:
    """All usable pictures of the folder, sorted by path.

    Args:
        config: the folder and where captions are looked for.
        captioned: whether the objective learns from captions.

    Raises:
        DataError: no folder, no picture, or pictures without a caption or a mask.
    """
    assert config.path is not None
    paths = picture_files(config.path, "data.path", config)
    paths, masks = parted(paths, Path(config.path), config.masks)
    if captioned:
        told = read_metadata(config.path, config)
        pictures = with_captions(paths, told, config.captions)
    else:
        pictures = [Picture(path, ()) for path in paths]
    return [replace(one, mask=masks.get(one.path)) for one in pictures]


def picture_files(folder: str, key: str, source: ContainerConfig | None = None) -> list[Path]:
    """The pictures of a folder (see `files_in`), or of what containers there are instead.

    Args:
        folder: as `data.path`.
        key: what the recipe calls it.
        source: what is taken out of containers.

    Raises:
        DataError: there is none.
    """
    source = source or ContainerConfig()
    containers = containers_at(folder, key, source)
    tell_idle(containers, folder, key, source)
    if not containers:
        return files_in(folder, key, PICTURE_EXTENSIONS, "pictures")
    for place in [Path(folder)] if Path(folder).is_dir() else containers:
        add_root(place)
    if not (paths := pictures_in(containers, PICTURE_EXTENSIONS, source)):
        count = sum(1 for one in containers if one.suffix not in TABLES for _ in files_within(one))
        raise DataError(
            f"{key}: no pictures in {folder!r}: looked for names ending in "
            f"{', '.join(PICTURE_EXTENSIONS)}; found {count} other files"
        )
    return paths


def files_in(folder: str, key: str, extensions: Sequence[str], what: str) -> list[Path]:
    """The files with these endings in a folder and those within it, sorted by path; at least one.

    Raises:
        DataError: no folder, or no such file; `key` is what the recipe calls the folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{key}: {folder!r} is not a folder")
    add_root(root)
    paths = [path for path in walk(root) if path.suffix.lower() in extensions]
    if not paths:
        raise DataError(
            f"{key}: no {what} in {folder!r}: looked for files ending in "
            f"{', '.join(extensions)}, in folders within it too; found "
            f"{sum(1 for _ in walk(root))} other files"
        )
    return paths


def fingerprint(pictures: list[Picture], root: Path, template: Sequence[str] = ()) -> str:
    """A number in hexadecimal of the pictures' names, sizes on disk and captions, and a template.

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
    """Bytes of a file; of a folder that is a clip, names and bytes of its pictures."""
    if not path.is_dir():
        return file_state(path)[0]
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_EXTENSIONS)
    return [(file.name, file.stat().st_size) for file in files]


def with_captions(
    paths: list[Path],
    told: dict[Path, tuple[str, ...]],
    config: CaptionConfig,
    what: str = "pictures",
    key: str = "data.captions",
    metadata: str = METADATA,
) -> list[Picture]:
    """Gives each picture its captions; all pictures without one are named together.

    Args:
        paths: of the pictures.
        told: captions from metadata, which go before files.
        config: where captions are looked for.
        what: the pictures are.
        key: what the recipe calls `config`.
        metadata: what `told` is from.

    Raises:
        DataError: pictures have none.
    """
    pictures, bare, beside = [], [], CaptionFiles(config)
    for path in paths:
        captions, told_by = told.get(path) or (), COLUMN if is_row(path) else metadata
        if not captions:
            captions, told_by = beside.look(path)
        if not captions and config.fallback is not None:
            captions, told_by = (config.fallback,), FALLBACK
        if captions:
            captions = tuple(f"{config.prefix}{text}{config.suffix}" for text in captions)
            pictures.append(Picture(path, captions, told_by=told_by))
        else:
            bare.append(path)
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
