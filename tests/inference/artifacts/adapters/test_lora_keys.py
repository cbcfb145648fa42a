"""The names of LoRA layers against those that kohya's own network code makes."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.adapters.lora_keys import known_names, kohya_name
from inference.files.tensors import read_tensors
from inference.models.stable_diffusion.lora import LAYOUTS
from inference.models.stable_diffusion.model import BaseModel

GOLDEN = json.loads((Path(__file__).parents[3] / "golden/lora_key_map.json").read_text())
EVERYTHING = ["attention", "feed_forward", "projection"]


@pytest.fixture(scope="module")
def sd15() -> BaseModel:
    """The shapes of SD 1.5 (UNet and CLIP-L), without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
            )
        )
    vae = type("Vae", (), {"config": type("Config", (), {"block_out_channels": (128,) * 4})})()
    return BaseModel(
        path="sd15",
        tokenizer=None,  # type: ignore[arg-type]
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        alphas_cumprod=torch.ones(1000),
        prediction_type="epsilon",
        noise_schedule={},
        dtype=torch.float32,
    )


def split(entry: dict, rank: int) -> tuple[list[int], list[int]]:
    """A golden entry's shapes of down and up with a rank, 1x1 kernels written out."""

    def shape(half: str) -> list[int]:
        numbers = [rank if number == "r" else number for number in entry[half]]
        return numbers if entry["kind"] == "linear" else [*numbers[:2], *[numbers[2]] * 2]

    return shape("down"), shape("up")


def test_an_sd15_lora_is_saved_with_exactly_kohyas_keys(sd15, tmp_path):
    rank, alpha = 4, 2.5
    lora = Lora.create(
        sd15, LoraSpec(rank, alpha, 0.0, EVERYTHING, train_text_encoder=True), seed=0
    )
    path = tmp_path / "lora.safetensors"
    lora.save(path, torch.float16, {})
    tensors, metadata = read_tensors(path)

    golden = {name: entry for name, entry in GOLDEN["sd15"].items() if entry["set"] == "lora"}
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    assert len(golden) == 264
    assert set(tensors) == {f"{name}.{end}" for name in golden for end in ends}
    for name, entry in golden.items():
        down, up = split(entry, rank)
        assert list(tensors[f"{name}.lora_down.weight"].shape) == down
        assert list(tensors[f"{name}.lora_up.weight"].shape) == up
        assert tensors[f"{name}.lora_down.weight"].dtype == torch.float16
        assert tensors[f"{name}.alpha"].shape == ()
        assert tensors[f"{name}.alpha"].item() == alpha
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.resolution"] == "512x512"


@pytest.mark.parametrize(
    ("targets", "count"),
    [(["attention"], 128), (["feed_forward"], 32), (["projection"], 32), (EVERYTHING, 192)],
)
def test_targets_choose_layers_of_the_unet(sd15, targets, count):
    lora = Lora.create(sd15, LoraSpec(1, 1.0, 0.0, targets, train_text_encoder=False), seed=0)
    assert len(lora.layers) == count
    assert set(lora.modules_by_part()) == {"unet"}


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_golden_name_is_found_for_its_module(family):
    for name, entry in GOLDEN[family].items():
        part, path = entry["diffusers"].split(".", 1)
        assert kohya_name(part, path, LAYOUTS[family == "sdxl"]) == name


def test_names_do_not_depend_on_how_transformers_calls_its_modules():
    new, old = "encoder.layers.3.mlp.fc1", "text_model.encoder.layers.3.mlp.fc1"
    name = "lora_te_text_model_encoder_layers_3_mlp_fc1"
    assert kohya_name("text_encoder", new) == kohya_name("text_encoder", old) == name
    assert "lora_te_encoder_layers_3_mlp_fc1" in known_names("text_encoder", new)


def test_no_two_layers_share_a_name(sd15):
    names = [
        name
        for part in ("unet", "text_encoder")
        for path, module in sd15.parts[part].named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        for name in set(known_names(part, path))
    ]
    assert len(names) == len(set(names))
