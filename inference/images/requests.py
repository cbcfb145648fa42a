"""Split a recipe's requests into single images, and group them into batches."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from inference.config import ImageConfig, check_size
from inference.images.img2img import (
    HiresSize,
    background_color,
    check_upscaler,
    face_restorer,
    hires_size,
    picture_size,
)
from inference.media import pictures_in
from inference.models import ImageModel
from inference.prompts import ExtraNetwork, extract_extra_networks
from inference.runtime import InputError
from inference.sampling import SAMPLERS, img2img_steps

RANDOM_SEEDS = 2**32 - 2
"""The number of possible random seeds, as in A1111."""


def expand(
    base: ImageModel, images: Sequence[ImageConfig], has_files: bool = True
) -> list[ImageConfig]:
    """Return one request for each image, with its own seed, its size, and one init image.

    As in A1111, images of a variation keep the seed and increase the variation's, and all
    init images of a folder get the same seeds.

    Args:
        base: the base model.
        images: the entries.
        has_files: whether init images are files; else they are passed as images.

    Raises:
        InputError: a size is no multiple of `base.size_step`, a folder has no images, or a
            request is rejected by `check`.
    """
    requests = []
    for image in images:
        width, height = image.width or base.resolution, image.height or base.resolution
        for name, size in (("width", width), ("height", height)):
            check_size(name, size, base.size_step)
        seed, variation = (
            random.SystemRandom().randrange(RANDOM_SEEDS) if value == -1 else value
            for value in (image.seed, image.variation_seed)
        )
        is_varied = image.variation_strength > 0
        for one in init_images(image):
            check(base, dataclasses.replace(one, width=width, height=height), has_files)
            for i in range(image.count):
                requests.append(
                    dataclasses.replace(
                        one,
                        seed=seed if is_varied else seed + i,
                        variation_seed=variation + i if is_varied else -1,
                        count=1,
                        width=width,
                        height=height,
                    )
                )
    return requests


def check(base: ImageModel, request: ImageConfig, has_files: bool = True) -> None:
    """Check a request for errors that would otherwise appear after minutes.

    Raises:
        InputError: an upscaler or a face restorer is unavailable, the second pass would be too
            small, or the files of img2img are missing or do not fit.
    """
    if request.restore_faces is not None:
        face_restorer(request.restore_faces, "restore_faces")
    if request.hires is not None:
        check_upscaler(request.hires.upscaler, "hires.upscaler")
        second_size(base, request)
    if (start := request.img2img) is None:
        return
    img2img_steps(request.steps, start.denoising_strength, start.exact_steps)
    background_color(start.background_color, "img2img.background_color")
    if not has_files:
        return
    size = picture_size(start.init_image, "img2img.init_image")
    for name in ("mask", "sketch") if start.inpaint else ():
        if (path := getattr(start.inpaint, name)) is None:
            continue
        width, height = own = picture_size(path, f"img2img.inpaint.{name}")
        if own != size:
            raise InputError(
                f"img2img.inpaint.{name}: the size of {path}, {width}x{height}, differs from "
                f"the init image's {size[0]}x{size[1]}; give one of the same size"
            )


def second_size(base: ImageModel, request: ImageConfig) -> HiresSize:
    """Return the size in pixels of the second pass of Hires. fix.

    Raises:
        InputError: a side would be 0.
    """
    hires = request.hires
    assert hires and request.width and request.height
    sides = hires.resize_x, hires.resize_y
    return hires_size(request.width, request.height, base.size_step, hires.upscale, *sides)


def init_images(image: ImageConfig) -> Iterator[ImageConfig]:
    """Return the entry once for each image of its folder, with the mask of the same name.

    Raises:
        InputError: the folder has no images, or lacks the mask of one of them.
    """
    start = image.img2img
    if start is None or not Path(start.init_image).is_dir():
        yield image
        return
    files = pictures_in(Path(start.init_image))
    if not files:
        raise InputError(f"img2img.init_image: {start.init_image} has no pictures in it")
    for file in files:
        inpaint = start.inpaint
        if inpaint is not None:
            given = {
                name: str(companion(file, Path(path), name))
                for name in ("mask", "sketch")
                if (path := getattr(inpaint, name))
            }
            inpaint = dataclasses.replace(inpaint, **given)
        own = dataclasses.replace(start, init_image=str(file), inpaint=inpaint)
        yield dataclasses.replace(image, img2img=own)


def companion(file: Path, path: Path, name: str) -> Path:
    """Return the mask (or sketch) of an init image: the file of its name, or the one for all."""
    if not path.is_dir():
        return path
    of_this_name = [other for other in pictures_in(path) if other.stem == file.stem]
    if not of_this_name:
        raise InputError(f"img2img.inpaint.{name}: {path} has none of the name {file.stem}")
    return of_this_name[0]


def networks_called(request: ImageConfig) -> tuple[tuple[ExtraNetwork, ...], ...]:
    """Return the calls of artifacts in the prompts of the first and of the second pass."""
    prompts = [request.prompt]
    if request.hires is not None:
        prompts.append(request.prompt if request.hires.prompt is None else request.hires.prompt)
    return tuple(tuple(extract_extra_networks(prompt)[1]) for prompt in prompts)


def group(requests: Sequence[ImageConfig], batch_size: int) -> list[list[int]]:
    """Return the indices of the requests by batch.

    A batch has requests that differ in seeds, prompts and images only, and that call the same
    artifacts; samplers whose steps depend on the whole batch get one image at a time. The same list
    always gives the same batches.
    """
    alike: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        names = [request.sampler, (request.hires and request.hires.sampler) or request.sampler]
        is_alone = any(SAMPLERS[name].couples_batch for name in names)
        key = repr(index if is_alone else what_batches_share(request))
        alike.setdefault(key, []).append(index)
    return [
        indexes[start : start + batch_size]
        for indexes in alike.values()
        for start in range(0, len(indexes), batch_size)
    ]


def what_batches_share(request: ImageConfig) -> list[Any]:
    """Return the settings that all images of a batch share."""
    settings = dataclasses.asdict(request)
    for name in ("prompt", "negative_prompt", "seed", "variation_seed"):
        del settings[name]
    if request.hires is not None:
        del settings["hires"]["prompt"], settings["hires"]["negative_prompt"]
    if request.img2img is not None:
        del settings["img2img"]["init_image"]
        if request.img2img.inpaint is not None:
            del settings["img2img"]["inpaint"]["mask"], settings["img2img"]["inpaint"]["sketch"]
    calls = [
        [dataclasses.replace(call, position=0) for call in calls]
        for calls in networks_called(request)
    ]
    return [settings, calls]


def all_calls(requests: Iterable[ImageConfig]) -> Iterator[ExtraNetwork]:
    """Yield the calls in the prompts of the requests, in both passes."""
    for request in requests:
        for calls in networks_called(request):
            yield from calls
