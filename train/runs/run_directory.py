"""The folder of a run: the paths in it, and how it is written without loss."""

import itertools
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from inference.artifacts import twin_of
from inference.files import remove_left_overs, sync, write_atomically
from inference.recipe import RecipeWarning, dump_recipe, load_recipe
from inference.runtime import InputError, is_system_fault
from train.common import RunDirectoryError, SavingError
from train.config import train_schema
from train.runs.checkpoint_folder import Checkpoints, Write
from train.runs.data_manifest import (
    CLASS_PICTURE,
    HELD_BACK,
    PICTURE,
    Row,
    data_changes,
    first,
    write_rows,
)
from train.runs.disk import check_writable, existing
from train.runs.manifests import describe_environment

__all__ = ["RunDirectory", "RunDirectoryError", "SavingError", "differences"]

SAFE_TO_CHANGE = (
    "max_train_steps",
    "saving",
    "sampling",
    "guards",
    "log_every_n_steps",
    "validation.every_n_steps",
    "data.num_workers",
    "data.streaming.disk_gib",
    "data.streaming.folder",
    "output_dir",
    "resume",
    "overwrite",
    "plugins",
)
"""Keys that may change when a run is resumed."""


FINGERPRINTS = {
    PICTURE: "dataset_fingerprint",
    CLASS_PICTURE: "class_fingerprint",
    HELD_BACK: "validation_fingerprint",
}
"""Keys of environment.json for each kind of images."""


class RunDirectory:
    """runs/<name>/ with recipe, logs, samples, checkpoints and artifacts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.data = path / "data.jsonl.gz"
        self.logs = path / "logs"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.artifacts = path / "artifacts"
        self.folders = self.logs, self.samples, self.checkpoints, self.artifacts
        self.touched: list[str] = []
        """Images that were written to since the run started, though their sizes are the same."""
        self.saved = Checkpoints(self.checkpoints)

    def checkpoint(self, step: int) -> Path:
        return self.saved.path(step)

    def artifact(self, step: int, suffix: str, member: str = "") -> Path:
        """Return artifacts/step-….suffix; each of several objectives has its own folder."""
        return self.artifacts / member / f"step-{step:06d}{suffix}"

    def grid(self, step: int) -> Path:
        return self.samples / f"step-{step:06d}.png"

    def newest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint, intact or not."""
        return self.saved.newest()

    def open(
        self,
        recipe_yaml: str,
        facts: dict[str, Any],
        resume: bool,
        overwrite: bool = False,
        rows: Iterable[Row] = (),
    ) -> None:
        """Check that the folder is free, or contains a run of this recipe to resume.

        Args:
            recipe_yaml: the resolved recipe.
            facts: metadata of the images in environment.json, which must be the same.
            resume: whether to resume the existing run.
            overwrite: whether to rename an existing run and start anew.
            rows: rows of the images, to report how they differ.

        Raises:
            RunDirectoryError: the folder has another run, recipe or images have changed, or nothing
                can be written here.
        """
        check_writable([self.path, *self.folders])
        used = self.newest_checkpoint() or next(self.artifacts.glob("*"), None)
        if overwrite:
            if used and os.environ.get("RANK", "0") == "0":
                self.put_aside()
            return
        if used and not resume:
            raise RunDirectoryError(
                f"{self.path} contains a run already: resume=true continues it, "
                "another name=… starts a new one, overwrite=true renames it"
            )
        if used and self.recipe.is_file():
            self._refuse_changes(recipe_yaml)
            self.refuse_other_pictures(facts, rows)

    def put_aside(self) -> Path:
        """Rename the folder to the first free one of NAME.1, NAME.2, …; return the new path."""
        places = (self.path.with_name(f"{self.path.name}.{n}") for n in itertools.count(1))
        free = next(place for place in places if not place.exists())
        return self.path.rename(free)

    def _refuse_changes(self, recipe_yaml: str) -> None:
        now = yaml.safe_load(recipe_yaml)
        changes = [
            f"{key}: {old!r} became {new!r}"
            for key, old, new in differences(stored_recipe(self.recipe), now)
            if not any(f"{key}.".startswith(f"{safe}.") for safe in SAFE_TO_CHANGE)
        ]
        if changes:
            raise RunDirectoryError(
                f"{self.path} cannot be resumed with another recipe: {'; '.join(changes)}. "
                f"Give it another name=… or the old values; only {', '.join(SAFE_TO_CHANGE)} "
                "may change"
            )

    def refuse_other_pictures(self, facts: dict[str, Any], rows: Iterable[Row] = ()) -> None:
        """Check that the run started with the present images.

        Files that were written to since, about which nothing more is known, are added to `touched`.

        Args:
            facts: the metadata in `sources.facts`, and possibly those of class images.
            rows: rows of these images.

        Raises:
            RunDirectoryError: names, sizes, bytes or captions have changed.
        """
        if not self.environment.is_file():
            return
        before = facts | json.loads(self.environment.read_text(encoding="utf-8"))
        kinds = [kind for kind, key in FINGERPRINTS.items() if key in facts]
        compared = {*kinds, HELD_BACK} if PICTURE in kinds else {*kinds}
        found = data_changes(self.data, compared, rows)
        self.touched += found.touched
        lines = found.lines()
        for kind in kinds:
            if before[FINGERPRINTS[kind]] != facts[FINGERPRINTS[kind]] and not lines:
                what = f"{kind.replace(' ', '_')}s"
                lines.append(
                    f"it started with {before[what]} {kind}s, now there are {facts[what]}; names, "
                    "sizes, captions or metadata differ"
                )
        if lines:
            raise RunDirectoryError(
                f"{self.path} cannot be resumed with other {'s or '.join(kinds)}s or captions:\n  "
                + "\n  ".join(lines)
                + "\nGive it another name=… or the old files"
            )

    def tell_touched(self, say: Callable[[str], None]) -> None:
        """Warn about files that were written to since the run started, if there are any."""
        if self.touched:
            say(
                f"warning: {len(self.touched)} files were written to since the run began, though "
                f"their sizes are the same: {first(self.touched)}. If pictures in them are others "
                "now, the run ends otherwise than without the stop"
            )

    def write_start(
        self, recipe_yaml: str, facts: dict[str, Any], rows: Iterable[Row] | None = None
    ) -> None:
        """Create the folders, and write recipe.yaml, environment.json and data.jsonl.gz.

        Args:
            recipe_yaml: the resolved recipe.
            facts: metadata of the images in environment.json.
            rows: rows of all images; if not given, their file is not changed.

        Raises:
            SavingError: they cannot be written.
        """
        with self.saving(self.path, (OSError,)):
            self._write_start(recipe_yaml, facts)
            if rows is not None:
                write_rows(self.data, rows)

    def _write_start(self, recipe_yaml: str, facts: dict[str, Any]) -> None:
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
        holders = self.path, self.artifacts, self.samples, self.path / "class_images"
        for folder in (folder for holder in holders for folder in holder.glob("*/")):
            remove_left_overs(folder)
        for file in (self.recipe, self.environment, self.data):
            for left_over in self.path.glob(f".{file.name}.*"):
                left_over.unlink()
        write_atomically(self.recipe, lambda path: path.write_text(recipe_yaml, encoding="utf-8"))
        environment = json.dumps(describe_environment() | facts, indent=1)
        write_atomically(
            self.environment, lambda path: path.write_text(environment, encoding="utf-8")
        )

    def write_checkpoint(
        self, step: int, write: Write, keep: int, facts: Mapping[str, Any] | None = None
    ) -> Path:
        """Write a checkpoint atomically, then delete the oldest ones.

        Args:
            step: optimizer steps done.
            write: writes its files.
            keep: number of checkpoints to keep.
            facts: metadata of the run in its manifest.

        Raises:
            SavingError: writing failed; earlier saves are intact.
        """
        with self.saving(self.checkpoint(step)):
            return self.saved.write(step, write, facts or {}, keep)

    @contextmanager
    def saving(
        self,
        target: Path,
        kinds: tuple[type[Exception], ...] = (OSError, RuntimeError, SafetensorError),
    ) -> Iterator[None]:
        """Report what could not be written, how much room there is, and what remains.

        Args:
            target: what is being written.
            kinds: exceptions that count as failed writes.

        Raises:
            SavingError: writing failed; earlier saves are intact.
        """
        try:
            yield
        except kinds as error:
            if is_system_fault(error):  # a process of the data loader was lost meanwhile
                raise
            remove_left_overs(self.checkpoints)
            raise SavingError(self.failure(f"{target} could not be written", str(error))) from error

    def failure(self, what: str, why: str) -> str:
        """Describe a failed save, with the room on the disk and what a run can resume from."""
        newest = self.newest_checkpoint()
        kept = f"; resume=true continues from {newest}" if newest else ""
        room = shutil.disk_usage(existing(self.path)).free / 1e6
        return (
            f"{what}, with {room:.0f} MB free on the disk: {why}. What was saved before is "
            f"untouched{kept}"
        )

    def point_last(self, artifact: Path) -> Path:
        """Link `last.*` to the newest artifact beside it, and so its twin for ComfyUI."""
        last = artifact.with_name(f"last{artifact.suffix}")
        link(last, artifact)
        if twin_of(artifact).exists():
            link(twin_of(last), twin_of(artifact))
        sync(last.parent)
        return last


def link(path: Path, target: Path) -> None:
    """Make a path a link to a file or folder beside it, atomically."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target.name)
    unfinished.replace(path)


def stored_recipe(path: Path) -> Any:
    """Return the values of a run's recipe.yaml, with defaults for keys that are newer than it.

    If Limner no longer accepts it, return it as it was written.
    """
    text = path.read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecipeWarning)
        with suppress(InputError):
            text = dump_recipe(load_recipe(str(path), train_schema, []))
    return yaml.safe_load(text)


def differences(before: Any, after: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Return (key, old, new) of every leaf in which two nested mappings differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = {**before, **after}
        found = []
        for name in names:
            inner = f"{key}.{name}" if key else str(name)
            found += differences(before.get(name), after.get(name), inner)
        return found
    return [] if before == after else [(key, before, after)]
