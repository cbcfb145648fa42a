"""LoRAs that are added to the weights for drawing: the same prediction, within rounding."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.adapters.low_rank import Stack
from inference.artifacts.checkpoint import Checkpoint
from inference.artifacts.merging import attach_all
from inference.config import ArtifactConfig
from inference.models.stable_diffusion.model import BaseModel
from inference.runtime import DrawWarning


def trained_lora(base: BaseModel) -> Lora:
    """A LoRA whose second halves are not zero."""
    spec = LoraSpec(2, 2.0, 0.0, targets=("attention",), train_text_encoder=False)
    lora = Lora.create(base, spec, seed=0)
    source = torch.Generator().manual_seed(0)
    for layer in lora.layers.values():
        for parameter in layer.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=source)
            parameter.requires_grad_(False)
    return lora


def predicted(base: BaseModel) -> torch.Tensor:
    latents = torch.linspace(-1, 1, 4 * 16).view(1, 4, 4, 4)
    with torch.no_grad():
        return base.predict(latents, torch.tensor([500]), base.encode_prompts(["a"]))


def test_merged_loras_predict_the_same(tiny_base: BaseModel) -> None:
    lora, plain = trained_lora(tiny_base), predicted(tiny_base)
    config = ArtifactConfig(path="x", strength=0.7)
    apart, merged = tiny_base, deepcopy(tiny_base)
    attach_all(apart, [(config, lora)], merges=False)
    attach_all(merged, [(config, trained_lora(merged))], merges=True)
    assert any(isinstance(one, Stack) for one in apart.unet.modules())
    assert not any(isinstance(one, Stack) for one in merged.unet.modules())
    torch.testing.assert_close(predicted(merged), predicted(apart), rtol=1e-4, atol=1e-5)
    assert (predicted(merged) - plain).abs().max() > 1e-3


def test_checkpoints_exclude_merging(tiny_base: BaseModel) -> None:
    other = Checkpoint.of(deepcopy(tiny_base), parts=("unet",))
    attached = [
        (ArtifactConfig(path="x"), trained_lora(tiny_base)),
        (ArtifactConfig(path="y"), other),
    ]
    with pytest.warns(DrawWarning, match=r"^speed.merge_lora: has no effect beside a checkpoint"):
        attach_all(tiny_base, attached, merges=True)
    assert any(isinstance(one, Stack) for one in tiny_base.unet.modules())
