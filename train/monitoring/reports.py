"""What a person is shown of a run: losses and rates, its pace, and grids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from inference.config import ImageConfig
from inference.models import DiffusionModel
from train.config import TrainRecipe
from train.data import Examples
from train.families import training_of
from train.monitoring.clip_previews import ClipGrid
from train.monitoring.loss_log import LossLog
from train.monitoring.previews import PromptGrid, reconstruction_grid
from train.monitoring.tracking import Board, ProgressBar, StepClock
from train.optimization import ShownWeights
from train.runs import RunDirectory
from train.stages import Stage

if TYPE_CHECKING:
    pass


def build_grid(
    recipe: TrainRecipe, base: DiffusionModel, images: dict[str, ImageConfig], folder: Path
) -> PromptGrid | ClipGrid:
    """What is drawn while training.

    Raises:
        InputError: a video model cannot draw one of the clips.
    """
    config = recipe.sampling
    if training_of(base).examples == "clips":
        clips = [clip for clip in config.clips.values() if clip is not None]
        return ClipGrid(base, clips, folder, recipe.image_condition.latent_scale)
    return PromptGrid(base, images, config.batch_size, folder)


class Reports:
    """Fills TensorBoard and the folder of samples, and tells the progress bar."""

    def __init__(
        self,
        recipe: TrainRecipe,
        run: RunDirectory,
        base: DiffusionModel,
        grid: PromptGrid | ClipGrid,
        weights: ShownWeights,
        losses: LossLog,
        progress: ProgressBar,
        clock: StepClock,
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.base = base
        self.grid = grid
        self.weights = weights
        self.losses = losses
        self.progress = progress
        self.clock = clock
        self.board: Board | None = None
        """Only in the first process, from `open` on."""

    def open(self, step: int, recipe_yaml: str) -> None:
        """TensorBoard, and at the beginning of a run the base model's row."""
        self.board = Board(self.run.logs, step, recipe_yaml, self.progress.say)
        if step == 0 and self.draws_prompts:
            with self.run.saving(self.run.samples, (OSError,)), self.weights.of_base():
                self.grid.keep_base_row()

    def log(
        self,
        step: int,
        stage: Stage,
        grad_norm: Tensor,
        processes: int,
        rates: Mapping[str, float],
        skips: Mapping[str, int],
    ) -> None:
        """Mean losses over micro-batches and processes since the last entry, rates, speed.

        Also how many steps were skipped so far, if any.
        """
        micro_batches, seconds = len(self.losses), self.clock.take()
        losses = self.losses.take()
        images = micro_batches * stage.recipe.train_batch_size * processes
        if self.board is not None:
            scalars = losses | {"gradient_norm": float(grad_norm)}
            scalars["images_per_second"] = images / seconds
            for name in ("skipped", "scaler_skipped"):
                if skips[name]:
                    scalars[f"steps/{name}"] = skips[name]
            scalars |= {f"learning_rate/{part}": rate for part, rate in rates.items()}
            self.board.scalars(scalars, step)
        pace = seconds * stage.recipe.gradient_accumulation_steps / micro_batches
        self.progress.report(step, losses["loss"], pace)

    def draw(self, step: int, examples: Examples) -> None:
        """Prompts, or an autoencoder's reconstructions, with the weights as they are saved."""
        if self.draws_prompts and not self.grid:
            return
        path = self.run.grid(step)
        with self.run.saving(path, (OSError,)), self.weights.as_saved_and_drawn():
            if self.draws_prompts:
                drawn = self.grid.save(path, step)
            else:
                shown = [examples.pixels(i) for i in range(min(8, len(examples)))]
                drawn = reconstruction_grid(self.base, shown, path)
        self.progress.say(f"drew {path}")
        assert self.board is not None
        self.board.image("grid", drawn.image, step)
        if drawn.animation is not None:
            self.board.animation("clips", drawn.animation, drawn.fps, step)

    def close(self) -> None:
        """Ends TensorBoard."""
        if self.board is not None:
            self.board.close()

    @property
    def draws_prompts(self) -> bool:
        """Whether the grid shows prompts; an autoencoder's shows reconstructions."""
        return self.recipe.objective.learns_from_captions
