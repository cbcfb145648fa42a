"""LoRAs upon a quantized video transformer (QLoRA), and what is refused."""

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
from inference.models.cogvideox.loading import load_video_model, packable_layers, quantize
from inference.models.stable_diffusion.loading import load_base_model
from inference.recipe.layers import RecipeError
from inference.recipe.loader import load_recipe
from inference.runtime.errors import ArtifactError, BaseModelError
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


@pytest.mark.parametrize(
    ("kind", "precision"), [("nf4", "fp32"), ("nf4", "bf16"), ("int8", "fp32")]
)
def test_a_lora_learns_upon_packed_weights(kind, precision, tmp_path):
    base = build_video_base(**SIZES)
    plain = predict(base)
    sizes = {
        path: (one.in_features, one.out_features) for path, one in packable_layers(base.transformer)
    }
    assert len(sizes) == 2 * (4 + 2)
    objective = objective_on(qlora(tmp_path, kind, precision), base)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for path, layer in packable_layers(base.transformer):
        assert layer.weight.dtype == (torch.uint8 if kind == "nf4" else torch.int8)
        assert (layer.in_features, layer.out_features) == sizes[path.removesuffix(".base_layer")]
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
    # What was learned does the same upon packed and upon plain weights, but for the packing.
    if precision == "fp32":
        packed_change = predict(base) - predict(_packed(kind))
        change = learned - plain
        assert (
            nn.functional.cosine_similarity(packed_change.flatten(), change.flatten(), dim=0) > 0.9
        )


def _packed(kind: str):
    base = build_video_base(**SIZES)
    quantize(base, kind, torch.float32)
    return base


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_lora_is_drawn_upon_packed_weights_and_not_merged(kind, tmp_path):
    folder = save_folder(build_video_base(**SIZES), tmp_path / "base")
    config = BaseModelConfig(path=str(folder), quantization=kind)
    base = load_video_model(config, "fp32")
    plain, packed = predict(build_video_base(**SIZES)), predict(base)
    error = (packed - plain).norm() / plain.norm()
    assert 0 < error < (0.2 if kind == "nf4" else 0.05)  # AVX2 adds pairs of products in 16 bits
    assert torch.equal(packed, predict(_packed(kind)))  # as in training

    lora = Lora.create(build_video_base(**SIZES), LoraSpec(4, 4, 0, ["attention"], False), 1)
    for layer in low_ranks(lora).values():
        nn.init.normal_(layer.lora_B.weight, std=0.3)
        layer.requires_grad_(False)
    lora.attach(base)
    assert not torch.equal(predict(base), packed)
    lora.detach()
    assert torch.equal(predict(base), packed)
    with pytest.raises(ArtifactError, match="quantized"):
        lora.merge_into(base)
    assert torch.equal(predict(base), packed)


@pytest.mark.parametrize(("kind", "is_used"), [("nf4", True), ("int8", False), ("int8", True)])
def test_packed_weights_are_moved_with_their_layer(kind, is_used):
    """Nothing is computed with the memory that they lay in before."""
    base = _packed(kind)
    expected = predict(_packed(kind))
    if is_used:
        predict(base)
    before = [layer.weight.data for _, layer in packable_layers(base.transformer)]
    base.transformer._apply(torch.clone)  # as .to(another device)
    for weight in before:
        weight.zero_()
    assert torch.equal(predict(base), expected)


def test_where_packed_weights_cannot_be_used(tmp_path, tiny_base_folder):
    def refused(schema, content, message):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        with pytest.raises(RecipeError, match=message):
            load_recipe(path, schema)

    base = {"base_model": {"path": "m", "quantization": "nf4"}}
    clips = {"path": "clips", "clips": {"frames": 9}}
    whole = {"name": "a", **base, "objective": {"type": "text_to_image"}, "data": clips}
    refused(train_schema, whole, "goes with objective.type: lora")
    pictures = {"name": "a", **base, "objective": {"type": "lora"}, "data": {"path": "p"}}
    refused(train_schema, pictures, "is for video models")
    refused(draw_schema, {**base, "images": {"a": {"prompt": "a"}}}, "is for video models")
    moved = {
        "type": "clip",
        **base,
        "clips": {"a": {"prompt": "a"}},
        "memory": "sequential_offload",
    }
    refused(draw_schema, moved, "cannot move packed weights")
    config = BaseModelConfig(path=str(tiny_base_folder), quantization="nf4")
    with pytest.raises(BaseModelError, match="is one of pictures"):
        load_base_model(config)
