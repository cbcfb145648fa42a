"""What holds for every test: one thread, no network, quiet libraries; and a tiny base model."""

from __future__ import annotations

import os
import tempfile

# Read when the libraries are imported, and handed on to the processes that tests start.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "XDG_CACHE_HOME": tempfile.mkdtemp(prefix="limner-tests-cache-"),
}

import gc
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.copies import Master, remember_reading

if TYPE_CHECKING:
    from inference.models.stable_diffusion.model import BaseModel

torch.set_num_threads(1)  # sums, and so the bytes of a result, depend on their number
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


def pytest_unconfigure() -> None:
    """Takes the caches of this run away."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """Take the libraries out of garbage collection, which every training run asks for."""
    gc.collect()
    gc.freeze()


_frozen: set[Path] = set()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same, once for each file, for what tests have imported and kept since."""
    if item.path not in _frozen:
        _frozen.add(item.path)
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an accelerator"))


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in a diffusers folder: 16x16 pixels, latents 4x4, epsilon; random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny_base")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.<>:-"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=len(words) - 2,
                eos_token_id=len(words) - 1,
                pad_token_id=len(words) - 1,
            )
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            norm_num_groups=4,
            sample_size=16,
            mid_block_add_attention=False,
            scaling_factor=0.5,
        )
        unet = UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    noise_scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    parts = {
        "tokenizer": CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        "text_encoder": text_encoder,
        "vae": vae,
        "unet": unet,
        "scheduler": noise_scheduler,
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    remember_reading(folder, *(type(part) for part in parts.values()))
    return folder


@pytest.fixture(scope="session")
def loaded_tiny_base(tiny_base_folder: Path) -> Master:
    """The tiny base model as it is loaded."""
    from inference.config.models import BaseModelConfig
    from inference.models.stable_diffusion.loading import load_base_model

    return Master(load_base_model(BaseModelConfig(path=str(tiny_base_folder))))


@pytest.fixture
def tiny_base(loaded_tiny_base: Master) -> BaseModel:
    """The tiny base model, which a test may change."""
    return loaded_tiny_base.copy()


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the SDXL layout: prompts of width 16 + 24, pooled to 20. Its "!" has the id 0."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    folder = tmp_path_factory.mktemp("tiny_sdxl")
    for part in ("vae", "scheduler"):
        shutil.copytree(tiny_base_folder / part, folder / part)
    letters = "!abcdefghijklmnopqrstuvwxyz0123456789,.<>:-"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    shared = {
        "vocab_size": len(words),
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "bos_token_id": len(words) - 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = CLIPTextConfig(
            **shared, hidden_size=16, num_hidden_layers=2, eos_token_id=len(words) - 1
        )
        second = CLIPTextConfig(  # end token 2 as in SDXL's own config: the highest id is meant
            **shared, hidden_size=24, num_hidden_layers=3, projection_dim=20, hidden_act="gelu",
            eos_token_id=2,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            cross_attention_dim=40,
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 20,
        )
        parts = {
            "text_encoder": CLIPTextModel(first),
            "text_encoder_2": CLIPTextModelWithProjection(second),
            "unet": unet,
        }
    for name, filler in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        parts[name] = CLIPTokenizer(
            vocab=vocabulary, merges=[], model_max_length=77, pad_token=filler
        )
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    remember_reading(folder, *(type(part) for part in parts.values()))
    return folder


@pytest.fixture(scope="session")
def tiny_variant(
    tiny_base_folder: Path, tiny_sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Folders of tiny inpainting models and refiners, each made once."""
    from tests.tiny_variants import Kind, make_variant

    sources = {"sd": tiny_base_folder, "sdxl": tiny_sdxl_folder, "refiner": tiny_sdxl_folder}

    @cache
    def make(kind: Kind, inpaints: bool = False, prediction: str = "epsilon") -> Path:
        folder = tmp_path_factory.mktemp(f"tiny_{kind}") / "model"
        return make_variant(sources[kind], folder, kind, inpaints, prediction)

    return make


@pytest.fixture(scope="session")
def loaded_tiny_sdxl(tiny_sdxl_folder: Path) -> Master:
    """The tiny base model of the SDXL layout as it is loaded."""
    from inference.config.models import BaseModelConfig
    from inference.models.stable_diffusion.loading import load_base_model

    return Master(load_base_model(BaseModelConfig(path=str(tiny_sdxl_folder))))


@pytest.fixture
def tiny_sdxl(loaded_tiny_sdxl: Master) -> BaseModel:
    """The tiny base model of the SDXL layout, which a test may change."""
    return loaded_tiny_sdxl.copy()
