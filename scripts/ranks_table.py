"""Print the table of docs/many_gpus.md: memory and traffic of a process, by model and strategy.

    python -m scripts.ranks_table > TABLE.md

Without weights and without a GPU: `limner plan` of each case, on pictures and a clip made here.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from inference.parallel import Layout
from inference.recipe import load_recipe
from inference.runtime import output
from train.config import TrainParallelConfig, TrainRecipe, train_schema
from train.memory import (
    GIB,
    latent_frames,
    memory_planned,
    on_each,
    outlined,
    traffic_planned,
)
from train.plan import BANDWIDTH, bandwidth_in

ROOT = Path(__file__).parents[1]
ONE = [
    "train_batch_size=1",
    "gradient_accumulation_steps=1",
    "gradient_checkpointing=true",
    "optimizer={type: adamw, learning_rate: 1.0e-5}",
]
WHOLE = [*ONE, "objective={type: text_to_image}", "sampling.sample_every_n_steps=100000"]
NONE = ["sampling.images.first=null"]
CLIPS = ["sampling.clips.one=null"]
SDXL = ["base_model.path=stabilityai/stable-diffusion-xl-base-1.0", "data.resolution=1024"]
SMALL = ["base_model.path=THUDM/CogVideoX-2b", "mixed_precision=fp16"]
CASES: dict[str, tuple[str, list[str]]] = {
    "SD 1.5, whole UNet": ("text_to_image", [*WHOLE, "ema=null", *NONE]),
    "SDXL, whole UNet": ("text_to_image", [*WHOLE, *SDXL, "ema=null", *NONE]),
    "CogVideoX-2B, whole transformer": ("cogvideox_lora", [*WHOLE, *SMALL, *CLIPS]),
    "CogVideoX-5B, LoRA of rank 64": ("cogvideox_lora", [*ONE, *CLIPS]),
    "CogVideoX-5B, whole transformer": ("cogvideox_lora", [*WHOLE, *CLIPS]),
}
STRATEGIES = ("ddp", "zero1", "zero2", "fsdp")
"""The plan of zero3 is that of fsdp."""
PROCESSES = (1, 2, 8)


def write_data(folder: Path) -> None:
    """Write a picture and a clip, with captions."""
    values = np.random.default_rng(0)
    for name in ("pictures", "clips"):
        (folder / name).mkdir()
        (folder / name / "0.txt").write_text("a dog runs")
    Image.fromarray(values.integers(0, 255, (1024, 1024, 3), np.uint8)).save(
        folder / "pictures/0.png"
    )
    frames = [
        Image.fromarray(one) for one in values.integers(0, 255, (100, 48, 85, 3), dtype=np.uint8)
    ]
    frames[0].save(folder / "clips/0.webp", save_all=True, append_images=frames[1:], duration=125)


def divided(recipe: TrainRecipe) -> Iterator[TrainRecipe]:
    """Yield a recipe with each way to divide it."""
    for strategy in STRATEGIES:
        yield replace(recipe, parallel=TrainParallelConfig(strategy=strategy))
    if recipe.data.clips is not None:
        yield replace(recipe, parallel=TrainParallelConfig(context=2))


def rows(title: str, recipe: TrainRecipe) -> Iterator[str]:
    """Yield the rows of a case."""
    speed, outline = bandwidth_in(BANDWIDTH), outlined(recipe)
    alone = memory_planned(recipe, outline)
    frames = latent_frames([(recipe, outline.examples[0])], outline.objective.base)
    for own in divided(recipe):
        given = replace(outline, stages=[replace(outline.stages[0], recipe=own)])
        context, cells = own.parallel.context, []
        for processes in PROCESSES:
            if processes % context:
                cells.append("-")
                continue
            memory = on_each(alone, own, Layout(0, processes, context), frames)
            cells.append(f"{memory.training / GIB:.1f}")
        traffic = traffic_planned(own, given, alone, PROCESSES[-1])
        cells.append(f"{traffic.total / 1e9:.2f} GB, {traffic.total / speed:.2f} s")
        name = own.parallel.strategy + (f", context: {context}" if context > 1 else "")
        yield f"| {title} | {name} | {' | '.join(cells)} |"
        title = ""


def main() -> None:
    """Print the table."""
    output("| model and what is trained | `parallel:` | 1 GPU | 2 GPUs | 8 GPUs | traffic of 8 |")
    output("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as text, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(text)
        write_data(folder)
        for title, (name, given) in CASES.items():
            data = "clips" if name == "cogvideox_lora" else "pictures"
            overrides = [*given, f"data.path={folder}/{data}", f"output_dir={folder}/runs"]
            recipe = load_recipe(str(ROOT / f"configs/{name}.yaml"), train_schema, overrides)
            for row in rows(title, recipe):
                output(row)


if __name__ == "__main__":
    main()
