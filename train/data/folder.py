"""A folder of pictures with captions."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inference.recipe import RecipeWarning
from train.caption_config import CaptionConfig
from train.data.caption_files import CaptionFiles
from train.data.containers import split_path
from train.data.errors import DataError
from train.data.files import file_state, members, name_within, read_text
from train.data.index_file import add_root
from train.data.mask_files import parted
from train.data.places import containers_of, pictures_in
from train.data_config import DataConfig

PICTURE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff")
METADATA = "metadata.jsonl"
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
    """Where captions are from: the ending of a caption file, `metadata.jsonl` or `fallback`."""


def find_pictures(config: DataConfig, captioned: bool) -> list[Picture]:
    """All usable pictures of the folder, sorted by path.

    Args:
        config: the folder and where captions are looked for.
        captioned: whether the objective learns from captions.

    Raises:
        DataError: no folder, no picture, or pictures without a caption or a mask.
    """
    assert config.path is not None
    paths = picture_files(config.path, "data.path")
    paths, masks = parted(paths, Path(config.path), config.masks)
    if captioned:
        told = read_metadata(Path(config.path), paths)
        pictures = with_captions(paths, told, config.captions)
    else:
        pictures = [Picture(path, ()) for path in paths]
    return [replace(one, mask=masks.get(one.path)) for one in pictures]


def picture_files(folder: str, key: str) -> list[Path]:
    """The pictures of a folder (see `files_in`), or of what containers there are instead.

    Raises:
        DataError: there is none; `key` is what the recipe calls the folder.
    """
    root = Path(folder)
    if root.is_dir() and any(path.suffix.lower() in PICTURE_EXTENSIONS for path in walk(root)):
        return files_in(folder, key, PICTURE_EXTENSIONS, "pictures")
    if not (containers := containers_of(folder, key, walk(root))):
        return files_in(folder, key, PICTURE_EXTENSIONS, "pictures")
    for place in [root] if root.is_dir() else containers:
        add_root(place)
    if not (paths := pictures_in(containers, PICTURE_EXTENSIONS)):
        count = sum(1 for container in containers for _ in members(container))
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


def walk(root: Path) -> Iterator[Path]:
    """Everything in a folder and in those within it but the folders themselves, sorted by path.

    Each folder is read once and no file is looked at. Links to folders are not followed.
    """
    try:
        with os.scandir(root) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except PermissionError:
        return
    for name, is_folder in found:
        path = root / name
        if is_folder:
            yield from walk(path)
        else:
            yield path


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


def read_metadata(root: Path, paths: Sequence[Path] = ()) -> dict[Path, tuple[str, ...]]:
    """Captions by picture from every metadata.jsonl of the folder, and of the pictures' containers.

    A line is {"file_name": path beside it, "text": caption or list of captions}.
    """
    captions: dict[Path, tuple[str, ...]] = {}
    for file in list(metadata_files(root, paths)):
        for number, row in _rows(file):
            try:
                name, text = row["file_name"], row["text"]
            except (KeyError, TypeError):
                raise DataError(f"{file}: line {number}: expected file_name and text") from None
            texts = [text] if isinstance(text, str) else text
            if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
                raise DataError(f"{file}: line {number}: text must be a caption or a list of them")
            captions[file.parent / name] = tuple(texts)
    return captions


def metadata_files(root: Path, paths: Sequence[Path]) -> Iterator[Path]:
    """Every metadata.jsonl of a folder, and of the containers that pictures lie in."""
    if root.is_dir():
        yield from (path for path in walk(root) if path.name == METADATA)
    places = (split_path(path) for path in paths)
    for container in dict.fromkeys(place[0] for place in places if place is not None):
        yield from (path for path in members(container) if path.name == METADATA)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{file}: line {number}: not JSON: {error}") from error


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
        captions, told_by = told.get(path) or (), metadata
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
        looked = ", ".join(config.extensions)
        raise DataError(
            f"{len(bare)} of {len(paths)} {what} have no caption: {shown}. Looked for files of "
            f"the same name ending in {looked}, and for {metadata}; "
            f'{key}.fallback="…" gives them one' + hint
        )
    return pictures
