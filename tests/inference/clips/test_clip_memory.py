"""Caches and memory levers are gone after use; what memory chooses is known beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.clips.caches import StepCache
from inference.clips.drawing import Way, draw_clip
from inference.clips.memory import needs_of
from inference.clips.requests import ClipSources, expand
from inference.config.clips import CacheConfig, ClipConfig
from inference.memory import (
    GIB,
    MemoryNeeds,
    MemoryPlan,
    choose_memory,
    peak_of,
    swapped_bytes,
    tiled,
    weight_bytes,
)
from inference.memory.quantization import packed_layers, plain_weight
from inference.models.base import quantize_denoiser
from inference.models.cogvideox.model import VideoModel
from tests.inference.artifacts.adapters.low_rank_layers import low_ranks

NEEDS = MemoryNeeds(11 * GIB, 9 * GIB, GIB // 2, 2 * GIB, 18 * GIB, 5 * GIB)
"""About CogVideoX-5B's at 480x720."""


def request_of(base: VideoModel, **settings: Any) -> ClipConfig:
    clip = ClipConfig(prompt="a", steps=8, width=32, height=32, frames=9, **settings)
    return expand(base, [clip])[0]


def state_of(base: VideoModel) -> list[tuple[str, list[str]]]:
    """What is on every module besides what it was made with."""
    return [(name, sorted(vars(module))) for name, module in base.transformer.named_modules()]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("pab", CacheConfig()),
        ("faster_cache", CacheConfig()),
        ("first_block_cache", CacheConfig(threshold=0.5)),
        ("mag_cache", CacheConfig(threshold=0.5, mag_ratios=[1.0] * 8)),
    ],
)
def test_caches_change_the_clip_and_leave_nothing(
    tiny_video_model: VideoModel, kind: Any, settings: CacheConfig
) -> None:
    base = tiny_video_model
    request = request_of(base)
    before = state_of(base)
    plain = draw_clip(base, request, ClipSources(), Way())
    cached = Way(cache=StepCache(kind, settings))
    first = draw_clip(base, request, ClipSources(), cached)
    assert not np.array_equal(first, plain)
    assert state_of(base) == before
    assert not base.transformer.is_cache_enabled
    assert np.array_equal(draw_clip(base, request, ClipSources(), cached), first)
    assert np.array_equal(draw_clip(base, request, ClipSources(), Way()), plain)


def test_a_cache_is_gone_where_drawing_fails(tiny_video_model: VideoModel) -> None:
    base = tiny_video_model
    before = state_of(base)
    cache = StepCache("pab")
    with pytest.raises(KeyError), cache.on(base, request_of(base), 8):
        raise KeyError
    assert state_of(base) == before


def test_calibration_draws_the_plain_clip_and_tells_ratios(tiny_video_model: VideoModel) -> None:
    base, reported = tiny_video_model, list[str]()
    cache = StepCache("mag_cache", CacheConfig(calibrate=True), reported.append)
    request = request_of(base, seed=7)
    frames = draw_clip(base, request, ClipSources(), Way(cache=cache))
    assert np.array_equal(frames, draw_clip(base, request, ClipSources(), Way()))
    words, _, numbers = reported[0].partition(": ")
    ratios = [float(number) for number in numbers.strip("[]").split(",")]
    assert words == "mag_ratios of seed 7"
    assert len(ratios) == 8
    assert ratios[0] == 1.0
    assert all(0.1 < ratio < 10 for ratio in ratios)


def test_fp8_is_offloaded_layer_by_layer(tiny_video_model: VideoModel) -> None:
    """The packed weights move and come back with their scales, also under a LoRA."""
    base = tiny_video_model
    quantize_denoiser(base, "fp8", torch.float32)
    lora = Lora.create(base, LoraSpec(2, 2, 0, ["attention"], False), 1)
    for layer in low_ranks(lora).values():
        torch.nn.init.ones_(layer.requires_grad_(False).lora_B.weight)
    lora.attach(base)
    request = request_of(base)
    plain = draw_clip(base, request, ClipSources(), Way())
    before = {path: plain_weight(layer) for path, layer in packed_layers(base.denoiser).items()}
    assert before
    base.place(torch.device("cpu"), MemoryPlan("sequential_offload"))
    assert np.array_equal(draw_clip(base, request, ClipSources(), Way()), plain)
    for path, layer in packed_layers(base.denoiser).items():
        assert torch.equal(plain_weight(layer), before[path])
        assert layer.weight.dtype == torch.float8_e4m3fn


def test_tiles_are_switched_back(tiny_video_model: VideoModel) -> None:
    vae = tiny_video_model.vae
    with tiled(vae, True):
        assert vae.use_tiling
    assert not vae.use_tiling
    with tiled(vae, False):
        assert not vae.use_tiling
    vae.enable_tiling()
    with tiled(vae, True):
        pass
    assert vae.use_tiling


def test_a_placed_vae_works_in_tiles(tiny_video_model: VideoModel) -> None:
    base, seen = tiny_video_model, list[bool]()
    plain = draw_clip(base, request_of(base), ClipSources(), Way())
    base.place(torch.device("cpu"), MemoryPlan(is_tiled=True))
    base.vae.decoder.register_forward_pre_hook(lambda *_: seen.append(base.vae.use_tiling))
    tiles = draw_clip(base, request_of(base), ClipSources(), Way())
    assert all(seen) and seen
    assert not base.vae.use_tiling
    assert np.array_equal(tiles, plain)  # one tile


@pytest.mark.parametrize(
    ("free", "wish", "offload", "is_tiled"),
    [
        (None, "auto", "none", False),
        (80, "auto", "none", False),
        (30, "auto", "none", True),
        (20, "auto", "model_offload", False),
        (15, "auto", "model_offload", True),
        (8, "auto", "sequential_offload", True),
        (80, "model_offload", "model_offload", False),
        (15, "model_offload", "model_offload", True),
        (8, "none", "none", True),
        (80, "sequential_offload", "sequential_offload", True),
    ],
)
def test_memory_is_chosen_by_numbers(
    free: int | None, wish: str, offload: str, is_tiled: bool
) -> None:
    plan = choose_memory(NEEDS, None if free is None else free * GIB, wish)
    assert (plan.offload, plan.is_tiled) == (offload, is_tiled)
    assert bool(plan.reason) == (free is not None)


def test_peaks() -> None:
    assert peak_of(NEEDS, "none", False) == int(38.5 * GIB)
    assert peak_of(NEEDS, "none", True) == int(25.5 * GIB)
    assert peak_of(NEEDS, "model_offload", False) == int(18.5 * GIB)
    assert peak_of(NEEDS, "model_offload", True) == 13 * GIB


def test_needs_are_those_of_the_largest_clip(tiny_video_model: VideoModel) -> None:
    """The model is measured as it is, and stays where it is."""
    base = tiny_video_model
    small = request_of(base)
    before = [(one, one.device) for part in base.parts.values() for one in part.parameters()]
    needs = needs_of(base, [small])
    assert needs.denoiser == weight_bytes(base.transformer)
    whole = 3 * 9 * 32 * 32 * 4  # the pixels themselves, decoded and clamped
    assert needs.decoding > 2 * whole and needs.drawing > 0
    large = expand(base, [ClipConfig(prompt="a", width=64, height=32, frames=17)])
    more = needs_of(base, [small, *large])
    alone = needs_of(base, large)  # positions of this size are known by now
    assert (more.decoding, more.tiled_decoding) == (alone.decoding, alone.tiled_decoding)
    assert more.drawing == pytest.approx(alone.drawing, rel=0.05)
    assert 1.5 * needs.decoding < more.decoding < 4 * needs.decoding
    assert more.drawing > needs.drawing
    after = [(one, one.device) for part in base.parts.values() for one in part.parameters()]
    assert all(a is b for (a, _), (b, _) in zip(before, after, strict=True))
    half = needs_of(base, [small], 0.5)
    assert half.denoiser == needs.denoiser - swapped_bytes(base.blocks(), 0.5)
