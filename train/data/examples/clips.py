"""The examples made of clips."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

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
from train.data.sources import Clip, usable


class ClipExamples(Examples):
    """The example at each position of the stream: frames of one bucket in every micro-batch."""

    def __init__(
        self,
        clips: list[Clip],
        config: DataConfig,
        rule: BucketRule,
        seed: int,
        template: tuple[str, ...],
        batch_size: int,
        first_position: int = 0,
        with_first_frames: bool = False,
    ) -> None:
        """Gives each clip that is long enough its bucket.

        A micro-batch is of one bucket, and with `pack` of any clips, which are of one size.

        Args:
            clips: what is learned from, as far as the recipe leaves none out.
            config: how clips become examples.
            rule: what buckets there are; checked.
            seed: of order, parts and cuts.
            template: prompts to put captions into.
            batch_size: of the micro-batches.
            first_position: where they begin in the stream.
            with_first_frames: whether a batch also holds `first_frames` (b, 3, h, w), for
                image-to-video models; they stay where latents are cached.

        Raises:
            DataError: a clip is too short, has no place in the token budget, or cannot be packed.
        """
        assert config.clips is not None
        clips = usable(clips, config.clips)
        super().__init__(list(clips), config, rule.height, seed, template)
        self.clips = clips
        self.cut = config.clips
        self.with_first_frames = with_first_frames
        self.buckets = [
            rule.picture_bucket(clip.facts)
            if clip.is_picture and self.cut.pictures
            else rule.bucket(clip.facts, clip.available(self.cut.stride))
            for clip in clips
        ]
        """Of each clip."""
        kinds = sorted(set(self.buckets))
        if self.cut.pack:
            check_one_size(kinds)
        elif len(kinds) > 1:
            numbers = tuple(kinds.index(bucket) for bucket in self.buckets)
            self.stream = BucketStream(seed, numbers, batch_size, first_position)

    @property
    def summary(self) -> str:
        """What the buckets hold, and how many clips come twice in an epoch to fill batches."""
        counts = Counter(self.buckets)
        held = ", ".join(f"{bucket}: {counts[bucket]}" for bucket in sorted(counts))
        stream = self.stream
        told = f"clips by frames x height x width: {held}"
        if isinstance(stream, BucketStream) and stream.repeated:
            told += f"; {stream.repeated} come twice in an epoch, to fill the last micro-batches"
        return told

    def shape(self, index: int) -> tuple[int, ...]:
        return self.buckets[index]

    def origin(self, index: int) -> dict[str, Any]:
        told = super().origin(index)
        chosen = self.frame_numbers(index, self._draw(index, 0))
        return told | {"frames": chosen.tolist(), "first_frames": self.with_first_frames}

    def content(self, index: int, epoch: int = 0, slot: int | None = None) -> dict[str, Tensor]:
        """`pixels` (3, f, h, w) in -1 … 1 of a clip in an epoch, and `first_frames` if asked for.

        Clips have no repeats: the slot is the index.

        Raises:
            DataError: the file cannot be read, or with `resize: none` it is smaller than asked.
        """
        clip, draw = self.clips[index], self._draw(index, epoch)
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
            pixels = cut_frames(frames, self.buckets[index][1:], self.config, draw)
        except DataError as error:
            raise DataError(f"{clip.path}: {error}") from None
        return {"pixels": pixels} | (
            {"first_frames": pixels[:, 0]} if self.with_first_frames else {}
        )

    def frame_numbers(self, index: int, draw: random.Random) -> np.ndarray:
        """Numbers of the frames that an example shows."""
        return frame_numbers(self.clips[index].timeline, self.buckets[index].frames, self.cut, draw)

    def _draw(self, index: int, epoch: int) -> random.Random:
        return random.Random(derive_seed(self.seed, "augmentation", epoch, index))


def check_one_size(buckets: Sequence[Bucket]) -> None:
    """Refuses clips that cannot go into a row together.

    Raises:
        DataError: they are of several heights and widths.
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
    """So many frames (f,) of a timeline; one that is too short is stretched as the recipe says."""
    span = (frames - 1) * config.stride + 1
    room = max(len(timeline) - span, 0)
    drawn = draw.randint(0, room)
    start = {"start": 0, "center": room // 2, "random": drawn}[config.part]
    chosen = timeline[start : start + span : config.stride]
    places = np.arange(frames)
    if config.short_clips == "loop":
        return chosen[places % len(chosen)]
    return chosen[np.minimum(places, len(chosen) - 1)]


def cut_frames(
    frames: np.ndarray, size: tuple[int, int], config: DataConfig, draw: random.Random
) -> Tensor:
    """Pixels (3, f, h, w) in -1 … 1 of frames (f, H, W, 3), uint8: all scaled and cut alike.

    Raises:
        DataError: with `resize: none` the frames are smaller than the size (height, width).
    """
    height, width = size
    own_height, own_width = frames.shape[1:3]
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
    if (own_height, own_width) != frames.shape[1:3]:
        whole = (own_width, own_height)
        images = (Image.fromarray(frame) for frame in frames)
        scaled = (image.resize(whole, Image.Resampling.LANCZOS) for image in images)
        frames = np.stack([np.asarray(image) for image in scaled])
    chosen = frames[:, top : top + height, left : left + width]
    if draw.random() < config.flip:
        chosen = chosen[:, :, ::-1]
    return torch.from_numpy(chosen.copy()).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)
