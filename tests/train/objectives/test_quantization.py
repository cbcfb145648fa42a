"""What is trained and drawn on a quantized base (QLoRA), and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.base import load_artifact
from inference.config.models import BaseModelConfig
from inference.config.recipes import draw_schema
from inference.memory.quantization import packed_layers, plain_shape, plain_weight
from inference.models.base import quantize_denoiser
from inference.models.families import load_model
from inference.recipe.layers import RecipeError
from inference.recipe.loader import load_recipe
from inference.runtime.errors import InputError
from tests.inference.artifacts.adapters.low_rank_layers import low_ranks
from tests.inference.artifacts.video_base import build_video_base, predict, save_folder
from tests.train.objectives.test_video_objectives import batch, recipe
from train.config.schema import train_schema
from train.objectives.loading import objective_on

SIZES: Any = {"num_attention_heads": 4}
"""64 wide, the size of an NF4 block."""


def qlora(folder: Path, kind: str, precision: str):
    made = recipe(folder, {"type": "lora", "rank": 4, "alpha": 2.0})
    base_model = replace(made.base_model, quantization=kind)
    return replace(made, base_model=base_model, mixed_precision=precision)


DTYPES_PACKED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "nf4": torch.uint8}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("fp8", "fp32"),
        pytest.param("fp8", "bf16", marks=pytest.mark.slow),
        pytest.param("nf4", "fp32", marks=pytest.mark.slow),
        ("nf4", "bf16"),
        ("int8", "fp32"),
    ],
)
def test_a_lora_learns_upon_packed_weights(kind, precision, tmp_path):
    base = build_video_base(**SIZES)
    plain = predict(base)
    layers: dict[str, Any] = dict(base.packable.layers(base.denoiser, kind))
    sizes = {path: tuple(layer.weight.shape) for path, layer in layers.items()}
    assert len(sizes) == 2 * (4 + 2)
    objective = objective_on(qlora(tmp_path, kind, precision), base)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert len(packed_layers(base.denoiser)) == len(sizes)
    for path, layer in packed_layers(base.denoiser).items():
        assert layer.weight.dtype == DTYPES_PACKED[kind]
        assert plain_shape(layer) == sizes[path.removesuffix(".base_layer")]
        assert layer.bias.dtype == layer.compute_dtype == dtype
    others = {p.dtype for p in base.transformer.patch_embed.parameters()}
    assert others == {dtype}

    parameters = dict(objective.named_parameters())
    assert all(p.dtype == torch.float32 and "lora_" in name for name, p in parameters.items())
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.05)
    losses = []
    for _ in range(6):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = objective(batch(base)).mean()
        loss.backward()
        grads = [p.grad for p in parameters.values()]
        assert all(g is not None and g.isfinite().all() for g in grads)
        assert not any(
            p.grad is not None for p in base.transformer.parameters() if not p.requires_grad
        )
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    objective.artifact().save(tmp_path / "moving.safetensors", torch.float32, {})
    fresh = build_video_base(**SIZES)
    load_artifact(tmp_path / "moving.safetensors").attach(fresh)
    learned = predict(fresh)
    assert not torch.equal(learned, plain)
    # What was learned does the same on packed and on plain weights, but for the packing.
    if precision == "fp32":
        packed_change = predict(base) - predict(_packed(kind))
        change = learned - plain
        assert (
            nn.functional.cosine_similarity(packed_change.flatten(), change.flatten(), dim=0) > 0.9
        )


def _packed(kind: Any):
    base = build_video_base(**SIZES)
    quantize_denoiser(base, kind, torch.float32)
    return base


ERRORS = {"fp8": 0.05, "int8": 0.05, "nf4": 0.2}
"""Relative, of predictions by random weights; AVX2 adds pairs of int8 products in 16 bits."""


@pytest.mark.parametrize("kind", ERRORS)
def test_a_lora_is_drawn_upon_packed_weights_and_merged(kind, tmp_path):
    folder = save_folder(build_video_base(**SIZES), tmp_path / "base")
    config = BaseModelConfig(path=str(folder), quantization=kind)
    base: Any = load_model(config, "fp32")
    plain, packed = predict(build_video_base(**SIZES)), predict(base)
    error = (packed - plain).norm() / plain.norm()
    assert 0 < error < ERRORS[kind]
    assert torch.equal(packed, predict(_packed(kind)))  # as in training

    lora = Lora.create(build_video_base(**SIZES), LoraSpec(4, 4, 0, ["attention"], False), 1)
    for layer in low_ranks(lora).values():
        nn.init.normal_(layer.lora_B.weight, std=0.3)
        layer.requires_grad_(False)
    lora.attach(base)
    attached = predict(base)
    assert not torch.equal(attached, packed)
    lora.detach()
    assert torch.equal(predict(base), packed)

    # Unpacked, merged and packed again: each weight within the error of packing.
    before = {path: plain_weight(layer) for path, layer in packed_layers(base.denoiser).items()}
    lora.merge_into(base)
    changes = {name.split("__")[1]: one for name, one in low_ranks(lora).items()}
    changed = 0
    for path, layer in packed_layers(base.denoiser).items():
        change = changes.get(path.replace(".", "_"))
        if change is None:
            assert torch.equal(plain_weight(layer), before[path])
            continue
        expected = before[path] + change.delta(before[path])
        off = (plain_weight(layer) - expected).norm() / expected.norm()
        assert 0 < off < ERRORS[kind]
        changed += 1
    assert changed == len(changes) == 2 * 4
    assert (predict(base) - attached).norm() / attached.norm() < 2 * ERRORS[kind]


@pytest.mark.parametrize(
    ("kind", "is_used"), [("fp8", False), ("nf4", True), ("int8", False), ("int8", True)]
)
def test_packed_weights_are_moved_with_their_layer(kind, is_used):
    """Nothing is computed with the memory that they lay in before."""
    base = _packed(kind)
    expected = predict(_packed(kind))
    if is_used:
        predict(base)
    before = [layer.weight.data for layer in packed_layers(base.transformer).values()]
    base.transformer._apply(torch.clone)  # as .to(another device)
    for weight in before:
        weight.zero_()
    assert torch.equal(predict(base), expected)


def test_where_packed_weights_cannot_be_used(tmp_path):
    def read(schema, content):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return load_recipe(path, schema)

    def refused(schema, content, message):
        with pytest.raises(RecipeError, match=message):
            read(schema, content)

    for kind in ERRORS:
        base = {"base_model": {"path": "m", "quantization": kind}}
        clips = {"path": "clips", "clips": {"frames": 9}}
        for type_ in ("text_to_image", "dreambooth", "autoencoder"):
            data = clips if type_ == "text_to_image" else {"path": "p"}
            whole = {"name": "a", **base, "objective": {"type": type_}, "data": data}
            refused(train_schema, whole, f"{kind} packs weights, .* not with {type_}")
        pictures = {"name": "a", **base, "objective": {"type": "lora"}, "data": {"path": "p"}}
        assert read(train_schema, pictures).base_model.quantization == kind
        assert read(draw_schema, {**base, "images": {"a": {"prompt": "a"}}})
        animation = {"type": "animation", "settings": {"max_frames": 2}}
        assert read(draw_schema, {**base, **animation})
        drawn = {"type": "clip", **base, "clips": {"a": {"prompt": "a"}}}
        moved = {**drawn, "memory": "sequential_offload"}
        if kind == "fp8":
            assert read(draw_schema, moved)
        else:
            refused(draw_schema, moved, "cannot move layers of bitsandbytes")


def test_an_objective_that_trains_packed_weights_is_refused(tmp_path, monkeypatch):
    """One of a plug-in, of which the recipe's check cannot know."""
    base = build_video_base(**SIZES)

    def trains_all(recipe: Any, base: Any) -> Any:
        for parameter in base.denoiser.parameters():
            parameter.requires_grad_(parameter.is_floating_point())

    monkeypatch.setattr("train.objectives.loading.build_objective", trains_all)
    with pytest.raises(InputError, match=r"the objective trains transformer.*leave quantization"):
        objective_on(qlora(tmp_path, "fp8", "fp32"), base)
