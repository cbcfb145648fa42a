"""Our loop gives the bytes that diffusers' pipelines give."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference.clips import drawing as sampling
from inference.clips.drawing import Way, draw_clip, draw_clips
from inference.clips.output import write_webp
from inference.clips.requests import ClipSources, expand, shown_frames
from inference.clips.sampling import ClipStart, SigmaRun, TimestepModel, plan_run, steps_taken
from inference.config.clips import ClipConfig
from inference.models.cogvideox.model import VideoModel
from inference.runtime.errors import DrawWarning, InputError
from inference.sampling.model_steps import model_noise_scheduler, noisy_step

PICTURE = str(Path(__file__).parents[3] / "datasets" / "frog" / "0.png")
"""A square one; what it shows does not matter."""

Made = Callable[..., VideoModel]


def request_of(base: VideoModel, **settings: Any) -> ClipConfig:
    usual = {"prompt": "a red ball", "negative_prompt": "blurry", "steps": 4, "seed": 5}
    usual |= {"width": 32, "height": 32, "frames": 9}
    return expand(base, [ClipConfig(**{**usual, **settings})])[0]


def pipeline_of(name: str, base: VideoModel, sampler: str) -> Any:
    import diffusers

    kind = getattr(diffusers, name)
    pipeline = kind(
        tokenizer=base.tokenizer,
        text_encoder=base.text_encoder,
        vae=base.vae,
        transformer=base.transformer,
        scheduler=model_noise_scheduler(sampler, base.noise_schedule),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference(pipeline: Any, request: ClipConfig, **more: Any) -> np.ndarray:
    frames = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale,
        use_dynamic_cfg=request.dynamic_cfg == "diffusers",
        generator=torch.Generator().manual_seed(request.seed),
        max_sequence_length=16,
        output_type="pil",
        **more,
    ).frames[0]
    return np.stack([np.asarray(frame) for frame in frames])


def some_frames(count: int, size: int = 32) -> np.ndarray:
    noise = np.random.default_rng(3)
    return noise.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("5b", {}),
        ("5b", {"sampler": "dpm", "dynamic_cfg": "diffusers", "height": 48}),
        ("2b", {"cfg_scale": 1.0, "negative_prompt": ""}),
        ("1.5", {"sampler": "dpm"}),
        ("1.5", {"frames": 8}),
    ],
)
def test_text_to_clip_is_diffusers(
    video_model: Made, kind: str, settings: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    base = video_model(kind)
    request = request_of(base, **settings)
    pipeline = pipeline_of("CogVideoXPipeline", base, str(request.sampler))
    expected = reference(pipeline, request, num_frames=request.frames)
    frames = draw_clip(base, request, ClipSources(), Way())
    assert frames.shape == (request.frames, request.height, 32, 3)
    assert frames.std() > 1
    assert np.array_equal(frames, expected)


@pytest.mark.parametrize(("kind", "size"), [("5b_i2v", 64), ("1.5_i2v", 32)], ids=["1.0", "1.5"])
def test_picture_to_clip_is_diffusers(video_model: Made, kind: str, size: int) -> None:
    base = video_model(kind)
    picture = Image.fromarray(some_frames(1, size)[0])
    request = request_of(base, width=size, height=size, image=PICTURE, sampler="dpm")
    pipeline = pipeline_of("CogVideoXImageToVideoPipeline", base, "dpm")
    expected = reference(pipeline, request, image=picture, num_frames=9)
    frames = draw_clip(base, request, ClipSources(image=picture), Way())
    assert np.array_equal(frames, expected)


def test_the_last_frame_is_told_too(video_model: Made) -> None:
    base = video_model("1.5_i2v")
    first, last = (Image.fromarray(frame) for frame in some_frames(2))
    request = request_of(base, image=PICTURE, end_image=PICTURE)
    sources = ClipSources(image=first, end_image=last)
    generator = torch.Generator().manual_seed(0)
    reported = sampling.first_frame(base, request, sources, 4, generator)
    assert reported.shape == (1, 4, 4, 4, 4)
    assert [bool(frame.any()) for frame in reported[0]] == [True, False, False, True]
    generator.manual_seed(0)
    scaled = sampling.first_frame(base, request, sources, 4, generator, "scaled")
    assert torch.allclose(scaled, reported * 0.7**2)


@pytest.mark.parametrize(("kind", "frames"), [("5b", 9), ("1.5", 8)])
def test_clip_to_clip_is_diffusers(
    video_model: Made, kind: str, frames: int, tmp_path: Path
) -> None:
    base = video_model(kind)
    source = some_frames(frames)
    path = tmp_path / "source.webp"
    write_webp(path, source, 8, "")
    request = request_of(base, video=str(path), strength=0.6, frames=None, steps=5, fps=8)
    assert (request.frames, steps_taken(request)) == (frames, 3)
    pipeline = pipeline_of("CogVideoXVideoToVideoPipeline", base, "ddim")
    pictures = [Image.fromarray(frame) for frame in source]
    expected = reference(pipeline, request, video=pictures, strength=0.6)
    drawing = draw_clips(base, [request])[0]
    assert np.array_equal(drawing.frames, expected)
    assert "Denoising strength: 0.6, " in drawing.infotext


def test_fun_control_is_diffusers(video_model: Made, tmp_path: Path) -> None:
    base = video_model("fun")
    source = some_frames(9)
    path = tmp_path / "source.webp"
    write_webp(path, source, 8, "")
    request = request_of(base, control_video=str(path))
    pipeline = pipeline_of("CogVideoXFunControlPipeline", base, "ddim")
    pictures = [Image.fromarray(frame) for frame in source]
    expected = reference(pipeline, request, control_video=[pictures])
    drawing = draw_clips(base, [request])[0]
    assert np.array_equal(drawing.frames, expected)
    assert "Control video: source.webp, " in drawing.infotext
    with pytest.raises(InputError, match="dpm cannot be used with control_video"):
        request_of(base, control_video=PICTURE, sampler="dpm")


def test_a_clip_is_the_same_whatever_is_beside_it(tiny_video_model: VideoModel) -> None:
    base = tiny_video_model
    clips = [ClipConfig(prompt=p, steps=2, frames=9, width=32, height=32, count=2) for p in "ab"]
    together = draw_clips(base, expand(base, clips))
    alone = draw_clips(base, expand(base, clips[1:]))
    assert [drawing.request.seed for drawing in together] == [0, 1, 0, 1]
    assert np.array_equal(together[3].frames, alone[1].frames)
    assert not np.array_equal(together[2].frames, alone[1].frames)


def test_steps_of_guidance(tiny_video_model: VideoModel) -> None:
    base = tiny_video_model
    same = draw_clip(base, request_of(base, cfg_scales=[6.0] * 4), ClipSources(), Way())
    usual = draw_clip(base, request_of(base), ClipSources(), Way())
    other = draw_clip(base, request_of(base, cfg_scales=[6, 6, 6, 2]), ClipSources(), Way())
    assert np.array_equal(same, usual)
    assert not np.array_equal(other, usual)


def test_eta_adds_noise_and_none_adds_nothing(tiny_video_model: VideoModel) -> None:
    """At eta 0 the formula of eta is the scheduler's."""
    base = tiny_video_model
    request = request_of(base)
    known = model_noise_scheduler("ddim", base.noise_schedule)
    known.set_timesteps(4)
    source = torch.Generator()
    model = TimestepModel(lambda *_: (latents, latents), known, 4, known.timesteps, source)
    latents, velocity = torch.randn(2, 1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep in (999, 749, 249):
        ours = noisy_step(model, velocity, timestep, latents, 0.0)
        theirs = known.step(velocity, timestep, latents).prev_sample
        assert torch.allclose(ours, theirs, atol=1e-5)
    noisy = draw_clip(base, request_of(base, eta=1.0), ClipSources(), Way())
    assert not np.array_equal(noisy, draw_clip(base, request, ClipSources(), Way()))


def test_long_clips_by_windows(tiny_video_model: VideoModel) -> None:
    base = tiny_video_model
    whole = draw_clip(base, request_of(base, frames=17, steps=2), ClipSources(), Way())
    wide = request_of(base, frames=17, steps=2, window=17)
    assert np.array_equal(draw_clip(base, wide, ClipSources(), Way()), whole)
    narrow = request_of(base, frames=17, steps=2, window=9, overlap=4)
    frames = draw_clip(base, narrow, ClipSources(), Way())
    assert frames.shape == whole.shape
    assert not np.array_equal(frames, whole)
    assert np.array_equal(frames, draw_clip(base, narrow, ClipSources(), Way()))


@pytest.mark.parametrize(
    ("asked", "given", "reported"),
    [
        ({"frames": 13}, (16, 32, 32), "frames: 16 instead of 13"),
        ({"frames": 12}, (9, 32, 32), "frames: 9 instead of 12"),
        ({"width": 40}, (9, 48, 32), "width: 48 instead of 40"),
    ],
)
def test_sizes_are_rounded_and_told(
    tiny_video_model: VideoModel, asked: dict[str, int], given: tuple[int, int, int], reported: str
) -> None:
    with pytest.warns(DrawWarning, match=reported):
        request = request_of(tiny_video_model, **asked)
    assert (request.frames, request.width, request.height) == given
    assert (request.fps, request.sampler) == (8, "ddim")


@pytest.mark.parametrize(
    ("kind", "settings", "reported"),
    [
        ("5b", {"image": PICTURE}, "image: tiny-5b draws from text alone"),
        ("5b_i2v", {}, "image: tiny-5b_i2v draws from a picture"),
        ("5b_i2v", {"image": PICTURE}, "learned positions for 64x64"),
        ("5b_i2v", {"image": PICTURE, "video": PICTURE}, "needs a text-to-video model"),
        ("5b", {"video": "nowhere.mp4"}, "video: there is no nowhere.mp4"),
        ("5b", {"sampler": "dpm", "eta": 1.0}, "eta: is of ddim"),
    ],
)
def test_refusals(video_model: Made, kind: str, settings: dict[str, Any], reported: str) -> None:
    with pytest.raises(InputError, match=reported):
        request_of(video_model(kind), **settings)


@pytest.mark.parametrize(
    ("fps", "places"),
    [(8, range(9)), (4, [0, 2, 4, 6]), (16, [n // 2 for n in range(18)]), (6, [0, 1, 2, 4, 5, 6])],
)
def test_sources_are_read_at_the_rate_of_the_clip(
    tmp_path: Path, fps: float, places: list[int]
) -> None:
    """9 frames at 8 fps last 1.125 s; a frame is shown until the next one is."""
    path = tmp_path / "source.webp"
    write_webp(path, some_frames(9), 8, "")
    assert shown_frames("video", str(path), fps)[1] == list(places)


def test_a_source_that_is_too_short_is_told(video_model: Made, tmp_path: Path) -> None:
    path = tmp_path / "source.webp"
    write_webp(path, some_frames(9), 8, "")
    with pytest.warns(DrawWarning, match=r"frames: 9 instead of 17 \(.*video has 9 at 8 fps"):
        assert request_of(video_model("5b"), video=str(path), frames=17).frames == 9


def test_prompts_that_are_not_read_to_their_ends_are_told(tiny_video_model: VideoModel) -> None:
    room = tiny_video_model.config.max_text_seq_length
    assert tiny_video_model.truncation_of([]) is tiny_video_model.truncation_of(["red"]) is None
    with pytest.warns(DrawWarning, match=f"1 of 2 prompts have more than the {room} tokens"):
        request_of(tiny_video_model, prompt="red, " * room)


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DPM++ SDE", "DDIM CFG++", "UniPC"])
def test_samplers_of_pictures_draw_clips(tiny_video_model: VideoModel, sampler: str) -> None:
    base = tiny_video_model
    request = request_of(base, sampler=sampler)
    seen = []
    drawings = [draw_clips(base, [request], Way(progress=lambda *at: seen.append(at)))[0]]
    drawings += draw_clips(base, [request])
    assert drawings[0].frames.shape == (9, 32, 32, 3)
    assert drawings[0].frames.std() > 1
    assert np.array_equal(drawings[0].frames, drawings[1].frames)
    assert seen[0] == (1, 4) and max(seen)[0] <= 4
    other = draw_clip(base, request_of(base, sampler=sampler, seed=6), ClipSources(), Way())
    assert not np.array_equal(other, drawings[0].frames)
    type_ = {"Euler a": "Automatic", "DPM++ 2M": "Karras", "DPM++ SDE": "Karras"}.get(sampler)
    reported = f"Sampler: {sampler}, Schedule type: {type_ or 'Automatic'}, CFG scale: 6, "
    assert reported in drawings[0].infotext
    assert "Eta" not in drawings[0].infotext


def test_eta_is_the_samplers_own_unless_given(tiny_video_model: VideoModel) -> None:
    base = tiny_video_model
    frames = [
        draw_clip(base, request_of(base, sampler="Euler a", eta=eta), ClipSources(), Way())
        for eta in (None, 1.0, 0.0)
    ]
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])
    euler = draw_clip(base, request_of(base, sampler="Euler"), ClipSources(), Way())
    assert np.array_equal(frames[2], euler)
    drawing = draw_clips(base, [request_of(base, sampler="Euler a", eta=0.5)])[0]
    assert "Eta: 0.5, " in drawing.infotext


def test_samplers_of_pictures_draw_over_clips_and_by_windows(
    tiny_video_model: VideoModel, tmp_path: Path
) -> None:
    base = tiny_video_model
    path = tmp_path / "source.webp"
    write_webp(path, some_frames(9), 8, "")
    settings = {"video": str(path), "frames": None, "steps": 5, "fps": 8, "sampler": "Euler"}
    request = request_of(base, strength=0.6, **settings)
    assert steps_taken(request) == 4  # A1111 takes one more
    little, much = (
        draw_clips(base, [request_of(base, strength=strength, **settings)])[0].frames
        for strength in (0.2, 1.0)
    )
    decoded = draw_clips(base, [request])[0].frames
    assert not np.array_equal(little, decoded) and not np.array_equal(much, decoded)
    wide = request_of(base, frames=17, steps=2, window=9, overlap=4, sampler="DPM++ 2M")
    assert draw_clip(base, wide, ClipSources(), Way()).shape == (17, 32, 32, 3)


SPREAD = 0.6


class LinearModel:
    """Predicts the velocity of normal data of spread SPREAD around 0, exactly."""

    def __init__(self, base: VideoModel) -> None:
        self.known = base.parametrization
        self.asked: list[tuple[float, int]] = []

    def __call__(self, seen: torch.Tensor, timestep: torch.Tensor, step: int) -> Any:
        self.asked.append((float(timestep), step))
        sigma = self.known.sigma(float(timestep))
        x = seen * self.known.scale(sigma)
        clean = x * (SPREAD**2 / (SPREAD**2 + sigma**2))
        noise = (x - clean) / sigma
        velocity = (noise - clean * sigma) / self.known.scale(sigma)
        return velocity, velocity


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "Heun", "ddim"])
def test_clips_of_a_linear_model_are_the_exact_solution(
    tiny_video_model: VideoModel, sampler: str
) -> None:
    """From noise at sigma the probability flow leads to x * spread / sqrt(spread^2 + sigma^2)."""
    base = tiny_video_model
    request = request_of(base, sampler=sampler, steps=500, eta=0.0 if sampler == "ddim" else None)
    run = plan_run(base, request, "cpu")
    model, source = LinearModel(base), torch.Generator().manual_seed(1)
    noise = torch.randn((1, 3, 4, 4, 4), generator=source)
    steps: list[int] = []
    result = run.draw(ClipStart(noise), model, source, steps.append)
    assert steps == list(range(1, 501))
    assert model.asked[0][1] == 0
    assert max(step for _, step in model.asked) == 499
    sigma = base.parametrization.sigma_max
    scale = base.parametrization.scale(sigma) if sampler == "ddim" else sigma
    exact = noise * scale * SPREAD / (SPREAD**2 + sigma**2) ** 0.5
    assert ((result - exact).norm() / exact.norm()).item() < 0.02


def test_euler_on_velocity_is_its_product_of_steps(tiny_video_model: VideoModel) -> None:
    """Each Euler step on the linear model multiplies x by a known number."""
    base = tiny_video_model
    run = plan_run(base, request_of(base, sampler="Euler", steps=7), "cpu")
    assert isinstance(run, SigmaRun)
    source = torch.Generator().manual_seed(1)
    noise = torch.randn((1, 3, 4, 4, 4), generator=source)
    factor = run.run.sigmas[0]
    for sigma, after in pairwise(run.run.sigmas):
        factor *= 1 + (after - sigma) * sigma / (SPREAD**2 + sigma**2)
    result = run.draw(ClipStart(noise), LinearModel(base), source, lambda step: None)
    torch.testing.assert_close(result, noise * factor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "what"), [("vae", "clip is not finite"), ("transformer", "latent of the clip is not")]
)
def test_a_clip_that_is_no_number_is_an_error(
    part: str, what: str, tiny_video_model: VideoModel
) -> None:
    """It would be black."""
    with torch.no_grad():
        for weight in getattr(tiny_video_model, part).parameters():
            weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=what):
        draw_clips(tiny_video_model, [request_of(tiny_video_model, steps=1)])
