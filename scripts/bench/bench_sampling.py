"""Cost of generation: an image against its bare UNet evaluations, and against diffusers' pipeline.

    python -m scripts.bench.bench_sampling
    python -m scripts.bench.bench_sampling --base org/model --precision fp16

An image of 20 steps with guidance has 40 evaluations of the UNet (in 20 pairs) and one decoding.
The command's own function, those evaluations alone, and `StableDiffusionPipeline` run alternately
under the same conditions; ratios are medians over the turns. Relative to the bare evaluations, time
should be at most 1.05 on a UNet of four times the width, with random weights; relative to the
pipeline at most 1. Then: the time of loading a LoRA, and of switching between two of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from inference.config import BaseModelConfig, ImageConfig
from inference.images import draw
from inference.models.stable_diffusion import BaseModel, load_base_model
from inference.runtime import output, quiet_libraries
from scripts.bench.common import take_turns, widen

STEPS = 20
PROMPT, NEGATIVE = "a cat, noto style", "blurry"


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description="Times drawing against its UNet evaluations.")
    parser.add_argument("--base", default="picto", help="the base model (default: picto)")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--turns", type=int, default=10, help="turns (default: 10)")
    options = parser.parse_args()
    quiet_libraries()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("base", "wide"):
            path = widen(options.base, Path(folder) / "model") if name == "wide" else options.base
            base = load_base_model(BaseModelConfig(path=path), options.precision, device)
            compare(name, base, options.turns)
        time_artifacts(base, Path(folder), options.turns)


def compare(name: str, base: BaseModel, turns: int) -> None:
    """Print the medians and ratios of one base model."""
    runs = {"ours": ours(base), "bare": bare(base), "pipeline": pipeline(base)}
    times = take_turns(runs, turns)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    shown = ", ".join(f"{kind} {seconds * 1000:.0f} ms" for kind, seconds in medians.items())
    output(f"{name}: {shown}")
    for other, wanted in (("bare", 1.05), ("pipeline", 1.0)):
        ratios = [one / two for one, two in zip(times["ours"], times[other], strict=True)]
        output(
            f"{name}: ours / {other} {statistics.median(ratios):.3f}, at most {wanted} wanted",
        )


def ours(base: BaseModel) -> Callable[[], object]:
    """Return a function that generates an image like the command."""
    request = ImageConfig(prompt=PROMPT, negative_prompt=NEGATIVE, steps=STEPS, seed=1)
    return lambda: draw(base, [request])


def bare(base: BaseModel) -> Callable[[], object]:
    """Return a function with only the UNet's evaluations and the decoding."""
    with torch.inference_mode():
        conditions = base.encode_prompts([PROMPT, NEGATIVE]).to(base.dtype)
    side = base.resolution // base.vae_scale_factor
    shape = (2, base.vae.config.latent_channels, side, side)
    latents = torch.randn(shape, device=base.device, dtype=base.dtype)
    timesteps = torch.tensor([500.0, 500.0], device=base.device)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(STEPS):
            base.predict(latents, timesteps, conditions)
        base.decode_latents(latents[:1])

    return run


def pipeline(base: BaseModel) -> Callable[[], object]:
    """Return a function for the same image by diffusers: DPM-Solver++ with Karras sigmas."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    noise_scheduler: Any = DPMSolverMultistepScheduler.from_config(
        base.noise_schedule, use_karras_sigmas=True, algorithm_type="dpmsolver++"
    )
    pipe = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=noise_scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return lambda: pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS)


def time_artifacts(base: BaseModel, folder: Path, turns: int) -> None:
    """Print the time of loading a LoRA, and of switching from one to another."""
    from inference.artifacts import Lora, LoraSpec, load_artifact

    paths = []
    for number in range(2):
        lora = Lora.create(base, LoraSpec(16, 16, 0, ["attention", "feed_forward"], False), number)
        for layer in lora.layers.values():
            for name, weight in layer.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.01)
        paths.append(folder / f"{number}.safetensors")
        lora.save(paths[-1], torch.float16, {})
    loading, switching = [], []
    first, second = (load_artifact(path) for path in paths)
    for _ in range(turns):
        start = time.perf_counter()
        load_artifact(paths[0])
        loading.append(time.perf_counter() - start)
        first.attach(base)
        start = time.perf_counter()
        first.detach()
        second.attach(base)
        switching.append(time.perf_counter() - start)
        second.detach()
    size = paths[0].stat().st_size / 1e6
    output(
        f"LoRA of {size:.1f} MB: loading {statistics.median(loading) * 1000:.0f} ms, "
        f"switching {statistics.median(switching) * 1000:.0f} ms"
    )


if __name__ == "__main__":
    main()
