"""What the trainer costs: its step against a bare PyTorch loop, and the way to the first step.

    python -m scripts.bench.bench_train_step
    python -m scripts.bench.bench_train_step --base org/model --batch 8 --precision bf16

The trainer trains a LoRA. Every few steps it stands still, and a bare loop takes as many steps over
a second copy of the same model: forward, backward, clipping, AdamW, on latents and captions encoded
before. So both see the same machine; the ratio is the median over these turns. It shall be at most
1.05 on the base model, and 1.02 on a UNet of four times its width, with random weights.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch.nn.functional import mse_loss

from inference.config import BaseModelConfig
from inference.models.stable_diffusion import BaseModel, load_base_model
from inference.recipe import load_recipe
from inference.runtime import quiet_libraries
from train.common import Batch
from train.config import TrainRecipe, train_schema

NUM_PICTURES = 16


def main() -> None:
    """Measures and prints."""
    arguments = read_arguments()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_pictures(root / "pictures", arguments.base)
        for name, target in (("base", 1.05), ("wide", 1.02)):
            base = widen(arguments.base, root / "model") if name == "wide" else arguments.base
            path = write_recipe(root / f"{name}.yaml", base, arguments)
            if name == "base":
                print(f"from the command to the first step: {first_step(path):.1f} s", flush=True)
            recipe = load_recipe(path, train_schema)
            ours, bare, ratio = compare(recipe, arguments.turns, arguments.steps)
            print(
                f"{name}: trainer {ours * 1000:.1f} ms, bare loop {bare * 1000:.1f} ms a step; "
                f"ratio {ratio:.3f}, at most {target} wanted",
                flush=True,
            )


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Times the trainer against a bare loop.")
    parser.add_argument("--base", default="picto", help="the base model (default: picto)")
    parser.add_argument("--batch", type=int, default=4, help="pictures a step (default: 4)")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--steps", type=int, default=10, help="steps a turn (default: 10)")
    parser.add_argument("--turns", type=int, default=20, help="turns (default: 20)")
    return parser.parse_args()


def make_pictures(folder: Path, base: str) -> None:
    """Pictures of one colour, with captions, of the size the base model was made for."""
    folder.mkdir()
    side = load_base_model(BaseModelConfig(path=base)).resolution
    for number in range(NUM_PICTURES):
        colour = (number * 15, 128, 255 - number * 15)
        Image.new("RGB", (side, side), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"colour number {number}", encoding="utf-8")


def widen(base: str, folder: Path) -> str:
    """Saves the base model with a UNet of four times the width; returns where."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from inference.artifacts import Checkpoint

    model = load_base_model(BaseModelConfig(path=base))
    config = dict(model.unet.config)
    config["block_out_channels"] = [4 * width for width in config["block_out_channels"]]
    model.unet = UNet2DConditionModel.from_config(config)
    Checkpoint.of(model).save(folder, torch.float32, {})
    return str(folder)


def write_recipe(path: Path, base: str, arguments: argparse.Namespace) -> Path:
    """A LoRA without grids, saved only after the last step."""
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
    """Seconds from the start of the command to the line of its first step."""
    options = ["name=first", "max_train_steps=1", "log_every_n_steps=1"]
    command = [sys.executable, "-m", "train", str(recipe), *options]
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith(b"step 1/"):
                return time.perf_counter() - start
    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} before its first step")


def compare(
    recipe: TrainRecipe,
    turns: int,
    steps: int,
    build: Callable[[TrainRecipe], Callable[[], None]] | None = None,
) -> tuple[float, float, float]:
    """Median seconds a step of the trainer and of the bare loop, and the median of their ratios.

    The first turn warms up, and the last one holds the saving: neither counts. `build` makes
    another bare loop than that of pictures.
    """
    from train.run_data import Data
    from train.trainer import Trainer

    times: list[tuple[float, float]] = []

    class TimedData(Data):
        """Data between whose batches the bare loop has its turns."""

        def batches(self, *arguments: Any) -> Iterator[Batch]:
            start = now()
            for batch in super().batches(*arguments):
                yield batch
                if (batch["step"] + 1) % steps == 0:
                    ours, before = now() - start, now()
                    for _ in range(steps):
                        bare_step()
                    times.append((ours / steps, (now() - before) / steps))
                    start = now()

    trainer, bare_step = Trainer(recipe, TimedData), (build or build_bare_loop)(recipe)
    trainer.train()
    times = times[1 : turns + 1]
    ours, bare = zip(*times, strict=True)
    ratios = [one / other for one, other in times]
    return statistics.median(ours), statistics.median(bare), statistics.median(ratios)


def build_bare_loop(recipe: TrainRecipe) -> Callable[[], None]:
    """A function that takes a step: what remains of training when all around it is left out."""
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


def now() -> float:
    """Seconds, when the device has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
