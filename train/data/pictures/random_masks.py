"""Random masks for the training of inpainting models.

In the manner of Stable Diffusion's own inpainting model, of whose examples 25 % were masked as a
whole, and of LaMa's masks (Suvorov et al. 2022, arXiv 2109.07161): boxes and wide brush strokes.
"""

from random import Random

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

WHOLE_SHARE = 0.25
"""Fraction of the masks that cover everything, from which text-to-image is learned."""
MOST_BOXES = 3
MOST_STROKES, MOST_CORNERS = 3, 6


def random_mask(draw: Random, height: int, width: int) -> Tensor:
    """Return a mask (1, height, width) of zeros and ones; 1 is to be repainted.

    Args:
        draw: the source of all its random numbers.
        height: of the image in pixels.
        width: of the image in pixels.
    """
    if draw.random() < WHOLE_SHARE:
        return torch.ones(1, height, width)
    picture = Image.new("L", (width, height), 0)
    paint = draw_boxes if draw.random() < 0.5 else draw_strokes
    paint(draw, picture)
    return torch.from_numpy(np.array(picture, np.float32))[None]


def draw_boxes(draw: Random, picture: Image.Image) -> None:
    """Fill up to MOST_BOXES boxes, each side between a tenth and three quarters of the image's."""
    canvas, (width, height) = ImageDraw.Draw(picture), picture.size
    for _ in range(draw.randint(1, MOST_BOXES)):
        box_width, box_height = (
            max(1, round(side * draw.uniform(0.1, 0.75))) for side in (width, height)
        )
        left, top = draw.randint(0, width - box_width), draw.randint(0, height - box_height)
        canvas.rectangle((left, top, left + box_width - 1, top + box_height - 1), fill=1)


def draw_strokes(draw: Random, picture: Image.Image) -> None:
    """Draw up to MOST_STROKES brush strokes with round joints, 4 to 20 % of the image wide."""
    canvas, (width, height) = ImageDraw.Draw(picture), picture.size
    for _ in range(draw.randint(1, MOST_STROKES)):
        brush = max(1, round(min(width, height) * draw.uniform(0.04, 0.2)))
        corners = [
            (draw.randrange(width), draw.randrange(height))
            for _ in range(draw.randint(2, MOST_CORNERS))
        ]
        canvas.line(corners, fill=1, width=brush)
        for x, y in corners:
            left, top = x - brush // 2, y - brush // 2
            canvas.ellipse((left, top, left + brush - 1, top + brush - 1), fill=1)
