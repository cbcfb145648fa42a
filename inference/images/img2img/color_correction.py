"""Color correction: the colours of the init image with the luminosity of the result.

A1111 1.10.1 (`modules/processing.py`, `apply_color_correction`): the channels of the result in
L*a*b* get the histograms of the reference; then the result's own luminosity is restored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
"""Linear RGB of ITU-R BT.709 (the primaries of sRGB) to CIE XYZ."""

WHITE = TO_XYZ.sum(axis=1)
"""XYZ of D65 white: 0.950456, 1, 1.088754."""

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G and B in that luminosity."""


def correct_colors(result: Image.Image, reference: Image.Image) -> Image.Image:
    """Return the result in the colours of the reference, RGB.

    Args:
        result: the generated image.
        reference: the init image as it was encoded; its size may differ.
    """
    pixels = np.asarray(result.convert("RGB"))
    target = rgb_to_lab(np.asarray(reference.convert("RGB")))
    source = rgb_to_lab(pixels)
    channels = [match_histogram(source[..., i], target[..., i]) for i in range(3)]
    return Image.fromarray(blend_luminosity(lab_to_rgb(np.stack(channels, axis=-1)), pixels))


def rgb_to_lab(rgb: Bytes) -> Bytes:
    """Convert sRGB bytes to L*a*b* (CIE 1976, D65) in OpenCV's bytes: (L * 2.55, a + 128, b + 128).

    Both (..., 3). OpenCV 4.14 computes with tables; 9 % of its values differ, by 1 or 2.
    """
    xyz = _linear(rgb / 255.0) @ TO_XYZ.T / WHITE
    is_light = xyz > (6 / 29) ** 3
    f = np.where(is_light, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    lab = np.stack([(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128], axis=-1)
    return _to_bytes(lab)


def lab_to_rgb(lab: Bytes) -> Bytes:
    """Convert back to sRGB, (..., 3); colours outside of sRGB are clipped."""
    y = (lab[..., 0] / 2.55 + 16) / 116
    x = y + (lab[..., 1] - 128.0) / 500
    z = y - (lab[..., 2] - 128.0) / 200
    f = np.stack([x, y, z], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * WHITE
    linear = np.clip(xyz @ np.linalg.inv(TO_XYZ).T, 0, 1)
    srgb = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return _to_bytes(srgb * 255)


def match_histogram(source: Bytes, reference: Bytes) -> Bytes:
    """Return bytes with the reference's cumulative histogram (scikit-image's `match_histograms`).

    Each level becomes the reference's level at the same quantile, interpolated, rounded down. The
    shapes may differ.
    """
    counts = np.bincount(source.ravel(), minlength=256)
    wanted = np.bincount(reference.ravel(), minlength=256)
    levels = np.flatnonzero(wanted)
    quantiles = np.cumsum(counts) / source.size
    matched = np.interp(quantiles, np.cumsum(wanted[levels]) / reference.size, levels)
    return matched.astype(np.uint8)[source]


def blend_luminosity(colors: Bytes, light: Bytes) -> Bytes:
    """Combine hue and saturation of `colors` with luminosity of `light`; all (..., 3).

    The blend mode "luminosity" (W3C Compositing Level 1, SetLum and ClipColor): all channels are
    shifted alike; if one leaves 0 … 1, the colour is moved towards its grey.
    """
    rgb = colors / 255.0
    wanted = (light / 255.0 @ LUMA)[..., None]
    rgb = rgb + (wanted - (rgb @ LUMA)[..., None])
    grey = (rgb @ LUMA)[..., None]
    low, high = rgb.min(axis=-1, keepdims=True), rgb.max(axis=-1, keepdims=True)
    below = np.divide(grey, grey - low, out=np.ones_like(grey), where=low < 0)
    above = np.divide(1 - grey, high - grey, out=np.ones_like(grey), where=high > 1)
    return _to_bytes((grey + (rgb - grey) * np.minimum(below, above)) * 255)


def _linear(srgb: Floats) -> Floats:
    return np.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)


def _to_bytes(values: Floats) -> Bytes:
    return np.rint(values).clip(0, 255).astype(np.uint8)
