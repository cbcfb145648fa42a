"""The folder of a run: where everything lies, and how it is written so that nothing is lost."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from inference.artifacts.lora_files import twin_of
from inference.errors import InputError
from inference.files import write_atomically
from train.environment import describe_environment

SAFE_TO_CHANGE = (
    "max_train_steps",
    "saving",
    "sampling",
    "log_every_n_steps",
    "validation.every_n_steps",
    "data.num_workers",
    "output_dir",
    "resume",
    "overwrite",
)
"""Keys that a resumed run may give anew."""


class RunDirectoryError(InputError):
    """The run's folder does not allow what is asked."""


class SavingError(RuntimeError):
    """A checkpoint or artifact could not be written; nothing saved before is lost."""


class RunDirectory:
    """runs/<name>/ with recipe, logs, samples, checkpoints and artifacts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.logs = path / "logs"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.artifacts = path / "artifacts"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def artifact(self, step: int, suffix: str, member: str = "") -> Path:
        """artifacts/step-….suffix; what several objectives learn lies in a folder for each."""
        return self.artifacts / member / f"step-{step:06d}{suffix}"

    def grid(self, step: int) -> Path:
        return self.samples / f"step-{step:06d}.png"

    def newest_checkpoint(self) -> Path | None:
        """The complete checkpoint of the highest step."""
        return (self._all_checkpoints() or [None])[-1]

    def _all_checkpoints(self) -> list[Path]:
        """Sorted by step, which has more than six digits from a million on."""
        return sorted(self.checkpoints.glob("step-*"), key=lambda path: int(path.name[5:]))

    def open(
        self, recipe_yaml: str, facts: dict[str, Any], resume: bool, overwrite: bool = False
    ) -> None:
        """Checks that the folder is free, or holds a run of this recipe to go on with.

        Args:
            recipe_yaml: the resolved recipe.
            facts: what environment.json shall tell of the pictures; they must be the same.
            resume: whether to go on with what is there.
            overwrite: whether to put what is there aside and begin anew.

        Raises:
            RunDirectoryError: another run lies here, or recipe or pictures have changed.
        """
        used = self.newest_checkpoint() or next(self.artifacts.glob("*"), None)
        if overwrite:
            if used and os.environ.get("RANK", "0") == "0":
                self.put_aside()
            return
        if used and not resume:
            raise RunDirectoryError(
                f"{self.path} holds a run already: resume=true goes on with it, "
                "another name=… starts a new one, overwrite=true puts it aside"
            )
        if used and self.recipe.is_file():
            self._refuse_changes(recipe_yaml)
            self.refuse_other_pictures(facts)

    def put_aside(self) -> Path:
        """Renames the folder to the first free one of NAME.1, NAME.2, …; returns the new path."""
        places = (self.path.with_name(f"{self.path.name}.{n}") for n in itertools.count(1))
        free = next(place for place in places if not place.exists())
        return self.path.rename(free)

    def _refuse_changes(self, recipe_yaml: str) -> None:
        before = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        changes = [
            f"{key}: {old!r} became {new!r}"
            for key, old, new in differences(before, yaml.safe_load(recipe_yaml))
            if not any(f"{key}.".startswith(f"{safe}.") for safe in SAFE_TO_CHANGE)
        ]
        if changes:
            raise RunDirectoryError(
                f"{self.path} cannot be resumed with another recipe: {'; '.join(changes)}. "
                f"Give it another name=… or the old values; only {', '.join(SAFE_TO_CHANGE)} "
                "may change"
            )

    def refuse_other_pictures(self, facts: dict[str, Any]) -> None:
        """Checks that the run began with the pictures that there are now.

        Raises:
            RunDirectoryError: names, sizes or captions have changed.
        """
        if not self.environment.is_file():
            return
        before = facts | json.loads(self.environment.read_text(encoding="utf-8"))
        of = ("pictures", "dataset_"), ("class_pictures", "class_")
        for kind, key in (*of, ("validation_pictures", "validation_")):
            key += "fingerprint"
            if key in facts and before[key] != facts[key]:
                words = kind.replace("_", " ")
                raise RunDirectoryError(
                    f"{self.path} cannot be resumed with other {words} or captions: it began with "
                    f"{before[kind]} {words}, now there are {facts[kind]}, and names, "
                    "sizes, captions or what concepts say differ. Give it another name=… or the "
                    "old files"
                )

    def write_start(self, recipe_yaml: str, facts: dict[str, Any]) -> None:
        """Makes the folders, and writes recipe.yaml and environment.json."""
        for folder in (self.logs, self.samples, self.checkpoints, self.artifacts):
            folder.mkdir(parents=True, exist_ok=True)
        holders = self.path, self.artifacts, self.samples, self.path / "class_images"
        for folder in (folder for holder in holders for folder in holder.glob("*/")):
            remove_left_overs(folder)
        write_atomically(self.recipe, lambda path: path.write_text(recipe_yaml, encoding="utf-8"))
        environment = json.dumps(describe_environment() | facts, indent=1)
        write_atomically(
            self.environment, lambda path: path.write_text(environment, encoding="utf-8")
        )

    def write_checkpoint(self, step: int, write: Callable[[Path], None], keep: int) -> Path:
        """Writes a checkpoint folder whole or not at all, then deletes the oldest ones."""
        target = self.checkpoint(step)
        if target.exists():
            return target
        remove_left_overs(self.checkpoints)
        unfinished = self.checkpoints / f".{target.name}"
        with self.saving(target):
            unfinished.mkdir(parents=True)
            write(unfinished)
            for file in unfinished.iterdir():
                sync(file)
            sync(unfinished)
            unfinished.rename(target)
        sync(self.checkpoints)
        for old in self._all_checkpoints()[:-keep]:
            shutil.rmtree(old)
        return target

    @contextmanager
    def saving(self, target: Path) -> Iterator[None]:
        """Tells what could not be written, how much room there is, and what is still there.

        Raises:
            SavingError: writing failed; what was saved before is untouched.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            for left_over in self.checkpoints.glob(".*"):
                shutil.rmtree(left_over)
            newest = self.newest_checkpoint()
            kept = f"; resume=true goes on from {newest}" if newest else ""
            room = shutil.disk_usage(self.path).free / 1e6
            raise SavingError(
                f"{target} could not be written, with {room:.0f} MB free on the disk: {error}. "
                f"What was saved before is untouched{kept}"
            ) from error

    def point_last(self, artifact: Path) -> Path:
        """`last.*` beside the newest artifact becomes a link to it, and so its twin for ComfyUI."""
        last = artifact.with_name(f"last{artifact.suffix}")
        link(last, artifact)
        if twin_of(artifact).exists():
            link(twin_of(last), twin_of(artifact))
        sync(last.parent)
        return last


def link(path: Path, target: Path) -> None:
    """Makes a path a link to a file or folder beside it, at once."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target.name)
    unfinished.replace(path)


def remove_left_overs(folder: Path) -> None:
    """Removes what was being written, under a name with a dot before it, when a run was cut."""
    for left_over in folder.glob(".*"):
        if left_over.is_dir() and not left_over.is_symlink():
            shutil.rmtree(left_over)
        else:
            left_over.unlink()


def sync(path: Path) -> None:
    """Makes a file's or folder's content survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def differences(before: Any, after: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(key, old, new) of every leaf in which two nested mappings differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = {**before, **after}
        found = []
        for name in names:
            inner = f"{key}.{name}" if key else str(name)
            found += differences(before.get(name), after.get(name), inner)
        return found
    return [] if before == after else [(key, before, after)]
