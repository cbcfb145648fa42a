"""Typed options of captions, colours, masks and sizes of examples (kohya's options)."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from inference.runtime import InputError
from train.config.rules import Faults, at_least, fraction

if TYPE_CHECKING:
    pass


@dataclass
class CaptionConfig:
    """How captions are read, changed and encoded."""

    paths: ClassVar[tuple[str, ...]] = ("template",)

    extensions: list[str] = field(default_factory=lambda: [".txt", ".caption"])
    """Caption files beside the images; the first that exists is used. A `metadata.jsonl` in the
    folder (`file_name`, `text`) takes precedence. A `.json` file holds a caption, a list of them,
    or an object with `caption`, `text` or `tags`."""
    prefix: str = ""
    """Written before every caption."""
    suffix: str = ""
    """Written after every caption."""
    template: str | None = None
    """Prompts to insert captions into: one of style, style_filewords, subject, subject_filewords,
    hypernetwork and none, or a text file with one prompt per line. One line is drawn each time;
    `[filewords]` becomes the caption and `[name]` the token of textual inversion or the run's name.
    Captions that no line uses may be missing (A1111: prompt template)."""
    fallback: str | None = None
    """Caption of images without one. By default such an image is an error."""
    wildcards: bool = False
    """Replace `{red|blue|}` by one of its alternatives, drawn each time, and treat every line of a
    caption file as a caption of its own (kohya: enable_wildcard). `{{` and `}}` stand for braces;
    wildcards cannot be nested. If false, the lines of a file are one caption, and braces are
    kept."""
    dropout_rate: float = 0.0
    """Fraction of examples whose caption becomes empty, which CFG needs (kohya:
    caption_dropout_rate)."""
    dropout_every_n_epochs: int = 0
    """Make every caption of the n-th, 2n-th, … epoch empty; 0 does so in none (kohya:
    caption_dropout_every_n_epochs)."""
    dropout_mode: Literal["empty_string", "zero_embedding"] = "empty_string"
    """How an empty caption is encoded: by the text encoder, as pipelines do, or as zeros, as in
    CogVideoX's SAT trainer and sampler."""
    caption_separator: str = ","
    """Separator of the tags of a caption. When tags are shuffled, dropped or added step by step,
    they are joined with commas again, as in kohya."""
    secondary_separator: str = ""
    """Joins tags that are shuffled and dropped as one; it becomes caption_separator in the prompt:
    with `;;;`, `sky;;;cloud` becomes `sky,cloud` (kohya)."""
    shuffle_tags: bool = False
    """Shuffle the tags of a caption (kohya: shuffle_caption)."""
    keep_tokens: int = 0
    """Number of leading tags that stay in place when tags are shuffled or dropped."""
    keep_tokens_separator: str = ""
    """With `"|||"`, the text before this separator in a caption stays in place, instead of the
    first keep_tokens tags; text after a second one stays too, at the end. The separators are
    removed from the prompt (kohya)."""
    tag_dropout_rate: float = 0.0
    """Fraction of tags to drop (kohya: caption_tag_dropout_rate)."""
    always_kept_tags: list[str] = field(default_factory=list)
    """Tags that tag_dropout_rate never drops, as written in the captions."""
    token_warmup_step: float = 0.0
    """Step from which all tags are present; those behind the kept ones are added one after the
    other, as many at a step as in kohya's formula. Below 1: fraction of max_train_steps. 0: all at
    once."""
    token_warmup_min: int = 1
    """Number of tags behind the kept ones at the first step of token_warmup_step."""

    def faults(self) -> Faults:
        yield from fraction(dropout_rate=self.dropout_rate, tag_dropout_rate=self.tag_dropout_rate)
        yield from at_least(
            0,
            keep_tokens=self.keep_tokens,
            dropout_every_n_epochs=self.dropout_every_n_epochs,
            token_warmup_step=self.token_warmup_step,
            token_warmup_min=self.token_warmup_min,
        )
        signs = {
            "caption_separator": self.caption_separator,
            "secondary_separator": self.secondary_separator,
            "keep_tokens_separator": self.keep_tokens_separator,
        }
        if not self.caption_separator.strip():
            yield "caption_separator", "must be a sign, such as a comma; got nothing"
        taken: dict[str, str] = {}
        for name, sign in signs.items():
            if sign and sign.strip() in taken:
                yield name, f"is the same as {taken[sign.strip()]}: take another sign"
            taken.setdefault(sign.strip(), name)
        for extension in self.extensions:
            if not extension.startswith(".") or len(extension) < 2:
                yield "extensions", f'must begin with a dot, as ".txt"; got {extension!r}'

    def idle(self) -> Faults:
        if self.dropout_mode == "zero_embedding" and not self.drops_captions:
            yield "dropout_mode", "has no effect without dropout_rate or dropout_every_n_epochs"
        if self.dropout_every_n_epochs == 1:
            yield "dropout_every_n_epochs", "1 makes the captions of all epochs empty"
        if self.keep_tokens and not self.changes_words:
            yield (
                "keep_tokens",
                "has no effect without shuffle_tags, tag_dropout_rate or token_warmup_step",
            )
        splits = self.changes_words or self.secondary_separator or self.keep_tokens_separator
        if self.caption_separator != "," and not splits:
            yield "caption_separator", "has no effect: nothing takes captions apart"
        if self.always_kept_tags and not self.tag_dropout_rate:
            yield "always_kept_tags", "has no effect without tag_dropout_rate"
        if self.token_warmup_min != 1 and not self.token_warmup_step:
            yield "token_warmup_min", "has no effect without token_warmup_step"

    @property
    def changes_words(self) -> bool:
        """Return whether captions can differ from those in files.

        Empty captions and wildcards do not count.
        """
        return bool(self.shuffle_tags or self.tag_dropout_rate or self.token_warmup_step)

    @property
    def drops_captions(self) -> bool:
        """Return whether captions are made empty at times."""
        return bool(self.dropout_rate or self.dropout_every_n_epochs)


@dataclass
class ColorJitterConfig:
    """Random colour changes, drawn for each example and epoch. Zeros change nothing."""

    brightness: float = 0.0
    """Values are multiplied by a factor in 1 - brightness … 1 + brightness."""
    contrast: float = 0.0
    """The distance from the image's mean grey is multiplied by a factor drawn in the same way."""
    saturation: float = 0.0
    """The distance from each pixel's own grey is multiplied by a factor drawn in the same way."""
    hue: float = 0.0
    """Hues are rotated by up to this fraction of the colour circle, in either direction; at most
    0.5."""

    def faults(self) -> Faults:
        yield from at_least(
            0,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
        )
        for name in ("brightness", "contrast", "saturation"):
            if vars(self)[name] > 1:
                yield name, f"must be at most 1, got {vars(self)[name]}"
        if self.hue > 0.5:
            yield "hue", f"must be at most 0.5, half of the colour circle, got {self.hue}"

    @property
    def is_random(self) -> bool:
        """Return whether any colour is changed."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)


USUAL_SUFFIX = "-masklabel"
"""OneTrainer's suffix of masks beside their images."""


@dataclass
class MaskConfig:
    """Loss weights of the parts of an image (white or opaque: full weight)."""

    paths: ClassVar[tuple[str, ...]] = ("path",)

    source: Literal["files", "alpha"] = "files"
    """`files`: grayscale images, beside the images (`suffix`) or in a folder (`path`), stored
    upright; `alpha`: the opacity of the images themselves, whose transparent parts get the colour
    of data.background."""
    path: str | None = None
    """A folder with the mask of each image under the name and folder of the image, in any format
    (kohya: conditioning_data_dir); default: masks are beside the images."""
    suffix: str | None = None
    """Suffix of a mask's name, after the name of the image: by default `-masklabel` (as in
    OneTrainer) beside images, and nothing in a folder of masks."""
    missing: Literal["error", "whole"] = "error"
    """What to do with images without a mask file: reject them, or give all of the image full
    weight."""
    unmasked_weight: float = 0.0
    """Weight of black: lower weights are raised to it (OneTrainer: unmasked weight)."""
    unmasked_probability: float = 0.0
    """Fraction of examples that ignore their mask, drawn again in every epoch (OneTrainer: unmasked
    probability)."""
    normalize: bool = False
    """Divide by the mean weight, so that the loss of an image does not depend on the area of its
    mask (OneTrainer: normalize masked area loss). Otherwise the loss is averaged over the whole
    image (as in kohya), and a small mask makes a small loss."""
    formula: Literal["weight", "a1111"] = "weight"
    """`weight` uses the mask unchanged; `a1111` subtracts its minimum and divides by the mean, as
    A1111's "Use PNG alpha channel as loss weight"; a uniform mask gives weight 1."""

    def faults(self) -> Faults:
        yield from fraction(
            unmasked_weight=self.unmasked_weight, unmasked_probability=self.unmasked_probability
        )
        if self.source == "files" and not (self.path or self.ending):
            yield "suffix", "must not be empty beside pictures: masks need names of their own"
        if Path(self.ending).suffix or "/" in self.ending:
            yield (
                "suffix",
                f"stands before the file's ending, as in {USUAL_SUFFIX}; got {self.ending!r}",
            )

    def idle(self) -> Faults:
        if self.source == "alpha":
            given = {"path": self.path, "suffix": self.suffix, "missing": self.missing != "error"}
            for name in (name for name, value in given.items() if value):
                yield name, "has no effect with source: alpha"
        if self.formula == "a1111":
            for name in ("unmasked_weight", "normalize"):
                if vars(self)[name]:
                    yield name, "has no effect with formula: a1111"

    @property
    def ending(self) -> str:
        """Return the suffix of a mask's name after that of its image."""
        return self.suffix if self.suffix is not None else "" if self.path else USUAL_SUFFIX

    def is_mask(self, path: Path) -> bool:
        """Return whether a file in a folder of images is the mask of one."""
        if self.source == "alpha":
            return False
        if self.path is None:
            return path.stem.endswith(self.ending)
        return path.absolute().is_relative_to(Path(self.path).absolute())


SIZE = re.compile(r"(\d+)x(\d+)")


class Size(NamedTuple):
    """Height and width of an example in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass
class PictureBucketsConfig:
    """Aspect-ratio buckets: each image is assigned to the size with the nearest aspect ratio."""

    preset: Literal["kohya", "sdxl"] = "kohya"
    """Which sizes to use. `kohya` computes them from area, min_side, max_side and step
    (make_bucket_resolutions); `sdxl` are the 40 that SDXL was trained with (Podell et al. 2023,
    appendix I)."""
    sizes: list[str] = field(default_factory=list)
    """Custom sizes instead of the preset's, each height x width such as 768x512."""
    area: int | None = None
    """Maximum number of pixels of an example; default: the square of data.resolution. For kohya's
    sizes, and with no_upscale."""
    min_side: int = 256
    """Shortest side of kohya's sizes, rounded down to a multiple of step (kohya:
    min_bucket_reso)."""
    max_side: int = 1024
    """Longest side of kohya's sizes, rounded up to a multiple of step (kohya: max_bucket_reso)."""
    step: int = 64
    """Sides are multiples of it (kohya: bucket_reso_steps)."""
    no_upscale: bool = False
    """Never scale an image up, and use no list of sizes: larger images are scaled down to the area,
    and cropped to multiples of step (kohya: bucket_no_upscale)."""

    def faults(self) -> Faults:
        yield from at_least(
            1, area=self.area, min_side=self.min_side, max_side=self.max_side, step=self.step
        )
        for text in self.sizes:
            try:
                parse_size(text)
            except InputError as error:
                yield "sizes", str(error)
        with suppress(InputError):  # reported by `faults`
            if len({*self.listed}) < len(self.sizes):
                yield "sizes", "names a size twice; leave one out"
        if self.sizes and self.preset == "sdxl":
            yield "sizes", "excludes preset: sdxl; leave one of them out"
        if self.no_upscale and (self.sizes or self.preset == "sdxl"):
            yield "no_upscale", "has no list of sizes; leave out sizes and preset"
        if self.min_side > self.max_side:
            yield "max_side", f"must be at least min_side {self.min_side}, got {self.max_side}"

    def idle(self) -> Faults:
        is_listed, unset = bool(self.sizes) or self.preset == "sdxl", PictureBucketsConfig()
        for name, value, default in (
            ("min_side", self.min_side, unset.min_side),
            ("max_side", self.max_side, unset.max_side),
            ("area", self.area, unset.area),
            ("step", self.step, unset.step),
        ):
            of_list_alone = name in ("min_side", "max_side")
            if value != default and is_listed:
                yield name, "has no effect: the sizes are listed"
            elif value != default and self.no_upscale and of_list_alone:
                yield name, "has no effect with no_upscale, as in kohya"

    @property
    def follow_resolution(self) -> bool:
        """Return whether the sizes depend on data.resolution."""
        return self.area is None and not self.sizes and self.preset == "kohya"

    @property
    def listed(self) -> list[Size]:
        """Return the sizes that the recipe lists."""
        return [parse_size(text) for text in self.sizes]


def parse_size(text: str) -> Size:
    """Parse a size that is written as height x width.

    Raises:
        InputError: invalid syntax.
    """
    found = SIZE.fullmatch(text.strip().lower())
    if found is None or 0 in (numbers := tuple(map(int, found.groups()))):
        raise InputError(f"{text!r} is not a size: height x width, such as 768x512")
    return Size(*numbers)
