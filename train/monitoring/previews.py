"""The preview grid: the base model's row above the artifact's row."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inference.config import ImageConfig
from inference.images import Drawing, check_finite, draw, read_infotext
from inference.media import image_grid, save_grid, save_png
from inference.models import DiffusionModel
from train.common import derive_seed
from train.config import FILEWORDS, TrainRecipe
from train.data import Concept, read_lines


def grid_images(recipe: TrainRecipe, concepts: Sequence[Concept]) -> dict[str, ImageConfig]:
    """Return the recipe's images, those of its concepts (`<concept>-1`, …), and `sanity`.

    Raises:
        InputError: a concept's template cannot be read.
    """
    config = recipe.sampling
    images = {name: image for name, image in config.images.items() if image is not None}
    for number, concept in enumerate(concepts):
        own = concept_images(concept, derive_seed(recipe.seed, "concept samples", number) % 2**31)
        for count, image in enumerate(own, 1):
            images[f"{concept.name}-{count}"] = ImageConfig(**vars(config.settings) | image)
    if config.sanity_prompt is not None:
        settings = dict(vars(config.settings))
        if concepts:
            settings["negative_prompt"] = concepts[0].config.save_sample_negative_prompt
        settings |= {"prompt": config.sanity_prompt, "seed": config.sanity_seed}
        images["sanity"] = ImageConfig(**settings)
    return images


def concept_images(concept: Concept, seed: int) -> list[dict[str, Any]]:
    """Return the grid's images of a concept: n_save_sample for each prompt."""
    config = concept.config
    prompts = [config.save_sample_prompt] if config.save_sample_prompt else []
    if config.save_sample_template:
        key = f"data.concepts.{concept.name}.save_sample_template"
        prompts = read_lines(Path(config.save_sample_template), key)
    first = seed if config.sample_seed == -1 else config.sample_seed
    said = itertools.cycle(picture.captions[0] for picture in concept.pictures)
    return [
        {
            "prompt": prompt.replace(FILEWORDS, next(said)) if FILEWORDS in prompt else prompt,
            "negative_prompt": config.save_sample_negative_prompt,
            "seed": first + number,
            "steps": config.save_infer_steps,
            "cfg_scale": config.save_guidance_scale,
        }
        for prompt in prompts
        for number in range(config.n_save_sample)
    ]


class Shown(NamedTuple):
    """The previews of a step, as TensorBoard shows them."""

    image: Image.Image
    animation: np.ndarray | None = None
    """Of clips: all side by side, (f, h, w, 3), uint8."""
    fps: float = 0.0


class BaseRow:
    """The files of the base model's row of a grid, generated once, before the first step."""

    def __init__(self, samples: Path, suffix: str) -> None:
        self.folder = samples / "base"
        self.suffix = suffix

    def file(self, number: int) -> Path:
        return self.folder / f"{number:03d}{self.suffix}"

    def kept(self, infotexts: Sequence[str]) -> list[Path]:
        """Return the files; none if the recipe had other requests when the run began."""
        files = [self.file(number) for number in range(len(infotexts))]
        pairs = zip(files, infotexts, strict=True)
        return files if all(f.is_file() and read_infotext(f) == text for f, text in pairs) else []


class PromptGrid:
    """Generates the recipe's images; the base model's once, before the first step."""

    def __init__(
        self, base: Any, images: dict[str, ImageConfig], batch_size: int, folder: Path
    ) -> None:
        self.base = base
        self.images = list(images.values())
        self.batch_size = batch_size
        self.base_row = BaseRow(folder, ".png")

    def __bool__(self) -> bool:
        return bool(self.images)

    def draw(self) -> list[Drawing]:
        with self.base.parts_alone():
            return draw(self.base, self.images, self.batch_size)

    def keep_base_row(self) -> None:
        """Generate the row of the untrained model; call it before the first step."""
        for number, drawing in enumerate(self.draw()):
            self.base_row.folder.mkdir(parents=True, exist_ok=True)
            file = self.base_row.file(number)
            save_png(file, drawing.image, {"parameters": drawing.infotext})

    def save(self, path: Path, step: int) -> Shown:
        """Generate and save the grid with infotext; return it."""
        drawings = self.draw()
        infotexts = [drawing.infotext for drawing in drawings]
        base = [Image.open(file).convert("RGB") for file in self.base_row.kept(infotexts)]
        rows = {"base": base, f"step {step}": [drawing.image for drawing in drawings]}
        rows = {label: images for label, images in rows.items() if images}
        prompts = [drawing.request.prompt for drawing in drawings]
        grid = image_grid(list(rows.values()), list(rows), prompts)
        save_grid(path, grid, infotexts)
        return Shown(grid)


@torch.no_grad()
def reconstruction_grid(
    base: DiffusionModel, pixels: Sequence[Tensor], path: Path | None
) -> Shown | None:
    """Save images above their reconstructions by the VAE as PNG; return the grid.

    Without a path only compute them, for the processes that compute together.

    Raises:
        FloatingPointError: a reconstruction is not finite.
    """
    originals = [picture.to(base.device) for picture in pixels]
    restored = [base.decode_latents(base.encode_images(one[None])[0])[0] for one in originals]
    for picture in restored:
        check_finite(picture, "reconstruction", base)
    if path is None:
        return None
    rows = [[to_image(picture) for picture in row] for row in (originals, restored)]
    errors = [
        (one - other).square().mean() / 4 for one, other in zip(originals, restored, strict=True)
    ]
    labels = [f"{-10 * float(error.log10()):.1f} dB" for error in errors]
    grid = image_grid(rows, ["picture", "VAE"], labels)
    save_grid(path, grid, [])
    return Shown(grid)


def to_image(pixels: Tensor) -> Image.Image:
    """Return pixels (3, h, w) in -1 … 1 as an image; of a clip (3, f, h, w) the middle frame."""
    if pixels.dim() == 4:
        pixels = pixels[:, pixels.shape[1] // 2]
    array = pixels.float().add(1).mul(127.5).round().clamp(0, 255).byte()
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())
