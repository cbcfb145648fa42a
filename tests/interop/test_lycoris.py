"""LoCon (LoRA with convolutions) against lycoris-lora's own network, in both directions."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.base import load_artifact
from tests.interop.bases import load_folder

lycoris: Any = pytest.importorskip("lycoris.kohya", reason="lycoris-lora: make test installs it")

EVERYTHING = ("attention", "feed_forward", "projection", "convolution")
TOLERANCE = 1e-5
SEEN = 1e-2
PRESET = {
    "enable_conv": True,
    "unet_target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
    "unet_target_name": ["conv_in", "time_embedding.linear_1"],
    "text_encoder_target_module": ["CLIPAttention", "CLIPMLP"],
}
"""lycoris' own preset `full` names the time embedding twice in diffusers' UNet, and fails."""


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """The layers that lycoris adapts; `create_network` reads them, the class remembers them."""
    lycoris.LycorisNetworkKohya.apply_preset(PRESET)
    path = tmp_path_factory.mktemp("preset") / "preset.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in PRESET.items()))
    return path


class OldTextEncoder(nn.Module):
    """With `text_model.` in its paths, as kohya's and lycoris' names have them."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.text_model = getattr(encoder, "text_model", encoder)


@torch.no_grad()
def outputs(base: Any) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(4)
    latents = torch.randn(2, 4, 8, 8, generator=numbers)
    states = torch.randn(2, 77, base.unet.config.cross_attention_dim, generator=numbers)
    noise = base.unet(latents, 500, encoder_hidden_states=states).sample
    return noise, base.encode_prompts(["a thing"]).states


def difference(one, two) -> float:
    found = [(a - b).abs().max().item() for a, b in zip(one, two, strict=True)]
    print("UNet, text:", found)
    return max(found)


def fill(parameters) -> None:
    numbers = torch.Generator().manual_seed(6)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=numbers) * 0.2


def test_lycoris_applies_what_limner_saves(preset, tiny_base_folder, tmp_path, strength=0.6):
    base, file = load_folder(tiny_base_folder), tmp_path / "locon.safetensors"
    plain = outputs(base)
    lora = Lora.create(base, LoraSpec(4, 2.0, 0.0, EVERYTHING, True), seed=0)
    fill(p for layer in lora.layers.values() for p in layer.parameters())
    lora.save(file, torch.float32, {})
    lora.attach(base, strength)
    own = outputs(base)
    lora.detach()
    text = OldTextEncoder(base.text_encoder)
    network, _ = lycoris.create_network_from_weights(strength, str(file), None, text, base.unet)
    assert len(network.unet_loras) + len(network.text_encoder_loras) == len(lora.layers)
    network.load_weights(str(file))
    network.apply_to(text, base.unet, True, True)
    network.eval()
    assert difference(outputs(base), own) < TOLERANCE
    assert difference(plain, own) > SEEN


@pytest.mark.parametrize("options", [{}, {"rs_lora": True, "use_scalar": True}], ids=str)
def test_limner_applies_what_lycoris_saves(options, preset, tiny_base_folder, tmp_path):
    base, file = load_folder(tiny_base_folder), tmp_path / "locon.safetensors"
    text = OldTextEncoder(base.text_encoder)
    network = lycoris.create_network(
        1.0, 4, 2.0, None, text, base.unet, False,
        algo="locon", conv_dim=2, conv_alpha=1.5, preset=str(preset), **options,
    )  # fmt: skip
    names = {one.lora_name for one in (*network.unet_loras, *network.text_encoder_loras)}
    assert {"lora_unet_conv_in", "lora_unet_mid_block_resnets_0_conv1"} < names
    network.apply_to(text, base.unet, True, True)
    fill(network.parameters())
    network.eval()
    theirs = outputs(base)
    network.save_weights(str(file), torch.float32, {})
    again = load_folder(tiny_base_folder)
    plain = outputs(again)
    load_artifact(file).attach(again, 1.0)
    assert difference(theirs, outputs(again)) < TOLERANCE
    assert difference(plain, theirs) > SEEN
