"""Conversion of the values in an image file to sRGB with 8 bits."""

import io
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms

SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
"""ICC colour spaces of Pillow's modes."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""TIFF tags."""
SRGB_TOLERANCE = 2
"""Maximum change, in levels, of a profile that is treated as one of the many forms of sRGB's."""


class Planes(NamedTuple):
    """The colours of an image in 8 bits, and its opacity."""

    colours: Image.Image
    """Mode L, RGB, CMYK or LAB."""
    alpha: Image.Image | None
    """Mode L; None if the image has no transparency."""


def planes(image: Any) -> Planes:
    """Read the pixels of an open image.

    16-bit grey is rounded to 8 bits; of 16-bit colours Pillow takes the upper 8 bits.

    Raises:
        ValueError: the value of white is unknown.
    """
    check_numbers(image)
    mode, scale = image.mode, _key_scale(image)
    image.load()
    key = image.info.get("transparency")
    if mode.startswith("I"):
        return _from_wide(image, key)
    if mode in ("P", "PA"):
        return _split(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    if mode in ("LA", "La", "RGBA", "RGBa"):
        return _split(image.convert(mode.upper()))
    colours = image.copy()  # the file will be closed
    if mode not in ("L", "RGB", "CMYK", "LAB"):
        colours = image.convert("L" if mode == "1" else "RGB")
    return Planes(colours, None if key is None else _keyed(colours, key, scale))


def check_numbers(image: Any) -> None:
    """Reject values without a defined white.

    Raises:
        ValueError: values are floating-point numbers, or integers with 32 bits or a sign.
    """
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers; save it with 8 or 16 bits")
    if image.mode == "I" and image.format == "TIFF":
        raise ValueError("it holds integers of 32 bits or with a sign; save it with 8 or 16 bits")


def _key_scale(image: Any) -> float:
    """Return the factor that scales a PNG's transparent colour to 8 bits."""
    raw = image.tile[0][3] if image.format == "PNG" and image.tile else None
    raw = raw[0] if isinstance(raw, tuple) else raw
    return {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}.get(str(raw), 1.0)


def _from_wide(image: Any, key: Any) -> Planes:
    """Convert grey in more than 8 bits."""
    white, is_inverted = 2**16 - 1, False
    if image.format == "TIFF":
        white = 2 ** np.atleast_1d(image.tag_v2.get(BITS_PER_SAMPLE, 16)).item(0) - 1
        # Pillow inverts images with white as 0 in 8 bits, and not in 16.
        is_inverted = image.tag_v2.get(PHOTOMETRIC) == 0
    numbers = np.asarray(image).astype(np.int64)
    alpha = None
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(numbers == key, 0, 255).astype(np.uint8))
    grey = np.rint(numbers.clip(0, white) * (255 / white)).astype(np.uint8)
    return Planes(Image.fromarray(255 - grey if is_inverted else grey), alpha)


def _keyed(colours: Image.Image, key: Any, scale: float) -> Image.Image | None:
    """Return the opacity: opaque except for pixels of the one transparent colour."""
    wanted = np.atleast_1d(np.asarray(key)) * scale
    seen = np.asarray(colours).reshape(colours.height, colours.width, -1)
    if wanted.shape != seen.shape[2:]:  # such as bytes for an image without a palette
        return None
    same = (seen == wanted.astype(np.int64)).all(axis=2)
    return Image.fromarray(np.where(same, 0, 255).astype(np.uint8))


def _split(image: Image.Image) -> Planes:
    *colours, last = image.split()
    if image.mode == "RGB":
        return Planes(image, None)
    return Planes(Image.merge("RGB", colours) if len(colours) == 3 else colours[0], last)


def in_srgb(parts: Planes, profile: bytes | None) -> Image.Image:
    """Return RGBA if there is transparency, else RGB.

    Args:
        parts: colours and transparency.
        profile: the ICC profile of the colours; None for sRGB, and CMYK without one by Pillow's
            formula.
    """
    colours, alpha = parts
    if colours.mode == "LAB":
        colours = _applied(_lab_transform(), colours)
    elif profile is not None:
        if colours.mode == "L" and space_of(profile) == "RGB ":
            colours = colours.convert("RGB")
        if (transform := _transform(profile, colours.mode)) is not None:
            colours = _applied(transform, colours)
    colours = colours.convert("RGB")
    if alpha is None:
        return colours
    return Image.merge("RGBA", (*colours.split(), alpha))


def _applied(transform: Any, colours: Image.Image) -> Image.Image:
    done = ImageCms.applyTransform(colours, transform)
    assert done is not None
    return done


def profile_of(image: Any) -> bytes | None:
    """Return the ICC profile of an image's colours; None if none applies."""
    profile = image.info.get("icc_profile")
    if not profile or not isinstance(profile, bytes):
        return None
    if image.mode == "CMYK":
        fitting = ["CMYK"]
    elif image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"):
        fitting = ["L", "RGB"]
    else:
        fitting = [] if image.mode == "LAB" else ["RGB"]
    space = space_of(profile)
    mode = next((mode for mode in fitting if SPACES[mode] == space), None)
    return profile if mode is not None and _is_usable(profile, mode) else None


@lru_cache(maxsize=32)
def space_of(profile: bytes) -> str | None:
    """Return an ICC profile's colour space: `RGB `, `GRAY`, `CMYK`, …; None if it is corrupt."""
    try:
        core: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        return core.xcolor_space
    except (OSError, ImageCms.PyCMSError, ValueError):
        return None


@lru_cache(maxsize=32)
def _is_usable(profile: bytes, mode: str) -> bool:
    try:
        _transform(profile, mode)
    except (OSError, ImageCms.PyCMSError, ValueError):
        return False
    return True


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    """Return the transform from a profile to sRGB, RGB; None if it changes nothing."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB")
    if mode == "CMYK":
        return transform
    steps = np.append(np.arange(0, 255, 15), 255).astype(np.uint8)
    grey = np.arange(256, dtype=np.uint8)
    if mode == "RGB":
        lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
        probe = np.concatenate([lattice, np.stack([grey] * 3, -1)])[None]
    else:
        probe = grey[None]
    image = Image.fromarray(probe)
    seen = np.asarray(_applied(transform, image)).astype(int)
    expected = np.asarray(image.convert("RGB")).astype(int)
    return None if np.abs(seen - expected).max() <= SRGB_TOLERANCE else transform


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


@lru_cache(maxsize=1)
def _lab_transform() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")
