# SPDX-License-Identifier: Apache-2.0
"""Every way of drawing once on a CUDA device; see test_first_gpu_run.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from inference.__main__ import main
from inference.artifacts import (
    Embedding,
    Hypernetwork,
    HypernetworkSpec,
    Lora,
    LoraSpec,
    NetworkLibrary,
)
from inference.clips import draw_recipe
from inference.config import (
    BaseModelConfig,
    HiresConfig,
    ImageConfig,
    ImageToImageConfig,
    InpaintConfig,
    draw_schema,
)
from inference.images import draw, expand, group
from inference.images.drawing import Drawer
from inference.models.stable_diffusion import BaseModel, load_base_model
from inference.recipe import load_recipe
from inference.sampling import SAMPLERS, samplers_of
from tests.inference.artifacts.adapters.low_rank_layers import low_ranks
from tests.inference.models.cogvideox.models import make_video_model, write_video_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
]
PRECISIONS = ["bf16", "fp16", "fp32"]
SIZE = 32


@pytest.fixture(scope="session")
def inpainting_folder(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nine") / "base"
    shutil.copytree(tiny_base_folder, folder)
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = json.loads((folder / "unet" / "config.json").read_text()) | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="session")
def folders(
    tiny_base_folder: Path, tiny_sdxl_folder: Path, inpainting_folder: Path
) -> dict[str, Path]:
    return {"tiny": tiny_base_folder, "sdxl": tiny_sdxl_folder, "nine": inpainting_folder}


bases: dict[tuple[str, str], BaseModel] = {}


@pytest.fixture
def load(folders: dict[str, Path]) -> Any:
    def made(kind: str, precision: str) -> BaseModel:
        if (kind, precision) not in bases:
            bases[kind, precision] = load_base_model(
                BaseModelConfig(path=str(folders[kind])), precision, "cuda"
            )
        return bases[kind, precision]

    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    values = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "square.png")
    mask = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(mask).rectangle((16, 4, 31, 23), fill=255)
    mask.save(folder / "mask.png")
    return folder


def image(**changes: Any) -> ImageConfig:
    return ImageConfig(
        **(
            {
                "prompt": "a cat",
                "negative_prompt": "dog",
                "seed": 1,
                "steps": 4,
                "width": SIZE,
                "height": SIZE,
            }
            | changes
        )
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["tiny", "sdxl"])
@pytest.mark.parametrize("sampler", samplers_of("pictures"))
def test_samplers(sampler: str, kind: str, precision: str, load: Any) -> None:
    eta = {"eta": 1.0} if SAMPLERS[sampler].default_eta is not None else {}
    draw(
        load(kind, precision),
        [image(sampler=sampler, **eta), image(sampler=sampler, seed=2, **eta)],
    )


WAYS: dict[str, dict[str, Any]] = {
    "editing": {"prompt": "a [cat:dog:0.5] [red|blue] (big:1.3)", "steps": 6},
    "and": {"prompt": "a cat AND a dog :0.7 AND red:0.2"},
    "long": {"prompt": "a cat, " * 50, "negative_prompt": "dog"},
    "long_padded": {"prompt": "a cat, " * 50, "pad_conds": True},
    "break": {"prompt": "a cat BREAK (a dog:1.4)", "emphasis": "No norm"},
    "no_guidance": {"cfg_scale": 1.0},
    "empty": {"negative_prompt": ""},
    "gpu": {"rng": "GPU", "sampler": "Euler a"},
    "gpu_brown": {"rng": "GPU", "sampler": "DPM++ SDE"},
    "nv": {"rng": "NV", "sampler": "Euler a"},
    "nv_brown": {"rng": "NV", "sampler": "DPM++ 2M SDE"},
    "variation": {"variation_seed": 5, "variation_strength": 0.4, "rng": "GPU"},
    "resized": {"seed_resize_from_width": 16, "seed_resize_from_height": 16},
    "ensd": {"ensd": 31337, "sampler": "Euler a"},
    "churn": {"sampler": "Euler", "s_churn": 10.0},
    "min_uncond": {"s_min_uncond": 3.0, "skip_early_cond": 0.3, "steps": 6},
    "tiling": {"tiling": True},
    "sgm": {"sgm_noise_multiplier": True},
    "hires_latent": {"hires": HiresConfig(upscale=2.0, upscaler="Latent", denoising_strength=0.6)},
    "hires_bicubic": {
        "hires": HiresConfig(
            upscale=1.5, upscaler="Latent (bicubic antialiased)", sampler="Euler a"
        )
    },
    "hires_lanczos": {
        "hires": HiresConfig(upscale=2.0, upscaler="Lanczos", steps=3, prompt="a dog")
    },
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["tiny", "sdxl", "nine"])
@pytest.mark.parametrize("way", WAYS)
def test_ways(way: str, kind: str, precision: str, load: Any) -> None:
    draw(load(kind, precision), [image(**WAYS[way]), image(**WAYS[way] | {"seed": 3})])


OVER: dict[str, dict[str, Any]] = {
    "plain": {},
    "exact": {
        "exact_steps": True,
        "extra_noise": 0.1,
        "noise_multiplier": 1.1,
        "color_correction": True,
    },
    "latent_upscale": {"resize_mode": "Just resize (latent upscale)"},
    "whole": {"inpaint": {}},
    "only": {"inpaint": {"area": "Only masked", "padding": 4}},
    "fill": {"inpaint": {"masked_content": "fill"}},
    "noise": {"inpaint": {"masked_content": "latent noise"}},
    "nothing": {"inpaint": {"masked_content": "latent nothing"}},
    "soft": {"inpaint": {"soft_edges": True, "mask_blur": 2}},
    "strength": {"inpaint": {"conditioning_mask_strength": 0.5}},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["tiny", "sdxl", "nine"])
@pytest.mark.parametrize("sampler", ["DPM++ 2M", "DDIM", "DPM++ SDE"])
@pytest.mark.parametrize("way", OVER)
def test_img2img(way: str, sampler: str, kind: str, precision: str, load: Any, files: Path) -> None:
    own = dict(OVER[way])
    if "inpaint" in own:
        own["inpaint"] = InpaintConfig(
            **({"mask": str(files / "mask.png"), "mask_blur": 1} | own["inpaint"])
        )
    start = ImageToImageConfig(init_image=str(files / "square.png"), denoising_strength=0.6, **own)
    draw(
        load(kind, precision),
        [image(sampler=sampler, img2img=start), image(sampler=sampler, img2img=start, seed=2)],
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["tiny", "sdxl"])
def test_networks(kind: str, precision: str, load: Any, tmp_path: Path) -> None:
    base = load(kind, precision)
    cpu = load_base_model(BaseModelConfig(path=base.path))
    lora = Lora.create(
        cpu, LoraSpec(4, 4, 0, ["attention", "feed_forward", "projection", "convolution"], True), 0
    )
    for layer in low_ranks(lora).values():
        layer.lora_B.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    lora.save(tmp_path / "look.safetensors", torch.float16, {})
    net = Hypernetwork.create(
        cpu, HypernetworkSpec(weight_initialization="XavierNormal", is_layer_norm=True), None, 3
    )
    net.save(tmp_path / "net.pt", torch.float16, {})
    Embedding.create(cpu, "zyx", "cat", 2).save(tmp_path / "zyx.safetensors", torch.float16, {})
    library = NetworkLibrary(base, [tmp_path])
    for prompt in (
        "<lora:look:0.7> a zyx",
        "<lora:look:0.5:0.2> <hypernet:net:0.6> a cat",
        "<lora:look:1:dyn=2> zyx AND cat",
    ):
        requests = expand(base, [image(prompt=prompt), image(prompt=prompt, seed=2)])
        batches = group(requests, 8)
        drawer = Drawer(base, requests, library, batches)
        for batch in batches:
            drawer(batch)
    library.close()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["2D", "3D", "Video Input", "Interpolation"])
def test_animations(
    mode: str,
    precision: str,
    tiny_base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_base_folder, "base")
    weights = load_file("base/text_encoder/model.safetensors")
    bias = next(name for name in weights if name.endswith("final_layer_norm.bias"))
    weights[bias] += 0.1
    save_file(weights, "base/text_encoder/model.safetensors", {"format": "pt"})
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(frames / f"{number:03d}.png")
    settings: dict[str, Any] = {
        "W": 16,
        "H": 16,
        "max_frames": 4,
        "seed": 5,
        "steps": 3,
        "sampler": "Euler a",
        "animation_mode": mode,
        "zoom": "0:(1.1)",
        "translation_z": "0:(3)",
        "strength_schedule": "0:(0.5)",
        "diffusion_cadence": 2 if mode != "Video Input" else 1,
        "prompts": {"0": "a cat --neg dog", "2": "a dog"},
        "batch_name": "run",
        "depth_model": "cues" if mode == "3D" else "none",
        "color_coherence": "LAB",
        "noise_schedule": "0:(0.05)",
        "seed_behavior": "iter",
        "subseed_schedule": "0:(3)",
        "enable_subseed_scheduling": True,
        "subseed_strength_schedule": "0:(0.2)",
        "skip_video_creation": True,
    }
    if mode == "Video Input":
        settings["video_init_path"] = str(frames)
    if mode == "2D":
        settings |= {
            "hybrid_composite": "Normal",
            "hybrid_motion": "Optical Flow",
            "hybrid_flow_method": "DIS Fine",
            "video_init_path": str(frames),
            "use_mask": False,
            "optical_flow_cadence": "DIS Fine",
        }
    (tmp_path / "settings.txt").write_text(json.dumps(settings))
    status = main(
        [
            "settings.txt",
            "base_model.path=base",
            "output_dir=out",
            f"precision={precision}",
            "contact_sheet=false",
            "subtitles=false",
        ]
    )
    assert status == 0


# ---- clips


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {
        kind: write_video_folder(make_video_model(kind), tmp_path_factory.mktemp(f"v{kind}"))
        for kind in ("2b", "5b", "5b_i2v", "1.5", "1.5_i2v", "fun")
    }
    made["wide"] = write_video_folder(
        make_video_model("5b", num_attention_heads=4), tmp_path_factory.mktemp("vwide")
    )
    frames = tmp_path_factory.mktemp("frames")
    for number in range(17):
        values = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(frames / f"{number:03d}.png")
    made["frames"] = frames
    return made


CLIPS: dict[str, tuple[str, list[str]]] = {
    "2b_ddim": ("2b", ["settings.sampler=ddim"]),
    "5b_dpm": ("5b", ["settings.sampler=dpm"]),
    "5b_dynamic": ("5b", ["settings.dynamic_cfg=cosine"]),
    "5b_eta": ("5b", ["settings.sampler=ddim", "settings.eta=0.5"]),
    "unguided": ("5b", ["settings.cfg_scale=1"]),
    "1.5": ("1.5", ["settings.sampler=dpm"]),
    "i2v": ("5b_i2v", ["settings.image=FRAMES/000.png", "settings.end_image=FRAMES/003.png"]),
    "i2v_dropped": ("5b_i2v", ["settings.image=FRAMES/000.png", "drop_learned_positions=true"]),
    "1.5_i2v": ("1.5_i2v", ["settings.image=FRAMES/000.png", "settings.sampler=dpm"]),
    "v2v": ("5b", ["settings.video=FRAMES", "settings.strength=0.6"]),
    "fun": ("fun", ["settings.control_video=FRAMES", "settings.sampler=ddim"]),
    "window": ("5b", ["settings.frames=17", "settings.window=9", "settings.overlap=4"]),
    "pab": ("5b", ["cache=pab"]),
    "faster": ("5b", ["cache=faster_cache", "settings.steps=6"]),
    "first_block": ("5b", ["cache=first_block_cache"]),
    "mag": ("5b", ["cache=mag_cache", "cache_settings.calibrate=true"]),
    "model_offload": ("5b", ["memory=model_offload"]),
    "sequential": ("5b", ["memory=sequential_offload"]),
    "sequential_i2v": ("1.5_i2v", ["memory=sequential_offload", "settings.image=FRAMES/000.png"]),
    "tiled": ("5b", ["vae_tiling=true"]),
    "fp8": ("wide", ["base_model.quantization=fp8"]),
    "fp8_offload": ("wide", ["base_model.quantization=fp8", "memory=model_offload"]),
    "fp8_sequential": ("wide", ["base_model.quantization=fp8", "memory=sequential_offload"]),
    "nf4": ("wide", ["base_model.quantization=nf4"]),
    "nf4_offload": ("wide", ["base_model.quantization=nf4", "memory=model_offload"]),
    "int8": ("wide", ["base_model.quantization=int8"]),
    "int8_offload": ("wide", ["base_model.quantization=int8", "memory=model_offload"]),
    "vae_same": ("5b", ["base_model.vae_precision=null"]),
    "eager": ("5b", ["base_model.attention=eager"]),
}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("way", CLIPS)
def test_clips(way: str, precision: str, video: dict[str, Path], tmp_path: Path) -> None:
    kind, overrides = CLIPS[way]
    size = 64 if kind == "5b_i2v" else 32
    (tmp_path / "clip.yaml").write_text(
        f"type: clip\nbase_model: {{path: {video[kind]}}}\n"
        f"settings: {{steps: 4, frames: 9, height: {size}, width: {size}}}\n"
        "clips: {one: {prompt: red, seed: 3, negative_prompt: lime}}\nformats: [webp]\n"
    )
    overrides = [one.replace("FRAMES", str(video["frames"])) for one in overrides]
    draw_recipe(
        load_recipe(
            tmp_path / "clip.yaml",
            draw_schema,
            [*overrides, f"precision={precision}", f"output_dir={tmp_path}/out"],
        )
    )
    assert list((tmp_path / "out").glob("*.webp"))
