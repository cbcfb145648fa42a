"""Class pictures for prior preservation: the base model draws those that are missing.

As diffusers' train_dreambooth.py and A1111's DreamBooth extension (`image_builder.py`) do.
"""

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator

from inference.config import DrawSettings, ImageConfig
from inference.files import write_atomically
from inference.images import Drawing, draw
from inference.media import prepare_folder, save_png
from inference.runtime import InputError
from train.config import ConceptConfig, TrainRecipe
from train.data import ClassFolder, ClassPicture, Track

Portion = tuple[ConceptConfig, list[ClassPicture]]
"""Pictures that are drawn at once, and the concept that says how."""


def portions(
    folders: Sequence[ClassFolder], seed: int, batch_size: int, extensions: list[str]
) -> list[Portion]:
    """All class pictures to draw, in portions that do not depend on what is drawn already.

    Rounding depends on what is drawn together: so a picture is the same whenever it is drawn.
    """
    found: list[Portion] = []
    for folder in folders:
        pictures = folder.to_draw(seed, extensions)
        starts = range(0, len(pictures), batch_size)
        found += [(folder.config, pictures[start : start + batch_size]) for start in starts]
    return found


def share_of(found: Sequence[Portion], rank: int, num_processes: int) -> list[Portion]:
    """What one of several processes has to draw: every so many portions, unless it is all there."""
    own = found[rank::num_processes]
    return [one for one in own if not all(picture.file.exists() for picture in one[1])]


def draw_missing(
    base: Any,
    folders: Sequence[ClassFolder],
    recipe: TrainRecipe,
    resolution: int,
    accelerator: Accelerator,
    track: Track,
    stop: Callable[[], object],
) -> None:
    """Draws this process's share of the missing pictures, until `stop` gives something true.

    Raises:
        InputError: a folder cannot be written to.
    """
    sampling, extensions = recipe.sampling, recipe.data.captions.extensions
    found = portions(folders, recipe.seed, sampling.batch_size, extensions)
    share = share_of(found, accelerator.process_index, accelerator.num_processes)
    if not share:
        return
    for concept, pictures in track(share, "drawing class pictures"):
        requests = [
            request_for(picture, concept, sampling.settings, resolution) for picture in pictures
        ]
        for picture, drawing in zip(pictures, draw(base, requests, len(requests)), strict=True):
            keep(picture, drawing)
        if stop():
            return


def request_for(
    picture: ClassPicture, concept: ConceptConfig, settings: DrawSettings, resolution: int
) -> ImageConfig:
    """How a class picture is drawn: the sampler is the grids', the rest is the concept's."""
    return ImageConfig(
        prompt=picture.prompt,
        negative_prompt=concept.class_negative_prompt,
        seed=picture.seed,
        steps=concept.class_infer_steps,
        cfg_scale=concept.class_guidance_scale,
        sampler=settings.sampler,
        schedule_type=settings.schedule_type,
        eta=settings.eta,
        width=resolution,
        height=resolution,
    )


def keep(picture: ClassPicture, drawing: Drawing) -> None:
    """Writes the picture with its infotext, and its prompt beside it; overwrites nothing.

    The prompt comes first, so that no picture is ever without.

    Raises:
        InputError: the folder cannot be written to.
    """
    prepare_folder(str(picture.file.parent), "class_data_dir")
    if picture.file.exists():
        return
    prompt = picture.file.with_suffix(".txt")
    try:
        write_atomically(prompt, lambda file: file.write_text(picture.prompt, encoding="utf-8"))
        save_png(picture.file, drawing.image, {"parameters": drawing.infotext})
    except OSError as error:
        raise InputError(
            f"class_data_dir: {str(picture.file)!r} cannot be written: {error.strerror}"
        ) from error
