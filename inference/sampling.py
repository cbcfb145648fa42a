"""Drawing: from prompts and a base model, with whatever is attached to it, to pictures.

Grids drawn while training and the drawing command both go through `draw`: the same list on the same
machine gives the same pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from inference.base_model import BaseModel
from inference.config import ImageConfig
from inference.denoiser import Denoiser
from inference.errors import InputError
from inference.infotext import UsedArtifact, describe_drawing
from inference.noise import NoiseSource
from inference.samplers import SAMPLERS, Callback, sampling_sigmas
from inference.schedules import NoiseLevels

Progress = Callable[[int, int], None]
"""Called after every step with (done, total); both count pictures times steps."""


@dataclass(frozen=True)
class Drawing:
    """A picture and how it came about."""

    image: Image.Image
    request: ImageConfig
    """What was asked for: one picture, with its own seed and its size."""
    infotext: str


def draw(
    base: BaseModel,
    images: Sequence[ImageConfig],
    batch_size: int = 8,
    progress: Progress | None = None,
    artifacts: Sequence[UsedArtifact] = (),
) -> list[Drawing]:
    """Draws every picture of every entry, in the entries' order.

    Args:
        base: the base model; what is attached to it is drawn with. Its parts are put into
            evaluation mode, and back.
        images: what to draw; an entry with `count` n gives n pictures.
        batch_size: pictures drawn at once. Other sizes change pictures by rounding only.
        progress: hears of every step.
        artifacts: what is attached, to be told in the infotext.

    Raises:
        InputError: a width or height does not fit the base model.
        FloatingPointError: a picture is not finite.
    """
    requests = expand(base, images)
    total = sum(request.steps for request in requests)
    done = 0
    pictures: dict[int, Image.Image] = {}
    with evaluation(base):
        for batch in group(base, requests, batch_size):
            chosen = [requests[index] for index in batch]
            latents = draw_latents(base, chosen, reporter(progress, done, total))
            pictures |= zip(batch, to_images(base, latents), strict=True)
            done += sum(request.steps for request in chosen)
            if progress:
                progress(done, total)
    return [
        Drawing(pictures[index], request, describe_drawing(request, base, artifacts))
        for index, request in enumerate(requests)
    ]


def reporter(progress: Progress | None, done: int, total: int) -> Callback:
    """What samplers call in every step of a batch, before which `done` was done."""

    def report(step: int, denoised: Tensor) -> None:
        if progress:
            progress(done + step * len(denoised), total)

    return report


def expand(base: BaseModel, images: Sequence[ImageConfig]) -> list[ImageConfig]:
    """One request for each picture, with its own seed and its size.

    Raises:
        InputError: a size is no multiple of `base.size_step`.
    """
    requests = []
    for image in images:
        width, height = image.width or base.resolution, image.height or base.resolution
        for name, size in (("width", width), ("height", height)):
            check_size(name, size, base.size_step)
        requests += [
            dataclasses.replace(image, seed=image.seed + i, count=1, width=width, height=height)
            for i in range(image.count)
        ]
    return requests


def check_size(name: str, size: int, step: int) -> None:
    """Raises InputError unless the size is a multiple of the step; names the nearest ones."""
    if size % step or size < step:
        lower = size // step * step
        nearest = f"{lower} or {lower + step}" if lower else str(step)
        raise InputError(
            f"{name}: {size} pixels do not fit this base model, whose sizes are multiples of "
            f"{step}; take {nearest}"
        )


def group(base: BaseModel, requests: Sequence[ImageConfig], batch_size: int) -> list[list[int]]:
    """Positions of the requests that are drawn together.

    Together go those that differ in seed and prompt only, and whose prompts have equally many
    chunks of tokens: a longer neighbour would add empty chunks to a prompt, and so change its
    picture. The same list always gives the same batches.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, request in enumerate(requests):
        texts = [request.prompt] + [request.negative_prompt] * (request.cfg_scale != 1)
        settings = dataclasses.asdict(request)
        for name in ("prompt", "negative_prompt", "seed"):
            del settings[name]
        key = (base.tokenize(texts).ids.shape[1], repr(settings))
        alike.setdefault(key, []).append(index)
    return [
        indexes[start : start + batch_size]
        for indexes in alike.values()
        for start in range(0, len(indexes), batch_size)
    ]


@contextmanager
def evaluation(base: BaseModel) -> Iterator[None]:
    """No gradients, no autocast, no dropout; afterwards all is as before."""
    training = [m for part in base.parts.values() for m in part.modules() if m.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode(), torch.autocast(base.device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def draw_latents(
    base: BaseModel, requests: Sequence[ImageConfig], callback: Callback | None = None
) -> Tensor:
    """Latents (b, c, h, w), fp32, of requests that differ in prompts and seeds only."""
    first = requests[0]
    sampler = SAMPLERS[first.sampler]
    levels = NoiseLevels(base.alphas_cumprod)
    sigmas = sampling_sigmas(levels, first.sampler, first.schedule_type, first.steps)
    denoiser = build_denoiser(base, requests)
    assert first.width and first.height
    factor = base.vae_scale_factor
    shape = (base.vae.config.latent_channels, first.height // factor, first.width // factor)
    noise = NoiseSource([request.seed for request in requests], shape, base.device)
    x = noise.normal() * sampler.start_scale(sigmas[0])
    eta = sampler.default_eta if first.eta is None else first.eta
    return sampler.function(denoiser, x, sigmas, noise, callback, eta or 0.0)


def build_denoiser(base: BaseModel, requests: Sequence[ImageConfig]) -> Denoiser:
    """Encodes the requests' prompts, each different text once.

    In SDXL an empty negative prompt is all zeros, as in A1111 (`modules/sd_models_xl.py`).
    """
    prompts = [request.prompt for request in requests]
    negatives = [request.negative_prompt for request in requests]
    cfg_scale = requests[0].cfg_scale
    if cfg_scale == 1:
        negatives = []
    texts = list(dict.fromkeys(prompts + negatives))
    conditions = base.encode_prompts(texts).to(base.dtype)
    rows = conditions[[texts.index(text) for text in prompts + negatives]]
    positive, negative = rows[: len(prompts)], rows[len(prompts) :]
    if negatives and base.has_two_text_encoders:
        negative = negative.zeroed([not text for text in negatives])
    return Denoiser(base, positive, negative if negatives else None, cfg_scale)


def to_images(base: BaseModel, latents: Tensor) -> list[Image.Image]:
    """Pictures of 8 bits a channel, rounded; decoded one by one, which takes the least memory.

    Raises:
        FloatingPointError: a latent or a pixel is not finite.
    """
    pictures = []
    for latent in latents:
        check_finite(latent, "latent", base)
        pixels = base.decode_latents(latent[None])[0]
        check_finite(pixels, "picture", base)
        array = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        pictures.append(Image.fromarray(array.cpu().numpy()))
    return pictures


def check_finite(values: Tensor, what: str, base: BaseModel) -> None:
    """Raises FloatingPointError where a value is infinite or no number."""
    if not values.isfinite().all():
        is_full = base.dtype == torch.float32
        remedy = "the model's weights are at fault" if is_full else "precision: fp32 may help"
        raise FloatingPointError(f"the {what} is not finite (NaN or infinite); {remedy}")
