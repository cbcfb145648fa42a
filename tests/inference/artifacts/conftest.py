"""A base model of the SD 1.x layout with random weights, small enough for every test."""

from collections.abc import Callable

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from inference.models.stable_diffusion.model import BaseModel
from tests.copies import copied

CONTEXT = 24


@copied
def build_base(
    dtype: torch.dtype = torch.float32, seed: int = 0, linear: bool = False, context: int = CONTEXT
) -> BaseModel:
    """A tiny base model; `linear` as in SD 2.x, where proj_in and proj_out are linear layers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=2,
            cross_attention_dim=context,
            attention_head_dim=4,
            norm_num_groups=8,
            use_linear_projection=linear,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
                            down_block_types=("DownEncoderBlock2D",) * 2,
                            up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
        letters = [letter + end for letter in "abcdefghij" for end in ("", "</w>")]
        words = ["<|startoftext|>", "<|endoftext|>", *letters, "ab", "ab</w>"]
        tokenizer = CLIPTokenizer(
            vocab={word: number for number, word in enumerate(words)},
            merges=[("a", "b"), ("a", "b</w>")],
            model_max_length=77,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=context, intermediate_size=2 * context,
                num_hidden_layers=2, num_attention_heads=4, bos_token_id=0, eos_token_id=1,
                pad_token_id=1,
            )
        )  # fmt: skip
    schedule = DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    base = BaseModel(
        path="tiny",
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        alphas_cumprod=schedule.alphas_cumprod,
        prediction_type="epsilon",
        noise_schedule=dict(schedule.config),
        dtype=dtype,
    )
    for part in base.parts.values():
        part.requires_grad_(False).eval().to(dtype)
    return base


@pytest.fixture
def new_base() -> Callable[..., BaseModel]:
    return build_base


@pytest.fixture
def base() -> BaseModel:
    return build_base()


def _predict(base: BaseModel) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(base.dtype)
    with torch.no_grad():
        states = base.encode_prompts(["ab c", "d"]).to(base.dtype)
        return base.predict(latents, torch.tensor([10, 500]), states)


@pytest.fixture
def predict() -> Callable[[BaseModel], Tensor]:
    """What text encoder and UNet make of two fixed prompts and latents."""
    return _predict


def _snapshot(base: BaseModel) -> tuple[dict[str, int], dict[str, bytes]]:
    objects = {
        f"{part}.{path}": id(layer)
        for part, module in base.parts.items()
        for path, layer in module.named_modules()
    }
    weights = {
        f"{part}.{key}": value.contiguous().view(torch.uint8).numpy().tobytes()
        for part, module in base.parts.items()
        for key, value in module.state_dict().items()
        if value.dim()
    }
    return objects, weights


@pytest.fixture
def snapshot() -> Callable[[BaseModel], tuple[dict[str, int], dict[str, bytes]]]:
    """Identity of every module and bytes of every weight."""
    return _snapshot


@pytest.fixture
def randomize() -> Callable[[nn.Module | list[nn.Module]], None]:
    """Gives parameters random values, as if they had been trained."""

    def fill(modules: nn.Module | list[nn.Module], seed: int = 1, std: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(seed)
        for module in modules if isinstance(modules, list) else [modules]:
            for parameter in module.parameters():
                values = torch.randn(parameter.shape, generator=generator) * std
                parameter.data = values.to(parameter.dtype)

    return fill
