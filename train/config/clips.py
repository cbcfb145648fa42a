"""Typed options of clips: how videos become examples."""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from inference.config import MOST_PIXELS
from inference.models import FrameRule
from inference.runtime import InputError
from train.config.rules import Faults, at_least, fraction

BUCKET = re.compile(r"(\d+)x(\d+)x(\d+)")
RULE = FrameRule()
"""Rule of the published VAEs. That of the base model is checked once the model is loaded."""


class Bucket(NamedTuple):
    """Number of frames and size of an example."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass
class ClipDataConfig:
    """How videos become examples of a video model; if set, training uses videos."""

    limits: ClassVar[dict[str, float]] = {"height": MOST_PIXELS, "width": MOST_PIXELS}

    frames: int = 49
    """Frames of an example: 1, 8k or 8k + 1 (9, 17, 25, 33, 41, 49, …, and 81 or 161 for CogVideoX
    1.5). With token_budget, the maximum."""
    height: int | None = None
    """Height of the examples in pixels; default: that of the base model. With token_budget, height
    x width is the largest area."""
    width: int | None = None
    """Width of the examples in pixels; default: that of the base model."""
    fps: float | None = None
    """Frame rate of the examples: CogVideoX was trained at 8 frames per second, 1.5 at 16. Clips
    with another rate are resampled to the nearest frames. Default: take every frame. Image
    sequences are assumed to have this rate, by default 8."""
    stride: int = 1
    """Take every n-th frame, after resampling to fps."""
    trim_start: float = 0.0
    """Seconds to skip at the start of every clip."""
    trim_end: float = 0.0
    """Seconds to skip at the end of every clip."""
    part: Literal["start", "center", "random"] = "start"
    """Which part of longer clips to use."""
    short_clips: Literal["error", "skip", "loop", "hold"] = "error"
    """What to do with clips that have too few frames: reject them, skip them, loop them from their
    first frame, or hold their last frame (as CogVideoX's own trainer does)."""
    sequences: bool = False
    """Treat folders within the folder that hold images, and no video or animation, as clips; their
    images are the frames in natural order. Captions: `name.txt` beside the folder `name`, or
    metadata.jsonl with its name."""
    pictures: bool = False
    """Also train on single images, as clips of one frame."""
    buckets: list[str] = field(default_factory=list)
    """Several sizes, each frames x height x width such as 49x480x720. A clip is assigned to the
    buckets with the most frames that it can fill, and among these to the nearest aspect ratio. A
    micro-batch has one bucket."""
    token_budget: int | None = None
    """Keep the aspect ratio of each clip: use as many frames as it has (8k + 1, at most `frames`),
    then the largest size, never above its own, within this number of tokens (latent frames x
    height/16 x width/16 in CogVideoX; 49 frames of 480x720 are 17550. X-Fun:
    training_with_video_token_length)."""
    pack: bool = False
    """Experimental, for models with rotary positions (not 2B): concatenate the clips of a
    micro-batch, of several lengths and one height x width, to one row of the transformer, in which
    no clip attends to another. They share a timestep; the attention mask grows with the square of
    the row's tokens."""

    def faults(self) -> Faults:
        yield from at_least(
            1, frames=self.frames, height=self.height, width=self.width, stride=self.stride
        )
        yield from at_least(1, token_budget=self.token_budget)
        yield from at_least(0, trim_start=self.trim_start, trim_end=self.trim_end)
        if self.fps is not None and self.fps <= 0:
            yield "fps", f"must be above 0, got {self.fps}"
        if self.frames >= 1:
            yield from self._frame_faults("frames", self.frames)
        if self.buckets and self.token_budget is not None:
            yield "token_budget", "excludes buckets: one lists the sizes, the other works them out"
        for text in self.buckets:
            try:
                bucket = parse_bucket(text)
            except InputError as error:
                yield "buckets", str(error)
            else:
                yield from self._frame_faults("buckets", bucket.frames, f"{text}: ")
        with suppress(InputError):  # `faults` reports a bucket with invalid syntax
            if self.pack and len({bucket[1:] for bucket in self.sizes}) > 1:
                yield "pack", "needs buckets of one height x width: a row has one"
        if len({*self.buckets}) < len(self.buckets):
            yield "buckets", "names a bucket twice; leave one out"

    def _frame_faults(self, key: str, frames: int, where: str = "") -> Faults:
        try:
            RULE.check(key, frames)
        except InputError as error:
            yield key, where + str(error).removeprefix(f"{key}: ")

    def idle(self) -> Faults:
        if self.buckets:
            for name, value in (("height", self.height), ("width", self.width)):
                if value is not None:
                    yield name, "has no effect: buckets set the sizes"
            if self.frames != 49:
                yield "frames", "has no effect: buckets set it"
        one_length = not self.buckets and self.token_budget is None and not self.pictures
        if self.pack and one_length:
            yield "pack", "has no effect: without buckets, token_budget or pictures all are as long"
        with suppress(InputError):  # `faults` reports a bucket with invalid syntax
            if self.shortest == 1 and self.short_clips != "error":
                yield "short_clips", "has no effect: no clip has fewer frames than 1"

    @property
    def sizes(self) -> list[Bucket]:
        """Return the buckets that the recipe lists."""
        return [parse_bucket(text) for text in self.buckets]

    @property
    def shortest(self) -> int:
        """Return the minimum number of frames of a clip after trimming, fps and stride."""
        if self.buckets:
            return min(bucket.frames for bucket in self.sizes)
        if self.token_budget is not None:
            return min(self.frames, RULE.frame_chunk + 1)
        return self.frames

    @property
    def is_random(self) -> bool:
        """Return whether the same clip can give different frames."""
        return self.part == "random"


def parse_bucket(text: str) -> Bucket:
    """Parse a bucket that is written as frames x height x width.

    Raises:
        InputError: invalid syntax.
    """
    found = BUCKET.fullmatch(text.strip().lower())
    if found is None or 0 in (numbers := tuple(map(int, found.groups()))):
        raise InputError(f"{text!r} is not a bucket: frames x height x width, such as 49x480x720")
    return Bucket(*numbers)


@dataclass
class ImageConditionConfig:
    """Conditioning on the first frame (CogVideoX's image-to-video models only)."""

    noise_mean: float = -3.0
    """Noise is added to the first frame; its strength exp(N(noise_mean, noise_std^2)) is
    log-normal, about 0.05, which makes generation robust to flaws of the image (Yang et al. 2024,
    arXiv 2408.06072, appendix D)."""
    noise_std: float = 0.5
    """See noise_mean."""
    noise: bool = True
    """Add this noise to the first frame."""
    dropout_rate: float = 0.05
    """Fraction of examples whose first-frame conditioning is dropped (zeros)."""
    latent_scale: Literal["pipeline", "raw", "scaled"] = "pipeline"
    """Scale of the first frame's latents. `pipeline` is what diffusers generates with; SAT trains
    with `scaled` and generates with `raw` for CogVideoX 1.5, where the three differ."""

    def faults(self) -> Faults:
        yield from fraction(dropout_rate=self.dropout_rate)
        if self.noise_std < 0:
            yield "noise_std", f"must be at least 0, got {self.noise_std}"

    def idle(self) -> Faults:
        if not self.noise and (self.noise_mean, self.noise_std) != (-3.0, 0.5):
            yield "noise_mean", "has no effect with noise: false"
