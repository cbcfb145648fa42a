"""Examples made of clips."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inference.media import read_frames
from inference.runtime import InputError
from train.common import DataError, derive_seed
from train.config import Bucket, ClipDataConfig, DataConfig
from train.data.examples.clip_buckets import BucketRule
from train.data.examples.examples import Examples
from train.data.examples.stream import BucketStream
from train.data.examples.transforms import BACKGROUNDS
from train.data.examples.variants import Variant
from train.data.sources import Clip, usable


class ClipExamples(Examples):
    """The example at each sample index; every micro-batch has frames of one bucket."""

    def __init__(
        self,
        clips: list[Clip],
        config: DataConfig,
        rule: BucketRule,
        seed: int,
        template: tuple[str, ...],
        batch_size: int,
        first_position: int = 0,
    ) -> None:
        """Assign a bucket to each clip that is long enough.

        A micro-batch has one bucket; with `pack` it has clips of any length and one size.

        Args:
            clips: the clips of the run, of which the recipe may skip some.
            config: how clips become examples.
            rule: the rule of buckets, already checked.
            seed: seed of the order, parts and crops.
            template: prompts to insert captions into.
            batch_size: examples of a micro-batch.
            first_position: sample index of the first micro-batch.

        Raises:
            DataError: a clip is too short, does not fit the token budget, or cannot be packed.
        """
        assert config.clips is not None
        clips = usable(clips, config.clips)
        super().__init__(list(clips), config, rule.height, seed, template)
        self.clips = clips
        self.cut = config.clips
        self.with_first_frames = False
        """Whether a batch also holds `first_frames` (b, 3, h, w), for image-to-video models; they
        remain in it where latents are cached."""
        self.buckets = [
            rule.picture_bucket(clip.facts)
            if clip.is_picture and self.cut.pictures
            else rule.bucket(clip.facts, clip.available(self.cut.stride))
            for clip in clips
        ]
        """The bucket of each clip."""
        kinds = sorted(set(self.buckets))
        if self.cut.pack:
            check_one_size(kinds)
        elif len(kinds) > 1:
            numbers = tuple(kinds.index(bucket) for bucket in self.buckets)
            self.stream = BucketStream(seed, numbers, batch_size, first_position)

    @property
    def summary(self) -> str:
        """Describe the buckets, and how many clips are repeated in an epoch to fill batches."""
        counts = Counter(self.buckets)
        held = ", ".join(f"{bucket}: {counts[bucket]}" for bucket in sorted(counts))
        stream = self.stream
        text = f"clips by frames x height x width: {held}"
        if isinstance(stream, BucketStream) and stream.repeated:
            text += f"; {stream.repeated} occur twice in an epoch, to fill the last micro-batches"
        return text

    def shape(self, index: int) -> tuple[int, ...]:
        return self.buckets[index]

    def origin(self, index: int, variant: Variant) -> dict[str, Any]:
        origin = super().origin(index, variant)
        chosen = self.frame_numbers(index, self._draw(index, 0))
        return origin | {"frames": chosen.tolist(), "first_frames": self.with_first_frames}

    def variant(self, index: int, epoch: int, slot: int) -> Variant:
        if self.settings(index).crops_anywhere:
            return super().variant(index, epoch, slot)
        draw, facts = self._draw(index, epoch), self.clips[index].facts
        self.frame_numbers(index, draw)
        cut = cut_of((facts.height, facts.width), self.buckets[index][1:], self.config, draw)
        return Variant(0, cut.is_mirrored)

    def content(
        self, index: int, epoch: int = 0, slot: int | None = None, variant: Variant | None = None
    ) -> dict[str, Tensor]:
        """Return `pixels` (3, f, h, w) in -1 … 1 of a clip in an epoch, and `first_frames` if set.

        Clips have no repeats: the slot is the index.

        Raises:
            DataError: the file cannot be read, or is smaller than the example with `resize: none`.
        """
        clip, draw, config = self.clips[index], self._draw(index, epoch), self.config
        if variant is not None:
            config = variant.settings(config)
            draw = random.Random(self.crop_seed(index, variant))
        chosen = self.frame_numbers(index, draw).tolist()
        background = BACKGROUNDS.get(self.config.background) or (
            draw.randrange(256),
            draw.randrange(256),
            draw.randrange(256),
        )
        try:
            frames = read_frames(clip.path, chosen, clip.facts, background)
        except InputError as error:
            raise DataError(str(error)) from None
        try:
            pixels = cut_frames(frames, self.buckets[index][1:], config, draw)
        except DataError as error:
            raise DataError(f"{clip.path}: {error}") from None
        return {"pixels": pixels} | (
            {"first_frames": pixels[:, 0]} if self.with_first_frames else {}
        )

    def frame_numbers(self, index: int, draw: random.Random) -> np.ndarray:
        """Return the frame numbers of an example."""
        return frame_numbers(self.clips[index].timeline, self.buckets[index].frames, self.cut, draw)

    def _draw(self, index: int, epoch: int) -> random.Random:
        return random.Random(derive_seed(self.seed, "augmentation", epoch, index))


def check_one_size(buckets: Sequence[Bucket]) -> None:
    """Reject clips that cannot share a row.

    Raises:
        DataError: they have several heights and widths.
    """
    sizes = sorted({f"{bucket.height}x{bucket.width}" for bucket in buckets})
    if len(sizes) > 1:
        raise DataError(
            f"data.clips.pack: clips of a row have one height x width, these have "
            f"{', '.join(sizes)}; list data.clips.buckets of one size, or leave pack out"
        )


def frame_numbers(
    timeline: np.ndarray, frames: int, config: ClipDataConfig, draw: random.Random
) -> np.ndarray:
    """Return frame numbers (f,) of a timeline; a short one is stretched as in the recipe."""
    span = (frames - 1) * config.stride + 1
    room = max(len(timeline) - span, 0)
    drawn = draw.randint(0, room)
    start = {"start": 0, "center": room // 2, "random": drawn}[config.part]
    chosen = timeline[start : start + span : config.stride]
    places = np.arange(frames)
    if config.short_clips == "loop":
        return chosen[places % len(chosen)]
    return chosen[np.minimum(places, len(chosen) - 1)]


class FrameCut(NamedTuple):
    """The crop of all frames of a clip."""

    height: int
    """Of the scaled frames."""
    width: int
    top: int
    left: int
    is_mirrored: bool


def cut_of(
    own: tuple[int, int], size: tuple[int, int], config: DataConfig, draw: random.Random
) -> FrameCut:
    """Return the crop of frames for a size (height, width).

    Raises:
        DataError: with `resize: none` the frames are smaller than the size.
    """
    (own_height, own_width), (height, width) = own, size
    if config.resize == "cover":
        scale = max(height / own_height, width / own_width)
        own_height = max(height, round(own_height * scale))
        own_width = max(width, round(own_width * scale))
    elif own_height < height or own_width < width:
        raise DataError(
            f"{own_width}x{own_height} is smaller than {width}x{height}; data.resize=cover scales "
            "it up"
        )
    room_y, room_x = own_height - height, own_width - width
    left, top = draw.randint(0, room_x), draw.randint(0, room_y)
    if config.crop == "center":
        left, top = room_x // 2, room_y // 2
    return FrameCut(own_height, own_width, top, left, draw.random() < config.flip)


def cut_frames(
    frames: np.ndarray, size: tuple[int, int], config: DataConfig, draw: random.Random
) -> Tensor:
    """Return pixels (3, f, h, w) in -1 … 1 of frames (f, H, W, 3), uint8, all with the same crop.

    Raises:
        DataError: with `resize: none` the frames are smaller than the size (height, width).
    """
    cut = cut_of(frames.shape[1:3], size, config, draw)
    if (cut.height, cut.width) != frames.shape[1:3]:
        whole = (cut.width, cut.height)
        images = (Image.fromarray(frame) for frame in frames)
        scaled = (image.resize(whole, Image.Resampling.LANCZOS) for image in images)
        frames = np.stack([np.asarray(image) for image in scaled])
    height, width = size
    chosen = frames[:, cut.top : cut.top + height, cut.left : cut.left + width]
    if cut.is_mirrored:
        chosen = chosen[:, :, ::-1]
    return torch.from_numpy(chosen.copy()).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)
