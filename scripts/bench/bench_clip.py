"""Cost of clips: generation, a training step, and the effect of stratified timesteps on the loss.

    python -m scripts.bench.bench_clip
    python -m scripts.bench.bench_clip --base picto-motion

Without `--base`, uses a model of picto-motion's shape with random weights. Alternately, the
command's own function and the transformer's bare evaluations (20 of 2 rows) with one decoding
generate the same clip; likewise a few steps of the trainer and of a bare loop over a second copy of
the model. Ratios are medians over the turns, and should be at most 1.05. Then the variance of a
step's mean loss, for a network that does not change, with independent timesteps and with timesteps
stratified over 4 and 8 micro-batches (CogVideoX's explicit uniform sampling, arXiv 2408.06072,
section 3.3).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from inference.clips import draw_clips, expand
from inference.config import BaseModelConfig, ClipConfig
from inference.models.cogvideox import VideoModel, load_video_model
from inference.recipe import load_recipe
from inference.runtime import output, quiet_libraries
from scripts.bench.common import compare_trainer, take_turns
from scripts.picto import init_picto_motion
from train.config import TrainRecipe, train_schema

STEPS = 20
WANTED = 1.05
NUM_CLIPS = 16
ACCUMULATIONS = 4, 8


def main() -> None:
    """Run the benchmark and print the results."""
    options = read_arguments()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = options.base or str(random_model(root / "model"))
        base = load_video_model(BaseModelConfig(path=path, attention=options.attention))
        make_clips(root / "clips", base)
        bench_drawing(base, options.turns)
        recipe = recipe_of(root, path, options)
        ours, bare, ratio = compare_trainer(recipe, options.turns, options.steps, bare_loop)
        output(
            f"step: trainer {ours * 1000:.1f} ms, bare loop {bare * 1000:.1f} ms; "
            f"ratio {ratio:.3f}, at most {WANTED} wanted",
        )
        for accumulation in ACCUMULATIONS:
            bench_variance(recipe, accumulation, options.variance_steps)


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Times clips against what they are made of.")
    parser.add_argument("--base", help="a base model, in place of random weights")
    parser.add_argument("--attention", default="eager", choices=["sdpa", "eager"])
    parser.add_argument("--batch", type=int, default=4, help="clips a step (default: 4)")
    parser.add_argument("--steps", type=int, default=5, help="steps a turn (default: 5)")
    parser.add_argument("--turns", type=int, default=10, help="turns (default: 10)")
    parser.add_argument("--variance-steps", type=int, default=200, help="steps (default: 200)")
    return parser.parse_args()


def random_model(folder: Path) -> Path:
    """Save an untrained model of picto-motion's shape, and return its folder."""
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    vocabulary = init_picto_motion.write_tokenizer(map(caption, range(99)), folder / "tokenizer")
    for name, part in init_picto_motion.build_parts(vocabulary, seed=0).items():
        part.save_pretrained(folder / name)  # pyright: ignore[reportCallIssue]
    noise_scheduler = CogVideoXDDIMScheduler(**init_picto_motion.NOISE_SCHEDULE)
    noise_scheduler.save_pretrained(folder / "scheduler")
    index = json.dumps(init_picto_motion.MODEL_INDEX)
    (folder / "model_index.json").write_text(index, encoding="utf-8")
    return folder


def caption(number: int) -> str:
    """Return the caption of a generated clip."""
    return f"square number {number}, moving right"


def make_clips(folder: Path, base: VideoModel) -> None:
    """Write clips of a square that moves to the right, with the model's frames and size."""
    folder.mkdir()
    side = base.config.sample_width * base.vae_scale_factor
    for number in range(NUM_CLIPS):
        frames = np.full((base.config.sample_frames, side, side, 3), 255, np.uint8)
        for place, frame in enumerate(frames):
            frame[side // 4 : side // 2, place : place + side // 4] = (number * 15, 128, 64)
        first, *others = map(Image.fromarray, frames)
        path = folder / f"{number:02d}.webp"
        first.save(path, save_all=True, append_images=others, duration=125, lossless=True)
        path.with_suffix(".txt").write_text(caption(number), encoding="utf-8")


def bench_drawing(base: VideoModel, turns: int) -> None:
    """Print the time of generation relative to bare evaluations and decoding."""
    clip = ClipConfig(prompt=caption(1), steps=STEPS, cfg_scale=4.0, seed=1)
    requests = expand(base, [clip])
    runs = {"ours": lambda: draw_clips(base, requests), "bare": bare_drawing(base)}
    times = take_turns(runs, turns)
    ratios = [one / other for one, other in zip(times["ours"], times["bare"], strict=True)]
    medians = ", ".join(f"{k} {statistics.median(v) * 1000:.0f} ms" for k, v in times.items())
    ratio = statistics.median(ratios)
    output(f"drawing: {medians}; ratio {ratio:.3f}, at most {WANTED} wanted")


def latent_shape(base: VideoModel) -> tuple[int, int, int, int]:
    """Return the shape of the latents of a clip of the model's default size: (f', c, h', w')."""
    config = base.config
    frames = (config.sample_frames - 1) // base.frame_ratio + 1
    channels = base.vae.config.latent_channels
    return frames, channels, config.sample_height, config.sample_width


def bare_drawing(base: VideoModel) -> Callable[[], object]:
    """Return a function with only the transformer's evaluations and the decoding."""
    with torch.inference_mode():
        conditions = base.encode_prompts([caption(1), ""])
    latents = torch.randn(2, *latent_shape(base))
    timesteps = torch.tensor([500, 500])

    @torch.inference_mode()
    def run() -> None:
        for _ in range(STEPS):
            base.predict(latents, timesteps, conditions)
        base.decode_latents(latents[:1])

    return run


def recipe_of(root: Path, path: str, options: argparse.Namespace) -> TrainRecipe:
    """Return a recipe for a LoRA on the clips, without previews, saved only after the last step."""
    content = {
        "name": "bench",
        "output_dir": str(root / "runs"),
        "objective": {"type": "lora", "rank": 8},
        "base_model": {"path": path, "attention": options.attention},
        "data": {"path": str(root / "clips"), "clips": {"frames": 25}},
        "max_train_steps": (options.turns + 2) * options.steps,
        "train_batch_size": options.batch,
        "saving": {"save_every_n_steps": 10**9},
    }
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_recipe(file, train_schema)


def bare_loop(recipe: TrainRecipe) -> Callable[[], None]:
    """Return a function that takes a training step without anything around it."""
    from train.objectives import load_objective

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = load_objective(recipe, device)
    base, batch = objective.base, recipe.train_batch_size
    assert isinstance(base, VideoModel)
    parameters = list(objective.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.optimizer.learning_rate, fused=True)
    latents = torch.randn(NUM_CLIPS, *latent_shape(base), device=device)
    with torch.no_grad():
        states = base.encode_prompts([caption(number) for number in range(NUM_CLIPS)])
    alphas = base.alphas_cumprod.to(device)

    def step() -> None:
        chosen = torch.randint(NUM_CLIPS, (batch,), device=device)
        timesteps = torch.randint(len(alphas), (batch,), device=device)
        clean = latents[chosen]
        noise = torch.randn_like(clean)
        signal = alphas[timesteps].sqrt().view(-1, 1, 1, 1, 1)
        sigma = (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1, 1)
        prediction = base.predict(signal * clean + sigma * noise, timesteps, states[chosen])
        target = signal * noise - sigma * clean
        torch.nn.functional.mse_loss(prediction.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def bench_variance(recipe: TrainRecipe, accumulation: int, steps: int) -> None:
    """Print the variance of a step's mean loss over micro-batches of one clip."""
    variances = {}
    for sampling in ("uniform", "stratified"):
        loss = replace(recipe.loss, timestep_sampling=sampling)
        own = replace(
            recipe, loss=loss, train_batch_size=1, gradient_accumulation_steps=accumulation
        )
        variances[sampling] = statistics.variance(step_losses(own, steps))
    ratio = variances["uniform"] / variances["stratified"]
    output(
        f"variance of the step's loss, {accumulation} micro-batches, {steps} steps: uniform "
        f"{variances['uniform']:.3g}, stratified {variances['stratified']:.3g}; {ratio:.1f} times "
        f"smaller, the deviation {ratio**0.5:.1f} times",
    )


def step_losses(recipe: TrainRecipe, steps: int) -> list[float]:
    """Return the mean loss of each step of a network that does not learn.

    The micro-batches of a step are computed at once, which changes nothing: noise and timesteps are
    drawn by sample index.
    """
    from train.common import DataError
    from train.data import PromptStates, build_examples, cache_latents, collate, find_sources
    from train.objectives import load_objective

    objective = load_objective(recipe, torch.device("cpu")).eval()
    examples = build_examples(recipe, find_sources(recipe), objective.base)
    cache_latents(examples, objective.base, 4, lambda what, title: what)
    states = PromptStates(objective.base)
    states.fill(examples.all_prompts(), lambda what, title: what)
    size, losses = recipe.gradient_accumulation_steps, []
    for step in range(steps):
        batch = collate([examples[place] for place in range(step * size, (step + 1) * size)])
        assert not isinstance(batch, DataError)
        batch["step"], batch["step_size"], batch["first_position"] = step, size, 0
        batch["prompt_states"] = states(batch["prompts"])
        losses.append(objective(batch).mean().item())
    return losses


if __name__ == "__main__":
    main()
