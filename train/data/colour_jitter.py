"""Colours changed a little, as torchvision's `ColorJitter` does in a fixed order."""

import random

import numpy as np

from train.colour_jitter_config import ColorJitterConfig

LUMA = np.array([0.299, 0.587, 0.114])
"""Of red, green and blue in grey (ITU-R BT.601), as Pillow and torchvision take it."""


def jittered(pixels: np.ndarray, config: ColorJitterConfig, draw: random.Random) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed in this order.

    Args:
        pixels: (h, w, 3), 0 … 255.
        config: how much; four numbers are drawn whatever it says.
        draw: where they come from.

    Returns:
        (h, w, 3), float64, 0 … 255, not rounded.
    """
    brightness, contrast, saturation = (
        1 + amount * draw.uniform(-1, 1)
        for amount in (config.brightness, config.contrast, config.saturation)
    )
    turn = config.hue * draw.uniform(-1, 1)
    values = (pixels * brightness).clip(0, 255)
    mean = (values @ LUMA).mean()
    values = (mean + (values - mean) * contrast).clip(0, 255)
    grey = (values @ LUMA)[..., None]
    values = (grey + (values - grey) * saturation).clip(0, 255)
    return turned(values, turn) if turn else values


def turned(values: np.ndarray, turn: float) -> np.ndarray:
    """Hues moved by a share of the colour circle; value and saturation of HSV stay."""
    high, low = values.max(-1), values.min(-1)
    chroma = np.where(high > low, high - low, 1.0)
    red, green, blue = ((high - values[..., channel]) / chroma for channel in range(3))
    leading = values.argmax(-1)
    hue = np.choose(leading, [blue - green, 2 + red - blue, 4 + green - red]) + 6 * turn
    # Each channel falls from the highest to the lowest value two sixths away from its own hue.
    channels = []
    for own in (0, 2, 4):
        distance = np.abs((hue - own + 3) % 6 - 3)
        channels.append(high - (high - low) * np.clip(distance - 1, 0, 1))
    return np.stack(channels, -1)
