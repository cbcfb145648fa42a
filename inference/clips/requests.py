"""Split a recipe's requests into single clips that the model can generate."""

from __future__ import annotations

import dataclasses
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from inference.config import ClipConfig
from inference.images import RANDOM_SEEDS
from inference.media import DEFAULT_FPS, PILLOW_ERRORS, ClipFacts, probe, read_frames
from inference.models import ClipModel, rounded_size
from inference.runtime import DrawWarning, InputError
from inference.sampling import SAMPLERS

WHOLE = 0.98
"""Share of a source from which its crop is not reported."""


@dataclasses.dataclass(frozen=True)
class ClipSources:
    """The conditioning images and clips, as in the files."""

    image: Image.Image | None = None
    end_image: Image.Image | None = None
    video: np.ndarray | None = None
    """(f, h, w, 3), uint8, at the clip's frame rate."""
    control_video: np.ndarray | None = None
    """(f, h, w, 3), uint8, at the clip's frame rate."""


def expand(base: ClipModel, clips: Sequence[ClipConfig]) -> list[ClipConfig]:
    """Return one request for each clip, with its own seed, size, frames, fps and sampler.

    Sizes and numbers of frames that the model does not support are rounded, with a DrawWarning;
    others say how much of a source is cropped off, and list prompts that are truncated. A model
    without weights is enough.

    Raises:
        InputError: the model cannot generate the request, or a file is missing.
    """
    requests = []
    for clip in clips:
        check_sources(base, clip)
        fps = clip.fps or base.fps
        resolved = dataclasses.replace(clip, fps=fps, sampler=sampler_of(base, clip))
        frames = frames_of(base, resolved)
        width, height = size_of(base, clip)
        for note in crops_of(clip, width, height):
            warnings.warn(note, DrawWarning, stacklevel=2)
        seen = base.frame_counts.latent_frames(frames)
        if window := window_frames(base, clip):
            seen = min(seen, window[0])
        note = base.check_positions(width, height, seen)
        if note:
            warnings.warn(note, DrawWarning, stacklevel=2)
        if SAMPLERS[str(resolved.sampler)].uses_model_steps and 1000 % clip.steps:
            note = f"steps: {clip.steps} does not divide 1000, which puts some steps a timestep off"
            warnings.warn(note, DrawWarning, stacklevel=2)
        seed = random.SystemRandom().randrange(RANDOM_SEEDS) if clip.seed == -1 else clip.seed
        sized = dataclasses.replace(resolved, frames=frames, width=width, height=height, count=1)
        requests += [dataclasses.replace(sized, seed=seed + i) for i in range(clip.count)]
    asked = {text: None for one in requests for text in (one.prompt, one.negative_prompt)}
    if note := base.truncation_of(list(asked)):
        warnings.warn(note, DrawWarning, stacklevel=2)
    return requests


def crops_of(clip: ClipConfig, width: int, height: int) -> Iterator[str]:
    """Yield a line for each source of another aspect ratio, which `fitted` crops to the clip's.

    Raises:
        InputError: a source cannot be read.
    """
    for key in ("image", "end_image", "video", "control_video"):
        path = getattr(clip, key)
        if path is None:
            continue
        if key.endswith("image"):
            size = picture_size(key, path)
        else:
            facts = shown_frames(key, path, clip.fps or DEFAULT_FPS)[0]
            size = facts.width, facts.height
        scale = min(size[0] / width, size[1] / height)
        kept = round(width * scale), round(height * scale)
        share = kept[0] * kept[1] / (size[0] * size[1])
        if share < WHOLE:
            yield (
                f"{key}: {path} is {size[0]}x{size[1]}; its middle {kept[0]}x{kept[1]} is shown "
                f"({share:.0%}), as the clip is {width}x{height}"
            )


def picture_size(key: str, path: str) -> tuple[int, int]:
    """Return width and height of an image file, turned upright; its pixels are not decoded.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            is_turned = opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except PILLOW_ERRORS as error:
        raise InputError(f"{key}: {path} cannot be read as a picture: {error}") from error
    return (height, width) if is_turned else (width, height)


def sampler_of(base: ClipModel, clip: ClipConfig) -> str:
    """Return the requested sampler; else `ddim` or `dpm`, by the model's scheduler_config.json.

    Raises:
        InputError: dpm with a Fun-Control model, which diffusers' pipeline does not support either.
    """
    own = "dpm" if "DPM" in str(base.noise_schedule.get("_class_name")) else "ddim"
    if clip.control_video is not None:
        if clip.sampler == "dpm":
            raise InputError("sampler: dpm cannot be used with control_video; take ddim")
        return clip.sampler or "ddim"
    sampler = clip.sampler or own
    if clip.eta and sampler == "dpm":
        raise InputError("eta: is of ddim; this model's sampler is dpm, so set sampler: ddim")
    return sampler


def check_sources(base: ClipModel, clip: ClipConfig) -> None:
    """Check that the model supports the sources.

    Raises:
        InputError: it does not, or a source is missing.
    """
    names = ("image", "end_image", "video", "control_video")
    base.check_sources([name for name in names if getattr(clip, name) is not None])
    for name in names:
        path = getattr(clip, name)
        if path is not None and not Path(path).exists():
            raise InputError(f"{name}: there is no {path}")


def frames_of(base: ClipModel, clip: ClipConfig) -> int:
    """Return the frames of a clip, by the rule of the VAE and the pipeline's padding.

    Raises:
        InputError: a source clip is too short.
    """
    source = next((name for name in ("video", "control_video") if getattr(clip, name)), None)
    wanted, there = clip.frames, None
    if source is None:
        rule, multiple = base.frame_counts, 1
        wanted = wanted or base.own_frames
        below, above = rule.nearest(wanted, multiple)
        fits = above if below is None or above - wanted <= wanted - below else below
    else:
        rule, multiple = base.frame_counts, base.redrawn_frame_step
        fps = clip.fps or DEFAULT_FPS
        there = len(shown_frames(source, getattr(clip, source), fps)[1])
        wanted = wanted or (there if clip.window else base.own_frames)
        below, _ = rule.nearest(min(wanted, there), multiple)
        if below is None:
            raise InputError(f"{source}: {there} frames are too few for this model")
        fits = below
    if clip.frames not in (None, fits):
        note = f"frames: {fits} instead of {clip.frames}"
        why = rule.words()
        if source:
            why += f", {source} has {there} at {clip.fps:g} fps"
        warnings.warn(f"{note} ({why})", DrawWarning, stacklevel=3)
    return fits


def size_of(base: ClipModel, clip: ClipConfig) -> tuple[int, int]:
    """Return width and height, rounded to what the model supports.

    Raises:
        InputError: they must be given, as the model has no size of its own.
    """
    sides = base.own_size or (0, 0)
    width, height = clip.width or sides[0], clip.height or sides[1]
    if not width or not height:
        raise InputError("width, height: must be given for this model, for example 1360 and 768")
    size = rounded_size(width, height, base.size_step)
    for line in size.changed:
        warnings.warn(line, DrawWarning, stacklevel=3)
    return size.width, size.height


def padded_frames(base: ClipModel, frames: int) -> tuple[int, int]:
    """Return the latent frames that are generated, and how many in front are dropped again."""
    latent_frames = base.frame_counts.latent_frames(frames)
    extra = base.padding(latent_frames)
    return latent_frames + extra, extra


def window_frames(base: ClipModel, clip: ClipConfig) -> tuple[int, int] | None:
    """Return latent frames of a window and of the overlap; None for the whole clip at once."""
    if clip.window is None:
        return None
    step = base.latent_frame_step
    length = base.frame_counts.latent_frames(clip.window)
    length = math.ceil(length / step) * step
    return length, min(max(round(clip.overlap / base.frame_ratio), 0), length - 1)


def read_sources(clip: ClipConfig) -> ClipSources:
    """Read the files of a request; of its clips only the required frames.

    Raises:
        InputError: one cannot be read.
    """

    def picture(key: str, path: str | None) -> Image.Image | None:
        return read_picture(key, path) if path else None

    def video(key: str, path: str | None) -> np.ndarray | None:
        if path is None:
            return None
        facts, places = shown_frames(key, path, clip.fps or DEFAULT_FPS)
        return read_frames(Path(path), places[: clip.frames], facts)

    return ClipSources(
        picture("image", clip.image),
        picture("end_image", clip.end_image),
        video("video", clip.video),
        video("control_video", clip.control_video),
    )


def shown_frames(key: str, path: str, fps: float) -> tuple[ClipFacts, list[int]]:
    """Return a clip's file properties, and the frames that are shown at every 1/fps second.

    Args:
        key: the recipe's option.
        path: the file, or a folder of images, which are assumed to have this frame rate.
        fps: of the generated clip.

    Raises:
        InputError: it cannot be read.
    """
    try:
        facts = probe(Path(path), fps)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
    count = max(1, math.floor(facts.seconds * fps + 1e-3))
    times = np.arange(count) / fps + 1e-3 / fps
    return facts, [int(n) for n in np.searchsorted(facts.times, times, side="right") - 1]


def read_picture(key: str, path: str) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except PILLOW_ERRORS as error:
        raise InputError(f"{key}: {path} cannot be read as a picture: {error}") from error


def fitted(picture: Image.Image, width: int, height: int) -> np.ndarray:
    """Resize and centre-crop an image to a size, (height, width, 3), uint8."""
    return np.array(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))
