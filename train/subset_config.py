"""The typed recipe of how pictures become examples: of all, and of a subset of them."""

from dataclasses import dataclass, field
from typing import Literal

from train.caption_config import CaptionConfig
from train.colour_jitter_config import ColorJitterConfig
from train.container_config import ContainerConfig
from train.faults import Faults, at_least, fraction
from train.mask_config import MaskConfig
from train.picture_bucket_config import PictureBucketsConfig

MOST_REPEATS = 100_000
"""Each takes 4 bytes of memory for every picture."""


@dataclass
class ExampleConfig(ContainerConfig):
    """How a picture and its caption become an example."""

    captions: CaptionConfig = field(default_factory=CaptionConfig)
    resolution: int | None = None
    """Side of the square examples in pixels; without it the base model's own size. With buckets,
    the root of their area. Subsets may differ; a micro-batch is of one size."""
    buckets: PictureBucketsConfig | None = None
    """Given, pictures keep their proportions and are learned at several sizes (`buckets: {}` for
    kohya's). A micro-batch is of one size; each size's last one of an epoch is filled up with
    pictures that come twice."""
    resize: Literal["cover", "none", "stretch", "fill", "own_size"] = "cover"
    """How a picture comes to the size of its example. `cover` scales it until it covers it (A1111:
    crop and resize); `none` cuts the size out of it as it is. Of pictures only: `stretch` does not
    keep proportions (just resize), `fill` scales it to fit in and repeats its edges around it
    (resize and fill), `own_size` leaves each at its own size, cut to the model's multiple (do not
    resize images)."""
    resize_interpolation: Literal["lanczos", "bicubic", "bilinear", "area", "nearest"] = "lanczos"
    """How pictures are scaled (kohya: resize_interpolation)."""
    crop: Literal["center", "random"] = "center"
    """Which part is cut out; the same of all frames of a clip."""
    flip: float = 0.0
    """Share of examples that are mirrored left to right, clips as a whole."""
    background: Literal["white", "black", "gray", "random"] = "white"
    """What transparent pictures are laid on; `random` takes a colour for every example."""
    color_jitter: ColorJitterConfig | None = None
    """Given, colours are changed a little, anew for every example (kohya: color_aug)."""
    masks: MaskConfig | None = None
    """Given, the loss looks at parts of the pictures only (`masks: {}` for masks beside them)."""

    def faults(self) -> Faults:
        yield from fraction(flip=self.flip)
        yield from at_least(8, resolution=self.resolution)

    def idle(self) -> Faults:
        if self.resize in ("stretch", "fill") and self.crop == "random":
            yield "crop", f"random has no effect with resize: {self.resize}: nothing is cut off"
        if self.resize in ("none", "own_size") and self.resize_interpolation != "lanczos":
            yield "resize_interpolation", f"has no effect with resize: {self.resize}"
        if self.color_jitter is not None and not self.color_jitter.is_random:
            yield "color_jitter", "has no effect: all of its amounts are 0"

    @property
    def is_random(self) -> bool:
        """Whether one picture can get different pixels."""
        jitters = self.color_jitter is not None and self.color_jitter.is_random
        return jitters or (
            self.crop == "random" or 0 < self.flip < 1 or self.background == "random"
        )


@dataclass
class SubsetConfig(ExampleConfig):
    """A part of the pictures, with settings of its own."""

    path: str | None = None
    """Its pictures: a folder, a container or a dataset, as data.path."""
    metadata_file: str | None = None
    """kohya's metadata json: pictures, relative to `path`, with their `caption` and `tags`. The
    subset has just these pictures; without `path` they are named from the working folder."""
    repeats: int = 1
    """How often an epoch has each picture, cut, mirrored and captioned anew each time (kohya:
    num_repeats)."""
    is_reg: bool = False
    """Pictures of a class rather than of what is learned: they come along with the others, one with
    each example and at its size, and their loss counts loss.prior_weight (kohya: regularisation
    images)."""
    loss_weight: float = 1.0
    """What the loss of its pictures counts."""

    def faults(self) -> Faults:
        yield from super().faults()
        yield from at_least(1, repeats=self.repeats)
        yield from at_least(0, loss_weight=self.loss_weight)
        if self.repeats > MOST_REPEATS:
            yield "repeats", f"must be at most {MOST_REPEATS}, got {self.repeats}"
        if not (self.path or self.metadata_file):
            yield "path", "must be given (a folder of pictures), or metadata_file"

    def idle(self) -> Faults:
        yield from super().idle()
        if self.loss_weight == 0:
            yield "loss_weight", "0 makes its pictures count nothing; null leaves a subset out"
