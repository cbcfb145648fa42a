"""Colour coherence: frames keep the colours of a sample (Deforum 3.0 `deforum_helpers/colors.py`).

Per channel, values are mapped to the sample's cumulative histogram (like scikit-image's
`match_histograms`), in RGB, HSV or L*a*b*.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from inference.deforum.geometry import Bytes, Pixels, alike, opencv, to_bytes
from inference.deforum.settings import DEFORUM, FIXED, Compat
from inference.images import TO_XYZ, WHITE, match_histogram

ColorSpace = Literal["RGB", "HSV", "LAB"]

LINEAR = np.where(
    np.arange(256) > 0.04045 * 255,
    ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4,
    np.arange(256) / 255 / 12.92,
)
"""Linear light of each level of sRGB, 0 … 1."""

FINENESS = {"RGB": (1, 1, 1), "HSV": (64, 16384, 16384), "LAB": (256, 256, 256)}
"""Steps per unit to which channels are rounded for matching: fine enough to keep every byte."""


def match_colors(
    image: Pixels,
    reference: Bytes,
    space: ColorSpace = "LAB",
    compat: Compat = FIXED,
    target: NDArray[np.floating] | None = None,
) -> Pixels:
    """Return the image with the reference's histograms.

    An image matched to itself does not change. With "deforum-3.0" it does: HSV and L*a*b* are
    stored as bytes, computed from channels in the wrong order, and matches are rounded down.

    Args:
        image: (h, w, 3); floats are rounded to bytes first.
        reference: (h', w', 3), the colour sample.
        space: whose channels are matched. `color_coherence` "Image" and "Video Input" use "LAB".
        compat: which bugs of Deforum are kept.
        target: `color_values(reference, space)`, if it is known already; "fixed" needs it.
    """
    pixels = to_bytes(image)
    if compat == DEFORUM:
        return alike(_match_as_deforum(pixels, reference, space), image)
    source = color_values(pixels, space)
    target = color_values(reference, space) if target is None else target
    channels = [_match_floats(source[..., i], target[..., i], FINENESS[space][i]) for i in range(3)]
    return alike(_from_space(np.stack(channels, axis=-1), space), image)


def grayscale(image: Pixels) -> Pixels:
    """Return the luminosity in all three channels (ITU-R BT.601), for `color_force_grayscale`."""
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return alike(np.repeat(luma[..., None], 3, axis=-1), image)


def _match_as_deforum(image: Pixels, reference: Bytes, space: ColorSpace) -> Bytes:
    if space == "RGB":
        return _match_bytes(image, reference)
    cv2 = opencv()
    there = {"HSV": cv2.COLOR_BGR2HSV, "LAB": cv2.COLOR_BGR2LAB}[space]
    back = {"HSV": cv2.COLOR_HSV2BGR, "LAB": cv2.COLOR_LAB2BGR}[space]
    # Swap RGB and BGR, as Deforum does.
    return cv2.cvtColor(
        _match_bytes(cv2.cvtColor(image, there), cv2.cvtColor(reference, there)), back
    )


def _match_bytes(source: Any, reference: Bytes) -> Bytes:
    channels = [match_histogram(source[..., i], reference[..., i]) for i in range(3)]
    return np.stack(channels, axis=-1)


def _match_floats(
    source: NDArray[np.floating], reference: NDArray[np.floating], fineness: int
) -> NDArray[np.float64]:
    """Map values to the reference's same quantiles, interpolated, on a grid of 1 / fineness."""
    lowest = min(source.min(), reference.min())
    places, others = (
        np.rint((values - lowest) * fineness).astype(np.int64).ravel()
        for values in (source, reference)
    )
    counts, wanted = np.bincount(places), np.bincount(others)
    levels, present = np.flatnonzero(wanted), np.flatnonzero(counts)
    matched = np.zeros(len(counts))
    matched[present] = np.interp(
        np.cumsum(counts[present]) / places.size, np.cumsum(wanted[levels]) / others.size, levels
    )
    return (matched[places] / fineness + lowest).reshape(source.shape)


def color_values(image: Bytes, space: ColorSpace) -> NDArray[np.floating]:
    """Return an image's channels in a colour space, (h, w, 3); HSV in degrees and 0 … 1."""
    if space == "RGB":
        return image.astype(np.float64)
    if space == "HSV":
        cv2 = opencv()
        return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    xyz = LINEAR[image] @ TO_XYZ.T / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _from_space(values: NDArray[np.floating], space: ColorSpace) -> NDArray[np.floating]:
    if space == "RGB":
        return values
    if space == "HSV":
        cv2 = opencv()
        return cv2.cvtColor(values.astype(np.float32), cv2.COLOR_HSV2RGB) * 255
    y = (values[..., 0] + 16) / 116
    x, z = y + values[..., 1] / 500, y - values[..., 2] / 200
    f = np.stack([x, y, z], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * WHITE
    linear = (xyz @ np.linalg.inv(TO_XYZ).T).clip(0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear) * 255
