"""The SDXL layout, against diffusers' pipeline."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from inference.config.images import ImageConfig
from inference.config.models import BaseModelConfig
from inference.images.drawing import draw
from inference.images.passes import Pass, build_denoiser
from inference.images.requests import expand
from inference.inspect import inspect
from inference.models.conditions import Conditions
from inference.models.stable_diffusion.loading import frozen_dtype, load_base_model
from inference.models.stable_diffusion.model import BaseModel
from inference.runtime.errors import BaseModelError

TEXTS = ["a red cat, x", ""]


@pytest.fixture(scope="module")
def pipe(tiny_sdxl_folder: Path) -> Any:
    """diffusers' pipeline of the same folder."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    classes = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "vae": AutoencoderKL,
        "unet": UNet2DConditionModel,
    }
    parts: dict[str, Any] = {
        name: part.from_pretrained(tiny_sdxl_folder / name) for name, part in classes.items()
    }
    parts["scheduler"] = EulerDiscreteScheduler.from_pretrained(tiny_sdxl_folder / "scheduler")
    pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ---------------------------------------------------------------------------------------- prompts


@torch.no_grad()
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_prompts_are_encoded_as_in_diffusers(
    tiny_sdxl: BaseModel, pipe: Any, clip_skip: int
) -> None:
    """Byte for byte: states of the layer before the last, and the second encoder's pooled vector.

    diffusers' `clip_skip` counts from 0, A1111's from 1.
    """
    tiny_sdxl.clip_skip = clip_skip
    conditions = tiny_sdxl.encode_prompts(TEXTS)
    skipped = {} if clip_skip == 1 else {"clip_skip": clip_skip - 1}
    states, _, pooled, _ = pipe.encode_prompt(TEXTS, do_classifier_free_guidance=False, **skipped)
    assert conditions.states.shape == (2, 77, 40)
    assert torch.equal(conditions.states, states)
    assert conditions.pooled is not None
    assert torch.equal(conditions.pooled, pooled)


def test_each_encoder_has_prompts_filled_up_in_its_own_way(tiny_sdxl: BaseModel) -> None:
    """The first with end tokens, the second with 0; a "!" within a prompt stays what it is.

    So do A1111 and kohya; to transformers' second tokenizer every "!" is filler.
    """
    seen = []
    for encoder in tiny_sdxl.text_encoders.values():
        encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, :6].tolist()))
    tiny_sdxl.encode_prompts(["b!"])
    words = tiny_sdxl.tokenizer.get_vocab()
    start, end = words["<|startoftext|>"], words["<|endoftext|>"]
    prompt = [start, words["b</w>"], words["!</w>"], end]
    assert seen == [[*prompt, end, end], [*prompt, 0, 0]]
    assert tiny_sdxl.tokenizer_2 is not None
    theirs = tiny_sdxl.tokenizer_2("b!").input_ids
    assert theirs == [start, words["b</w>"], words["!"], end]


@torch.no_grad()
def test_the_pooled_vector_is_that_of_the_first_chunk(tiny_sdxl: BaseModel) -> None:
    letters = list("abcdefghij" * 8)
    both, first = (tiny_sdxl.encode_prompts([" ".join(some)]) for some in (letters, letters[:75]))
    assert both.states.shape == (1, 154, 40)
    assert both.pooled is not None
    assert first.pooled is not None
    torch.testing.assert_close(both.pooled, first.pooled)
    torch.testing.assert_close(both.states[:, :77], first.states)


# ---------------------------------------------------------------------------------------- drawing


@torch.no_grad()
@pytest.mark.parametrize("negative", ["blue dog", ""])
def test_the_unet_is_told_what_diffusers_tells_it(
    tiny_sdxl: BaseModel, pipe: Any, negative: str
) -> None:
    """In 24 x 40 pixels; without a negative prompt diffusers takes zeros too."""
    reported: list[dict[str, Any]] = []
    pipe.unet.register_forward_pre_hook(
        lambda _, __, named: reported.append(named), with_kwargs=True
    )
    pipe(
        "a red cat", negative_prompt=negative or None, height=24, width=40,
        num_inference_steps=1, guidance_scale=5.0, output_type="latent",
    )  # fmt: skip
    tiny_sdxl.unet.register_forward_pre_hook(
        lambda _, inputs, named: reported.append({**named, "latents": inputs[0]}), with_kwargs=True
    )
    request = ImageConfig(
        prompt="a red cat", negative_prompt=negative, steps=1, cfg_scale=5.0, width=40, height=24
    )
    [drawing] = draw(tiny_sdxl, [request])
    theirs, ours = reported
    assert drawing.image.size == (40, 24)
    assert ours["latents"].shape == (2, 4, 6, 10)
    order = [1, 0]  # diffusers puts the negative prompt first
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)  # batches of 2 and of 1
    close(ours["encoder_hidden_states"], theirs["encoder_hidden_states"][order])
    added, expected = ours["added_cond_kwargs"], theirs["added_cond_kwargs"]
    close(added["text_embeds"], expected["text_embeds"][order])
    assert added["time_ids"].tolist() == [[24, 40, 0, 0, 24, 40]] * 2
    assert torch.equal(added["time_ids"], expected["time_ids"])
    assert bool(negative) != bool((added["text_embeds"][1] == 0).all())
    assert "Size: 40x24" in drawing.infotext


def test_odd_latents_are_drawn(tiny_sdxl: BaseModel) -> None:
    """Sizes are multiples of the VAE's factor alone: the UNet brings 5 x 7 back from 3 x 4."""
    [drawing] = draw(tiny_sdxl, [ImageConfig(prompt="a", steps=1, width=28, height=20)])
    assert drawing.image.size == (28, 20)


@torch.no_grad()
def test_the_unet_answers_as_in_diffusers(tiny_sdxl: BaseModel, pipe: Any) -> None:
    [request] = expand(tiny_sdxl, [ImageConfig(prompt="a", cfg_scale=1.0)])
    denoiser = build_denoiser(tiny_sdxl, request, Pass.first([request]))
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    states, _, pooled, _ = pipe.encode_prompt("a", do_classifier_free_guidance=False)
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]])
    expected = pipe.unet(
        latents, 500, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}
    ).sample
    timesteps = torch.tensor([500])
    assert torch.equal(tiny_sdxl.predict(latents, timesteps, denoiser.conditions), expected)
    cut = sizes + torch.tensor([16, 0, 3, 0, 0, 0])
    assert not torch.equal(
        tiny_sdxl.predict(latents, timesteps, denoiser.conditions, cut), expected
    )


def test_conditions_are_chosen_joined_and_zeroed_together() -> None:
    both = Conditions(torch.arange(12.0).view(2, 3, 2), torch.tensor([[1.0], [2.0]]))
    again = Conditions.cat([both[1:], both[[0]]])[[1, 0]]
    assert again.pooled is not None
    assert torch.equal(again.states, both.states)
    assert again.pooled.tolist() == [[1], [2]]
    half = both.zeroed([False, True]).to(torch.float16)
    assert half.pooled is not None
    assert half.pooled.tolist() == [[1], [0]]
    assert half.states.dtype == half.pooled.dtype == torch.float16
    assert torch.equal(half.states[0].float(), both.states[0])
    assert not half.states[1].any()


# ---------------------------------------------------------------------------------------- loading


def test_the_vae_keeps_fp32_where_fp16_overflows(
    tiny_sdxl: BaseModel, tiny_base: BaseModel
) -> None:
    default, like_the_rest = BaseModelConfig(), BaseModelConfig(vae_precision=None)
    assert tiny_sdxl.vae.config.force_upcast
    for config in (default, like_the_rest):
        assert frozen_dtype(tiny_sdxl, config, "fp16", "vae") == torch.float32
        assert frozen_dtype(tiny_sdxl, config, "fp16", "unet") == torch.float16
    assert frozen_dtype(tiny_sdxl, like_the_rest, "bf16", "vae") == torch.bfloat16
    assert frozen_dtype(tiny_base, like_the_rest, "fp16", "vae") == torch.float16
    with pytest.raises(BaseModelError, match=r"vae_precision: .* overflows in fp16.*fp32 or bf16"):
        frozen_dtype(tiny_sdxl, BaseModelConfig(vae_precision="fp16"), "fp16", "vae")


def without(folder: Path, copy: Path, *parts: str) -> str:
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*parts))
    return str(copy)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (("text_encoder", "tokenizer"), "takes 6 numbers besides the prompt; a refiner takes 5"),
        (("text_encoder",), "of the SDXL layout: text_encoder missing"),
        (("text_encoder_2", "tokenizer_2"), "of the SDXL layout: text_encoder_2, tokenizer_2 miss"),
        (("tokenizer_2",), "of the SDXL layout: tokenizer_2 missing"),
    ],
)
def test_folders_that_lack_parts(
    tiny_sdxl_folder: Path, tmp_path: Path, missing: tuple[str, ...], message: str
) -> None:
    path = without(tiny_sdxl_folder, tmp_path / "model", *missing)
    with pytest.raises(BaseModelError, match=message):
        load_base_model(BaseModelConfig(path=path))


def test_a_damaged_config_is_told(tiny_base_folder: Path, tmp_path: Path) -> None:
    path = without(tiny_base_folder, tmp_path / "model")
    (Path(path) / "unet" / "config.json").write_text("{")
    with pytest.raises(BaseModelError, match=r"unet/config\.json: cannot be read as JSON"):
        load_base_model(BaseModelConfig(path=path))


def test_a_unet_that_is_told_other_numbers_is_refused(
    tiny_sdxl_folder: Path, tmp_path: Path
) -> None:
    path = without(tiny_sdxl_folder, tmp_path / "model")
    file = Path(path) / "text_encoder_2" / "config.json"
    config = json.loads(file.read_text())
    base = load_base_model(BaseModelConfig(path=path))
    assert base.text_encoder_2 is not None
    base.text_encoder_2.text_projection = torch.nn.Linear(24, 28, bias=False)
    base.text_encoder_2.config.projection_dim = 28
    base.text_encoder_2.save_pretrained(file.parent)
    assert json.loads(file.read_text())["projection_dim"] == config["projection_dim"] + 8
    with pytest.raises(BaseModelError, match="takes 5 numbers besides the prompt"):
        load_base_model(BaseModelConfig(path=path))


def test_more_clip_skip_than_layers_is_refused(tiny_sdxl_folder: Path) -> None:
    with pytest.raises(BaseModelError, match=r"text_encoder has 2 layers, and clip_skip 2 .* -3"):
        load_base_model(BaseModelConfig(path=str(tiny_sdxl_folder), clip_skip=2))


def test_inspect_tells_of_the_layout(
    tiny_sdxl_folder: Path, tiny_base_folder: Path, tmp_path: Path
) -> None:
    facts = inspect(tiny_sdxl_folder)
    assert facts["layout"].startswith("SDXL: two text encoders, prompts of width 40")
    assert facts["pipeline"] == "StableDiffusionXLPipeline"
    assert facts["resolution"] == "16x16 (4 pixels per latent)"
    assert {"text_encoder", "text_encoder_2", "unet", "vae"} <= facts.keys()
    assert (
        inspect(tiny_base_folder)["layout"] == "SD 1.x/2.x: one text encoder, prompts of width 16"
    )
    refiner = without(tiny_sdxl_folder, tmp_path / "refiner", "text_encoder", "tokenizer")
    assert inspect(Path(refiner))["layout"].startswith("SDXL refiner: only text_encoder_2, prompts")
