"""Recipes of `type: images`: from the recipe to image files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

from PIL import Image

from inference.artifacts import (
    Attached,
    NetworkLibrary,
    attach_all,
    load_artifacts,
    prepare_drawing,
    set_strength,
)
from inference.config import ImageConfig, ImagesRecipe
from inference.files import Naming
from inference.images.drawing import Drawer, Drawing
from inference.images.infotext import parse_infotext
from inference.images.memory import Levers, picture_needs, place_for_drawing, sizes_of
from inference.images.passes import check_prompts
from inference.images.requests import all_calls, expand, group
from inference.media import PictureForm, image_grid, prepare_folder, write_new_grid, write_picture
from inference.memory import MemoryNeeds
from inference.models import load_image_model
from inference.parallel import group_address, joined
from inference.prompts import apply_styles, read_styles
from inference.runtime import (
    InputError,
    Processes,
    arrange,
    check_readable,
    compile_denoiser,
    number,
    output,
    progress_bar,
)

TOLD_APART: tuple[Callable[[ImageConfig], str], ...] = (
    lambda request: request.prompt,
    lambda request: Path(request.img2img.init_image).name if request.img2img else "",
    lambda request: request.sampler,
    lambda request: request.schedule_type,
    lambda request: f"{request.steps} steps",
    lambda request: f"CFG {number(request.cfg_scale)}",
    lambda request: f"{request.width}x{request.height}",
)
"""Settings in a grid's captions, if they differ."""

MOST_COLUMNS = 8
"""The labels of a grid that compares nothing."""


def draw_images(recipe: ImagesRecipe) -> None:
    """Generate and save the recipe's images, and print the paths.

    Of several processes each generates a part, and the first one saves.

    Raises:
        InputError: device, folder, base model, an artifact or a picture's settings cannot be used.
    """
    with joined("draw"), closing(Processes(group_address())) as processes:
        draw_with(recipe, processes)


def draw_with(recipe: ImagesRecipe, processes: Processes) -> None:
    """Generate a recipe's images together with the other processes."""
    saver, attached, library, requests = processes.together(lambda: set_up(recipe, processes))
    requests = processes.broadcast_from_main(requests)  # contains random seeds
    batches = group(requests, recipe.batch_size)
    factors = recipe.compare_strengths if attached and recipe.compare_strengths else [1.0]
    own = batches[processes.rank :: processes.count] * len(factors)
    rows: list[list[Drawing]] = []
    with progress_bar() as report:
        drawer = Drawer(
            library.base, requests, library, own, report if processes.is_first else None
        )
        for factor in factors:
            drawer.artifacts = [set_strength(*one, factor) for one in attached]
            row: dict[int, Drawing] = {}
            with saver.row(len(requests)) if saver else nullcontext() as save:
                for drawn in processes.share(batches, drawer):
                    row |= drawn
                    if save:
                        save(dict(drawn))
            rows.append([row[index] for index in range(len(requests))])
    if saver and recipe.grid and sum(map(len, rows)) > 1:
        saver.save_grid(compare(rows, factors) if len(rows) > 1 else collect(rows[0]), rows)


def set_up(
    recipe: ImagesRecipe, processes: Processes
) -> tuple[Saver | None, Attached, NetworkLibrary, list[ImageConfig]]:
    """Prepare a recipe: saving, attached artifacts and requests.

    Raises:
        InputError: device, folder, base model, an artifact or a picture's settings cannot be used.
    """
    saver = Saver(recipe, prepare_folder(recipe.output_dir)) if processes.is_first else None
    images = styled(recipe)
    for image in images:
        check_prompts(image)
    for folder in recipe.artifact_dirs:
        check_readable(folder, "artifact_dirs")
        if not Path(folder).is_dir():
            raise InputError(f"artifact_dirs: {folder} is no folder")
    device = processes.device(recipe.device)
    attached = load_artifacts(recipe.artifacts)
    precision = prepare_drawing(recipe, device, processes.is_first)
    base = load_image_model(recipe.base_model, precision, "cpu")
    requests = expand(base, images)
    arrange((base.denoiser, base.vae), recipe.speed)

    def needs(swap: float) -> MemoryNeeds:
        rows = min(recipe.batch_size, len(requests))
        return picture_needs(base, sizes_of(requests, base), rows, swap)

    levers = Levers(recipe.memory, recipe.vae_tiling)
    place_for_drawing(base, device, levers, needs, processes.is_first)
    merges = recipe.speed.merge_lora and not recipe.compare_strengths
    attach_all(base, attached, merges)
    compile_denoiser(base.denoiser, recipe.speed, device)
    library = NetworkLibrary(base, [Path(folder) for folder in recipe.artifact_dirs])
    library.check(all_calls(requests))
    return saver, attached, library, requests


def styled(recipe: ImagesRecipe) -> list[ImageConfig]:
    """Return the entries with their styles in the prompts.

    Raises:
        InputError: the styles file cannot be read, or lacks a style.
    """
    images = [image for image in recipe.images.values() if image is not None]
    if not any(image.styles for image in images):
        return images
    assert recipe.styles_file
    check_readable(recipe.styles_file, "styles_file")
    styles = read_styles(recipe.styles_file)
    return [
        dataclasses.replace(image, prompt=prompt, negative_prompt=negative)
        for image in images
        for prompt, negative in [
            apply_styles(image.prompt, image.negative_prompt, image.styles, styles)
        ]
    ]


class Saver:
    """Saves a recipe's images in the order of the recipe, and prints the paths."""

    def __init__(self, recipe: ImagesRecipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        self.form = PictureForm(
            recipe.file_name, recipe.file_format, recipe.quality, recipe.save_text
        )
        self.started = datetime.now()

    @contextmanager
    def row(self, total: int) -> Iterator[Callable[[dict[int, Drawing]], None]]:
        """Return a function that takes drawings by index, and saves each when its turn comes.

        If generating ends early, the waiting ones are saved too.
        """
        waiting: dict[int, Drawing] = {}
        places = iter(range(total))
        place = next(places, total)

        def save(drawn: dict[int, Drawing]) -> None:
            nonlocal place
            waiting.update(drawn)
            while place in waiting:
                self.save(waiting.pop(place), place, total)
                place = next(places, total)

        try:
            yield save
        finally:
            for index, drawing in sorted(waiting.items()):
                self.save(drawing, index, total)

    def save(self, drawing: Drawing, index: int, total: int) -> None:
        """Save one under the name from the recipe's pattern."""
        naming = naming_of(drawing, index, total, self.recipe.batch_size, self.started)
        path = write_picture(self.folder, drawing.image, drawing.infotext, naming, self.form)
        output(path)

    def save_grid(self, grid: Image.Image, rows: Sequence[Sequence[Drawing]]) -> None:
        """Save the grid with the infotexts of its images."""
        infotexts = [drawing.infotext for row in rows for drawing in row]
        output(write_new_grid(self.folder, grid, infotexts, "grid-"))


def naming_of(
    drawing: Drawing, index: int, total: int, batch_size: int, started: datetime
) -> Naming:
    """Return the fields for a drawing's name; `index` is its place among `total`."""
    request, recorded = drawing.request, parse_infotext(drawing.infotext).parameters
    strength = recorded.get("Denoising strength")
    return Naming(
        seed=request.seed,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        width=drawing.image.width,
        height=drawing.image.height,
        sampler=request.sampler,
        schedule_type=recorded["Schedule type"],
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        styles=tuple(request.styles),
        model_name=recorded["Model"],
        model_hash=recorded.get("Model hash", ""),
        vae_name=recorded.get("VAE", "NoneType").lstrip(".").partition(".")[0],
        clip_skip=int(recorded.get("Clip skip", 1)),
        denoising_strength=float(strength) if strength else None,
        batch_index=index % batch_size,
        batch_size=min(batch_size, total),
        generation_index=index,
        num_generations=total,
        pixels=drawing.image.tobytes(),
        started=started,
    )


def compare(rows: Sequence[Sequence[Drawing]], factors: Sequence[float]) -> Image.Image:
    """Return a grid with a row for each strength."""
    pictures = [[drawing.image for drawing in row] for row in rows]
    labels = [f"strength {number(factor)}" for factor in factors]
    return image_grid(pictures, labels, captions(rows[0]))


def collect(drawings: Sequence[Drawing]) -> Image.Image:
    """Return a grid of all images, about as wide as high, each with its caption."""
    least = min(MOST_COLUMNS, math.ceil(math.sqrt(len(drawings))))
    fitting = (n for n in range(least, MOST_COLUMNS + 1) if len(drawings) % n == 0)
    columns = next(fitting, least)
    texts = captions(drawings)
    starts = range(0, len(drawings), columns)
    rows = [[drawing.image for drawing in drawings[start : start + columns]] for start in starts]
    return image_grid(rows, column_labels=[texts[start : start + columns] for start in starts])


def captions(drawings: Sequence[Drawing]) -> list[str]:
    """Return each image's caption: the settings that differ, and seeds if these are not enough."""
    requests = [drawing.request for drawing in drawings]
    columns = [[form(request) for request in requests] for form in TOLD_APART]
    recorded = [column for column in columns if len(set(column)) > 1]
    texts = [", ".join(parts) for parts in zip(*recorded, strict=True)] or [""] * len(requests)
    if len(set(texts)) == len(texts):
        return texts
    seeds = [f"seed {request.seed}" for request in requests]
    return [", ".join(filter(None, pair)) for pair in zip(texts, seeds, strict=True)]
