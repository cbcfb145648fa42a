"""Quantized image models: how far they are from plain ones, runs on them, and what is saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.base import load_artifact
from inference.artifacts.checkpoint import Checkpoint
from inference.artifacts.merging import write_file_of, write_folder_of
from inference.config.images import ImageConfig
from inference.config.models import BaseModelConfig
from inference.images.drawing import draw
from inference.media.grid import grid_cells
from inference.memory.quantization import (
    Packing,
    packed_layers,
    plain_weight,
    unpacked_layer,
)
from inference.models.base import quantize_denoiser
from inference.models.conditions import Conditions
from inference.models.families import load_image_model, load_model
from inference.models.folder import weight_shapes
from inference.models.stable_diffusion.single_file_writer import write_model
from tests.inference.artifacts.adapters.low_rank_layers import low_ranks
from tests.inference.artifacts.video_base import build_video_base
from tests.inference.models.stable_diffusion.test_single_file import small_model
from tests.train.run_tools import contents
from tests.train.test_trainer import drawn, drawn_with, pixels
from train import rerun
from train.config.recipe import TrainRecipe
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]

KINDS: tuple[Packing, ...] = ("fp8", "int8", "nf4")

# Errors


def noisy(base: Any) -> tuple[Tensor, Tensor, Conditions, Tensor | None]:
    """What a tiny model predicts from; the same for every copy of it."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 4, 4, 4) if base.denoiser_name == "transformer" else (2, 4, 8, 8)
    latents = torch.randn(shape, generator=generator)
    states = torch.randn(2, *base.prompt_shape, generator=generator)
    second = base.parts.get("text_encoder_2")
    pooled = extra = None
    if second is not None:
        pooled = torch.randn(2, second.config.projection_dim, generator=generator)
        extra = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    return latents, torch.tensor([700, 200]), Conditions(states, pooled), extra


def step(base: Any) -> tuple[Tensor, Tensor]:
    """What a model with a LoRA predicts, and the gradient of the LoRA."""
    lora = Lora.create(base, LoraSpec(4, 4, 0, ["attention"], False), 1)
    generator = torch.Generator().manual_seed(7)
    for layer in low_ranks(lora).values():
        layer.requires_grad_(True)
        with torch.no_grad():
            layer.lora_B.weight.normal_(std=0.02, generator=generator)
    lora.attach(base)
    predicted = base.predict(*noisy(base))
    target = torch.randn(predicted.shape, generator=generator)
    nn.functional.mse_loss(predicted, target).backward()
    gradients = [p.grad for one in lora.layers.values() for p in one.parameters()]
    lora.detach()
    return predicted.detach(), torch.cat([one.flatten() for one in gradients if one is not None])


def off(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


ERRORS = {"fp8": (0.1, 0.4), "int8": (0.01, 0.04), "nf4": (0.06, 0.3)}
"""Of predictions and of a LoRA's gradients, relative: nearly twice what is measured."""


@pytest.mark.parametrize(
    "name", ["tiny_sdxl", "video", pytest.param("tiny_base", marks=pytest.mark.slow)]
)
def test_a_step_is_that_of_the_plain_model_but_for_the_packing(
    name: str, request: pytest.FixtureRequest
) -> None:
    is_video = name == "video"
    base = build_video_base(num_attention_heads=4) if is_video else request.getfixturevalue(name)
    expected = step(base)
    for kind in KINDS:
        quantized = deepcopy(base)
        quantize_denoiser(quantized, kind, torch.float32)
        prediction, gradient = map(off, step(quantized), expected)
        assert 1e-4 < prediction < ERRORS[kind][0], (kind, prediction)
        assert 1e-4 < gradient < ERRORS[kind][1], (kind, gradient)


# Runs

GRID = [
    "max_train_steps=4",
    "saving.save_every_n_steps=2",
    "sampling.sample_every_n_steps=4",
    "sampling.images.one={prompt: red x, seed: 3, cfg_scale: 3}",
    "sampling.settings={steps: 2}",
]
DRAWING = """
base_model: {{path: {base}, quantization: {kind}}}
settings: {{steps: 2}}
images: {{one: {{prompt: red x, seed: 3, cfg_scale: 3}}}}
grid: false
"""
RUNS = {
    "fp8 lora": [
        "objective={type: lora, rank: 2, dropout: 0.1, targets: [attention, convolution]}"
    ],
    "int8 lora": ["objective={type: lora, rank: 2}", "gradient_checkpointing=true"],
    "nf4 lora": ["objective={type: lora, rank: 2, train_text_encoder: true}", "ema={decay: 0.5}"],
    "fp8 textual_inversion": ["objective={type: textual_inversion, token: x}"],
    "nf4 hypernetwork": ["objective={type: hypernetwork, activation_func: mish}"],
    "fp8 combined": [
        "objective={type: combined, members: {word: {objective: {type: textual_inversion, "
        "token: x}}, net: {objective: {type: hypernetwork}}, look: {objective: {type: lora, "
        "rank: 2}}}}",
        "mixed_precision=bf16",
        "ema={decay: 0.5}",
        "gradient_checkpointing=true",
    ],
    "int8 bf16": ["objective={type: lora, rank: 2}", "mixed_precision=bf16"],
    "nf4 bf16": ["objective={type: lora, rank: 2}", "mixed_precision=bf16"],
    "fp8 prior": [
        "objective={type: lora, rank: 2}",
        "loss.prior=prediction",
        "data.path=null",
        "data.concepts.it={instance_data_dir: PICTURES, class_data_dir: CLASS, class_prompt: "
        "number, num_class_images_per: 1, class_infer_steps: 2, instance_prompt: '[filewords]'}",
    ],
}


def test_a_grid_shows_what_was_saved(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The quick case of the next test."""
    recipe = make_recipe(*GRID, *RUNS["fp8 lora"], "base_model.quantization=fp8")
    artifact = Trainer(recipe).train()
    base = load_image_model(recipe.base_model)
    assert packed_layers(base.denoiser)
    load_artifact(artifact).attach(base)
    request = ImageConfig(prompt="red x", seed=3, cfg_scale=3, steps=2)
    [drawing] = draw(base, [request])
    _, last_row = grid_cells(Image.open(tmp_path / "run" / "samples" / "step-000004.png"))
    assert pixels([drawing.image]) == pixels(last_row)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_and_draws_what_it_saved(
    name: str,
    commands: Any,
    stop_at: Callable[..., dict[str, object]],
    tiny_base_folder: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    """The same bytes after a kill; and the grid is what a drawing recipe draws."""
    kind = name.split()[0]
    overrides = [*GRID, f"base_model.quantization={kind}"]
    for one in RUNS[name]:
        overrides.append(
            one.replace("PICTURES", f"{pictures}").replace("CLASS", f"{tmp_path}/class")
        )
    done = commands.train(f"output_dir={tmp_path}/straight", *overrides)
    assert done.status == 0, done.err
    again = [f"output_dir={tmp_path}", "resume=true", *overrides]
    stop = stop_at("torch.optim:AdamW.step", 3, "KILL")
    assert commands.train(*again, stop=stop).status == -9
    done = commands.train(*again)
    assert done.status == 0, done.err
    run = tmp_path / "run"
    assert (run / "checkpoints" / "step-000002").is_dir()
    assert contents(run) == contents(tmp_path / "straight" / "run")

    base_row, last_row = grid_cells(Image.open(run / "samples" / "step-000004.png"))
    recipe = tmp_path / "images.yaml"
    recipe.write_text(DRAWING.format(base=tiny_base_folder, kind=kind))
    options = ["precision=bf16" if "mixed_precision=bf16" in overrides else "precision=fp32"]
    options.append(f"output_dir={tmp_path}/out")
    assert drawn(commands.draw(recipe, *options, *drawn_with(tmp_path))) == pixels(last_row)
    assert drawn(commands.draw(recipe, *options)) == pixels(base_row)
    plain = commands.draw(recipe, *options, "base_model.quantization=null")
    assert drawn(plain) != pixels(base_row)
    assert pixels(base_row) != pixels(last_row)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_repeated_byte_by_byte(
    kind: Packing, make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Trainer(make_recipe("max_train_steps=2", f"base_model.quantization={kind}")).train()
    assert rerun.main([str(tmp_path / "run"), "--name", "again"]) == 0
    assert "byte by byte" in capsys.readouterr().out


# Whole models


def quantized(base: Any, kind: Packing) -> Any:
    other = deepcopy(base)
    quantize_denoiser(other, kind, torch.float32)
    return other


def predicted(base: Any) -> Tensor:
    with torch.no_grad():
        return base.predict(*noisy(base))


@pytest.mark.parametrize(
    "kind", [pytest.param(one, marks=[pytest.mark.slow] * (one == "int8")) for one in KINDS]
)
def test_a_checkpoint_is_packed_as_the_base_model_is(kind: Packing, tiny_base: Any) -> None:
    """At strength 1 it is the quantized checkpoint, at 0 the base model bit for bit."""
    trained = deepcopy(tiny_base)
    for number, parameter in enumerate(trained.unet.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data.add_(noise * 0.02)
    base = quantized(tiny_base, kind)
    before = predicted(base)
    checkpoint = Checkpoint({"unet": trained.unet})
    checkpoint.attach(base)
    assert torch.equal(predicted(base), predicted(quantized(trained, kind)))
    checkpoint.set_strength(0.5)
    for path, layer in packed_layers(base.unet).items():
        ours, theirs = (one.unet.get_parameter(f"{path}.weight") for one in (tiny_base, trained))
        mixed = (ours + theirs) / 2
        assert off(plain_weight(layer), mixed) < 0.2  # packed twice
    half = predicted(base)
    checkpoint.set_strength(0)
    assert torch.equal(predicted(base), before)
    checkpoint.set_strength(0.5)
    assert torch.equal(predicted(base), half)
    checkpoint.detach()
    assert torch.equal(predicted(base), before) and not torch.equal(half, before)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("tiny_base", ("nf4",)),
        pytest.param("tiny_base", ("fp8", "int8"), marks=pytest.mark.slow),
        pytest.param("tiny_sdxl", KINDS, marks=pytest.mark.slow),
    ],
)
def test_whole_models_are_saved_unpacked(
    name: str, kinds: Sequence[Packing], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In every way of saving one; they draw without quantization what they drew with it."""
    plain: Any = request.getfixturevalue(name)
    lora = Lora.create(plain, LoraSpec(2, 2, 0, ["attention"], False), 1)
    for kind in kinds:
        base = quantized(plain, kind)
        mirror = deepcopy(base)
        for path, layer in packed_layers(mirror.unet).items():
            parent, _, child = path.rpartition(".")
            setattr(mirror.unet.get_submodule(parent), child, unpacked_layer(layer))
        lora.attach(base)  # it is not saved with the model
        expected = mirror.unet.state_dict()
        assert expected.keys() == plain.unet.state_dict().keys() == weight_shapes(base.unet).keys()
        ways: dict[str, Callable[[Path], object]] = {
            "folder": lambda path, base=base: write_folder_of(base, path, None, []),
            "artifact": lambda path, base=base: Checkpoint.of(base).save(path, torch.float32, {}),
            "file.safetensors": lambda path, base=base: write_file_of(base, path, None, []),
            "one.safetensors": lambda path, base=base: Checkpoint.of(base).save(
                path, torch.float32, {}
            ),
        }
        for way, write in ways.items():
            path = tmp_path / f"{kind}-{way}"
            write(path)
            loaded = load_model(BaseModelConfig(path=str(path)))
            weights = loaded.denoiser.state_dict()
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[key], value) for key, value in expected.items()), way
            assert torch.equal(predicted(loaded), predicted(mirror))
        lora.detach()


@pytest.mark.parametrize(
    ("key", "kinds"),
    [
        ("sd1", ("fp8",)),
        *(pytest.param(one, KINDS, marks=pytest.mark.slow) for one in ("sd1", "sd2", "sdxl")),
    ],
)
def test_a_single_file_is_quantized(key: str, kinds: Sequence[Packing], tmp_path: Path) -> None:
    """With v-prediction, and for SDXL with two text encoders, which stay plain."""
    path = tmp_path / "model.safetensors"
    write_model(path, small_model(key), lambda part, weights: weights, {})
    config = BaseModelConfig(path=str(path), prediction_type="v_prediction")
    plain: Any = load_model(config)
    for kind in kinds:
        base: Any = load_model(replace(config, quantization=kind))
        assert base.prediction_type == "v_prediction"
        assert {*packed_layers(base.unet)} == {
            name for name, _ in plain.packable.layers(plain.unet, kind)
        }
        assert len(base.text_encoders) == (2 if key == "sdxl" else 1)
        for name, part in (*base.text_encoders.items(), ("vae", base.vae)):
            assert not packed_layers(part)
            ours, theirs = part.state_dict(), plain.parts[name].state_dict()
            assert all(torch.equal(ours[key], value) for key, value in theirs.items())
        assert 1e-4 < off(predicted(base), predicted(plain)) < ERRORS[kind][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_animation_upon_a_quantized_base(
    kind: Packing, tiny_base_folder: Path, commands: Any, tmp_path: Path
) -> None:
    recipe = tmp_path / "animation.yaml"
    recipe.write_text(
        f"type: animation\nbase_model: {{path: {tiny_base_folder}}}\n"
        "settings: {max_frames: 2, W: 64, H: 64, steps: 2, animation_mode: 2D}\n"
    )
    frames = {}
    for packing in (kind, "null"):
        to = tmp_path / packing
        done = commands.draw(recipe, f"base_model.quantization={packing}", f"output_dir={to}")
        assert done.status == 0, done.err
        frames[packing] = [Image.open(one).tobytes() for one in sorted(to.rglob("*0000*.png"))]
        assert frames[packing]
    assert frames[kind] != frames["null"]
