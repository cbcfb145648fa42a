"""The preview grids of a run: before training, and with the weights of a step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from inference.config import ImageConfig
from inference.models import DiffusionModel
from inference.runtime import Stopped, StopSignals
from train.config import TrainRecipe
from train.data import Examples
from train.families import training_of
from train.monitoring.clip_previews import ClipGrid
from train.monitoring.previews import PromptGrid, Shown, reconstruction_grid
from train.monitoring.run import Run
from train.optimization import Optimization

Result = TypeVar("Result")


def build_grid(
    recipe: TrainRecipe, base: DiffusionModel, images: dict[str, ImageConfig], folder: Path
) -> PromptGrid | ClipGrid:
    """Return the generator of previews.

    Raises:
        InputError: a video model cannot generate one of the clips.
    """
    config = recipe.sampling
    if training_of(base).examples == "clips":
        clips = [clip for clip in config.clips.values() if clip is not None]
        return ClipGrid(base, clips, folder, recipe.image_condition.latent_scale)
    return PromptGrid(base, images, config.batch_size, folder)


class Previews:
    """Saves preview grids in the run's folder and in TensorBoard.

    For the first process only; if the processes hold shares of the weights, all of them draw
    together, and the first one saves.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        images: dict[str, ImageConfig],
        optimization: Optimization,
        run: Run,
    ) -> None:
        """Prepare the requests.

        Args:
            recipe: the run's.
            images: the requests, by name.
            optimization: provides the weights.
            run: shows the grids.

        Raises:
            InputError: a video model cannot generate one of the clips.
        """
        self.base = optimization.objective.base
        self.weights = optimization.weights
        self.saves = optimization.accelerator.is_main_process
        self.run = run
        self.grid = build_grid(recipe, self.base, images, run.folder.samples)
        self.draws_prompts = recipe.objective.learns_from_captions
        """Otherwise, with an autoencoder, the grid shows reconstructions."""

    def keep_base_row(self) -> None:
        """Generate the row of the base model; call it before the first step."""
        if self.draws_prompts:
            folder = self.run.folder
            with folder.saving(folder.samples, (OSError,)), self.weights.of_base():
                draw = self.grid.keep_base_row if self.saves else self.grid.draw
                self.unless_not_finite(draw, "the base model's row")

    def draw(self, step: int, examples: Examples, signals: StopSignals | None = None) -> None:
        """Generate the prompts, or an autoencoder's reconstructions, with the weights as saved.

        A signal ends it early if `signals` are given; the weights of training stand then.
        """
        if self.draws_prompts and not self.grid:
            return
        path, drawn = self.run.folder.grid(step), None
        with (
            self.run.folder.saving(path, (OSError,)),
            self.weights.as_saved_and_drawn(),
            suppress(Stopped),
            signals.at_once() if signals else nullcontext(),
        ):
            drawn = self.unless_not_finite(lambda: self.drawn(path, step, examples), str(path))
        if drawn is None:
            return
        self.run.progress.say(f"drew {path}")
        assert self.run.board is not None
        self.run.board.image("grid", drawn.image, step)
        if drawn.animation is not None:
            self.run.board.animation("clips", drawn.animation, drawn.fps, step)

    def drawn(self, path: Path, step: int, examples: Examples) -> Shown | None:
        """Generate the grid of a step; the first process saves and returns it."""
        if not self.draws_prompts:
            shown = [examples.pixels(i) for i in range(min(8, len(examples)))]
            return reconstruction_grid(self.base, shown, path if self.saves else None)
        if self.saves:
            return self.grid.save(path, step)
        self.grid.draw()
        return None

    def unless_not_finite(self, draw: Callable[[], Result], what: str) -> Result | None:
        """Draw; warn and return None if a value is not finite, since the run can go on without."""
        try:
            return draw()
        except FloatingPointError as error:
            self.run.progress.say(f"warning: {what} was not drawn: {error}")
            return None
