"""Class images for prior preservation: the base model generates the missing ones.

As in diffusers' train_dreambooth.py and A1111's DreamBooth extension (`image_builder.py`).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from accelerate import Accelerator

from inference.config import DrawSettings, ImageConfig
from inference.files import write_atomically
from inference.images import Drawing, draw
from inference.media import prepare_folder, save_png
from inference.runtime import InputError, Stopped, StopSignals
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


def share_of(found: Sequence[Portion], rank: int, num_processes: int) -> list[Portion]:
    """Return the portions of one of several processes: every n-th, unless all of it exists."""
    own = found[rank::num_processes]
    return [one for one in own if not all(picture.file.exists() for picture in one[1])]


def draw_missing(
    base: Any,
    folders: Sequence[ClassFolder],
    recipe: TrainRecipe,
    resolution: int,
    accelerator: Accelerator,
    track: Track,
    signals: StopSignals | None,
) -> None:
    """Generate this process's share of the missing images, until a signal comes.

    Without signals all processes generate all of them together, which they can do only if none
    stops alone; the first one writes them.

    Raises:
        InputError: a folder cannot be written to, or an image is not finite.
    """
    sampling, extensions = recipe.sampling, recipe.data.captions.extensions
    found = portions(folders, recipe.seed, sampling.batch_size, extensions)
    rank, processes = accelerator.process_index, accelerator.num_processes
    share = share_of(found, rank, processes) if signals is not None else share_of(found, 0, 1)
    keeps = signals is not None or accelerator.is_main_process
    if not share:
        return
    for concept, pictures in track(share, "drawing class pictures"):
        requests = [
            request_for(picture, concept, sampling.settings, resolution) for picture in pictures
        ]
        try:
            with signals.at_once() if signals is not None else nullcontext():
                drawings = draw(base, requests, len(requests))
        except FloatingPointError as error:
            raise InputError(
                f"class pictures of {concept.class_prompt!r} cannot be drawn: {error}"
            ) from error
        except Stopped:
            return
        for picture, drawing in zip(pictures, drawings, strict=True) if keeps else ():
            keep(picture, drawing)


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
