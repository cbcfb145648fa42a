"""Class images for prior preservation: the base model generates the missing ones.

As in diffusers' train_dreambooth.py and A1111's DreamBooth extension (`image_builder.py`).
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from inference.config import DrawSettings, ImageConfig
from inference.files import write_atomically
from inference.images import Drawing, draw
from inference.media import prepare_folder, save_png
from inference.runtime import InputError, Stopped, StopSignals
from train.common import Share
from train.config import ConceptConfig, TrainRecipe
from train.data import ClassFolder, ClassPicture, Track

Portion = tuple[ConceptConfig, list[ClassPicture]]
"""Images that are generated at once, and their concept."""


def portions(
    folders: Sequence[ClassFolder], seed: int, batch_size: int, extensions: list[str]
) -> list[Portion]:
    """Return all class images in portions that do not depend on which of them exist already.

    Rounding depends on the batch: so an image is the same whenever it is generated.
    """
    found: list[Portion] = []
    for folder in folders:
        pictures = folder.to_draw(seed, extensions)
        starts = range(0, len(pictures), batch_size)
        found += [(folder.config, pictures[start : start + batch_size]) for start in starts]
    return found


def missing(found: Sequence[Portion]) -> list[int]:
    """Return the numbers of the portions of which not all exists."""
    return [
        number
        for number, (_, pictures) in enumerate(found)
        if not all(picture.file.exists() for picture in pictures)
    ]


def draw_missing(
    base: Any,
    folders: Sequence[ClassFolder],
    recipe: TrainRecipe,
    resolution: int,
    share: Share,
    track: Track,
    signals: StopSignals,
) -> None:
    """Generate this process's share of the missing images, until a signal comes to one of them.

    Raises:
        InputError: a folder cannot be written to, or an image is not finite, in any process.
        ProcessLostError: another process has failed.
    """
    sampling, extensions = recipe.sampling, recipe.data.captions.extensions
    found = portions(folders, recipe.seed, sampling.batch_size, extensions)
    numbers = share.of_first(lambda: missing(found))

    def draw_one(number: int) -> None:
        concept, pictures = found[number]
        requests = [
            request_for(picture, concept, sampling.settings, resolution) for picture in pictures
        ]
        try:
            with share.urgent(signals):
                drawings = draw(base, requests, len(requests))
        except FloatingPointError as error:
            raise InputError(
                f"class pictures of {concept.class_prompt!r} cannot be drawn: {error}"
            ) from error
        for picture, drawing in zip(pictures, drawings, strict=True) if share.speaks else ():
            keep(picture, drawing)

    if numbers:
        with suppress(Stopped):
            share.divide(
                numbers, draw_one, track=lambda rounds: track(rounds, "drawing class pictures")
            )


def request_for(
    picture: ClassPicture, concept: ConceptConfig, settings: DrawSettings, resolution: int
) -> ImageConfig:
    """Return the request of a class image: the previews' sampler, the concept's other options."""
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
    """Write the image with its infotext, and its prompt beside it; overwrite nothing.

    The prompt is written first, so that no image is ever without.

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
