"""A frame's request as the settings of an image, and what of it can be checked without a model.

torch is imported only for what the settings use: networks in prompts, checkpoints, restorers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inference.config import ImageConfig, ImageToImageConfig, InpaintConfig
from inference.deforum.loop.frame_requests import frame_request
from inference.deforum.loop.generator import FrameRequest
from inference.prompts import extract_extra_networks
from inference.runtime import InputError
from inference.sampling import SAMPLERS, find_sampler

if TYPE_CHECKING:
    from inference.artifacts import NetworkFiles
    from inference.deforum.schedules import Script

FACE_RESTORER = "CodeFormer"
"""Meaning of `restore_faces` if the file only says yes (A1111's default)."""

HANDED_IN = "(frame)"
"""Name of init images that are not files."""


def as_image(request: FrameRequest) -> ImageConfig:
    """Convert the request to the settings of an image recipe.

    Raises:
        InputError: the sampler is unknown, or a value is out of range.
    """
    sampler, schedule_type = find_sampler(request.sampler)
    eta = request.ddim_eta if sampler.startswith("DDIM") else request.eta
    if SAMPLERS[sampler].default_eta is None:
        eta = None
    width, height = request.seed_resize_from
    is_resized = width > 0 and height > 0
    image = ImageConfig(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        sampler=sampler,
        schedule_type=schedule_type or "Automatic",
        eta=eta,
        width=request.width,
        height=request.height,
        variation_seed=request.subseed if request.subseed_strength else -1,
        variation_strength=request.subseed_strength,
        seed_resize_from_width=width if is_resized else 0,
        seed_resize_from_height=height if is_resized else 0,
        tiling=request.tiling,
        restore_faces=FACE_RESTORER if request.restore_faces else None,
        img2img=over_init(request),
    )
    for part in (image, *([image.img2img] if image.img2img else [])):
        for name, message in part.faults():
            raise InputError(f"frame {request.frame}: {name}: {message}")
    return image


def over_init(request: FrameRequest) -> ImageToImageConfig | None:
    """Return the img2img settings of a request with an init image."""
    if request.init is None:
        return None
    inpaint = None
    if request.mask is not None:
        inpaint = InpaintConfig(
            mask=HANDED_IN,
            mask_blur=request.mask_blur,
            masked_content=request.masked_content,  # type: ignore[arg-type]
            area="Only masked" if request.full_res_mask else "Whole picture",
            padding=request.full_res_mask_padding,
        )
    return ImageToImageConfig(
        init_image=HANDED_IN,
        denoising_strength=min(max(1 - request.strength, 0.0), 1.0),
        noise_multiplier=request.noise_multiplier,
        inpaint=inpaint,
    )


def check_words(script: Script, folders: Sequence[Path]) -> None:
    """Reject before frame 0 what a later frame could not be generated with; needs no model.

    Raises:
        InputError: a sampler, checkpoint, network, restorer or prompt cannot be used; one line
            each, with the frame.
    """
    if found := list(word_faults(script, folders)):
        raise InputError("\n".join(found))


def word_faults(script: Script, folders: Sequence[Path]) -> Iterator[str]:
    """Yield what `check_words` rejects."""
    if script["restore_faces"]:
        from inference.images import face_restorer

        try:
            face_restorer(FACE_RESTORER, "restore_faces")
        except InputError as error:
            yield str(error)
    files = None
    known: set[tuple[str, ...]] = set()
    for frame in range(script.max_frames):
        request = frame_request(script, frame, seed=0)
        words = request.prompt, request.negative_prompt, request.sampler, str(request.checkpoint)
        if words in known:
            continue
        known.add(words)
        try:
            as_image(request)
            if request.checkpoint is not None:
                find_checkpoint(request.checkpoint, folders)
            if calls := extract_extra_networks(request.prompt)[1]:
                files = files or network_files(folders)
                files.check(calls)
        except InputError as error:
            where = "" if str(error).startswith("frame ") else f"frame {frame}: "
            yield f"{where}{error}"
            return  # later frames often have the same fault


def network_files(folders: Sequence[Path]) -> NetworkFiles:
    """Return the files that prompts can call; the folders are read once for all frames."""
    from inference.artifacts import NetworkFiles

    return NetworkFiles(folders)


def find_checkpoint(name: str, folders: Sequence[Path]) -> str:
    """Return the path of a base model, given its path, or its file name (suffix optional).

    Raises:
        InputError: there is none of that name in the folders.
    """
    from inference.models import file_model_name as model_name
    from inference.models import is_single_file, models_in, path_of

    plain = name.partition(" [")[0].strip()  # A1111 shows `model.ckpt [hash]`
    if Path(plain).exists():
        return plain
    stem = Path(plain).stem if is_single_file(plain) else plain
    models = list(models_in(folders))
    for model in models:
        if plain == model.name or stem == model_name(model):
            return path_of(model)
    known = ", ".join(sorted(map(model_name, models))) or "none"
    raise InputError(
        f"checkpoint_schedule: there is no model {name!r} in artifact_dirs; there are: {known}"
    )
