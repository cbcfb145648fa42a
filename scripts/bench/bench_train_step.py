"""Cost of the trainer: its step against a bare PyTorch loop, and the time to the first step.

    python -m scripts.bench.bench_train_step
    python -m scripts.bench.bench_train_step --base org/model --batch 8 --precision bf16

The trainer trains a LoRA. Every few steps it pauses, and a bare loop takes as many steps over a
second copy of the same model: forward, backward, clipping, AdamW, on latents and captions encoded
before. So both have the same conditions; the ratio is the median over these turns. It should be at
most 1.05 on the base model, and 1.02 on a UNet of four times its width, with random weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from PIL import Image
from torch.nn.functional import mse_loss

from inference.config import BaseModelConfig
from inference.models.stable_diffusion import BaseModel, load_base_model
from inference.recipe import load_recipe
from inference.runtime import output, quiet_libraries
from scripts.bench.common import compare_trainer, widen
from train.config import TrainRecipe, train_schema

NUM_PICTURES = 16


def main() -> None:
    """Run the benchmark and print the results."""
    arguments = read_arguments()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_pictures(root / "pictures", arguments.base)
        for name, target in (("base", 1.05), ("wide", 1.02)):
            base = widen(arguments.base, root / "model") if name == "wide" else arguments.base
            path = write_recipe(root / f"{name}.yaml", base, arguments)
            if name == "base":
                output(f"from the command to the first step: {first_step(path):.1f} s")
            recipe = load_recipe(path, train_schema)
            ours, bare, ratio = compare_trainer(
                recipe, arguments.turns, arguments.steps, build_bare_loop
            )
            output(
                f"{name}: trainer {ours * 1000:.1f} ms, bare loop {bare * 1000:.1f} ms a step; "
                f"ratio {ratio:.3f}, at most {target} wanted",
            )


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Times the trainer against a bare loop.")
    parser.add_argument("--base", default="picto", help="the base model (default: picto)")
    parser.add_argument("--batch", type=int, default=4, help="pictures a step (default: 4)")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--steps", type=int, default=10, help="steps a turn (default: 10)")
    parser.add_argument("--turns", type=int, default=20, help="turns (default: 20)")
    return parser.parse_args()


def make_pictures(folder: Path, base: str) -> None:
    """Write images of one colour, with captions, of the base model's default size."""
    folder.mkdir()
    side = load_base_model(BaseModelConfig(path=base)).resolution
    for number in range(NUM_PICTURES):
        colour = (number * 15, 128, 255 - number * 15)
        Image.new("RGB", (side, side), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"colour number {number}", encoding="utf-8")


def write_recipe(path: Path, base: str, arguments: argparse.Namespace) -> Path:
    """Write a recipe for a LoRA without grids, saved only after the last step."""
    recipe = {
        "name": path.stem,
        "output_dir": str(path.parent / "runs"),
        "objective": {"type": "lora", "rank": 8},
        "base_model": {"path": base},
        "data": {"path": str(path.parent / "pictures")},
        "max_train_steps": (arguments.turns + 2) * arguments.steps,
        "train_batch_size": arguments.batch,
        "mixed_precision": arguments.precision,
        "saving": {"save_every_n_steps": 10**9},
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def first_step(recipe: Path) -> float:
    """Return the seconds from the start of the command to the line of its first step."""
    options = ["name=first", "max_train_steps=1", "log_every_n_steps=1"]
    command = [sys.executable, "-m", "train", str(recipe), *options]
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith(b"step 1/"):
                return time.perf_counter() - start
    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} before its first step")


def build_bare_loop(recipe: TrainRecipe) -> Callable[[], None]:
    """Return a function that takes a training step without anything around it."""
    from train.objectives import load_objective

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = load_objective(recipe, device)
    base, batch = objective.base, recipe.train_batch_size
    assert isinstance(base, BaseModel)
    parameters = list(objective.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.optimizer.learning_rate, fused=True)
    side = base.resolution // base.vae_scale_factor
    channels = base.vae.config.latent_channels
    latents = torch.randn(NUM_PICTURES, channels, side, side, device=device)
    with torch.no_grad():
        states = base.encode_prompts([f"colour number {i}" for i in range(NUM_PICTURES)])
    alphas = base.alphas_cumprod.to(device)

    def step() -> None:
        chosen = torch.randint(NUM_PICTURES, (batch,), device=device)
        timesteps = torch.randint(len(alphas), (batch,), device=device)
        noise = torch.randn(batch, channels, side, side, device=device)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents[chosen] + (1 - alpha).sqrt() * noise
        with torch.autocast(device.type, base.dtype, enabled=base.dtype != torch.float32):
            prediction = base.predict(noisy, timesteps, states[chosen])
        mse_loss(prediction.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
