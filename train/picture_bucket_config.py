"""The typed recipe of aspect-ratio buckets: what sizes pictures may be learned at."""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from inference.errors import InputError
from train.faults import Faults, at_least

SIZE = re.compile(r"(\d+)x(\d+)")


class Size(NamedTuple):
    """Height and width that examples have in common, in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass
class PictureBucketsConfig:
    """Pictures keep their proportions: each goes to the size whose aspect ratio is nearest."""

    preset: Literal["kohya", "sdxl"] = "kohya"
    """Which sizes there are. `kohya` makes them out of area, min_side, max_side and step
    (make_bucket_resolutions); `sdxl` are the 40 that SDXL was trained with (Podell et al. 2023,
    appendix I)."""
    sizes: list[str] = field(default_factory=list)
    """Sizes of your own in place of the preset's, each height x width such as 768x512."""
    area: int | None = None
    """Most pixels of an example; without it the square of data.resolution. Of kohya's sizes, and
    with no_upscale."""
    min_side: int = 256
    """Shortest side of kohya's sizes, rounded down to a multiple of step (kohya:
    min_bucket_reso)."""
    max_side: int = 1024
    """Longest side of kohya's sizes, rounded up to a multiple of step (kohya: max_bucket_reso)."""
    step: int = 64
    """Sides are multiples of it (kohya: bucket_reso_steps)."""
    no_upscale: bool = False
    """No picture is scaled up, and there is no list of sizes: each is scaled down to the area if it
    is larger, and what is beyond multiples of step is cut off (kohya: bucket_no_upscale)."""

    def faults(self) -> Faults:
        yield from at_least(
            1, area=self.area, min_side=self.min_side, max_side=self.max_side, step=self.step
        )
        for text in self.sizes:
            try:
                parse_size(text)
            except InputError as error:
                yield "sizes", str(error)
        with suppress(InputError):  # told above
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
        """Whether the sizes depend on data.resolution."""
        return self.area is None and not self.sizes and self.preset == "kohya"

    @property
    def listed(self) -> list[Size]:
        """The sizes that the recipe lists."""
        return [parse_size(text) for text in self.sizes]


def parse_size(text: str) -> Size:
    """The size that is written as height x width.

    Raises:
        InputError: it is written otherwise.
    """
    found = SIZE.fullmatch(text.strip().lower())
    if found is None or 0 in (numbers := tuple(map(int, found.groups()))):
        raise InputError(f"{text!r} is no size: height x width, such as 768x512")
    return Size(*numbers)
