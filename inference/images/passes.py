"""One pass of a sampler: from noise, or from latents, to clean latents.

A1111 1.10.1: `modules/processing.py`, `sd_samplers_kdiffusion.py`, `sd_samplers_timesteps.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from inference.config import ImageConfig
from inference.images.denoiser import Denoiser, Guidance, Inpainting
from inference.images.img2img import Start, blend_latents, whole_picture_conditioning
from inference.models import (
    ImageModel,
    PromptSettings,
    mixed,
    needs_negatives,
    read_text,
)
from inference.prompts import extract_extra_networks, split_composition
from inference.runtime import DrawWarning
from inference.sampling import (
    SAMPLERS,
    Callback,
    Img2ImgRun,
    NoiseLevels,
    NoiseSource,
    ScheduleOptions,
    SeedVariation,
    img2img_sigmas,
    sampling_sigmas,
)


@dataclass(frozen=True)
class Pass:
    """The options of a pass that all images of a batch share, and their prompts."""

    sampler: str
    schedule_type: str
    steps: int
    width: int
    height: int
    prompts: list[str]
    """Without the tags of extra networks."""
    negative_prompts: list[str]
    base_steps: int | None = None
    """Model evaluations of the first pass, if this is the second."""
    mixes_embeddings: bool = False
    """Whether prompts joined by AND become one, with the weighted mean of their embeddings."""

    @classmethod
    def first(cls, requests: Sequence[ImageConfig]) -> Self:
        """Return the pass of txt2img or img2img, or the first one of Hires. fix."""
        first = requests[0]
        assert first.width and first.height
        return cls(
            first.sampler,
            first.schedule_type,
            first.steps,
            first.width,
            first.height,
            [extract_extra_networks(request.prompt)[0] for request in requests],
            [request.negative_prompt for request in requests],
        )

    @classmethod
    def second(cls, requests: Sequence[ImageConfig], width: int, height: int) -> Self:
        """Return the second pass of Hires. fix."""
        first = requests[0]
        assert first.hires
        sampler = first.hires.sampler or first.sampler
        prompts, negatives = zip(*map(hires_prompts, requests), strict=True)
        return cls(
            sampler,
            first.hires.schedule_type or first.schedule_type,
            first.hires.steps or first.steps,
            width,
            height,
            [extract_extra_networks(prompt)[0] for prompt in prompts],
            list(negatives),
            first.steps * (1 + SAMPLERS[first.sampler].is_second_order),
        )


def hires_prompts(request: ImageConfig) -> tuple[str, str]:
    """Return prompt and negative prompt of the second pass."""
    hires = request.hires
    assert hires
    prompt = request.prompt if hires.prompt is None else hires.prompt
    negative = request.negative_prompt if hires.negative_prompt is None else hires.negative_prompt
    return prompt, negative


def check_prompts(request: ImageConfig) -> None:
    """Check that the prompts of all passes can be read.

    Raises:
        InputError: one cannot; the message has the position.
    """
    texts = [request.prompt, request.negative_prompt]
    if request.hires is not None:
        texts += hires_prompts(request)
    for text in texts[::2]:
        parts = split_composition(extract_extra_networks(text)[0])
        if len(parts) == 1 and parts[0].weight != 1:
            warnings.warn(
                f"the prompt {text!r} ends in a colon and a number, which is its weight, as in "
                "A1111; put something behind it if it is meant as text",
                DrawWarning,
                stacklevel=2,
            )
        for part in parts:
            read_text(part.text, prompt_settings(request, request.steps))
    for text in texts[1::2]:
        read_text(text, prompt_settings(request, request.steps))


def prompt_settings(
    request: ImageConfig, steps_total: int, base_steps: int | None = None
) -> PromptSettings:
    """Return the options of a request's prompts, for a number of evaluations."""
    return PromptSettings(
        steps_total=steps_total,
        emphasis=request.emphasis,
        comma_padding_backtrack=request.comma_padding_backtrack,
        old_prompt_editing=request.old_prompt_editing,
        pad_conds=request.pad_conds,
        hires_base_steps=base_steps,
    )


def all_texts(request: ImageConfig) -> list[str]:
    """Return prompts and negative prompts of both passes."""
    later = [] if request.hires is None else hires_prompts(request)
    return [request.prompt, request.negative_prompt, *later]


def sample(
    base: ImageModel,
    requests: Sequence[ImageConfig],
    way: Pass,
    start: Start | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Return clean latents (b, c, h, w), fp32.

    Args:
        base: the base model, in evaluation mode.
        requests: with equal `inference.images.requests.what_batches_share`.
        way: sampler, steps, size and prompts.
        start: clean latents to start from; without it there is only noise.
        callback: called at every step.
    """
    first = requests[0]
    sampler = SAMPLERS[way.sampler]
    levels = sampler.levels(base.parametrization)
    options = schedule_options(base, first)
    if start is None:
        schedule = way.sampler, way.schedule_type, way.steps
        sigmas = sampling_sigmas(levels, *schedule, options)
        run = Img2ImgRun(sigmas, sigmas[0], (min(s for s in sigmas if s > 0), max(sigmas)), levels)
        noise = noise_source(base, requests, way, run)
        is_strong = first.sgm_noise_multiplier
        scale = levels.scale(sigmas[0])
        if not is_strong:
            scale = sampler.start_scale(sigmas[0], levels.scale)
        x = noise.normal() * scale
    else:
        schedule = way.sampler, way.schedule_type, way.steps
        strength = start.denoising_strength, start.exact_steps
        run = img2img_sigmas(levels, *schedule, *strength, options)
        noise = noise_source(base, requests, way, run)
        fresh = noise.normal()
        start = start.with_masked_content(fresh)
        x = run.start(start.latents, fresh * start.noise_multiplier, start.extra_noise)
    denoiser = build_denoiser(base, first, way, levels, start)
    own = sampler.options(
        first.eta,
        s_churn=first.s_churn,
        s_tmin=first.s_tmin,
        s_tmax=first.s_tmax,
        s_noise=first.s_noise,
        timestep_of=levels.timestep,
        scale_of=levels.scale,
    )
    x = sampler.function(denoiser, x, run.sigmas, noise, callback, own)
    if start is None or start.mask is None or start.has_soft_edges:
        return x
    return blend_latents(x, start.latents, start.mask)


def schedule_options(base: ImageModel, request: ImageConfig) -> ScheduleOptions:
    """Return the options of a request's `schedule`."""
    chosen = request.schedule
    return ScheduleOptions(
        sigma_min=chosen.sigma_min,
        sigma_max=chosen.sigma_max,
        rho=chosen.rho,
        beta_alpha=chosen.beta_alpha,
        beta_beta=chosen.beta_beta,
        old_karras=chosen.use_old_karras,
        discard_penultimate=chosen.discard_next_to_last_sigma,
        align_your_steps=base.align_your_steps,
    )


def build_denoiser(
    base: ImageModel,
    first: ImageConfig,
    way: Pass,
    levels: NoiseLevels | None = None,
    start: Start | None = None,
) -> Denoiser:
    """Encode the pass's prompts, each different text once; see `denoiser`.

    Raises:
        InputError: a prompt cannot be read; the message has the position.
    """
    sampler = SAMPLERS[way.sampler]
    cfg_scale = first.cfg_scale / sampler.cfg_divisor
    steps_total = way.steps * (1 + sampler.is_second_order)
    settings = prompt_settings(first, steps_total, way.base_steps)
    has_negatives = sampler.needs_uncond or needs_negatives(way.prompts, cfg_scale)
    negatives = way.negative_prompts if has_negatives else []
    encoded = base.encode_drawing(way.prompts, negatives, settings)
    positives = (
        [mixed(each) for each in encoded.positives] if way.mixes_embeddings else encoded.positives
    )
    return Denoiser(
        base,
        positives,
        encoded.negatives,
        cfg_scale,
        guidance=Guidance(
            filler=encoded.filler,
            total_steps=settings.steps_total,
            skip_early_cond=first.skip_early_cond,
            s_min_uncond=first.s_min_uncond,
            keeps_uncond=sampler.needs_uncond,
        ),
        inpainting=Inpainting(
            concat=inpaint_channels(base, way, start),
            blend=start.blend() if start and not sampler.is_scaled else None,
            blend_input=start.blend_input() if start and sampler.is_scaled else None,
        ),
        levels=levels,
    )


def inpaint_channels(base: ImageModel, way: Pass, start: Start | None) -> Tensor | None:
    """Return the conditioning channels of inpainting models, (b or 1, 1 + c, h, w).

    Without an init image, and in the second pass of Hires. fix, all is masked, and grey.
    """
    if start is not None and start.concat is not None:
        return start.concat

    def grey() -> Iterator[tuple[Tensor, Tensor]]:
        factor = base.vae_scale_factor
        sides = (way.width, way.height), (way.width // factor, way.height // factor)
        mask, pixels = whole_picture_conditioning(1, *sides)
        yield mask, base.encode_images(pixels)[0]

    return base.masked_image_channels(grey())


def noise_source(
    base: ImageModel, requests: Sequence[ImageConfig], way: Pass, run: Img2ImgRun
) -> NoiseSource:
    """Return the noise of a batch, in the size of this pass."""
    first, factor = requests[0], base.vae_scale_factor
    shape = (base.vae.config.latent_channels, way.height // factor, way.width // factor)
    resized = first.seed_resize_from_height // factor, first.seed_resize_from_width // factor
    return NoiseSource(
        [request.seed for request in requests],
        shape,
        base.device,
        source=first.rng,
        variation=SeedVariation(
            [request.variation_seed for request in requests],
            first.variation_strength,
            resized if all(resized) else None,
        ),
        ensd=first.ensd,
        brownian_range=run.brownian_range,
    )
