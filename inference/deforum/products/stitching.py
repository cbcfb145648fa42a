"""Contact sheet of an animation: frames from first to last, with their numbers and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from inference.media import image_grid, read_pictures

MOST = 24
"""Maximum number of frames on a sheet."""

COLUMNS = 6
WIDEST = 256
"""Maximum width of a frame on the sheet in pixels."""


def contact_sheet(frames: Sequence[Path]) -> Image.Image:
    """Return evenly spaced frames in rows of six; at most 24, none wider than 256 pixels."""
    count = min(MOST, len(frames))
    numbers = [round(n * (len(frames) - 1) / max(1, count - 1)) for n in range(count)]
    pictures = [
        smaller(Image.fromarray(picture))
        for picture in read_pictures([frames[number] for number in numbers])
    ]
    rows = [list(range(start, min(start + COLUMNS, count))) for start in range(0, count, COLUMNS)]
    labels = [[f"{numbers[n]}" for n in row] for row in rows]
    return image_grid([[pictures[n] for n in row] for row in rows], column_labels=labels)


def smaller(image: Image.Image) -> Image.Image:
    """Return an image, scaled down to the maximum width on the sheet."""
    if image.width <= WIDEST:
        return image
    height = max(1, round(image.height * WIDEST / image.width))
    return image.resize((WIDEST, height), Image.Resampling.LANCZOS)
