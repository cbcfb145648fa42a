# SPDX-License-Identifier: Apache-2.0
"""Count how often the host waits for the GPU in a training step and in a step of each sampler.

    python -m tests.gpu.count_syncs [train] [clips] [samplers]

Waits of one step are the difference between a longer and a shorter run, divided by their
difference in steps: what a run does once does not count.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from tests.gpu import mock_cuda

mock_cuda.install()  # before torch
os.environ["MOCK_CUDA_DEPTH"] = "1"

from accelerate.state import AcceleratorState, GradientState

from inference.config import BaseModelConfig, ImageConfig
from inference.images import draw
from inference.models.stable_diffusion import load_base_model
from inference.recipe import load_recipe
from inference.sampling import samplers_of
from train.config import train_schema
from train.trainer import Trainer

Waits = Counter[tuple[str, str, str]]
"""(kind, operation, place) of each wait."""

STEPS = (4, 12)
BARE = ["sampling.sample_every_n_steps=1000", "saving.save_every_n_steps=1000",
        "log_every_n_steps=1000", "lr_scheduler.warmup_steps=1"]  # fmt: skip
BF16 = ["mixed_precision=bf16", "gradient_checkpointing=true"]
PICTURES, CLIPS = "configs/demo/line_icons_lora.yaml", "configs/demo/circling_lora.yaml"
RUNS = {
    "lora_bf16": (PICTURES, BF16),
    "lora_bf16_min_snr": (PICTURES, [*BF16, "loss={weighting: min_snr, snr_gamma: 5.0}"]),
    "lora_fp16": (PICTURES, ["mixed_precision=fp16"]),
    "lora_8bit_accumulate2": (
        PICTURES, [*BF16, "optimizer.type=adamw8bit", "gradient_accumulation_steps=2"],
    ),
    "lora_text_encoder": (PICTURES, [*BF16, "objective.train_text_encoder=true"]),
    "lora_flip_uncached": (PICTURES, [*BF16, "data.flip=0.5"]),
    "lora_disk": (PICTURES, [*BF16, "data.cache=disk"]),
    "full_ema": (PICTURES, [*BF16, "objective={type: text_to_image}", "ema={decay: 0.99}"]),
    "clips_lora": (CLIPS, BF16),
}  # fmt: skip


def counted() -> tuple[Waits, int]:
    """Return the waits since the last call, and all launches so far."""
    waits = Counter((kind, what, where) for kind, what, _, where in mock_cuda.SYNCS)
    mock_cuda.SYNCS.clear()
    return waits, mock_cuda.ext.launches()


def report(name: str, shorter: Waits, longer: Waits, steps: int, note: str = "") -> None:
    """Print the waits of a step, in total and by place."""
    more = longer.copy()
    more.subtract(shorter)
    print(f"{name}: {more.total() / steps:.2f} waits a step{note}")
    for (kind, what, where), count in more.most_common():
        if count:
            print(f"    {count / steps:6.2f}  {kind:5s} {what:26s} {where}")
    print(flush=True)


def train(name: str, file: str, overrides: list[str], folder: Path) -> None:
    """Report the waits of a training step."""
    results = []
    for steps in STEPS:
        own = [f"output_dir={folder}", f"name={name}_{steps}", f"max_train_steps={steps}"]
        counted_before = counted()[1]
        Trainer(load_recipe(file, train_schema, [*BARE, *overrides, *own])).train()
        waits, launches = counted()
        results.append((waits, launches - counted_before))
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    steps = STEPS[1] - STEPS[0]
    (shorter, few), (longer, many) = results
    report(name, shorter, longer, steps, f", {(many - few) / steps:.0f} launches")


def samplers() -> None:
    """Report the waits of a step of each sampler."""
    base = load_base_model(BaseModelConfig(path="picto"), "bf16", "cuda")
    for name in samplers_of("pictures"):
        results = []
        for steps in STEPS:
            counted()
            image = {"prompt": "a cat", "negative_prompt": "dog", "width": 64, "height": 64}
            draw(base, [ImageConfig(**image, seed=1, steps=steps, sampler=name)])
            results.append(counted()[0])
        report(name, results[0], results[1], STEPS[1] - STEPS[0])


def main() -> None:
    """Report what the command line names; by default training of pictures and clips, samplers."""
    warnings.simplefilter("ignore")
    wanted = sys.argv[1:] or ["train", "clips", "samplers"]
    with tempfile.TemporaryDirectory() as folder:
        for name, (file, overrides) in RUNS.items():
            if ("clips" if file == CLIPS else "train") in wanted:
                train(name, file, overrides, Path(folder))
    if "samplers" in wanted:
        samplers()


if __name__ == "__main__":
    main()
