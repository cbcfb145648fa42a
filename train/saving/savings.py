"""Checkpoints and artifacts of a run."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from inference.artifacts import Lora, companions_of, diffusers_note, twin_of
from inference.files import NotFiniteError
from inference.models import DTYPES, config_path
from inference.runtime import limner_version
from train.common import RESERVE, RunDirectoryError, SavingError, of_first
from train.config import TrainRecipe
from train.data import Examples
from train.objectives import Member
from train.optimization import Optimization, state_bytes
from train.run_data import Data
from train.runs import RunDirectory, existing, megabytes, room, size_of
from train.saving.artifact_metadata import ArtifactMetadata

T = TypeVar("T")


class Savings:
    """Saves the state of a run, and each member's artifact.

    For the main process only; if the processes hold shares of the weights, all of them call it
    together, and end in the same way.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        data: Data,
        optimization: Optimization,
        run: RunDirectory,
        say: Callable[[str], None],
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.members = optimization.members
        self.weights = optimization.weights
        self.state = optimization.state
        self.together = optimization.accelerator if optimization.strategy.is_sharded else None
        self.run = run
        self.say = say
        processes = optimization.layout.data_size
        base = optimization.objective.base
        self.metadata = ArtifactMetadata(recipe, data.sources, base, processes)
        self.facts = data.facts | {"limner": limner_version(), "name": recipe.name}
        """A checkpoint manifest's data about the run."""

    def decided(self, decide: Callable[[], T]) -> T:
        """Return what the main process decides, or do its work alone, with its errors."""
        return decide() if self.together is None else of_first(self.together, decide)

    def check_room(self) -> None:
        """Raise RunDirectoryError if the disk has no room for the first save of a run."""
        needed = self.checkpoint_bytes() + self.artifact_bytes()
        if self.decided(lambda: needed > room(self.run.path)):
            raise RunDirectoryError(
                f"{self.run.path}: a saving takes {megabytes(needed)}, and {self._free()}. Make "
                "room on this disk, or give another output_dir=…"
            )

    def save(self, step: int, examples: Examples) -> None:
        """Write artifacts, then the checkpoint: a resumed run lacks no artifact. Then list them.

        If the disk has room for the checkpoint alone, it is written, and the run ends; the run
        writes the artifacts when it is resumed.

        Args:
            step: completed optimizer steps.
            examples: those of the step's stage, which the artifacts describe.

        Raises:
            SavingError: there was no room, or writing failed.
        """
        state, artifacts = self.checkpoint_bytes(), self.artifact_bytes()
        target = self.run.checkpoint(step)
        if self.decided(lambda: target.exists() or state + artifacts <= room(self.run.path)):
            self.artifacts(step, examples)
            self.checkpoint(step)
            self.decided(lambda: self.list_artifacts(step))
            self.tell_of_next(step)
            return
        self.checkpoint(step)
        raise SavingError(
            f"the disk has no room for the artifact of step {step}, {megabytes(artifacts)}: "
            f"{self._free()}. The state of this step is saved: resume=true writes the artifact and "
            "continues, once there is room"
        )

    def checkpoint(self, step: int) -> None:
        """Write the state to resume from; the oldest checkpoints are deleted.

        Raises:
            SavingError: the disk has no room for it, or trained weights are not finite, and nothing
                was written; or writing failed.
        """
        if not self.state.is_trained_finite():
            raise SavingError(
                f"{self.run.checkpoint(step)} was not written, since trained weights are not finite"
                f" (NaN or infinite): a lower learning rate may help{self._kept()}"
            )
        target, needed = self.run.checkpoint(step), self.checkpoint_bytes()
        if self.decided(lambda: needed > room(self.run.path) and not target.exists()):
            what = f"{target} was not written, since the disk has no room for it"
            raise SavingError(
                self.run.failure(what, f"it takes {megabytes(needed)}; {self._free()}")
            )
        keep = self.recipe.saving.keep_last_n_checkpoints
        self.run.write_checkpoint(
            step, lambda writer: self.state.write(writer, step), keep, self.facts, self.together
        )

    def rescue(self, step: int) -> str:
        """Save the state before a faulty step, if it is intact; return a description."""
        if self.state.is_torn:
            newest = self.run.newest_checkpoint()
            remedy = f"resume=true continues from {newest}" if newest else "nothing is saved yet"
            return f"The state before it is gone with these tensors, and was not saved; {remedy}"
        if step == 0 or not self.state.is_finite():
            return (
                "The last checkpoint is untouched; a lower learning rate or mixed_precision=bf16 "
                "may help"
            )
        try:
            self.checkpoint(step)
        except SavingError as error:
            return str(error)
        return (
            f"No weight was changed by it, and the state before it is saved: "
            f"{self.run.checkpoint(step)}. With resume=true guards.non_finite=skip the run goes on "
            "without this step"
        )

    def tell_of_next(self, step: int) -> None:
        """Warn early enough to make room: the old checkpoint is deleted after the new save."""
        needed = self.checkpoint_bytes() + self.artifact_bytes()
        if step < self.recipe.max_train_steps and needed > room(self.run.path):
            self.say(
                f"warning: the next saving takes {megabytes(needed)}, and {self._free()}: make "
                "room, or the run ends there"
            )

    def checkpoint_bytes(self) -> int:
        """Return the size of a checkpoint, rounded up; before the first step an estimate."""
        size, optimizer = self.state.size(), self.state.optimizer
        if optimizer.state_dict()["state"]:
            return size
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        return size + state_bytes(self.recipe.optimizer, trained, self.recipe.memory)

    def artifact_bytes(self) -> int:
        """Return the size of the members' artifacts: that of the last ones, estimated at first."""
        total = 0
        itemsize = DTYPES[self.recipe.saving.save_precision].itemsize
        for name, member in self.members.items():
            last = self.run.last(member.objective.artifact().suffix, name)
            known = size_of(last) + size_of(twin_of(last)) if last.exists() else 0
            total += known or itemsize * sum(p.numel() for p in member.objective.parameters())
        return total

    def _free(self) -> str:
        free = shutil.disk_usage(existing(self.run.path)).free
        return f"{megabytes(free)} are free; {megabytes(RESERVE)} must stay free"

    def artifacts(self, step: int, examples: Examples) -> None:
        """Write each member's artifact to its own file, with its metadata."""
        for path, member in zip(self.paths(step), self.members.values(), strict=True):
            with self.weights.to_save():
                self.decided(partial(self.artifact, path, member, step, examples))
            self.say(f"saved {path}")

    def artifact(self, path: Path, member: Member, step: int, examples: Examples) -> None:
        """Write a member's artifact, with its metadata, from the weights that it has now.

        Raises:
            SavingError: writing failed, or it is not finite in its precision.
        """
        others = len(self.data.class_pictures)
        metadata = self.metadata.of(member.recipe, step, examples, others)
        with self.finite_alone(path), self.run.saving(path):
            path.parent.mkdir(exist_ok=True)
            artifact = member.objective.artifact()
            artifact.save(path, DTYPES[self.recipe.saving.save_precision], metadata)

    def list_artifacts(self, step: int) -> None:
        """Write the artifacts of a step into the list, and let `last.*` stand for them.

        Raises:
            SavingError: the list cannot be written.
        """
        paths = self.paths(step)
        others = [other for path in paths for other in companions_of(path)]
        with self.run.saving(self.run.listing.path, (OSError,)):
            self.run.listing.add([*paths, *others], self.run.identity, self.run.output_name)
        for path in paths:
            self.run.point_last(path, self.say)

    @contextmanager
    def finite_alone(self, path: Path) -> Iterator[None]:
        """Report that an artifact is not finite in its precision.

        Raises:
            SavingError: it is not; earlier saves are intact.
        """
        try:
            yield
        except NotFiniteError as error:
            raise SavingError(f"{path} was not written: {error}{self._kept()}") from error

    def _kept(self) -> str:
        """Return what a run can resume from after a refused saving, as the end of a sentence."""
        newest = self.run.newest_checkpoint()
        kept = f"; resume=true continues from {newest}" if newest else ""
        return f". What was saved before is untouched{kept}"

    def are_made(self, step: int) -> bool:
        """Return whether the artifacts of a step exist, as they were written."""
        paths = self.paths(step)
        return all(path.exists() for path in paths) and self.run.listing.matches(paths)

    def paths(self, step: int) -> list[Path]:
        """Return the paths of the members' artifacts of a step."""
        return [
            self.run.artifact(step, member.objective.artifact().suffix, name)
            for name, member in self.members.items()
        ]

    def notes(self) -> list[str]:
        """Return what other programs need to open the artifacts."""
        found = []
        for name, member in self.members.items():
            artifact = member.objective.artifact()
            if isinstance(artifact, Lora) and (note := diffusers_note(artifact)):
                found.append(note)
            config = config_path(self.run.last(artifact.suffix, name))
            if artifact.suffix.lower() == ".safetensors" and config.is_file():
                found.append(f"A1111 needs {config} beside it, to draw with v-prediction")
        return found

    def last(self, step: int) -> Path:
        """Return the newest artifact, which is that of a step, or the folder of several."""
        first, *others = self.paths(step)
        if others:
            return self.run.artifacts
        (member,) = self.members.values()
        last = self.run.last(member.objective.artifact().suffix)
        return last if last.exists() and last.is_dir() == first.is_dir() else first
