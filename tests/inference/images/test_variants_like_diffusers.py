"""Inpainting models and SDXL's refiner, drawn as by diffusers' pipelines from the same latents."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor

from inference.artifacts import Lora, LoraSpec
from inference.config.images import ImageConfig, ImageToImageConfig, InpaintConfig
from inference.config.models import BaseModelConfig
from inference.convert import Request, convert
from inference.images.drawing import draw, evaluation
from inference.images.img2img.init import encode_start, open_init
from inference.images.passes import Pass, sample
from inference.images.requests import expand
from inference.inspect import inspect
from inference.models.parametrization import SMALLEST_ALPHA
from inference.models.stable_diffusion.loading import load_base_model
from inference.models.stable_diffusion.lora import LAYOUTS
from inference.models.stable_diffusion.model import BaseModel
from tests.tiny_variants import ZERO_SNR

MakeVariant = Callable[..., Path]
STEPS = 4
"""So that diffusers' and k-diffusion's timesteps are whole numbers: 999, 666, 333 and 0."""
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def means_of_the_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pipelines take the means of latents, as Limner does, and not a sample."""
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
    )


def pipeline_of(base: BaseModel, name: str, scheduler: Any, **options: Any) -> Any:
    """Return diffusers' pipeline of the parts of a model."""
    kinds = {"tokenizer": base.tokenizer, "tokenizer_2": base.tokenizer_2}
    encoders = {"text_encoder": base.text_encoder, "text_encoder_2": base.text_encoder_2}
    if base.text_encoder_2 is None:
        parts: dict[str, Any] = {
            "text_encoder": base.text_encoder, "tokenizer": base.tokenizer,
            "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
        }  # fmt: skip
    else:
        parts = {**kinds, **encoders, "add_watermarker": False}
        if base.text_encoder is None:
            parts |= {"tokenizer": None}
    pipe = getattr(diffusers, name)(
        unet=base.unet, vae=base.vae, scheduler=scheduler, **parts, **options
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler_of(base: BaseModel, name: str) -> Any:
    """Return diffusers' scheduler for a sampler."""
    own: dict[str, Any] = {**base.noise_schedule, "steps_offset": 1}
    if name == "Euler":
        own["timestep_spacing"] = "linspace"
        scheduler: Any = EulerDiscreteScheduler.from_config(own)
    else:
        own |= {"clip_sample": False, "set_alpha_to_one": False}
        scheduler = DDIMScheduler.from_config(own)
    if own["rescale_betas_zero_snr"]:  # A1111's share of the signal, diffusers' is 6e-8 or 0
        scheduler.alphas_cumprod[-1] = SMALLEST_ALPHA
    return scheduler


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "init.png"
    values = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.png"
    image = Image.new("L", (16, 24), 0)
    image.paste(255, (4, 8, 12, 24))
    image.save(path)
    return path


def ours(base: BaseModel, request: ImageConfig) -> Tensor:
    """Return the latents that Limner draws, without blending the init image in.

    diffusers does not blend for models of nine channels; A1111 does, and so does Limner.
    """
    [one] = expand(base, [request])
    with evaluation(base):
        start = None
        if one.img2img is not None:
            start = replace(encode_start(base, [one], [open_init(one)]), mask=None)
        return sample(base, [one], Pass.first([one]), start)


WORDS = {"prompt": "a red cat", "negative_prompt": "blue dog", "width": 16, "height": 24}
SHARED = {"guidance_scale": 4.0, "num_inference_steps": STEPS, "output_type": "latent"}


def request_of(sampler: str, **options: Any) -> ImageConfig:
    return ImageConfig(**WORDS, seed=3, steps=STEPS, cfg_scale=4.0, sampler=sampler, **options)


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [
        ("sd", "epsilon"),
        ("sdxl", "epsilon"),
        pytest.param("sd", "v_prediction", marks=pytest.mark.slow),
        pytest.param("sdxl", "v_prediction", marks=pytest.mark.slow),
    ],
)
def test_masked_parts_are_repainted_as_in_diffusers(
    kind: str, prediction: str, tiny_variant: MakeVariant, picture: Path, mask: Path
) -> None:
    """Three of four steps: a strength of 0.75 to diffusers, and of 0.5 to A1111."""
    base = load_base_model(BaseModelConfig(path=str(tiny_variant(kind, True, prediction))))
    name = f"StableDiffusion{'XL' if kind == 'sdxl' else ''}InpaintPipeline"
    pipe = pipeline_of(base, name, scheduler_of(base, "Euler"))
    pictures = {"image": Image.open(picture), "mask_image": Image.open(mask)}
    seed = torch.Generator().manual_seed(3)
    theirs = pipe(**WORDS, **SHARED, **pictures, strength=0.75, generator=seed).images
    inpaint = InpaintConfig(mask=str(mask), mask_blur=0)
    start = ImageToImageConfig(init_image=str(picture), denoising_strength=0.5, inpaint=inpaint)
    torch.testing.assert_close(ours(base, request_of("Euler", img2img=start)), theirs, **CLOSE)


@pytest.mark.parametrize(
    ("kind", "prediction", "sampler", "error"),
    [
        ("sd", ZERO_SNR, "DDIM", 1e-5),
        ("sdxl", ZERO_SNR, "DDIM", 1e-5),
        pytest.param("sdxl", "v_prediction", "DDIM", 1e-5, marks=pytest.mark.slow),
        # Starts at a sigma of 4519, which fp32 rounds to 5e-4:
        pytest.param("sd", ZERO_SNR, "Euler", 5e-4, marks=pytest.mark.slow),
    ],
)
def test_without_a_picture_everything_is_masked(
    kind: str,
    prediction: str,
    sampler: str,
    error: float,
    tiny_variant: MakeVariant,
    picture: Path,
) -> None:
    base = load_base_model(BaseModelConfig(path=str(tiny_variant(kind, True, prediction))))
    name = f"StableDiffusion{'XL' if kind == 'sdxl' else ''}InpaintPipeline"
    pipe = pipeline_of(base, name, scheduler_of(base, sampler))
    pictures = {"image": Image.open(picture), "mask_image": Image.new("L", (16, 24), 255)}
    noise = torch.randn(1, 4, 6, 4, generator=torch.Generator().manual_seed(3))
    states: list[Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        states.append(tensors["latents"].clone())
        return {}

    pipe(**WORDS, **SHARED, **pictures, strength=1.0, latents=noise, callback_on_step_end=keep)
    last = -2 if sampler == "DDIM" else -1  # A1111's DDIM leaves the last step out
    torch.testing.assert_close(ours(base, request_of(sampler)), states[last], rtol=0, atol=error)


@pytest.mark.parametrize(
    "prediction",
    [
        "epsilon",
        pytest.param("v_prediction", marks=pytest.mark.slow),
        pytest.param(ZERO_SNR, marks=pytest.mark.slow),
    ],
)
def test_the_refiner_draws_as_in_diffusers(
    prediction: str, tiny_variant: MakeVariant, picture: Path
) -> None:
    """Two of four steps; the scores are 6 and 2.5, and the second text encoder is the only one."""
    base = load_base_model(BaseModelConfig(path=str(tiny_variant("refiner", False, prediction))))
    name, scheduler = "StableDiffusionXLImg2ImgPipeline", scheduler_of(base, "Euler")
    pipe = pipeline_of(base, name, scheduler, requires_aesthetics_score=True)
    words = {key: value for key, value in WORDS.items() if "prompt" in key}
    seed = torch.Generator().manual_seed(3)
    image = Image.open(picture)
    theirs = pipe(**words, **SHARED, image=image, strength=0.5, generator=seed).images
    start = ImageToImageConfig(init_image=str(picture), denoising_strength=0.25)
    torch.testing.assert_close(ours(base, request_of("Euler", img2img=start)), theirs, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "inpaints"), [("refiner", False), ("sd", True), ("sdxl", True)])
def test_single_files_of_variants_draw_the_same(
    kind: str, inpaints: bool, tiny_variant: MakeVariant, picture: Path, tmp_path: Path
) -> None:
    """From a folder to a file and back to a folder, whose pipeline is named."""
    folder, file = tiny_variant(kind, inpaints, "v_prediction"), tmp_path / "model.safetensors"
    convert(Request(str(folder), file, "single-file", None, [], None))
    convert(Request(str(file), tmp_path / "again", "diffusers", None, [], None))
    start = ImageToImageConfig(init_image=str(picture), denoising_strength=0.5)
    drawn = []
    for path in (folder, file, tmp_path / "again"):
        base = load_base_model(BaseModelConfig(path=str(path)))
        [drawing] = draw(base, [request_of("Euler", img2img=start)])
        drawn.append(drawing.image.tobytes())
    assert len({*drawn}) == 1
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert (
        index["_class_name"] == json.loads((folder / "model_index.json").read_text())["_class_name"]
    )
    tokenizers = {one.name for one in (tmp_path / "again").iterdir() if "token" in one.name}
    assert tokenizers == {one.name for one in folder.iterdir() if "token" in one.name}
    words = "SDXL's refiner" if kind == "refiner" else "inpainting"
    assert words in inspect(file)["family"]
    assert words.removeprefix("SDXL's ") in inspect(tmp_path / "again")["layout"]


def test_a_word_of_a_refiner_may_contain_exclamation_marks(tiny_variant: MakeVariant) -> None:
    """Its tokenizer takes them for padding; A1111 and SDXL's first tokenizer do not."""
    base = load_base_model(BaseModelConfig(path=str(tiny_variant("refiner"))))
    words = base.tokenizer.get_vocab()
    [ids] = base.tokenize(["b!"]).ids[:, 0].tolist()
    assert ids[1:3] == [words["b</w>"], words["!</w>"]]


def test_the_loras_of_a_refiner_have_sdxls_names(tiny_variant: MakeVariant, tmp_path: Path) -> None:
    """Original names in the UNet, and `lora_te2`; its first upsampler follows no attention."""
    base = load_base_model(BaseModelConfig(path=str(tiny_variant("refiner"))))
    targets = ["attention", "convolution"]
    names = Lora.create(base, LoraSpec(2, 2.0, 0.0, targets, True), seed=1).layers
    assert {"_".join(name.split("_")[:2]) for name in names} == {"lora_unet", "lora_te2"}
    assert "lora_te2_text_model_encoder_layers_0_self_attn_q_proj" in names
    assert {"lora_unet_output_blocks_2_1_conv", "lora_unet_output_blocks_5_2_conv"} <= {*names}
    assert not any("down_blocks" in name or "up_blocks" in name for name in names)
    reader = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"
    encoder = "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    for width, expected in ((768, 1), (2048, 1), (1280, 2)):
        shapes = {reader: (4, width), encoder: (4, 1280)}
        assert [one.recognizes(shapes) for one in LAYOUTS].index(True) == expected
    assert LAYOUTS[2].recognizes({reader: (4, 1280)})


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_diffusers_loads_the_loras_of_a_refiner(tiny_variant: MakeVariant, tmp_path: Path) -> None:
    """With kohya's names of SDXL: the UNet answers alike, and differs from the plain one."""
    config = BaseModelConfig(path=str(tiny_variant("refiner")))
    base, plain = load_base_model(config), load_base_model(config)
    spec = LoraSpec(2, 2.0, 0.0, ["attention", "projection"], train_text_encoder=True)
    lora = Lora.create(base, spec, seed=1)
    for layer in lora.layers.values():
        for name, parameter in layer.named_parameters():
            source = torch.Generator().manual_seed(len(name))
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.2)
    path = tmp_path / "lora.safetensors"
    lora.save(path, torch.float32, {})
    pipe = pipeline_of(plain, "StableDiffusionXLImg2ImgPipeline", scheduler_of(plain, "DDIM"))
    pipe.register_to_config(requires_aesthetics_score=True)
    latents = torch.randn(1, 4, 6, 4, generator=torch.Generator().manual_seed(3))
    before = plain.predict(latents, torch.tensor([500]), plain.encode_prompts(["a cat"]))
    pipe.load_lora_weights(str(path))
    Lora.load(path).attach(base)
    states, _, pooled, _ = pipe.encode_prompt("a cat", do_classifier_free_guidance=False)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[24.0, 16, 0, 0, 6]])}
    theirs = pipe.unet(latents, 500, states, added_cond_kwargs=added).sample
    ours = base.predict(latents, torch.tensor([500]), base.encode_prompts(["a cat"]))
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (ours - before).abs().max() > 0.01
