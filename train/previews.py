"""The grid drawn while training: the base model's row above the row of what was learned."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from inference.base_model import BaseModel
from inference.config import ImageConfig
from inference.grid import image_grid, save_grid
from inference.sampling import Drawing, draw
from train.config import SamplingConfig


class PromptGrid:
    """Draws the recipe's images; the base model's are drawn once, before the first step."""

    def __init__(self, base: BaseModel, config: SamplingConfig, folder: Path) -> None:
        self.base = base
        self.config = config
        self.base_row = folder / "base"

    def images(self) -> list[ImageConfig]:
        return [image for image in self.config.images.values() if image is not None]

    def draw(self) -> list[Drawing]:
        return draw(self.base, self.images(), batch_size=self.config.batch_size)

    def keep_base_row(self) -> None:
        """Draws the row of the untrained model; to be called before anything is learned."""
        self.base_row.mkdir(parents=True, exist_ok=True)
        for number, drawing in enumerate(self.draw()):
            drawing.image.save(self.base_row / f"{number:03d}.png")

    def save(self, path: Path, step: int) -> Image.Image:
        """Draws and saves the grid with infotext; returns it."""
        drawings = self.draw()
        rows = [[drawing.image for drawing in drawings]]
        labels = [f"step {step}"]
        kept = sorted(self.base_row.glob("*.png"))
        if len(kept) == len(drawings):
            rows.insert(0, [Image.open(file).convert("RGB") for file in kept])
            labels.insert(0, "base")
        grid = image_grid(rows, labels, [drawing.request.prompt for drawing in drawings])
        save_grid(path, grid, drawings)
        return grid


@torch.no_grad()
def reconstruction_grid(base: BaseModel, pixels: Sequence[Tensor], path: Path) -> Image.Image:
    """Pictures above what the VAE gives back of them, saved as PNG; returns the grid."""
    originals = torch.stack(list(pixels)).to(base.device)
    mean, _ = base.encode_images(originals)
    rows = [
        [to_image(picture) for picture in batch] for batch in (originals, base.decode_latents(mean))
    ]
    error = (originals - base.decode_latents(mean)).square().flatten(1).mean(1) / 4
    labels = [f"{-10 * float(value.log10()):.1f} dB" for value in error]
    grid = image_grid(rows, ["picture", "VAE"], labels)
    save_grid(path, grid, [])
    return grid


def to_image(pixels: Tensor) -> Image.Image:
    """A picture of pixels (3, h, w) in -1 … 1."""
    array = pixels.float().add(1).mul(127.5).round().clamp(0, 255).byte()
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())
