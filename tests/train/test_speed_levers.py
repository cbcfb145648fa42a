"""Runs with levers of speed: exact to resume, the same names, and results within rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from train.config.recipe import TrainRecipe
from train.trainer import Trainer

WHOLE = "objective={type: text_to_image}"
STEPS = ["saving.save_every_n_steps=2", "max_train_steps=4", "ema={decay: 0.9}"]


def unet_of(artifact: Path) -> dict[str, torch.Tensor]:
    (file,) = (artifact / "unet").glob("*.safetensors")
    return load_file(file)


@pytest.mark.slow
def test_channels_last_trains_and_resumes(make_recipe: Callable[..., TrainRecipe]) -> None:
    lever = "speed.channels_last=true"
    plain = Trainer(make_recipe(WHOLE, *STEPS, "name=plain")).train()
    whole = Trainer(make_recipe(WHOLE, *STEPS, lever, "name=whole")).train()
    Trainer(make_recipe(WHOLE, *STEPS, lever, "name=parts", "max_train_steps=2")).train()
    parts = Trainer(make_recipe(WHOLE, *STEPS, lever, "name=parts", "resume=true")).train()
    expected, seen, resumed = unet_of(plain), unet_of(whole), unet_of(parts)
    assert expected.keys() == seen.keys() == resumed.keys()
    assert all(torch.equal(seen[name], resumed[name]) for name in seen)
    for name, value in expected.items():
        torch.testing.assert_close(seen[name].float(), value.float(), rtol=0.05, atol=0.02)


COMPILED = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from accelerate.state import AcceleratorState, GradientState
from inference.recipe import load_recipe
from train.config import train_schema
from train.trainer import Trainer

file, how, *overrides = sys.argv[1:]
names = []
for compiled in ("none", how):
    recipe = load_recipe(file, train_schema, [*overrides, f"name={compiled}",
                                              f"speed.compile={compiled}"])
    Trainer(recipe).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
print("compiled", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_compiled_runs(how: str, recipe_file: Path, tmp_path: Path) -> None:
    """With a LoRA, EMA and gradient checkpointing; names and grids as without."""
    overrides = [
        f"output_dir={tmp_path}", "objective={type: lora, rank: 2}", *STEPS,
        "gradient_checkpointing=true", "sampling.images.one={prompt: red, seed: 1}",
        "sampling.sample_every_n_steps=4", "data.resolution=16",
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(recipe_file), how, *overrides],
        env=environment, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    graphs = int(done.stdout.split("compiled ")[1])
    assert graphs >= 1
    one, two = (load_file(tmp_path / name / "artifacts/last.safetensors") for name in ("none", how))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name].float(), value.float(), rtol=0.05, atol=0.02)
    kept = [
        tmp_path / name / "checkpoints/step-000004/trained.safetensors" for name in ("none", how)
    ]
    assert load_file(kept[0]).keys() == load_file(kept[1]).keys()
