"""Upscalers of hires fix and img2img, by A1111's names (1.10.1 `modules/shared.py`, `upscaler.py`).

Three kinds: those of the "Latent" family work on latents; "None", "Lanczos" and "Nearest" on
pictures; all others are networks whose weights come from elsewhere, named here and registered by
whoever has them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from inference.images.img2img.resize import LANCZOS, ImageUpscaler
from inference.runtime import InputError

LATENT_UPSCALERS: dict[str, tuple[str, bool]] = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
"""Name -> mode and antialiasing of torch's `interpolate`."""

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


def _resampled(resample: Image.Resampling) -> ImageUpscaler:
    def enlarge(image: Image.Image, scale: float) -> Image.Image:
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        return image.resize(size, resample=resample)

    return enlarge


def _unchanged(image: Image.Image, scale: float) -> Image.Image:
    """`resize.scale_to` brings it to size."""
    return image


BUILT_IN: dict[str, ImageUpscaler] = {
    "None": _unchanged,
    "Lanczos": _resampled(LANCZOS),
    "Nearest": _resampled(Image.Resampling.NEAREST),
}

_registered: dict[str, ImageUpscaler] = {}


def register_upscaler(name: str, upscale: ImageUpscaler) -> None:
    """Makes a network, or anything else, an upscaler for recipes.

    Args:
        name: what recipes call it; one of `MODEL_UPSCALERS` or a new one. A name registered before
            is replaced.
        upscale: (RGB picture, scale > 1) -> a larger RGB picture. It may come out in any size, such
            as the network's own factor; Lanczos brings it to the exact one.

    Raises:
        ValueError: the name is one that Limner itself gives a meaning.
    """
    if name in LATENT_UPSCALERS or name in BUILT_IN:
        raise ValueError(f"{name!r} is built in; register another name")
    _registered[name] = upscale


def upscaler_names() -> list[str]:
    """All that work now: latent, built in, registered."""
    return [*LATENT_UPSCALERS, *BUILT_IN, *sorted(_registered)]


def is_latent_upscaler(name: str) -> bool:
    """Whether it works on latents, so that nothing is decoded and encoded between the passes."""
    return name in LATENT_UPSCALERS


def image_upscaler(name: str, key: str = "upscaler") -> ImageUpscaler:
    """The upscaler of pictures of this name, for `resize.resize_image`.

    Args:
        name: "None", "Lanczos", "Nearest", or a registered one.
        key: what the recipe calls it, for the message.

    Raises:
        InputError: it works on latents, needs weights that nobody registered, or is not known.
    """
    if name in LATENT_UPSCALERS:
        raise InputError(f"{key}: {name!r} works on latents, not on pictures; take Lanczos")
    if function := BUILT_IN.get(name) or _registered.get(name):
        return function
    raise _unusable(name, key)


def check_upscaler(name: str, key: str = "hr_upscaler") -> None:
    """Raises InputError unless it can be used now, on latents or on pictures."""
    if not is_latent_upscaler(name):
        image_upscaler(name, key)


def upscale_latents(latents: Tensor, width: int, height: int, name: str = "Latent") -> Tensor:
    """Latents (b, c, h, w) at (b, c, height, width), by an upscaler of the "Latent" family."""
    mode, antialias = LATENT_UPSCALERS[name]
    return F.interpolate(latents, size=(height, width), mode=mode, antialias=antialias)


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
