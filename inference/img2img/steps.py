"""How many steps img2img takes (A1111 1.10.1 `modules/sd_samplers_common.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from inference.errors import InputError

MOST_STRENGTH = 0.999
"""A denoising strength of 1 counts as this."""


@dataclass(frozen=True)
class Img2ImgSteps:
    """Which part of a schedule is taken."""

    schedule_steps: int
    """Steps of the whole schedule, with schedule_steps + 1 sigmas."""
    start: int
    """Index of the first sigma; the picture is noised to it."""

    @property
    def count(self) -> int:
        """Steps that are taken."""
        return self.schedule_steps - self.start


def img2img_steps(steps: int, denoising_strength: float, exact: bool = False) -> Img2ImgSteps:
    """A1111's rule for samplers over sigmas.

    Otherwise than diffusers, which takes int(steps * strength), there is always one step more:
    int(min(strength, 0.999) * steps) + 1. Exact steps ("with img2img, do exactly the amount of
    steps the slider specifies", and always in hires fix) take `steps` off the end of a schedule
    that is longer by 1 / strength.

    Args:
        steps: at least 1.
        denoising_strength: 0 … 1.
        exact: whether all `steps` are taken.

    Raises:
        InputError: the strength is out of range, or 0 with exact steps.
    """
    if not 0 <= denoising_strength <= 1:
        raise InputError(f"denoising_strength: {denoising_strength:g} is out of range; take 0 to 1")
    strength = min(denoising_strength, MOST_STRENGTH)
    if not exact:
        return Img2ImgSteps(steps, steps - int(strength * steps) - 1)
    if strength == 0:
        raise InputError("denoising_strength: 0 leaves nothing to draw; take more than 0")
    whole = int(steps / strength)
    return Img2ImgSteps(whole, whole - steps)
