"""Memory that a plan reckons, against what is kept in truth and against published figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inference.clips.memory import decoding_bytes
from inference.config.models import BaseModelConfig
from inference.memory.phases import prompts_measured
from inference.models.cogvideox.detect import FAMILIES, family_on_hub
from inference.models.cogvideox.model import VideoModel
from train.config.clips import ClipDataConfig
from train.config.data import DataConfig
from train.config.objectives import LoraConfig, TextToImageConfig
from train.config.optimization import OptimizerConfig
from train.config.recipe import TrainRecipe
from train.config.schema import recipe_class
from train.memory import steps
from train.memory.figures import CONTEXT, GIB, MemoryPlan
from train.memory.outline import objective_without_weights, outlined
from train.memory.planning import encoding_needs, latents_of, memory_planned, plan_memory
from train.plan.base import skeleton


class Alike:
    """Clips of one shape."""

    def __init__(self, *shape: int) -> None:
        self._shape = shape

    def __len__(self) -> int:
        return 1

    def shape(self, index: int) -> tuple[int, ...]:
        return self._shape

    def all_prompts(self) -> list[str]:
        return [""]

    changes_words = False


built: dict[tuple[str, str], Any] = {}
"""Objectives by model and settings: what differs in recipes besides does not change them."""


def plan(
    name: str, objective: Any, shape: tuple[int, ...], **changes: Any
) -> tuple[MemoryPlan, VideoModel]:
    """The memory of a run on clips of a shape, and the model without weights."""
    path = f"THUDM/{FAMILIES[name].title}"
    recipe: TrainRecipe = recipe_class(type(objective))(
        name="a",
        objective=objective,
        base_model=BaseModelConfig(path=path, vae_precision=None),
        data=DataConfig(path="a", clips=ClipDataConfig()),
        mixed_precision=FAMILIES[name].precision,
        gradient_checkpointing=True,
    )
    recipe = replace(recipe, **changes)
    made = built.get((name, repr(objective)))
    if made is None:
        made = objective_without_weights(recipe, skeleton(recipe.base_model, "fp32"))
        built[name, repr(objective)] = made
    assert isinstance(made.base, VideoModel)
    stages: Any = [(recipe, Alike(*shape))]
    return plan_memory(recipe, made, stages, []), made.base


def test_encoding_of_large_pictures_takes_no_more_in_larger_batches():
    """Beyond 2^20 pixels they are encoded one after the other."""
    recipe: TrainRecipe = recipe_class(LoraConfig)(
        name="a", objective=LoraConfig(), data=DataConfig(path="a")
    )
    base = skeleton(BaseModelConfig(path="picto"), "fp32")

    def needed(side: int, batch: int) -> int:
        stage: Any = replace(recipe, train_batch_size=batch), Alike(side, side)
        return encoding_needs(recipe, base, stage, True)["latents"]

    assert needed(1024, 4) == needed(1024, 1) > 0
    assert needed(512, 4) == needed(512, 8) == pytest.approx(4 * needed(512, 1), rel=0.01)


OFFICIAL = 49, 480, 720
B4 = {"train_batch_size": 4}
FULL = {"gradient_checkpointing": False}
CASES = [  # name, GiB published, model, rank (0: whole), clip, other settings, what comes before
    ("official 2B LoRA 128", 16.0, "cogvideox-2b", 128, OFFICIAL, {}, "encoding"),
    ("official 5B LoRA 128", 24.0, "cogvideox-5b", 128, OFFICIAL, {}, "encoding"),
    ("official 1.5 LoRA 128", 35.0, "cogvideox-1.5-5b", 128, (81, 768, 1360), {}, "encoding"),
    ("official 2B whole", 36.0, "cogvideox-2b", 0, OFFICIAL, {}, "encoding"),
    ("factory 2B LoRA 64", 13.0, "cogvideox-2b", 64, OFFICIAL, {}, "loading"),
    ("factory 5B LoRA 64", 20.8, "cogvideox-5b", 64, OFFICIAL, {}, "loading"),
    ("factory 2B LoRA 64, batch 4", 21.9, "cogvideox-2b", 64, OFFICIAL, B4, "loading"),
    ("factory 5B LoRA 64, batch 4", 46.8, "cogvideox-5b", 64, OFFICIAL, B4, "loading"),
    ("factory 2B LoRA 64, unchecked", 44.0, "cogvideox-2b", 64, OFFICIAL, FULL, "loading"),
]
"""Figures of CogVideo's `finetune/README.md` and of cogvideox-factory's README (8-bit AdamW, before
validation), both with latents and prompts encoded before. Then VAE and T5 are not on the device in
a step, but were before: the official trainer encodes with them, without the transformer, the VAE
in tiles; factory loads all at once."""


def before(made: MemoryPlan, base: VideoModel, procedure: str) -> int:
    """Bytes at the peak before the first step of another trainer."""
    if procedure == "loading":
        return made.weights + made.trained + CONTEXT
    tiled = decoding_bytes(base, (1, *latents_of(base, OFFICIAL)), is_tiled=True)
    return made.away + max(tiled, prompts_measured(base, 1).bytes) + CONTEXT


@pytest.mark.slow
def test_published_figures(capsys):
    reported = []
    for name, published, model, rank, shape, changes, procedure in CASES:
        if name.startswith("factory"):
            changes = {**changes, "optimizer": OptimizerConfig(type="adamw8bit")}
        objective = LoraConfig(rank=rank, alpha=rank) if rank else TextToImageConfig()
        made, base = plan(model, objective, shape, **changes)
        step, start = made.training, before(made, base, procedure)
        off = max(step, start) / GIB / published - 1
        reported.append((name, published, start / GIB, step / GIB, off))
        assert abs(off) <= 0.25, reported[-1]
    with capsys.disabled():
        print(f"\n{'GiB':32}{'published':>10}{'before':>10}{'step':>10}{'off':>10}")
        for name, *numbers, off in reported:
            print(f"{name:32}" + "".join(f"{one:10.1f}" for one in numbers) + f"{off:10.1%}")


@pytest.mark.slow
def test_what_makes_a_run_smaller():
    made, _ = plan("cogvideox-2b", LoraConfig(rank=8, alpha=8), OFFICIAL)
    packed = BaseModelConfig(path="THUDM/CogVideoX-2b", vae_precision=None, quantization="nf4")
    small, _ = plan("cogvideox-2b", LoraConfig(rank=8, alpha=8), OFFICIAL, base_model=packed)
    layers = 30 * (4 * 1920**2 + 2 * 4 * 1920**2)  # attention and feed-forward
    saved = made.parts["transformer"].bytes - small.parts["transformer"].bytes
    assert saved == pytest.approx(layers * (2 - 4.127 / 8), rel=1e-4)
    assert small.parts["transformer"].format == "nf4"
    assert made.parts["transformer"].parameters == small.parts["transformer"].parameters
    assert small.activations == pytest.approx(made.activations, rel=1e-4)

    counts = {name: part.parameters for name, part in made.parts.items()}
    others = sum(count for name, count in counts.items() if name != "vae")
    kept = 24 * 4096 * 10240  # T5's outputs of the feed-forward, which stay fp32 in fp16
    assert made.host == 2 * others + 4 * counts["vae"] + 2 * kept
    assert made.host == pytest.approx(small.host, rel=1e-3)  # packed only when it is read

    numbers = made.trained // 4
    assert numbers == 8 * 2 * 1920 * 4 * 30
    assert (made.gradients, made.optimizer, made.ema) == (4 * numbers, 8 * numbers, 0)
    assert made.other_activations > 5 * made.activations  # without gradient checkpointing


@pytest.mark.slow
def test_a_text_encoder_in_training():
    made, _ = plan("cogvideox-2b", TextToImageConfig(train_text_encoder=True), OFFICIAL)
    frozen, _ = plan("cogvideox-2b", TextToImageConfig(), OFFICIAL)
    text = made.parts["text_encoder"]
    assert (text.parameters, text.format) == (4_762_310_656, "fp32")
    assert made.aside == ["vae"] and frozen.aside == ["text_encoder", "vae"]
    assert made.host == frozen.host == 4 * sum(part.parameters for part in made.parts.values())
    assert made.gradients - frozen.gradients == 4 * text.parameters
    # Activations are freed while gradients are made, and count besides these.
    assert made.activations + made.gradients > frozen.activations + frozen.gradients


def test_the_parts_of_each_phase(make_recipe):
    """A tiny model of pictures: what is trained stays, of the others those at work are there."""
    lora = make_recipe("objective={type: lora, rank: 2}")
    made = memory_planned(lora, outlined(lora))
    assert made.at_work == {
        "captions": ["text_encoder"],
        "latents": ["vae"],
        "step": ["unet"],
        "prompts": ["text_encoder"],
        "denoising": ["unet"],
        "decoding": ["vae"],
    }
    whole = make_recipe("objective={type: text_to_image}", "data.cache=off", "ema={decay: 0.9}")
    made = memory_planned(whole, outlined(whole))
    assert made.at_work["decoding"] == ["unet", "vae"]
    assert made.at_work["step"] == ["unet", "text_encoder", "vae"]
    assert made.peak_of("captions") == made.peak_of("latents") == 0  # a step encodes
    assert made.ema == made.gradients > 0
    rest = made.weights + made.trained + made.optimizer + made.ema + made.gradients + CONTEXT
    assert made.training == rest + made.activations


def test_a_step_is_measured_once_for_settings_that_do_not_change_it(make_recipe, monkeypatch):
    recipe = make_recipe("objective={type: lora, rank: 2}", "mixed_precision=bf16")
    before = memory_planned(recipe, outlined(recipe))
    measured = []
    monkeypatch.setattr(steps, "step_peak", lambda *given: measured.append(given) or 2**30)
    other = replace(recipe, optimizer=OptimizerConfig(learning_rate=1.0), max_train_steps=9)
    assert memory_planned(other, outlined(other)).activations == before.activations
    assert measured == []
    larger = replace(recipe, train_batch_size=recipe.train_batch_size + 1)
    made = memory_planned(larger, outlined(larger))
    assert len(measured) == 2 and made.activations == 2**30 - made.gradients


@pytest.mark.slow
def test_what_changes_a_step(make_recipe):
    def needed(*overrides):
        recipe = make_recipe(*overrides, "mixed_precision=bf16")
        made = memory_planned(recipe, outlined(recipe))
        assert (made.other_activations < made.activations) != recipe.gradient_checkpointing
        return made.activations + made.gradients

    lora, size = "objective={type: lora, rank: 2}", "train_batch_size={}"
    plain = needed(lora, size.format(8))
    assert 1.7 * plain < needed(lora, size.format(16)) < 2 * plain
    assert needed(lora, size.format(8), "gradient_checkpointing=true") < plain
    whole = needed("objective={type: text_to_image}", size.format(8))
    assert whole > plain  # its layers keep their inputs
    learned = needed("objective={type: lora, rank: 2, train_text_encoder: true}", size.format(8))
    assert learned > plain


def test_a_fused_backward_pass_keeps_the_casts_of_the_forward_pass(make_recipe):
    """They are freed before there are gradients, which a fused pass does not add up either."""
    options = ["objective={type: text_to_image}", "mixed_precision=bf16", "max_grad_norm=null"]
    options += ["gradient_checkpointing=true", "train_batch_size=1"]
    made = {}
    for fused in ("true", "false"):
        recipe = make_recipe(*options, f"memory.fused_backward={fused}")
        made[fused] = memory_planned(recipe, outlined(recipe))
    casts = made["false"].gradients // 2
    assert made["true"].activations > 0.9 * casts
    step = {key: one.activations + one.gradients for key, one in made.items()}
    assert step["true"] < 0.8 * step["false"]


def test_names_on_the_hub():
    for family in FAMILIES.values():
        assert family_on_hub(f"THUDM/{family.title}") is family
    assert family_on_hub("zai-org/CogVideoX-5b").name == "cogvideox-5b"  # type: ignore[union-attr]
    assert family_on_hub("someone/CogVideoX-5b") is None
