"""Drawing clips: text, picture or clip to clip, and Fun-Control.

With CogVideoX equal, byte for byte in fp32, to diffusers 0.42.1's CogVideoXPipeline,
-ImageToVideoPipeline, -VideoToVideoPipeline and -FunControlPipeline (`pipelines/cogvideo/`). Each
clip is drawn by itself with noise from a generator of its own on the CPU, so that nothing beside it
changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inference.artifacts import UsedArtifact
from inference.clips.caches import StepCache
from inference.clips.guidance import guidance_scales
from inference.clips.infotext import describe_clip
from inference.clips.memory import Placement
from inference.clips.requests import ClipSources, fitted, padded_frames, read_sources, window_frames
from inference.clips.sampling import ClipStart, plan_run, steps_taken
from inference.clips.windows import blend_weights, windows
from inference.config import ClipConfig
from inference.models import ClipModel, Conditions, LatentScale
from inference.sampling import SAMPLERS

Progress = Callable[[int, int], object]
"""Called with (steps done, steps of all clips)."""


@dataclass(frozen=True)
class ClipDrawing:
    """A clip, and how it was drawn."""

    frames: np.ndarray
    """(f, h, w, 3), uint8."""
    request: ClipConfig
    infotext: str


@dataclass
class Way:
    """How clips are drawn, whatever they show."""

    placement: Placement = field(default_factory=Placement)
    cache: StepCache = field(default_factory=StepCache)
    artifacts: Sequence[UsedArtifact] = ()
    """Told in the infotext; they are attached already."""
    progress: Progress | None = None
    image_latent_scale: LatentScale = "pipeline"


def draw_clips(
    base: ClipModel, requests: Sequence[ClipConfig], way: Way | None = None
) -> list[ClipDrawing]:
    """Draws requests that `inference.clips.requests.expand` has made, one after the other.

    Raises:
        InputError: a file of a request cannot be read.
    """
    way = way or Way()
    total = sum(steps_taken(request) for request in requests)
    done, drawings = 0, []
    for request in requests:

        def report(step: int, before: int = done) -> None:
            if way.progress:
                way.progress(before + step, total)

        frames = draw_clip(base, request, read_sources(request), way, report)
        done += steps_taken(request)
        text = describe_clip(request, base, way.artifacts, {"Cache": way.cache.told})
        drawings.append(ClipDrawing(frames, request, text))
    return drawings


@torch.no_grad()
def draw_clip(
    base: ClipModel,
    request: ClipConfig,
    sources: ClipSources,
    way: Way,
    report: Callable[[int], object] = lambda step: None,
) -> np.ndarray:
    """The frames of one clip, (f, h, w, 3), uint8.

    Args:
        base: a model of the kind that the sources need.
        request: with seed, size, frames and sampler.
        sources: what it begins with or follows.
        way: where the parts work, and what is left out.
        report: called with the number of steps done.
    """
    device = way.placement.device or base.device
    generator = torch.Generator().manual_seed(request.seed)
    run = plan_run(base, request, device)
    with ExitStack() as stack:
        for name in base.text_encoders:
            stack.enter_context(way.placement.at_work(base, name))
        conditions = encode(base, request).to(device)
    with way.placement.at_work(base, "vae"):
        start, told = prepare(base, request, sources, generator, way)
    steps = len(run.timesteps)
    with (
        way.placement.at_work(base, base.denoiser_name),
        way.cache.on(base, request, steps),
    ):
        loop = Loop.of(base, request, start.noise, conditions, told, run.timesteps, way.cache)
        latents = run.draw(start, loop.predict, generator, report)
    _, extra = padded_frames(base, request.frames or 1)
    with way.placement.at_work(base, "vae"):
        pixels = base.decode_latents(latents[:, extra:])
    return to_frames(pixels[0])


def encode(base: ClipModel, request: ClipConfig) -> Conditions:
    """Of the negative prompt, unless guidance is off, and of the prompt; each by itself."""
    is_alone = request.is_unguided and not SAMPLERS[str(request.sampler)].needs_uncond
    prompts = [request.prompt] if is_alone else [request.negative_prompt, request.prompt]
    return Conditions.cat([base.encode_prompts([prompt]) for prompt in prompts])


def prepare(
    base: ClipModel,
    request: ClipConfig,
    sources: ClipSources,
    generator: torch.Generator,
    way: Way,
) -> tuple[ClipStart, Tensor | None]:
    """What drawing begins with, and what the transformer is told besides, (1, f', c, h', w').

    Random numbers are drawn in the pipelines' order.
    """
    from diffusers.utils.torch_utils import randn_tensor

    assert request.frames and request.width and request.height
    device, scale = way.placement.device or base.device, way.image_latent_scale
    latent_frames, _ = padded_frames(base, request.frames)
    factor, channels = base.vae_scale_factor, base.vae.config.latent_channels
    shape = (1, latent_frames, channels, request.height // factor, request.width // factor)

    def noise() -> Tensor:
        return randn_tensor(shape, generator=generator, device=device, dtype=base.dtype)

    if sources.image is not None:
        told = first_frame(base, request, sources, latent_frames, generator, scale)
        return ClipStart(noise()), told
    if sources.control_video is not None:
        drawn = noise()
        return ClipStart(drawn), base.clip_condition(
            clip_pixels(base, request, sources.control_video)
        )
    if sources.video is not None:
        pixels = clip_pixels(base, request, sources.video)
        latents = base.sample_latents(pixels, generator)  # draws before the noise
        return ClipStart(noise(), latents), None
    return ClipStart(noise()), None


def first_frame(
    base: ClipModel,
    request: ClipConfig,
    sources: ClipSources,
    latent_frames: int,
    generator: torch.Generator,
    scale: LatentScale = "pipeline",
) -> Tensor:
    """The conditioning on the first frame, and on the last one if there is one."""

    def pixels(picture: Image.Image) -> Tensor:
        frame = fitted(picture, request.width or 0, request.height or 0)
        return to_pixels(base, frame[None])

    assert sources.image is not None
    last = None if sources.end_image is None else pixels(sources.end_image)
    first = pixels(sources.image)
    return base.frame_condition(first, last, latent_frames, generator, scale)


def clip_pixels(base: ClipModel, request: ClipConfig, frames: np.ndarray) -> Tensor:
    """The first frames of a clip, at the request's size."""
    size = request.width or 0, request.height or 0
    cut = [fitted(Image.fromarray(frame), *size) for frame in frames[: request.frames]]
    return to_pixels(base, np.stack(cut))


def to_pixels(base: ClipModel, frames: np.ndarray) -> Tensor:
    """Frames (f, h, w, 3), uint8, as the VAE takes them: (1, 3, f, h, w) in -1 … 1."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None]
    pixels = 2.0 * (pixels.to(torch.float32) / 255.0) - 1.0
    return pixels.to(base.dtype).to(next(base.vae.parameters()).device, base.vae.dtype)


def to_frames(pixels: Tensor) -> np.ndarray:
    """Pixels (3, f, h, w) in -1 … 1 as frames (f, h, w, 3), uint8."""
    shares = (pixels.float() * 0.5 + 0.5).clamp(0, 1)
    return (shares * 255).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


@dataclass
class Loop:
    """The model's predictions in the steps of one clip."""

    base: ClipModel
    conditions: Conditions
    """Of the negative prompt and the prompt, or of the prompt alone."""
    told: Tensor | None
    """What an image-to-video or a Fun-Control model is told, of the latents' shape."""
    scales: list[float]
    """The guidance scale of each step."""
    places: list[slice]
    """Windows of latent frames."""
    weights: list[Tensor]
    """How much each window counts at its frames, (1, f', 1, 1, 1)."""
    cache: StepCache = field(default_factory=StepCache)

    @classmethod
    def of(
        cls,
        base: ClipModel,
        request: ClipConfig,
        latents: Tensor,
        conditions: Conditions,
        told: Tensor | None,
        timesteps: Sequence[int],
        cache: StepCache,
    ) -> Loop:
        """Of a request, with latents (1, f', c, h', w') and the timesteps where steps begin."""
        total = latents.shape[1]
        size = window_frames(base, request)
        length, overlap = size if size else (total, 0)
        places = windows(total, length, overlap, base.latent_frame_step)
        weights = [
            torch.tensor(shares, device=latents.device).view(1, -1, 1, 1, 1)
            for shares in blend_weights(places)
        ]
        scales = step_scales(request, timesteps)
        return cls(base, conditions, told, scales, places, weights, cache)

    def predict(self, latents: Tensor, timestep: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The guided prediction and the negative prompt's, fp32; of a long clip blended.

        Without guidance the latter is the prompt's.
        """
        self.cache.timestep = int(timestep)
        scale = self.scales[min(step, len(self.scales) - 1)]
        if len(self.places) == 1:
            return self.predict_window(latents, self.told, timestep, scale)
        blended = torch.zeros_like(latents, dtype=torch.float32)
        negatives = torch.zeros_like(blended)
        for place_, weight in zip(self.places, self.weights, strict=True):
            told = None if self.told is None else self.told[:, place_]
            part, negative = self.predict_window(latents[:, place_], told, timestep, scale)
            blended[:, place_] += weight * part
            negatives[:, place_] += weight * negative
        return blended, negatives

    def predict_window(
        self, latents: Tensor, told: Tensor | None, timestep: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """The predictions of latents that the transformer sees at once, fp32."""
        rows = len(self.conditions.states)
        told = None if told is None else torch.cat([told] * rows)
        with self.cache.context(self.base):
            predicted = self.base.predict(
                torch.cat([latents] * rows), timestep.expand(rows), self.conditions, told
            ).float()
        if rows == 1:
            return predicted, predicted
        without, with_prompt = predicted.chunk(2)
        return without + scale * (with_prompt - without), without


def step_scales(request: ClipConfig, timesteps: Sequence[int]) -> list[float]:
    """The guidance scale of each step that is taken, as its sampler takes it."""
    if request.cfg_scales:
        scales = request.cfg_scales[-len(timesteps) :]
    else:
        dynamic = "off" if request.dynamic_cfg == "none" else request.dynamic_cfg
        scales = guidance_scales(request.cfg_scale, timesteps, dynamic, "cfg_scale")
    divisor = SAMPLERS[str(request.sampler)].cfg_divisor
    return [scale / divisor for scale in scales]
