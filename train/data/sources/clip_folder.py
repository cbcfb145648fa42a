"""A folder of clips with captions."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inference.media import (
    DEFAULT_FPS,
    PICTURE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    ClipFacts,
    is_animated,
    probe,
    sequence_files,
)
from inference.recipe import RecipeWarning
from inference.runtime import InputError
from train.common import DataError
from train.config import ClipDataConfig, DataConfig
from train.data.containers import METADATA, by_folder, looks_like_data, walk
from train.data.pictures import add_root
from train.data.sources.folder import Picture, with_captions
from train.data.sources.listing import no_folder
from train.data.sources.metadata import read_lists, read_metadata

CLIP_EXTENSIONS = (*VIDEO_EXTENSIONS, ".gif", ".webp", ".apng")
NOT_LISTED = "clips that videos.txt does not list"
READERS = 8
"""Threads that read files; they mostly wait for the disk."""
TOLERANCE = 0.05
"""Tolerance of times, as a fraction of a frame; Matroska rounds them to milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Clip(Picture):
    """A clip's file or folder, its captions and its frames."""

    facts: ClipFacts
    timeline: np.ndarray = field(compare=False, repr=False)
    """Numbers of the frames that remain after trimming, at the recipe's rate; before stride."""

    @property
    def is_picture(self) -> bool:
        """Return whether it is a single image rather than a clip."""
        is_still = self.path.suffix.lower() not in VIDEO_EXTENSIONS and not self.path.is_dir()
        return is_still and self.facts.frames == 1

    def available(self, stride: int) -> int:
        """Return the number of available frames."""
        return -(-len(self.timeline) // stride)


def find_clips(
    config: DataConfig,
    captioned: bool,
    left_out: Counter[str] | None = None,
    key: str = "data.path",
) -> list[Clip]:
    """Return all clips of the folder, sorted by path; `usable` decides which are long enough.

    In a folder with CogVideo's lists (`read_lists`), the clips that they name.

    Args:
        config: the folder and the sources of captions.
        captioned: whether the objective needs captions.
        left_out: gets the number of files left out that look like data, by kind.
        key: the recipe key of the folder.

    Raises:
        DataError: no folder, no clip, clips without a caption, or corrupt ones; all of one kind are
            listed.
    """
    assert config.path is not None
    assert config.clips is not None
    root = Path(config.path)
    if not root.is_dir():
        raise no_folder(config.path, key)
    add_root(root)
    left_out = Counter() if left_out is None else left_out
    paths = sorted(clip_paths(root, config.clips, left_out))
    if not paths:
        raise DataError(_nothing_found(root, config.clips, key))
    lists = read_lists(root)
    if lists is not None:
        left_out[NOT_LISTED] += sum(path not in lists[1] for path in paths)
        paths = sorted(lists[1])
    pictures = [Picture(path, ()) for path in paths]
    if captioned:
        metadata, described = lists or (METADATA, {})
        described = read_metadata(root) | described
        pictures = with_captions(
            paths, described, config.captions, "clips", metadata=metadata, left_out=left_out
        )
    return probed(pictures, config.clips)


def clip_paths(root: Path, config: ClipDataConfig, left_out: Counter[str]) -> Iterator[Path]:
    """Yield the files, and folders of images, that are clips, recursively.

    `left_out` gets the number of files left out that look like data, by kind.
    """
    endings = CLIP_EXTENSIONS + (PICTURE_EXTENSIONS if config.pictures else ())
    for folder, files in by_folder(walk(root, left_out)).items():
        if config.sequences and folder != root and _is_sequence(folder, files):
            yield folder
            continue
        for path in files:
            if path.suffix.lower() in endings:
                yield path
            else:
                left_out[path.suffix.lower()] += looks_like_data(path.name)


def _is_sequence(folder: Path, inside: Sequence[Path]) -> bool:
    """Return whether a folder has single images, and nothing that is a clip by itself."""
    files = sequence_files(folder)
    endings = {path.suffix.lower() for path in inside}
    if not files or endings & {*CLIP_EXTENSIONS} - {*PICTURE_EXTENSIONS}:
        return False
    try:
        return not is_animated(files[0])
    except InputError:  # reported when the sequence is read
        return True


def _nothing_found(root: Path, config: ClipDataConfig, key: str) -> str:
    files = list(walk(root))
    pictures = sum(path.suffix.lower() in PICTURE_EXTENSIONS for path in files)
    remedy = ""
    if pictures:
        keys = [name for name in ("sequences", "pictures") if not vars(config)[name]]
        options = " or ".join(f"data.clips.{name}: true" for name in keys)
        remedy = f"; {options} learns from its {pictures} pictures"
    return (
        f"{key}: no clips in {str(root)!r}: looked for files ending in "
        f"{', '.join(CLIP_EXTENSIONS)}, in folders within it too; found {len(files)} other "
        f"files{remedy}"
    )


def probed(pictures: list[Picture], config: ClipDataConfig) -> list[Clip]:
    """Probe the clips.

    Raises:
        DataError: files are corrupt; each is listed with its error.
    """

    def look(picture: Picture) -> Clip | str:
        try:
            facts = probe(picture.path, config.fps or DEFAULT_FPS)
        except InputError as error:
            return str(error)
        return Clip(
            path=picture.path,
            captions=picture.captions,
            told_by=picture.told_by,
            facts=facts,
            timeline=timeline(facts, config),
        )

    with ThreadPoolExecutor(READERS) as pool:
        seen = list(pool.map(look, pictures))
    faults = [one for one in seen if isinstance(one, str)]
    if faults:
        more = [f"… and {len(faults) - 10} more files"] if len(faults) > 10 else []
        raise DataError("\n".join(faults[:10] + more))
    return [one for one in seen if isinstance(one, Clip)]


def timeline(facts: ClipFacts, config: ClipDataConfig) -> np.ndarray:
    """Return the numbers of the frames that remain after trimming, at the recipe's rate.

    For every 1/fps of a second the frame with the nearest time is used; of two the earlier one.
    """
    times = facts.times
    if facts.frames == 1:
        return np.zeros(1, np.int64)
    near = TOLERANCE / (config.fps or facts.fps)
    end = facts.seconds - config.trim_end - near
    if config.fps is None:
        return np.flatnonzero((times >= config.trim_start - near) & (times < end))
    moments = np.arange(config.trim_start, end, 1 / config.fps)
    return np.searchsorted((times[1:] + times[:-1]) / 2, moments)


def usable(clips: list[Clip], config: ClipDataConfig) -> list[Clip]:
    """Return the clips that have enough frames, or that the recipe stretches.

    Raises:
        DataError: clips are too short and the recipe rejects them, or none is left.
    """
    short = short_clips(clips, config)
    if not short:
        return clips
    few, shown = _few(clips, short, config), _named(short, config.stride)
    if config.short_clips == "error":
        raise DataError(
            f"{few} (data.clips): {shown}. data.clips.short_clips: skip leaves them out, hold or "
            "loop stretches them; fewer frames, a higher fps or less trimming helps too"
        )
    gone = {id(c) for c in short if config.short_clips == "skip" or not len(c.timeline)}
    if config.short_clips != "skip" and gone:
        empty = [clip for clip in short if not len(clip.timeline)]
        raise DataError(
            f"data.clips: nothing is left after trimming of {_named(empty, config.stride)}; lower "
            "trim_start or trim_end, or take short_clips: skip"
        )
    left = [clip for clip in clips if id(clip) not in gone]
    if not left:
        raise DataError(f"data.clips.short_clips: skip leaves nothing: {few}: {shown}")
    return left


def warn_of_short(clips: list[Clip], config: ClipDataConfig) -> None:
    """Warn about clips that are skipped or stretched.

    Raises:
        DataError: as `usable`.
    """
    usable(clips, config)
    if short := short_clips(clips, config):
        what = {"skip": "are left out", "loop": "begin again", "hold": "hold their last frame"}
        summary = f"{_few(clips, short, config)} and {what[config.short_clips]}"
        message = f"{summary}: {_named(short, config.stride)}"
        warnings.warn(message, RecipeWarning, stacklevel=2)


def short_clips(clips: Iterable[Clip], config: ClipDataConfig) -> list[Clip]:
    """Return the clips with fewer frames than in the recipe; images need only one."""
    return [
        clip
        for clip in clips
        if not (clip.is_picture and config.pictures)
        and clip.available(config.stride) < config.shortest
    ]


def _few(clips: Sequence[Clip], short: Sequence[Clip], config: ClipDataConfig) -> str:
    return f"{len(short)} of {len(clips)} clips have fewer than {config.shortest} frames"


def _named(clips: Iterable[Clip], stride: int) -> str:
    named = [f"{clip.path} ({clip.available(stride)})" for clip in clips]
    return ", ".join(named[:3]) + (", …" if len(named) > 3 else "")
