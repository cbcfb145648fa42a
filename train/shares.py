"""The part of each process in drawing, encoding and measuring: all that is not a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.parallel import Layout
from train.common import Share

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.config import TrainRecipe

PARTIAL_WEIGHTS = ("fsdp", "zero3")
"""Strategies with which a process holds a part of the weights, and gathers the rest to use them."""


def draws_apart(recipe: TrainRecipe, layout: Layout) -> bool:
    """Return whether each process can run the model by itself, besides training's steps.

    It cannot if it has only a part of the weights, or of a clip's frames: then the processes that
    have the other parts must run the same forward passes together.
    """
    return layout.context == 1 and recipe.parallel.strategy not in PARTIAL_WEIGHTS


def share_of(recipe: TrainRecipe, accelerator: Accelerator, *, runs_denoiser: bool = True) -> Share:
    """Return the part of this process in work that the run's processes divide.

    With parts of the weights all processes do all of it together; with parts of the frames those
    along context do.

    Args:
        recipe: the run's.
        accelerator: of this process.
        runs_denoiser: whether the work runs it; text encoders that are not trained and the VAE are
            whole in each process with FSDP2.
    """
    processes, context = accelerator.num_processes, recipe.parallel.context
    layout = Layout(accelerator.process_index, processes, context)
    is_whole = recipe.parallel.strategy == "fsdp" and not runs_denoiser
    if recipe.parallel.strategy in PARTIAL_WEIGHTS and not is_whole:
        return Share(accelerator)
    return Share(accelerator, layout.data_rank, layout.data_size)
