"""Upscalers of hires fix and img2img, by A1111's names (1.10.1 `modules/shared.py`, `upscaler.py`).

There are three kinds: those of the "Latent" family work on latents; "None", "Lanczos" and "Nearest"
on images; all others are networks with external weights, named here and registered by
plug-ins that have them.
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
    """An upscaler of images, or of latents."""

    of_pictures: ImageUpscaler | None = None
    of_latents: LatentUpscaler | None = None
    is_built_in: bool = False
    """Whether the name is built in, so that it cannot be replaced."""

    @property
    def function(self) -> ImageUpscaler | LatentUpscaler | None:
        """Return the one that it has."""
        return self.of_pictures or self.of_latents


UPSCALERS: dict[str, Upscaler] = {}
"""The upscalers by name."""

OfPictures = TypeVar("OfPictures", bound=ImageUpscaler)


def upscaler(name: str) -> Callable[[OfPictures], OfPictures]:
    """Return the decorator that registers an image upscaler under a name.

    The function gets an RGB image and a scale above 1, and returns a larger RGB image. Any
    size is allowed, such as a network's own factor; Lanczos resizes it to the exact one.

    Args:
        name: its name in recipes; one of `MODEL_UPSCALERS` or a new one.

    Raises:
        ValueError: another upscaler has the name.
    """

    def enter(function: OfPictures) -> OfPictures:
        register(UPSCALERS, name, Upscaler(function))
        return function

    return enter


def register_upscaler(name: str, upscale: ImageUpscaler) -> None:
    """Register a function as an upscaler, replacing an earlier one; see `upscaler`.

    Raises:
        ValueError: the name is built in.
    """
    if name in UPSCALERS and UPSCALERS[name].is_built_in:
        raise ValueError(f"{name!r} is built in; register another name")
    UPSCALERS[name] = Upscaler(upscale)


def _interpolated(mode: str, antialias: bool = False) -> Upscaler:
    """Return an upscaler with torch's `interpolate`."""

    def enlarge(latents: Tensor, width: int, height: int) -> Tensor:
        return F.interpolate(latents, size=(height, width), mode=mode, antialias=antialias)

    return Upscaler(of_latents=enlarge, is_built_in=True)


def _resampled(resample: Image.Resampling) -> Upscaler:
    def enlarge(image: Image.Image, scale: float) -> Image.Image:
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        return image.resize(size, resample=resample)

    return Upscaler(enlarge, is_built_in=True)


def _unchanged(image: Image.Image, scale: float) -> Image.Image:
    """Return the image unchanged; `resize.scale_to` resizes it."""
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
    """Return all available names: latent, built in, registered."""
    built_in = [name for name, one in UPSCALERS.items() if one.is_built_in]
    return [*built_in, *sorted(UPSCALERS.keys() - set(built_in))]


def is_latent_upscaler(name: str) -> bool:
    """Return whether it works on latents, so that nothing is decoded between the passes."""
    return name in UPSCALERS and UPSCALERS[name].of_latents is not None


def image_upscaler(name: str, key: str = "upscaler") -> ImageUpscaler:
    """Return the image upscaler of this name, for `resize.resize_image`.

    Args:
        name: "None", "Lanczos", "Nearest", or a registered one.
        key: the recipe's option, for the message.

    Raises:
        InputError: it works on latents, needs unregistered weights, or is unknown.
    """
    if is_latent_upscaler(name):
        raise InputError(f"{key}: {name!r} works on latents, not on pictures; take Lanczos")
    found = UPSCALERS.get(name)
    if found is None or found.of_pictures is None:
        raise _unusable(name, key)
    return found.of_pictures


def check_upscaler(name: str, key: str = "hr_upscaler") -> None:
    """Raise InputError unless it is available, on latents or on images."""
    if not is_latent_upscaler(name):
        image_upscaler(name, key)


def upscale_latents(latents: Tensor, width: int, height: int, name: str = "Latent") -> Tensor:
    """Resize latents (b, c, h, w) to (b, c, height, width), by a "Latent" upscaler."""
    enlarge = UPSCALERS[name].of_latents
    assert enlarge is not None, f"{name} works on pictures"
    return enlarge(latents, width, height)


def _unusable(name: str, key: str) -> InputError:
    if name in MODEL_UPSCALERS:
        return InputError(
            f"{key}: {name!r} needs weights that Limner does not ship; register it with the "
            "decorator inference.images.upscaler (docs/extending.md), or take Lanczos"
        )
    known = upscaler_names()
    nearest = difflib.get_close_matches(name, [*known, *MODEL_UPSCALERS], 1, 0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
    return InputError(f"{key}: there is no upscaler {name!r}; {hint}")


FaceRestorer = Callable[[Image.Image, float], Image.Image]
"""(RGB image, weight 0 … 1) -> the image with its faces restored, in the same size."""

FACE_RESTORERS = ("CodeFormer", "GFPGAN")

CODEFORMER_WEIGHT = 0.5
"""0 changes most, 1 least; GFPGAN ignores it."""

_face_restorers: dict[str, FaceRestorer] = {}


def register_face_restorer(name: str, restore: FaceRestorer) -> None:
    """Register a face restorer by A1111's name or a new one, replacing an earlier one."""
    _face_restorers[name] = restore


def face_restorer(name: str, key: str = "face_restoration") -> FaceRestorer:
    """Return the registered face restorer of this name.

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
