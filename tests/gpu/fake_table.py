# SPDX-License-Identifier: Apache-2.0
"""Print, for every shipped training recipe and base model, the plan beside the fake-tensor peak.

    python -m tests.gpu.fake_table [words of a case's name ...] > TABLE.md

Each phase is a row: GiB by `limner plan` and by fake CUDA tensors at full size (fake_memory.py),
0.5 GiB of context in both, and the difference. A case takes half a minute to five minutes.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any, cast

from tests.gpu import mock_cuda

mock_cuda.install(memory=80 * 2**30)  # before torch

import numpy as np
import torch
from PIL import Image

from inference.clips import expand
from inference.clips.memory import sizes_of, tiled
from inference.recipe import load_recipe
from tests.gpu.fake_memory import FakeRun
from train.common import encoded_at_once
from train.config import train_schema
from train.families import training_of
from train.memory import CONTEXT, GIB, MemoryPlan, Outline, memory_planned, outlined
from train.memory.planning import ENCODED_TOGETHER, largest_of, latents_of

ROOT = Path(__file__).parents[2]
PICTURES = ("lora", "text_to_image", "dreambooth", "textual_inversion", "hypernetwork", "combined")
SDXL = ["base_model.path=stabilityai/stable-diffusion-xl-base-1.0", "data.resolution=1024"]
SDXL += ["base_model.vae_precision=fp32"]
SD21 = ["base_model.path=stabilityai/stable-diffusion-2-1", "data.resolution=768"]
ONE = ["train_batch_size=1"]
NO_EMA = ["ema=null"]
NONE, WHOLE = ["memory.offload=none"], ["max_grad_norm=null", "gradient_accumulation_steps=1"]
LEVERS = {
    "": [],
    ", fp8": ["base_model.quantization=fp8"],
    ", int8": ["base_model.quantization=int8"],
    ", nf4": ["base_model.quantization=nf4"],
    ", blocks_to_swap 0.8": ["memory.blocks_to_swap=0.8"],
    ", model_offload": ["memory.offload=model_offload"],
}
LEVERS_OF_STATE = {
    "": [],
    ", ema_on_cpu": ["memory.ema_on_cpu=true"],
    ", optimizer_on_cpu": ["memory.optimizer_on_cpu=true"],
    ", trained_weights bf16": ["memory.trained_weights=bf16"],
    ", fused_backward": ["memory.fused_backward=true"],
    ", model_offload": ["memory.offload=model_offload"],
}
ADAMW = ["optimizer.type=adamw"]
CLIP15 = ["data.clips.frames=81", "data.clips.width=1360", "data.clips.height=768"]
CLIP15 += [f"sampling.clip_settings.{size}" for size in ("frames=81", "width=1360", "height=768")]
CLIP15 += ["base_model.path=THUDM/CogVideoX1.5-5B", "objective.rank=128"]
CASES: dict[str, tuple[str, list[str]]] = {
    **{f"sd15 {name}": (name, []) for name in PICTURES},
    "sd15 lora b1": ("lora", ONE),
    "sd15 lora b1, no checkpointing": ("lora", [*ONE, "gradient_checkpointing=false"]),
    "sd15 text_to_image, no EMA": ("text_to_image", NO_EMA),
    **{f"sd21 {name}": (name, SD21) for name in PICTURES if name != "hypernetwork"},
    **{f"sdxl {name}": (name, SDXL) for name in PICTURES if name != "hypernetwork"},
    "sdxl lora b1": ("lora", SDXL + ONE),
    "sdxl lora b1, no checkpointing": ("lora", [*SDXL, *ONE, "gradient_checkpointing=false"]),
    "sdxl text_to_image b1, no EMA": ("text_to_image", SDXL + ONE + NO_EMA),
    "cogvideox-2b cogvideox_lora": (
        "cogvideox_lora",
        ["base_model.path=THUDM/CogVideoX-2b", "mixed_precision=fp16"],
    ),
    "cogvideox-5b cogvideox_lora": ("cogvideox_lora", []),
    "cogvideox-1.5-5b cogvideox_lora r128": ("cogvideox_lora", CLIP15),
    **{f"levers: sd15 lora b1{name}": ("lora", ONE + NONE + one) for name, one in LEVERS.items()},
    **{
        f"levers: sd15 text_to_image b1{name}": ("text_to_image", ONE + NONE + WHOLE + ADAMW + one)
        for name, one in LEVERS_OF_STATE.items()
    },
}
PUBLISHED = {
    "sd15 lora b1": "11 GB card (diffusers docs)",
    "sd15 textual_inversion": "below 6 GB (A1111 PR 4056)",
    "sd15 dreambooth": "10 to 12 GB (d8ahazard wiki)",
    "sdxl lora b1": "8 GB card (kohya), 12 GB advised (kohya_ss docs)",
    "sdxl text_to_image b1, no EMA": "24 GB, Adafactor (kohya docs)",
    "cogvideox-2b cogvideox_lora": "13.0 GB (factory)",
    "cogvideox-5b cogvideox_lora": "20.8 GB (factory), 24 GB (official)",
    "cogvideox-1.5-5b cogvideox_lora r128": "35 GB (official)",
}
"""Quoted from the projects' documents; other settings than ours."""


def write_data(folder: Path) -> None:
    """Write pictures and a clip, with captions."""
    values = np.random.default_rng(0)
    for number in range(4):
        folder.joinpath("pictures").mkdir(exist_ok=True)
        pixels = values.integers(0, 255, (1024, 1024, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"pictures/{number}.png")
        (folder / f"pictures/{number}.txt").write_text(f"a photo of dog number {number}")
    frames = [
        Image.fromarray(one) for one in values.integers(0, 255, (100, 48, 85, 3), dtype=np.uint8)
    ]
    folder.joinpath("clips").mkdir()
    frames[0].save(folder / "clips/0.webp", save_all=True, append_images=frames[1:], duration=125)
    (folder / "clips/0.txt").write_text("a dog runs")


def overrides_of(name: str, given: list[str], folder: Path) -> list[str]:
    """Return the overrides of a recipe, with the data of this program."""
    if name == "cogvideox_lora":
        data = [f"data.path={folder}/clips"]
    elif name == "dreambooth":
        data = [f"data.concepts.subject.instance_data_dir={folder}/pictures"]
    else:
        data = [f"data.path={folder}/pictures"]
    return [*data, f"output_dir={folder}/runs", *given]


def fake_peaks(plan: MemoryPlan, outline: Outline, run: FakeRun) -> Iterator[tuple[str, int]]:
    """Yield the peak of each phase that takes place, by fake tensors."""
    recipe, base = run.recipe, run.base
    stage, examples = outline.stages[0].recipe, outline.examples[0]
    shape = largest_of(examples)
    latents = latents_of(outline.objective.base, shape)
    # While captions change from step to step, a step encodes its own.
    is_cached = bool(plan.needs["captions"])
    together = 1 if recipe.data.cache == "disk" else ENCODED_TOGETHER
    captions = min(together, len(examples.all_prompts()))
    pictures = encoded_at_once(shape, stage.train_batch_size)

    def encode() -> None:
        vae: Any = base.vae
        base.encode_images(torch.zeros(pictures, 3, *shape, device="cuda", dtype=vae.dtype))

    works: dict[str, Callable[[], object]] = {
        "captions": lambda: base.encode_prompts(["a"] * captions),
        "latents": encode,
        **drawing_works(run, outline),
    }
    for phase, needs in plan.needs.items():
        if not needs and phase != "step":
            continue
        parts = plan.at_work[phase]
        if phase == "step":
            yield phase, run.step(parts, latents, is_cached)
        elif phase in ("captions", "latents"):
            yield phase, run.filling(parts, works[phase])
        else:
            yield phase, run.drawing(parts, works[phase])


def drawing_works(run: FakeRun, outline: Outline) -> dict[str, Callable[[], object]]:
    """Return what previews do in each phase."""
    base: Any = run.base
    if training_of(base).examples == "clips":
        clips = [one for one in run.recipe.sampling.clips.values() if one is not None]
        size = max(sizes_of(base, one) for one in expand(base, clips))
        (seen, prompts, _), whole = size.seen, size.latents
        rows, is_tiled = 1, True
    else:
        own = base.resolution
        sides = {(one.height or own, one.width or own) for one in outline.images}
        shape = latents_of(outline.objective.base, max(sides, key=prod))
        rows = min(run.recipe.sampling.batch_size, len(outline.images))
        seen, prompts, whole, is_tiled = (rows, *shape), 2, (1, *shape), False
        rows *= 2

    def decode() -> None:
        with tiled(base.vae, is_tiled):
            base.decode_latents(torch.zeros(whole, device="cuda"))

    return {
        "prompts": lambda: base.encode_prompts(["a"] * rows),
        "denoising": lambda: run.denoise(seen, prompts),
        "decoding": decode,
    }


def rows_of(case: str, folder: Path) -> Iterator[str]:
    """Yield the rows of a case, in Markdown."""
    name, given = CASES[case]
    overrides = overrides_of(name, given, folder)
    recipe = load_recipe(str(ROOT / f"configs/{name}.yaml"), train_schema, overrides)
    outline = outlined(recipe)
    plan = memory_planned(recipe, outline)
    run = FakeRun(recipe)
    quoted = PUBLISHED.get(case, "")
    most = 0
    for phase, peak in fake_peaks(plan, outline, run):
        planned, peak = plan.peak_of(phase) / GIB, (peak + CONTEXT) / GIB
        most = max(most, peak)
        yield f"| {case} | {phase} | {planned:.2f} | {peak:.2f} | {planned / peak - 1:+.1%} | |"
    whole = plan.peak / GIB
    figures = f"**{whole:.2f}** | **{most:.2f}** | {whole / most - 1:+.1%}"
    yield f"| **{case}** | **run** | {figures} | {quoted} |"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    wanted = sys.argv[1:]
    print("| recipe | phase | plan | fake tensors | difference | published (quoted) |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as text:
        write_data(Path(text))
        for case in CASES:
            if wanted and case not in wanted:
                continue
            try:
                for row in rows_of(case, Path(text)):
                    print(row, flush=True)
            except Exception:  # report it and go on
                print(f"{case}: {cast(str, traceback.format_exc())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
