"""The published models at full size, without weights: what they are built of and what is counted.

The numbers are those of the model cards and of diffusers' converted checkpoints.
"""

import warnings
from functools import cache

import pytest
import torch

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.metadata import base_model_version
from inference.models.cogvideox.detect import FAMILIES, TEXT_ENCODER, family_of
from inference.models.cogvideox.model import VideoModel
from inference.runtime.errors import DrawWarning

TRANSFORMERS = {  # billions of parameters
    "cogvideox-2b": 1.694,
    "cogvideox-5b": 5.570,
    "cogvideox-5b-i2v": 5.570,
    "cogvideox-1.5-5b": 5.571,
    "cogvideox-1.5-5b-i2v": 5.572,
}
LORAS = {  # millions of parameters at rank 128, and tensors of a file in diffusers' format
    "cogvideox-2b": (59.0, 240),
    "cogvideox-5b": (132.1, 336),
    "cogvideox-5b-i2v": (132.1, 336),
    "cogvideox-1.5-5b": (132.1, 336),
    "cogvideox-1.5-5b-i2v": (132.1, 336),
}


@cache
def bare(name: str) -> VideoModel:
    """A published model on the meta device; T5 is not built (see its own test)."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel

    family = FAMILIES[name]
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**family.transformer)
        vae = AutoencoderKLCogVideoX(**family.vae)
    return VideoModel(
        path=name,
        tokenizer=None,  # type: ignore[arg-type]
        text_encoder=torch.nn.Module(),  # type: ignore[arg-type]
        vae=vae,
        transformer=transformer,
        alphas_cumprod=torch.ones(1000),
        prediction_type="v_prediction",
        noise_schedule=family.noise_schedule,
        dtype=torch.bfloat16,
    )


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_have_the_published_number_of_parameters(name):
    model = bare(name)
    assert round(count(model.transformer) / 1e9, 3) == TRANSFORMERS[name]
    assert model.is_image_to_video == name.endswith("i2v")
    assert model.latent_frame_step == (2 if "1.5" in name else 1)
    assert (model.size_step, model.frame_ratio) == (16, 4)


def test_the_vae_has_215_6_million_parameters():
    assert round(count(bare("cogvideox-5b").vae) / 1e6, 1) == 215.6


def test_the_text_encoder_is_that_of_t5_v1_1_xxl():
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config(**TEXT_ENCODER))
    assert round(count(encoder) / 1e9, 3) == 4.762
    assert encoder.config.d_model == FAMILIES["cogvideox-5b"].transformer["text_embed_dim"]


@pytest.mark.parametrize("name", FAMILIES)
def test_loras_of_rank_128_have_the_published_sizes(name):
    model = bare(name)
    layers = Lora.create(model, LoraSpec(1, 1.0, 0.0, None, False), seed=0).layers
    parameters = sum(count(low_rank) for low_rank in layers.values()) * 128  # linear in the rank
    assert (round(parameters / 1e6, 1), len(layers) * 2) == LORAS[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_model_is_recognised_by_its_config(name):
    family = family_of(bare(name).transformer.config)
    assert family is FAMILIES[name]
    assert base_model_version(bare(name)) == name


def test_a_derived_model_counts_as_the_one_it_comes_from_and_others_as_none():
    control = {**FAMILIES["cogvideox-5b"].transformer, "in_channels": 32}
    assert family_of(control) is FAMILIES["cogvideox-5b"]
    assert family_of({**control, "num_layers": 4}) is None


@pytest.mark.parametrize(
    ("name", "resolution"), [("cogvideox-2b", "720x480"), ("cogvideox-1.5-5b-i2v", "1360x768")]
)
def test_loras_say_what_they_were_made_for(name, resolution):
    metadata = Lora.create(bare(name), LoraSpec(1, 0.5, 0.0, None, False), seed=0).metadata
    assert metadata["modelspec.architecture"] == f"{name}/lora"
    assert metadata["ss_base_model_version"] == name
    assert metadata["modelspec.resolution"] == resolution
    assert metadata["modelspec.prediction_type"] == "v"


def test_a_lora_of_another_family_that_fits_is_told():
    base = bare("cogvideox-1.5-5b")
    lora = Lora.create(bare("cogvideox-5b"), LoraSpec(1, 0.5, 0.0, None, False), seed=0)
    reported = r"lora: was made for cogvideox-5b, and this base model \(.*\) is cogvideox-1.5-5b\."
    with pytest.warns(DrawWarning, match=reported):
        lora.attach(base)
    lora.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for said in ("cogvideox-1.5-5b", "sd_1.5", None):
            lora.metadata = {"ss_base_model_version": said} if said else {}
            lora.attach(base)
            lora.detach()


def test_signal_is_left_as_in_the_published_schedules():
    """Nothing of it at the last timestep; 2B's is shifted towards noise."""
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    of_2b, of_5b = (
        CogVideoXDDIMScheduler(**FAMILIES[name].noise_schedule).alphas_cumprod
        for name in ("cogvideox-2b", "cogvideox-5b")
    )
    assert of_2b[-1] == of_5b[-1] == 0
    assert of_2b[500] < of_5b[500]
