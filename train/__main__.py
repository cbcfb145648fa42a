"""Train a recipe: `python -m train RECIPE [key=value ...]`."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from train.shadowing import refuse_foreign_inference

if TYPE_CHECKING:
    from train.config import TrainRecipe

REMEDY = "resume=true continues from the newest checkpoint"
USAGE = "usage: python -m train RECIPE [key=value ...]"


@refuse_foreign_inference("train")
def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 failed, 2 invalid input, 128 + signal stopped and saved."""
    from inference.runtime import run_command

    return run_command("train", command, arguments)


def command(arguments: list[str]) -> int:
    """Print the usage, or train a recipe; return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        from inference.runtime import output

        output(f"{USAGE}\nEvery key is explained in docs/recipes.md.", is_error=not arguments)
        return 0 if arguments else 2
    return train(arguments[0], arguments[1:])


def train(path: str, overrides: list[str]) -> int:
    """Load the recipe, and only then the heavy libraries."""
    from inference.recipe import find_recipe, load_recipe, warnings_reported
    from inference.runtime import (
        is_first_process,
        keys_named,
        memory_explained,
        quiet_libraries,
    )
    from train.config import train_schema
    from train.places import check_places

    is_silent = not is_first_process()
    with warnings_reported("train", is_silent):
        recipe = load_recipe(find_recipe(path), train_schema, overrides)
    quiet_libraries()
    with (
        keys_named(recipe),
        memory_explained(lambda: memory_remedy(recipe, [path, *overrides])),
        warnings_reported("train", is_silent),
    ):
        check_places(recipe)
        return run(continued(recipe))


def continued(recipe: TrainRecipe) -> TrainRecipe:
    """Return a recipe that resumes its run, if an earlier start of the same job has begun it.

    torchrun and batch systems start a job again by the same command.
    """
    from train.runs import is_of_earlier_start

    if is_of_earlier_start(Path(recipe.output_dir) / recipe.name / "environment.json"):
        return replace(recipe, resume=True, overwrite=False)
    return recipe


def run(recipe: TrainRecipe) -> int:
    """Train a valid recipe, and print where the result is; return the exit status."""
    from inference.parallel import joined
    from inference.runtime import (
        Interrupted,
        Stopped,
        is_first_process,
        output,
        report,
        report_failure,
    )
    from train.common import RunEndedError, lost_processes_reported
    from train.trainer import Trainer

    is_one_of_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        with joined("train", REMEDY), lost_processes_reported(lambda: is_one_of_several):
            trainer = Trainer(recipe, reckon=planned_peaks)
            artifact = trainer.train()
    except Interrupted as stop:
        report("train", f"{stop}; resume=true continues")
        return 128 + stop.number
    except RunEndedError as error:
        if is_first_process() or not error.of_all_processes:
            report_failure("train", error)
        return 1
    except Stopped:  # before the first step
        raise
    except KeyboardInterrupt:  # the second Ctrl-C
        report("train", "stopped at once; resume=true continues from the newest checkpoint")
        return 128 + signal.SIGINT
    if trainer.is_main:
        output(f"artifact: {artifact}")
        for note in trainer.savings.notes():
            output(f"note:     {note}")
        grid = trainer.run.folder.grid(trainer.step_number)
        if grid.is_file():
            output(f"grid:     {grid}")
        output(f"watch:    tensorboard --logdir {recipe.output_dir}")
    return 0


def planned_peaks(recipe: TrainRecipe) -> dict[str, int]:
    """Return the peaks of a run on its device as `limner plan` computes them, in bytes."""
    from train.memory import memory_planned, outlined

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run prints them
        plan = memory_planned(recipe, outlined(recipe, processes), processes)
    return plan.peaks_by_offload


def memory_remedy(recipe: TrainRecipe, arguments: list[str]) -> str:
    """Return what the memory of a run depends on, with the recipe's values, and what to change.

    Args:
        recipe: the run's.
        arguments: those of the command.
    """
    clips, checkpointing = recipe.data.clips, str(recipe.gradient_checkpointing).lower()
    own = "the base model's own"
    size = f"data.resolution {recipe.data.resolution or own}"
    if clips is not None:
        size = f"data.clips {clips.frames} frames, {clips.width or own} x {clips.height or own}"
    switched = "" if recipe.gradient_checkpointing else ", and set the third to true"
    return (
        f"train_batch_size is {recipe.train_batch_size}, {size}, gradient_checkpointing "
        f"{checkpointing}: lower the first two (gradient_accumulation_steps make up for a smaller "
        f"batch){switched}. memory.blocks_to_swap=0.5 keeps half of the denoiser in the system's "
        "memory, and vae_tiling=true encodes in tiles (docs/memory.md). "
        f"{memory_figures(recipe, arguments)}. What was saved before is "
        "untouched; resume=true continues from the newest checkpoint"
    )


def memory_figures(recipe: TrainRecipe, arguments: list[str]) -> str:
    """Return what `limner plan` computes of the memory of a run, as far as memory allows."""
    command = f"`limner plan {shlex.join(arguments)}`"
    try:
        from train.memory import in_gib, memory_planned, outlined

        processes = int(os.environ.get("WORLD_SIZE", "1"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run has printed them
            plan = memory_planned(recipe, outlined(recipe, processes), processes)
    except Exception:  # whatever too little memory, or what changed meanwhile, leads to
        return f"{command} estimates the memory of a run"
    switched = str(not recipe.gradient_checkpointing).lower()
    return (
        f"{command} computes a peak of {in_gib(plan.peak)} on each device: a step takes "
        f"{in_gib(plan.training)}, of which the batch takes {in_gib(plan.activations)} "
        f"({in_gib(plan.other_activations)} with gradient_checkpointing {switched})"
    )


if __name__ == "__main__":
    sys.exit(main())
