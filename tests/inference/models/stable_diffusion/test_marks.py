"""Marks of single files: v-prediction and zero terminal SNR, and A1111's config beside them."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from inference.files.hashes import read_header
from inference.inspect import inspect
from inference.models.stable_diffusion import single_file_writer
from inference.models.stable_diffusion.detect import FAMILIES
from inference.models.stable_diffusion.keys import clip_tokenizer
from inference.models.stable_diffusion.ldm_config import (
    refiner_config,
    sd1_config,
    sdxl_config,
    write_config,
)
from inference.models.stable_diffusion.single_file import ModelParts, build_part, read_model
from inference.models.stable_diffusion.single_file_writer import (
    family_for,
    own_settings,
    write_model,
)
from inference.runtime.errors import InputError
from tests.inference.models.stable_diffusion.test_single_file import as_it_is, small_model


@pytest.fixture(scope="module")
def models() -> dict[str, ModelParts]:
    """Small models with CLIP's own words."""
    found = {key: small_model(key) for key in FAMILIES}
    for model in found.values():
        model.tokenizers = {name: clip_tokenizer() for name in model.tokenizers}
    return found


@pytest.fixture
def published(models, monkeypatch):
    """The families, as if their published models had the small ones' sizes."""
    for key, model in models.items():
        configs = {part: single_file_writer._config(one) for part, one in model.modules.items()}
        monkeypatch.setitem(FAMILIES, key, replace(FAMILIES[key], configs=configs))


def written(model, folder, prediction_type, zero_snr):
    schedule = {**model.noise_schedule, "rescale_betas_zero_snr": zero_snr}
    model = replace(model, prediction_type=prediction_type, noise_schedule=schedule)
    notes = write_model(folder / "model.safetensors", model, as_it_is, {})
    return folder / "model.safetensors", notes


EXPECTED = {  # by family, prediction type, zero terminal SNR: empty tensors, config beside it
    ("sd1", "epsilon", False): (set(), False),
    ("sd1", "epsilon", True): ({"ztsnr"}, False),
    ("sd1", "v_prediction", False): (set(), True),
    ("sd1", "v_prediction", True): ({"ztsnr"}, True),
    ("sd2", "v_prediction", False): (set(), False),
    ("sd2", "v_prediction", True): ({"ztsnr"}, False),
    ("sdxl", "epsilon", False): (set(), False),
    ("sdxl", "epsilon", True): ({"ztsnr"}, False),
    ("sdxl", "v_prediction", False): ({"v_pred"}, True),
    ("sdxl", "v_prediction", True): ({"v_pred", "ztsnr"}, True),
    ("sdxl_refiner", "epsilon", False): (set(), False),
    ("sdxl_refiner", "v_prediction", True): ({"v_pred", "ztsnr"}, True),
}


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(("key", "prediction_type", "zero_snr"), EXPECTED)
def test_a_file_is_marked(key, prediction_type, zero_snr, models, tmp_path):
    marks, has_config = EXPECTED[key, prediction_type, zero_snr]
    path, notes = written(models[key], tmp_path, prediction_type, zero_snr)
    tensors, metadata = load_file(path), read_header(path)["__metadata__"]
    assert {name for name, one in tensors.items() if one.shape == (0,)} == marks
    assert (tmp_path / "model.yaml").exists() == has_config
    assert any("model.yaml" in note for note in notes) == has_config
    assert any("Zero Terminal SNR" in note for note in notes) == zero_snr
    assert not any("sizes" in note for note in notes)
    assert "limner.model" not in metadata
    assert not metadata["modelspec.architecture"].startswith("limner")

    again = read_model(path, without_weights=True)
    assert again.prediction_type == prediction_type
    assert again.noise_schedule.get("rescale_betas_zero_snr", False) is zero_snr
    assert (inspect(path).get("terminal SNR") == "zero") is zero_snr


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("key", ["sd1", "sdxl"])
def test_nine_channels_are_no_sizes_of_their_own(key, models, tmp_path):
    """Other programs open inpainting models, and see by the first layer that they are."""
    unet: Any = deepcopy(models[key].modules["unet"])
    unet.conv_in = torch.nn.Conv2d(9, unet.conv_in.out_channels, 3, padding=1)
    unet.register_to_config(in_channels=9)
    model = replace(models[key], modules={**models[key].modules, "unet": unet})
    path, notes = written(model, tmp_path, "epsilon", False)
    assert not notes
    assert "limner.model" not in read_header(path)["__metadata__"]
    again: Any = read_model(path).modules["unet"]
    assert again.config.in_channels == 9
    assert "inpainting" in inspect(path)["family"]


def test_a_model_of_its_own_sizes_is_marked_and_has_no_config(models, tmp_path):
    path, notes = written(models["sdxl"], tmp_path, "v_prediction", True)
    assert {"v_pred", "ztsnr"} <= load_file(path).keys()
    assert not (tmp_path / "model.yaml").exists()
    assert notes == [
        "its sizes are those of no SD 1.x, SD 2.x or SDXL: only Limner knows how to open it"
    ]


@pytest.mark.usefixtures("published")
def test_another_noise_schedule_is_not_another_size(models, tmp_path):
    schedule = {**models["sd1"].noise_schedule, "beta_end": 0.02}
    model = replace(models["sd1"], prediction_type="epsilon", noise_schedule=schedule)
    notes = write_model(tmp_path / "model.safetensors", model, as_it_is, {})
    assert notes == [
        "its noise schedule is not that of Stable Diffusion: other programs open it, and draw "
        "with the usual one"
    ]
    facts = inspect(tmp_path / "model.safetensors")
    assert facts["family"] == "SD 1.x (stable-diffusion-v1)"
    assert read_model(tmp_path / "model.safetensors").noise_schedule["beta_end"] == 0.02


def test_the_config_of_an_earlier_model_goes_and_a_foreign_one_stays(models, published, tmp_path):
    config = tmp_path / "model.yaml"
    written(models["sd1"], tmp_path, "v_prediction", False)
    assert config.read_text().startswith("# Written by Limner")
    written(models["sd1"], tmp_path, "epsilon", False)
    assert not config.exists()
    config.write_text("model: mine")
    written(models["sd1"], tmp_path, "epsilon", False)
    with pytest.raises(InputError, match=r"model\.yaml: A1111 would take this config"):
        written(models["sd1"], tmp_path, "v_prediction", False)
    assert config.read_text() == "model: mine"


def test_the_configs_describe_the_published_models(tmp_path):
    """Each number against the diffusers config from which the family's UNet is built."""
    for key, make, part in (
        ("sd1", sd1_config, "unet"),
        ("sdxl", sdxl_config, "network"),
        ("sdxl_refiner", refiner_config, "network"),
    ):
        model = make(4)["model"]["params"]
        unet, expected = model[f"{part}_config"]["params"], FAMILIES[key].configs["unet"]
        built: Any = build_part("unet", expected, FAMILIES[key]).config
        widths = [unet["model_channels"] * factor for factor in unet["channel_mult"]]
        assert widths == list(built.block_out_channels)
        depth = expected.get("transformer_layers_per_block", 1)
        assert (unet["transformer_depth"], unet.get("adm_in_channels")) == (
            depth,
            built.projection_class_embeddings_input_dim,
        )
        assert {*torch.tensor(unet["context_dim"]).view(-1).tolist()} == {built.cross_attention_dim}
        assert unet["num_res_blocks"] == built.layers_per_block
        assert model["scale_factor"] == FAMILIES[key].configs["vae"]["scaling_factor"]
        attentive = [2**i for i, kind in enumerate(built.down_block_types) if "Cross" in kind]
        assert sorted(unet["attention_resolutions"]) == attentive
        assert make(9)["model"]["params"][f"{part}_config"]["params"]["in_channels"] == 9
    assert sd1_config(4)["model"]["params"]["parameterization"] == "v"
    denoiser = sdxl_config(4)["model"]["params"]["denoiser_config"]["params"]
    assert denoiser["scaling_config"]["target"].endswith(".VScaling")
    write_config(tmp_path / "x.safetensors", "sdxl", 4, has_zero_snr=True)
    assert yaml.safe_load((tmp_path / "x.yaml").read_text()) == sdxl_config(4)
    assert "'Zero Terminal SNR'" in (tmp_path / "x.yaml").read_text().splitlines()[1]


def test_zero_terminal_snr_is_no_setting_of_its_own():
    with torch.device("meta"):
        modules = {
            part: build_part(part, config, FAMILIES["sd1"])
            for part, config in FAMILIES["sd1"].configs.items()
        }
    schedule = {"rescale_betas_zero_snr": True}
    model = ModelParts(modules, {"tokenizer": clip_tokenizer()}, schedule, "epsilon")
    assert own_settings(model, family_for(modules)) == {}
