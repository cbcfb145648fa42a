"""One training step of a LoRA on a full-size CogVideoX model with random weights.

    python -m scripts.bench.check_full_size
    python -m scripts.bench.check_full_size --model cogvideox-5b --device cuda \
        --gradient-checkpointing

Shows that a model of the published sizes can be built, adapted and trained by the trainer's
objective, and the cost of a step. Nothing is downloaded: weights, latents and prompt embeddings are
random, and neither T5 nor VAE is in memory. CogVideoX-2B in bf16 with the defaults (9 frames of
64x64, rank 8) takes 4.3 GiB, and 10 s per step on one CPU core.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
import yaml
from torch import nn

from inference.models import Conditions, DiffusionModel
from inference.models.cogvideox import FAMILIES, VideoFamily, VideoModel
from inference.recipe import load_recipe
from inference.runtime import output, quiet_libraries
from train.common import Batch
from train.config import TrainRecipe, train_schema
from train.objectives import LoraObjective

MODELS = [name for name in FAMILIES if not name.endswith("i2v")]
"""The other models need first frames encoded by a VAE with weights."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    """Build the model, train for the requested steps, and print the results."""
    options = read_arguments()
    quiet_libraries()
    started = time.perf_counter()
    base = build(FAMILIES[options.model], options)
    if options.gradient_checkpointing:
        base.transformer.enable_gradient_checkpointing()
    count = sum(parameter.numel() for parameter in base.transformer.parameters())
    objective = LoraObjective(recipe_of(options), base).to(options.device).train()
    trained = [*objective.parameters()]
    output(
        f"{options.model}: {count / 1e9:.3f} B parameters in {options.precision}, "
        f"{sum(parameter.numel() for parameter in trained) / 1e6:.2f} M of rank {options.rank} in "
        f"fp32; built in {time.perf_counter() - started:.1f} s, {peak(base):.2f} GiB",
    )
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for step in range(options.steps):
        started = time.perf_counter()
        with torch.autocast(base.device.type, base.dtype, enabled=base.dtype != torch.float32):
            loss = objective(example(base, options, step)).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if not (loss.isfinite() and norm.isfinite() and norm > 0):
            raise SystemExit(f"step {step + 1}: loss {loss.item()}, gradient {norm.item()}")
        output(
            f"step {step + 1}: loss {loss.item():.4f}, gradient {norm.item():.3g}, "
            f"{time.perf_counter() - started:.1f} s; at most {peak(base):.2f} GiB",
        )


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="A training step of a full-size CogVideoX.")
    parser.add_argument("--model", choices=MODELS, default="cogvideox-2b")
    parser.add_argument("--layers", type=int, help="fewer than the model has, for a quick look")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    return parser.parse_args()


def build(family: VideoFamily, options: argparse.Namespace) -> VideoModel:
    """Return the transformer with random weights, and a VAE without weights (for its sizes)."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    dtype = DTYPES[options.precision]
    shape = {**family.transformer, "num_layers": options.layers or family.transformer["num_layers"]}
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**shape)
        vae = AutoencoderKLCogVideoX(**family.vae)
    transformer = transformer.to(dtype=dtype).to_empty(device=options.device)
    fill(transformer)
    schedule = CogVideoXDDIMScheduler(**family.noise_schedule)
    return VideoModel(
        path=family.name,
        tokenizer=None,  # type: ignore[arg-type]
        text_encoder=nn.Module(),  # type: ignore[arg-type]
        vae=vae,
        transformer=transformer.requires_grad_(False).eval(),
        alphas_cumprod=schedule.alphas_cumprod.float(),
        prediction_type=family.noise_schedule["prediction_type"],
        noise_schedule=dict(schedule.config),
        dtype=dtype,
    )


def fill(transformer: nn.Module) -> None:
    """Set weights of standard deviation 0.02, norms that keep the scale, biases of zero."""
    generator = torch.Generator(next(transformer.parameters()).device).manual_seed(0)
    for name, parameter in transformer.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.02, generator=generator)
        else:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
    for (
        buffer
    ) in transformer.buffers():  # position embeddings, which are computed again for other sizes
        buffer.zero_()


def recipe_of(options: argparse.Namespace) -> TrainRecipe:
    """Return the recipe of such a run."""
    content = {
        "name": "full_size",
        "base_model": {"path": options.model},
        "objective": {"type": "lora", "rank": options.rank, "alpha": options.rank / 2},
        "data": {
            "path": "clips",
            "clips": {"frames": options.frames, "height": options.height, "width": options.width},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return load_recipe(path, train_schema)


def example(base: VideoModel, options: argparse.Namespace, step: int) -> Batch:
    """Return a batch of one clip: random latents, and prompt embeddings shaped like T5's."""
    generator = torch.Generator().manual_seed(step)
    frames = (options.frames - 1) // base.frame_ratio + 1
    factor, channels = base.vae_scale_factor, base.vae.config.latent_channels
    latents = (1, frames, channels, options.height // factor, options.width // factor)
    batch: Batch = {
        "step": step,
        "step_size": 1,
        "seed": step,
        "completes_step": True,
        "first_position": 0,
        "positions": [step],
        "indices": [0],
        "names": ["random"],
        "weight": torch.ones(1),
        "prompts": ["random"],
        "latents": torch.randn(latents, generator=generator).to(options.device),
        "prompt_states": Conditions(
            (torch.randn(1, *base.prompt_shape, generator=generator) * 0.1).to(options.device)
        ),
    }
    return batch


def peak(base: DiffusionModel) -> float:
    """Return the peak memory so far in GiB: of the accelerator, or of the process."""
    if base.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
