"""Upscalers of hires fix and img2img, by A1111's names (1.10.1 `modules/shared.py`, `upscaler.py`).

Three kinds: those of the "Latent" family work on latents; "None", "Lanczos" and "Nearest" on
pictures; all others are networks whose weights come from elsewhere, named here and registered by
whoever has them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from inference.images.img2img.resize import LANCZOS, ImageUpscaler
from inference.runtime import InputError, register

LatentUpscaler = Callable[[Tensor, int, int], Tensor]
"""(latents (b, c, h, w), width, height) -> latents (b, c, height, width)."""

MODEL_UPSCALERS = (
    "DAT x2",
    "DAT x3",
    "DAT x4",
    "ESRGAN_4x",
    "LDSR",
    "R-ESRGAN 2x+",
    "R-ESRGAN 4x+",
    "R-ESRGAN 4x+ Anime6B",
    "R-ESRGAN AnimeVideo",
    "R-ESRGAN General 4xV3",
    "R-ESRGAN General WDN 4xV3",
    "ScuNET",
    "ScuNET PSNR",
    "SwinIR 4x",
)
"""A1111's own networks; each works once it is registered."""


@dataclass(frozen=True)
class Upscaler:
    """An upscaler of pictures, or of latents."""

    of_pictures: ImageUpscaler | None = None
    of_latents: LatentUpscaler | None = None
    is_built_in: bool = False
    """Limner gives the name its meaning, which cannot be replaced."""

    @property
    def function(self) -> ImageUpscaler | LatentUpscaler | None:
        """Whichever it has."""
        return self.of_pictures or self.of_latents


UPSCALERS: dict[str, Upscaler] = {}
"""The upscalers by A1111's names, or their own."""

OfPictures = TypeVar("OfPictures", bound=ImageUpscaler)


def upscaler(name: str) -> Callable[[OfPictures], OfPictures]:
    """Enter the decorated function as the upscaler of pictures of a name.

    It is given an RGB picture and a scale above 1, and returns a larger RGB picture. It may come
    out in any size, such as a network's own factor; Lanczos brings it to the exact one.

    Args:
        name: what recipes call it; one of `MODEL_UPSCALERS` or a new one.

    Raises:
        ValueError: another upscaler has the name.
    """

    def enter(function: OfPictures) -> OfPictures:
        register(UPSCALERS, name, Upscaler(function))
        return function

    return enter


def register_upscaler(name: str, upscale: ImageUpscaler) -> None:
    """Make a function the upscaler of a name, in place of one registered before; see `upscaler`.

    Raises:
        ValueError: the name is one that Limner itself gives a meaning.
    """
    if name in UPSCALERS and UPSCALERS[name].is_built_in:
        raise ValueError(f"{name!r} is built in; register another name")
    UPSCALERS[name] = Upscaler(upscale)


def _interpolated(mode: str, antialias: bool = False) -> Upscaler:
    """By torch's `interpolate`."""

    def enlarge(latents: Tensor, width: int, height: int) -> Tensor:
        return F.interpolate(latents, size=(height, width), mode=mode, antialias=antialias)

    return Upscaler(of_latents=enlarge, is_built_in=True)


def _resampled(resample: Image.Resampling) -> Upscaler:
    def enlarge(image: Image.Image, scale: float) -> Image.Image:
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        return image.resize(size, resample=resample)

    return Upscaler(enlarge, is_built_in=True)


def _unchanged(image: Image.Image, scale: float) -> Image.Image:
    """`resize.scale_to` brings it to size."""
    return image


UPSCALERS |= {
    "Latent": _interpolated("bilinear"),
    "Latent (antialiased)": _interpolated("bilinear", True),
    "Latent (bicubic)": _interpolated("bicubic"),
    "Latent (bicubic antialiased)": _interpolated("bicubic", True),
    "Latent (nearest)": _interpolated("nearest"),
    "Latent (nearest-exact)": _interpolated("nearest-exact"),
    "None": Upscaler(_unchanged, is_built_in=True),
    "Lanczos": _resampled(LANCZOS),
    "Nearest": _resampled(Image.Resampling.NEAREST),
}


def upscaler_names() -> list[str]:
    """All that work now: latent, built in, registered."""
    built_in = [name for name, one in UPSCALERS.items() if one.is_built_in]
    return [*built_in, *sorted(UPSCALERS.keys() - set(built_in))]


def is_latent_upscaler(name: str) -> bool:
    """Whether it works on latents, so that nothing is decoded and encoded between the passes."""
    return name in UPSCALERS and UPSCALERS[name].of_latents is not None


def image_upscaler(name: str, key: str = "upscaler") -> ImageUpscaler:
    """The upscaler of pictures of this name, for `resize.resize_image`.

    Args:
        name: "None", "Lanczos", "Nearest", or a registered one.
        key: what the recipe calls it, for the message.

    Raises:
        InputError: it works on latents, needs weights that nobody registered, or is not known.
    """
    if is_latent_upscaler(name):
        raise InputError(f"{key}: {name!r} works on latents, not on pictures; take Lanczos")
    found = UPSCALERS.get(name)
    if found is None or found.of_pictures is None:
        raise _unusable(name, key)
    return found.of_pictures


def check_upscaler(name: str, key: str = "hr_upscaler") -> None:
    """Raises InputError unless it can be used now, on latents or on pictures."""
    if not is_latent_upscaler(name):
        image_upscaler(name, key)


def upscale_latents(latents: Tensor, width: int, height: int, name: str = "Latent") -> Tensor:
    """Latents (b, c, h, w) at (b, c, height, width), by an upscaler of the "Latent" family."""
    enlarge = UPSCALERS[name].of_latents
    assert enlarge is not None, f"{name} works on pictures"
    return enlarge(latents, width, height)


def _unusable(name: str, key: str) -> InputError:
    if name in MODEL_UPSCALERS:
        return InputError(
            f"{key}: {name!r} needs weights that Limner does not ship; register it with "
            "inference.images.img2img.upscalers.register_upscaler, or take Lanczos"
        )
    known = [*upscaler_names(), *MODEL_UPSCALERS]
    nearest = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
    return InputError(f"{key}: there is no upscaler {name!r}; {hint}")


FaceRestorer = Callable[[Image.Image, float], Image.Image]
"""(RGB picture, weight 0 … 1) -> the picture with its faces restored, in the same size."""

FACE_RESTORERS = ("CodeFormer", "GFPGAN")

CODEFORMER_WEIGHT = 0.5
"""0 changes most, 1 least; GFPGAN pays no heed to it."""

_face_restorers: dict[str, FaceRestorer] = {}


def register_face_restorer(name: str, restore: FaceRestorer) -> None:
    """Makes a face restorer known, by A1111's name or a new one; replaces what it was before."""
    _face_restorers[name] = restore


def face_restorer(name: str, key: str = "face_restoration") -> FaceRestorer:
    """The registered face restorer of this name.

    Raises:
        InputError: there is none of this name.
    """
    if name in _face_restorers:
        return _face_restorers[name]
    if name in FACE_RESTORERS:
        raise InputError(
            f"{key}: {name!r} needs weights that Limner does not ship; register it with "
            "inference.images.img2img.upscalers.register_face_restorer, or leave it out"
        )
    known = ", ".join(sorted({*FACE_RESTORERS, *_face_restorers}))
    raise InputError(f"{key}: there is no face restorer {name!r}; known are {known}")
