"""The parts of `scripts.bench.gpu`: tests, steps of training, drawing; see there."""

from __future__ import annotations

import argparse
import gc
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
import yaml
from PIL import Image

from inference.config import ImageConfig
from inference.images import draw
from inference.models import DiffusionModel
from inference.parallel import Layout
from inference.recipe import load_recipe
from inference.runtime import output, quiet_libraries
from scripts.bench.common import now, take_turns
from scripts.bench.full_size import MODELS, random_base
from train.common import Batch
from train.config import TrainRecipe, train_schema
from train.memory import CONTEXT, MemoryPlan, memory_planned, outlined
from train.objectives import read_precision
from train.run_data import Data
from train.trainer import Trainer

if TYPE_CHECKING:
    from train.data import Examples
    from train.stages import Stage

GIB = 2**30
WARM, TIMED, WATCHED = 3, 8, 2
"""Steps that do not count, whose time is taken, in which waits are counted."""
DRAWN_STEPS, TURNS = 20, 3
PROMPT = "a photo of a thing on a beach"


class Rows(Protocol):
    """The table that measurements are added to."""

    def add(self, part: str, what: str, **figures: object) -> None: ...


class Case(NamedTuple):
    """A run whose steps are measured."""

    what: str
    objective: dict[str, Any]
    options: dict[str, Any]
    """Further keys of its recipe."""
    size: int | None
    """Side of the pictures; None for clips."""


LORA = {"type": "lora", "rank": 16, "alpha": 16}
CASES = {
    "sd15": [
        Case("LoRA r16, batch 1", LORA, {"train_batch_size": 1}, 512),
        Case(
            "UNet, batch 4, checkpointed",
            {"type": "text_to_image"},
            {"train_batch_size": 4, "gradient_checkpointing": True},
            512,
        ),
    ],
    "sdxl": [
        Case(
            "LoRA r16, batch 1, checkpointed",
            LORA,
            {"train_batch_size": 1, "gradient_checkpointing": True},
            1024,
        )
    ],
    "cogvideox-2b": [
        Case(
            "LoRA r64, batch 1, checkpointed",
            {"type": "lora", "rank": 64, "alpha": 64},
            {"train_batch_size": 1, "gradient_checkpointing": True},
            None,
        )
    ],
}
DRAWINGS = {"sd15": 512, "sdxl": 1024}
"""Part -> side of the images that are drawn."""


class Waits:
    """Count how often the host waits for the device, by PyTorch's own warnings."""

    def __enter__(self) -> Waits:
        self.caught = warnings.catch_warnings(record=True)
        self.list: Any = self.caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: object) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self.caught.__exit__(None, None, None)

    @property
    def count(self) -> int:
        return sum("synchronizing" in str(one.message) for one in self.list)


waits_of: Callable[[], Any] = Waits
"""How waits are counted; the mock device has its own record of them."""


class MeasuredError(Exception):
    """Ends a run whose steps have been measured."""


def measure(part: str, results: Rows, options: argparse.Namespace) -> int:
    """Measure a part; return its exit status."""
    if part == "tests":
        return run_tests(results, options.tests)
    if not torch.cuda.is_available():
        output("torch finds no GPU (torch.cuda.is_available() is False)", is_error=True)
        return 1
    quiet_libraries()
    chosen = dict(word.split("=", 1) for word in options.model)
    path = chosen.get(part, MODELS[part])
    failed = False
    for case in CASES[part]:
        failed |= not attempted(
            results, part, case.what, lambda c=case: train(results, part, c, path, options)
        )
    if part in DRAWINGS:
        failed |= not attempted(
            results, part, "drawing", lambda: compare_drawing(results, part, path, options)
        )
    return int(failed)


def attempted(results: Rows, part: str, what: str, work: Callable[[], None]) -> bool:
    """Do work; record an error as a row, and return whether there was none."""
    try:
        work()
    except Exception as error:  # whatever a first GPU brings
        traceback.print_exc()
        text = (str(error).strip().splitlines() or [""])[0][:200]
        results.add(part, what, failed=f"{type(error).__name__}: {text}")
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return True


def run_tests(results: Rows, choice: str) -> int:
    """Run the tests for a first GPU; each outcome is counted as it comes."""
    command = [sys.executable, "-m", "tests.gpu.run_pytest", "-v", "-k", choice]
    counts = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        start, told, failures = time.monotonic(), 0.0, []
        for line in process.stdout:
            output(line.rstrip("\n"))
            outcome = re.match(r"(\S+::\S.*) (PASSED|FAILED|ERROR|SKIPPED)", line)
            if outcome is None:
                continue
            counts[outcome[2].lower()] += 1
            if outcome[2] in ("FAILED", "ERROR"):
                failures.append(outcome[1].rpartition("::")[2])
            if time.monotonic() - told > 10:
                told = time.monotonic()
                results.add("tests", "so far", seconds=told - start, **counts)
    figures = counts | ({"failures": " ".join(failures)} if failures else {})
    results.add("tests", "finished", seconds=time.monotonic() - start, **figures)
    return process.returncode


class MeasuredData(Data):
    """Data between whose batches the steps are measured."""

    figures: dict[str, Any]
    options: argparse.Namespace

    def batches(
        self, examples: Examples, stage: Stage, step: int, layout: Layout
    ) -> Iterator[Batch]:
        """Yield batches; raise MeasuredError after the last step."""
        warm, timed, watched = (1, 2, 1) if self.options.tiny else (WARM, TIMED, WATCHED)
        own = super().batches(examples, stage, step, layout)
        self.figures["filling_peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        yield from taken(own, warm)
        torch.cuda.reset_peak_memory_stats()
        start = now()
        yield from taken(own, timed)
        seconds = (now() - start) / timed
        self.figures["step_ms"] = None if self.options.without_times else 1000 * seconds
        self.figures["step_peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        self.figures["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
        with waits_of() as waits:
            yield from taken(own, watched)
            self.figures["waits"] = waits.count / watched
        raise MeasuredError


def taken(batches: Iterator[Batch], steps: int) -> Iterator[Batch]:
    """Yield the batches of so many steps."""
    for batch in batches:
        yield batch
        steps -= bool(batch["completes_step"])
        if steps == 0:
            return


def train(results: Rows, part: str, case: Case, path: str, options: argparse.Namespace) -> None:
    """Take steps of training on a base model with random weights, and add a row."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(case, path, Path(folder), options)
        plan = memory_planned(recipe, outlined(recipe))

        def data(recipe: TrainRecipe) -> Data:
            made = MeasuredData(recipe)
            made.figures, made.options = figures, options
            return made

        def read(recipe: TrainRecipe) -> DiffusionModel:
            return random_base(path, read_precision(recipe), "cuda", vae_precision="fp32")

        torch.cuda.reset_peak_memory_stats()
        trainer = Trainer(recipe, data, read=read)
        try:
            trainer.train()
        except MeasuredError:
            figures |= plan_errors(plan, figures)
        finally:
            trainer.close()
    results.add(part, case.what, **figures)


def plan_errors(plan: MemoryPlan, figures: dict[str, Any]) -> dict[str, Any]:
    """Return what the plan computes without CUDA's own memory, and its relative errors."""
    step, filling = plan.training - CONTEXT, plan.filling - CONTEXT
    measured, filled = figures["step_peak_gib"] * GIB, figures["filling_peak_gib"] * GIB
    return {
        "plan_step_gib": step / GIB,
        "plan_step_error": f"{step / measured - 1:+.0%}" if measured else None,
        "plan_filling_error": f"{filling / filled - 1:+.0%}" if filled else None,
    }


def precision_here() -> str:
    """Return bf16 where the device computes in it, else fp16."""
    return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"


def recipe_of(case: Case, path: str, folder: Path, options: argparse.Namespace) -> TrainRecipe:
    """Write data and a recipe for it; nothing is saved or drawn."""
    if case.size is None:
        data: dict[str, Any] = write_clips(folder / "data", options.tiny)
    else:
        side = 32 if options.tiny else case.size
        data = {"path": str(write_pictures(folder / "data", side)), "resolution": side}
    content = {
        "name": "bench",
        "output_dir": str(folder / "runs"),
        "objective": case.objective,
        "base_model": {"path": path},
        "data": data,
        "max_train_steps": 1000,
        "mixed_precision": precision_here(),
        "log_every_n_steps": 10,
        "saving": {"save_every_n_steps": 1000},
        **case.options,
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_recipe(file, train_schema)


def write_pictures(folder: Path, side: int) -> Path:
    """Write pictures of noise, with captions."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(8):
        picture = Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing number {number}", encoding="utf-8")
    return folder


def write_clips(folder: Path, is_tiny: bool) -> dict[str, Any]:
    """Write two clips of noise as animated images; return the recipe's `data`."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    frames, height, width = (25, 64, 64) if is_tiny else (49, 480, 720)
    for number in range(2):
        shown = [
            Image.fromarray(noise.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            for _ in range(frames)
        ]
        shown[0].save(
            folder / f"{number}.gif", save_all=True, append_images=shown[1:], duration=125
        )
        (folder / f"{number}.txt").write_text(f"clip number {number}", encoding="utf-8")
    clips = {"frames": frames, "height": height, "width": width}
    return {"path": str(folder), "clips": clips}


def compare_drawing(results: Rows, part: str, path: str, options: argparse.Namespace) -> None:
    """Draw by turns with Limner and with diffusers' pipeline, and add a row for each batch size."""
    precision = precision_here()
    base: Any = random_base(path, precision, "cuda")
    side = 32 if options.tiny else DRAWINGS[part]
    steps, turns = (2, 1) if options.tiny else (DRAWN_STEPS, TURNS)
    pipeline = pipeline_of(base)
    for batch in (1, 4):
        image = ImageConfig(
            prompt=PROMPT, seed=1, count=batch, steps=steps, cfg_scale=7.0, width=side, height=side,
            sampler="DPM++ 2M", schedule_type="Karras",
        )  # fmt: skip
        peaks: dict[str, float] = {}

        def measured(name: str, work: Callable[[], object]) -> Callable[[], None]:
            def run() -> None:
                torch.cuda.reset_peak_memory_stats()
                work()
                peaks[name] = torch.cuda.max_memory_allocated() / GIB  # noqa: B023

            return run

        runs = {
            "ours": measured("ours", lambda i=image, b=batch: draw(base, [i], b)),
            "diffusers": measured(
                "diffusers",
                lambda b=batch: pipeline(
                    [PROMPT] * b, height=side, width=side, num_inference_steps=steps,
                    guidance_scale=7.0,
                ),
            ),
        }  # fmt: skip
        times = take_turns(runs, turns)
        figures: dict[str, Any] = {f"{name}_peak_gib": peak for name, peak in peaks.items()}
        if not options.without_times:
            medians = {name: statistics.median(taken) for name, taken in times.items()}
            figures |= {f"{name}_s": seconds for name, seconds in medians.items()}
            figures["share_of_diffusers"] = medians["ours"] / medians["diffusers"]
        what = f"drawing {batch} of {side}x{side}, {steps} steps, {precision}"
        results.add(part, what, **figures)


def pipeline_of(base: Any) -> Any:
    """Return diffusers' pipeline on the same modules, with DPM++ 2M and Karras' sigmas."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
        StableDiffusionXLPipeline,
    )
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    schedule = {k: v for k, v in base.noise_schedule.items() if not k.startswith("_")}
    parts: dict[str, Any] = {
        "vae": base.vae,
        "text_encoder": base.text_encoder,
        "tokenizer": base.tokenizer,
        "unet": base.unet,
        "scheduler": DPMSolverMultistepScheduler.from_config(schedule, use_karras_sigmas=True),
    }
    if base.has_pooled_prompts:
        second = {"text_encoder_2": base.text_encoder_2, "tokenizer_2": base.tokenizer_2}
        pipeline: Any = StableDiffusionXLPipeline(**parts, **second, add_watermarker=False)
    else:
        unchecked: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
        pipeline = StableDiffusionPipeline(**parts, **unchecked, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
