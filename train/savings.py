"""What a run writes to go on with and to draw with: checkpoints and artifacts."""

from collections.abc import Callable, Mapping
from pathlib import Path

from inference.base_model import DTYPES
from train.checkpoints import TrainingState
from train.config import TrainRecipe
from train.metadata import run_metadata
from train.objectives.base import Member
from train.run_directory import RunDirectory
from train.shown_weights import ShownWeights


class Savings:
    """Saves the state of a run, and each member's artifact; for the first process only."""

    def __init__(
        self,
        recipe: TrainRecipe,
        run: RunDirectory,
        members: Mapping[str, Member],
        weights: ShownWeights,
        state: TrainingState,
        say: Callable[[str], None],
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.members = members
        self.weights = weights
        self.state = state
        self.say = say

    def checkpoint(self, step: int) -> None:
        """The state to resume from; the oldest ones go."""
        keep = self.recipe.saving.keep_last_n_checkpoints
        self.run.write_checkpoint(step, lambda folder: self.state.write(folder, step), keep)

    def artifacts(self, step: int, pictures: int, class_pictures: int) -> None:
        """Each member's to a file of its own; it tells how many pictures it was learned from."""
        for path, member in zip(self.paths(step), self.members.values(), strict=True):
            path.parent.mkdir(exist_ok=True)
            metadata = run_metadata(member.recipe, step, pictures, class_pictures)
            with self.run.saving(path), self.weights.as_saved():
                artifact = member.objective.artifact()
                artifact.save(path, DTYPES[self.recipe.saving.save_precision], metadata)
            self.run.point_last(path)
            self.say(f"saved {path}")

    def paths(self, step: int) -> list[Path]:
        """Where the members' artifacts of a step lie."""
        return [
            self.run.artifact(step, member.objective.artifact().suffix, name)
            for name, member in self.members.items()
        ]

    def last(self) -> Path:
        """The newest artifact, or the folder of several."""
        first, *others = self.paths(0)
        return self.run.artifacts if others else first.with_name(f"last{first.suffix}")
