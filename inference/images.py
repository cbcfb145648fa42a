"""Recipes of `type: images`: from the recipe to files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch
from PIL import Image

from inference.artifacts import Artifact, load_artifact
from inference.base_model_loading import load_base_model
from inference.config import ArtifactConfig, ImagesRecipe
from inference.errors import InputError
from inference.file_names import Naming
from inference.grid import image_grid
from inference.hashes import artifact_hash
from inference.infotext import UsedArtifact, number, parse_infotext
from inference.output_files import PictureForm, prepare_folder, write_new, write_picture
from inference.sampling import Drawing, Progress, draw, expand

MOST_COLUMNS = 8
"""Of a grid that compares nothing."""


def draw_images(recipe: ImagesRecipe) -> None:
    """Draws and saves everything that the recipe says, and prints the paths.

    Raises:
        InputError: device, folder, base model, an artifact or a size cannot be used.
    """
    folder = prepare_folder(recipe.output_dir)
    device = choose_device(recipe.device)
    configs = [config for config in recipe.artifacts.values() if config is not None]
    attached = [(config, load_artifact(config.path)) for config in configs]
    base = load_base_model(recipe.base_model, recipe.precision, device)
    images = [image for image in recipe.images.values() if image is not None]
    num_steps = sum(request.steps for request in expand(base, images))
    for config, artifact in attached:
        artifact.attach(base, config.strength)
    factors = recipe.compare_strengths if attached and recipe.compare_strengths else [1.0]
    rows: list[list[Drawing]] = []
    started = datetime.now()
    with progress_bar(num_steps * len(factors)) as report:
        for row, factor in enumerate(factors):
            used = [set_strength(artifact, config, factor) for config, artifact in attached]
            progress = after(row * num_steps, report)
            rows.append(draw(base, images, recipe.batch_size, progress, used))
            save_pictures(rows[-1], folder, recipe, started)
    if recipe.grid and sum(map(len, rows)) > 1:
        grid = compare(rows, factors) if len(rows) > 1 else collect(rows[0])
        infotext = "\n\n".join(drawing.infotext for row in rows for drawing in row)
        texts = {"parameters": infotext, "grid": grid.info["grid"]}
        print(write_new(folder, grid, texts, before="grid-", digits=4))


def choose_device(name: str) -> torch.device:
    """The device of a recipe's `device`.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        known = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        name = next((kind for kind, is_here in known.items() if is_here), "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device: {name!r} cannot be used here: {reason}") from error


def set_strength(artifact: Artifact, config: ArtifactConfig, factor: float) -> UsedArtifact:
    """Sets the strength for a row of the grid; returns what infotext tells of it."""
    strength = config.strength * factor
    artifact.set_strength(strength)
    known_by = artifact_hash(Path(config.path), artifact.kind)
    return UsedArtifact(artifact.kind, artifact.name, strength, known_by)


def save_pictures(
    drawings: Sequence[Drawing], folder: Path, recipe: ImagesRecipe, started: datetime
) -> None:
    """Saves each under the name that the recipe's pattern makes, and prints the paths."""
    form = PictureForm(recipe.file_name, recipe.file_format, recipe.quality, recipe.save_text)
    for index, drawing in enumerate(drawings):
        naming = naming_of(drawing, index, len(drawings), recipe.batch_size, started)
        print(write_picture(folder, drawing.image, drawing.infotext, naming, form))


def naming_of(
    drawing: Drawing, index: int, total: int, batch_size: int, started: datetime
) -> Naming:
    """What the name of a drawing can tell; `index` is its place among `total`."""
    request, told = drawing.request, parse_infotext(drawing.infotext).parameters
    strength = told.get("Denoising strength")
    return Naming(
        seed=request.seed,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        width=drawing.image.width,
        height=drawing.image.height,
        sampler=request.sampler,
        schedule_type=told["Schedule type"],
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        styles=tuple(request.styles),
        model_name=told["Model"],
        model_hash=told.get("Model hash", ""),
        clip_skip=int(told.get("Clip skip", 1)),
        denoising_strength=float(strength) if strength else None,
        batch_index=index % batch_size,
        batch_size=min(batch_size, total),
        generation_index=index,
        num_generations=total,
        pixels=drawing.image.tobytes(),
        started=started,
    )


def compare(rows: Sequence[Sequence[Drawing]], factors: Sequence[float]) -> Image.Image:
    """A grid with a row for each strength."""
    pictures = [[drawing.image for drawing in row] for row in rows]
    labels = [f"strength {number(factor)}" for factor in factors]
    return image_grid(pictures, labels, captions(rows[0]))


def collect(drawings: Sequence[Drawing]) -> Image.Image:
    """A grid of all pictures, about as wide as high, each under its caption."""
    least = min(MOST_COLUMNS, math.ceil(math.sqrt(len(drawings))))
    fitting = (n for n in range(least, MOST_COLUMNS + 1) if len(drawings) % n == 0)
    columns = next(fitting, least)
    texts = captions(drawings)
    starts = range(0, len(drawings), columns)
    rows = [[drawing.image for drawing in drawings[start : start + columns]] for start in starts]
    return image_grid(rows, column_labels=[texts[start : start + columns] for start in starts])


def captions(drawings: Sequence[Drawing]) -> list[str]:
    """What tells the pictures apart: prompts if they differ, seeds if prompts come back."""
    prompts = [drawing.request.prompt for drawing in drawings]
    has_prompts = len(set(prompts)) > 1
    has_seeds = len(set(prompts)) < len(prompts)
    return [
        ", ".join([prompt] * has_prompts + [f"seed {drawing.request.seed}"] * has_seeds)
        for prompt, drawing in zip(prompts, drawings, strict=True)
    ]


@contextmanager
def progress_bar(total: int) -> Iterator[Progress]:
    """A bar on standard error, where that is a terminal; gives a function (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    hidden = not console.is_terminal
    with Bar("drawing", *columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("drawing", total=total)
        yield lambda done, _: bar.update(task, completed=done)


def after(before: int, report: Progress) -> Progress:
    """Reports with what was done before."""
    return lambda done, total: report(before + done, total)
