"""Progress of a run: its folder, progress bar and losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.recipe import dump_recipe
from train.config import TrainRecipe
from train.data import class_facts
from train.monitoring.loss_log import LossLog
from train.monitoring.tracking import Board, ProgressBar, StepClock
from train.optimization import layout_of
from train.run_data import Data
from train.runs import Row, RunDirectory
from train.stages import Stage

if TYPE_CHECKING:
    from accelerate import Accelerator


def open_folder(data: Data) -> RunDirectory:
    """Return the folder of a run, which is unused or belongs to this very run.

    Raises:
        RunDirectoryError: it belongs to another run, recipe or images have changed, or it
            cannot be written to.
    """
    recipe = data.recipe
    folder = RunDirectory(data.folder, recipe.saving.output_name)
    text = dump_recipe(recipe)
    folder.open(text, data.facts, recipe.resume, recipe.overwrite, data.rows())
    return folder


class Run:
    """The folder of a run with its manifests, TensorBoard, the progress bar, and the clock."""

    def __init__(
        self,
        recipe: TrainRecipe,
        folder: RunDirectory,
        accelerator: Accelerator,
        num_timesteps: int,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.data_size = layout_of(recipe, accelerator).data_size
        self.progress = ProgressBar(recipe.max_train_steps, accelerator.is_main_process)
        self.clock = StepClock()
        self.losses = LossLog(accelerator, num_timesteps)
        self.board: Board | None = None
        """Only in the first process, from `open` on."""

    def take_folder(self, data: Data) -> None:
        """Lock the run's folder until `release`; for the main process only.

        Raises:
            RunDirectoryError: another process writes to it.
        """
        recipe = self.recipe
        text = dump_recipe(recipe)
        self.folder.take(text, data.facts, recipe.resume, recipe.overwrite, data.rows())

    def open(
        self, step: int, recipe_yaml: str, facts: dict[str, Any], rows: Iterable[Row] | None
    ) -> None:
        """Write recipe and manifests, and start or continue TensorBoard's curves.

        Args:
            step: completed optimizer steps.
            recipe_yaml: the resolved recipe.
            facts: environment.json's data about the images.
            rows: of all images; None keeps the existing manifest.

        Raises:
            SavingError: they cannot be written.
        """
        self.folder.write_start(recipe_yaml, facts, rows, step)
        self.board = Board(self.folder.logs, step, recipe_yaml, self.progress.say)

    def find_checkpoint(self, data: Data) -> Path | None:
        """Return the newest intact checkpoint, if there is one; warn about damaged ones.

        Another warning names what has changed in the environment.

        Raises:
            RunDirectoryError: all are damaged, one is of another run, the images have changed, or
                the run has taken more steps than the recipe asks for.
        """
        if data.class_folders and self.folder.newest_checkpoint() is not None:
            facts = class_facts(data.class_pictures)
            self.folder.refuse_other_pictures(facts, data.class_rows())
        say = self.progress.say
        self.folder.tell_touched(say)
        found = self.folder.saved.newest_sound(say, self.folder.identity)
        self.folder.refuse_fewer_steps(found, self.recipe.max_train_steps)
        if found is None:
            say(f"nothing is saved in {self.folder.path} yet, so the run starts from the beginning")
        elif changes := self.folder.environment_changes():
            say(
                f"warning: the run continues in another environment ({'; '.join(changes)}), so "
                "that it will not end in the same bytes as without the stop"
            )
        return found

    def tell_of_memory(self, now: str | None) -> None:
        """Report that weights lie elsewhere than before the run was stopped; it does no harm."""
        before = self.folder.recorded("memory")
        if now is not None and before is not None and before != now:
            note = "what is trained does not depend on it"
            self.progress.say(f"memory: {before} became {now}; {note}")

    def log(
        self,
        step: int,
        stage: Stage,
        grad_norm: float,
        rates: Mapping[str, float],
        skips: Mapping[str, int],
    ) -> None:
        """Log mean losses over micro-batches and processes since the last entry, rates, speed.

        Also the number of skipped steps so far, if any.

        Raises:
            SavingError: the run's folder was moved or deleted.
        """
        micro_batches, seconds = len(self.losses), self.clock.take()
        losses = self.losses.take()
        images = micro_batches * stage.recipe.train_batch_size * self.data_size
        if self.board is not None:
            self.folder.check_held()
            scalars = losses | {"gradient_norm": grad_norm}
            scalars["images_per_second"] = images / seconds
            for name in ("skipped", "scaler_skipped"):
                if skips[name]:
                    scalars[f"steps/{name}"] = skips[name]
            scalars |= {f"learning_rate/{part}": rate for part, rate in rates.items()}
            self.board.scalars(scalars, step)
        pace = seconds * stage.recipe.gradient_accumulation_steps / micro_batches
        self.progress.report(step, losses["loss"], pace)

    def close(self) -> None:
        """End TensorBoard."""
        if self.board is not None:
            self.board.close()
