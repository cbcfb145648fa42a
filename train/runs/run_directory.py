"""The folder of a run: the paths in it, and how it is written without loss."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError

from inference.artifacts import companions_of
from inference.files import remove_left_overs, write_atomically
from inference.runtime import is_system_fault
from train.common import RunDirectoryError, SavingError
from train.runs.artifact_list import ArtifactList, point
from train.runs.checkpoint_folder import Checkpoints, Write, step_of
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
from train.runs.environments import ENVIRONMENTS, changes_since, continued, read_environment
from train.runs.identity import (
    BASE_FINGERPRINT,
    RESULT_HASH,
    RUN_ID,
    base_fingerprint,
    new_identity,
)
from train.runs.manifests import describe_environment, processes_of_run
from train.runs.resume_checks import differences, refuse_changes, stored_recipe
from train.runs.run_lock import LOCK, RunLock

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["RunDirectory", "RunDirectoryError", "SavingError", "differences"]

FINGERPRINTS = {
    PICTURE: "dataset_fingerprint",
    CLASS_PICTURE: "class_fingerprint",
    HELD_BACK: "validation_fingerprint",
}
"""Keys of environment.json for each kind of images."""


class RunDirectory:
    """runs/<name>/ with recipe, logs, samples, checkpoints and artifacts."""

    def __init__(self, path: Path, output_name: str | None = None) -> None:
        self.path = path
        self.output_name = output_name
        """Name of the artifacts that are written; None for `step-000500` and `last`."""
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
        self.lock = RunLock(path)
        self.listing = ArtifactList(path)
        self.identity: dict[str, str] = {}
        """The run's id and the hash of what decides its result, from `take` on; empty for a run of
        an earlier version."""
        self.base_print: str | None = None
        """The fingerprint of the base model's weights, from `take` on."""
        self._unlinked: set[Path] = set()
        """Links that could not be made, which was reported."""
        self._checked: object = None
        """The state of the folder that `open` has seen."""

    def checkpoint(self, step: int) -> Path:
        return self.saved.path(step)

    def artifact(self, step: int, suffix: str, member: str = "") -> Path:
        """Return artifacts/step-….suffix; each of several objectives has its own folder."""
        return self.artifacts / member / f"{self.output_name or 'step'}-{step:06d}{suffix}"

    def last(self, suffix: str, member: str = "") -> Path:
        """Return the path that stands for the newest artifact."""
        return self.artifacts / member / f"{self.output_name or 'last'}{suffix}"

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
            overwrite: whether to rename an existing run and start over.
            rows: rows of the images, to report how they differ.

        Raises:
            RunDirectoryError: the folder has another run, recipe or images have changed, or nothing
                can be written here.
        """
        check_writable([self.path, *self.folders])
        if processes_of_run() == 1:  # or all processes learn it from the first one, by `take`
            self.lock.refuse_if_held()
        self._checked, self.touched = self._state(), []
        if overwrite:
            return
        if self.is_used and not resume:
            raise RunDirectoryError(
                f"{self.path} contains a run already: resume=true continues it, "
                "another name=… starts a new one, overwrite=true renames it"
            )
        if self.newest_checkpoint() is not None:
            self._refuse_changes(recipe_yaml)
            self.refuse_other_pictures(facts, rows)
        elif self.is_used:
            self._refuse_lost_checkpoints()

    def take(
        self,
        recipe_yaml: str,
        facts: dict[str, Any],
        resume: bool,
        overwrite: bool = False,
        rows: Iterable[Row] = (),
    ) -> None:
        """Lock the folder; put an existing run aside with `overwrite`. For the main process only.

        The arguments are those of `open`, which checks again if another run has written meanwhile.

        Raises:
            RunDirectoryError: another process writes to the folder, or it is not what `open` saw.
        """
        self.base_print = base_fingerprint(yaml.safe_load(recipe_yaml))
        known = facts | {BASE_FINGERPRINT: self.base_print}
        identity = new_identity(recipe_yaml, known, processes_of_run())
        self.lock.take(identity[RUN_ID])
        try:
            if self._state() != self._checked:
                self.open(recipe_yaml, facts, resume, overwrite, rows)
            if overwrite and self.is_used:
                self._put_aside_locked(identity[RUN_ID])
            elif self.newest_checkpoint() is not None:
                identity = self._stored_identity()
        except BaseException:
            self.release()
            raise
        self.identity = identity

    def check_held(self) -> None:
        """Raise SavingError if the folder that this object has locked is another one now."""
        if self.lock.token and not self.lock.is_held:
            raise SavingError(
                f"{self.path} was moved or deleted while this run was writing to it, or its "
                f"{LOCK} was: the run ends here. Where the folder is now, resume=true continues "
                "from its newest checkpoint"
            )

    def release(self) -> None:
        """Unlock the folder, if this object has locked it."""
        self.lock.release()

    @property
    def is_used(self) -> bool:
        """Return whether a run has saved something here."""
        saved = (path for path in self.artifacts.glob("*") if not path.name.startswith("."))
        is_listed = self.listing.path.is_file()
        return is_listed or self.newest_checkpoint() is not None or next(saved, None) is not None

    def _state(self) -> object:
        """Return what changes whenever another run writes here."""
        files = (self.recipe, self.environment)
        times = [file.stat().st_mtime_ns if file.is_file() else None for file in files]
        return self.newest_checkpoint(), self.is_used, times

    def _stored_identity(self) -> dict[str, str]:
        """Return the identity of the run in the folder; empty for one of an earlier version.

        Raises:
            RunDirectoryError: its base model has other weights now.
        """
        known = read_environment(self.environment)
        before = known.get(BASE_FINGERPRINT)
        if before and self.base_print and before != self.base_print:
            raise RunDirectoryError(
                f"{self.path} cannot be resumed: the base model's weights are not those that the "
                "run began with (base_model.path). Restore them, or give another name=…"
            )
        identity = {key: str(known[key]) for key in (RUN_ID, RESULT_HASH) if key in known}
        self.listing.refuse_other(identity)
        return identity

    def _refuse_lost_checkpoints(self) -> None:
        """Raise RunDirectoryError unless the run was cut in its first saving.

        Artifacts are written before the checkpoint, and listed after it.
        """
        was_cut = self.environment.is_file() and not self.listing.path.is_file()
        if not (was_cut and RUN_ID in read_environment(self.environment)):
            raise RunDirectoryError(
                f"{self.path} lists or has artifacts, but no checkpoint to continue from: restore "
                f"{self.checkpoints.name}/, or overwrite=true starts over and renames this run"
            )

    def refuse_fewer_steps(self, checkpoint: Path | None, steps: int) -> None:
        """Raise RunDirectoryError if a checkpoint to continue from is beyond the last step."""
        taken = step_of(checkpoint) if checkpoint is not None else None
        if taken is not None and taken > steps:
            raise RunDirectoryError(
                f"{self.path} has taken {taken} steps already, and max_train_steps is {steps}: "
                f"give at least max_train_steps={taken}, or another name=…"
            )

    def _put_aside_locked(self, run: str) -> None:
        """Put the run aside, and lock the folder again for another run.

        Raises:
            RunDirectoryError: it cannot be renamed, or another process was faster.
        """
        try:
            self.put_aside()
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path} cannot be renamed ({error.strerror}), as overwrite=true asks for: "
                "give another name=…"
            ) from error
        self.lock.take(run)

    def put_aside(self) -> Path:
        """Rename the folder to the first free one of NAME.1, NAME.2, …; return the new path."""
        places = (self.path.with_name(f"{self.path.name}.{n}") for n in itertools.count(1))
        free = next(place for place in places if not place.exists())
        moved = self.path.rename(free)
        (moved / LOCK).unlink(missing_ok=True)
        return moved

    def _refuse_changes(self, recipe_yaml: str) -> None:
        now = yaml.safe_load(recipe_yaml)
        refuse_changes(
            self.path,
            stored_recipe(self.recipe),
            now,
            read_environment(self.environment),
            lambda: base_fingerprint(now),
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
        stored = read_environment(self.environment)
        before = facts | stored
        kinds = [kind for kind, key in FINGERPRINTS.items() if key in facts]
        compared = {*kinds, HELD_BACK} if PICTURE in kinds else {*kinds}
        # Equal fingerprints: the same names in their folders, sizes and captions, in this order.
        prints = [FINGERPRINTS[kind] for kind in kinds]
        may_move = all(stored.get(key) == facts[key] for key in prints)
        found = data_changes(self.data, compared, rows, may_move)
        self.touched += found.touched
        lines = found.lines()
        for kind in kinds:
            is_other = before[FINGERPRINTS[kind]] != facts[FINGERPRINTS[kind]]
            if is_other and not lines and not (found.moved and self._has_concepts()):
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

    def _has_concepts(self) -> bool:
        """Return whether fingerprints of images include their folders, as those of concepts do.

        Their names, sizes and prompts are listed, their settings are in recipe.yaml.
        """
        data = stored_recipe(self.recipe).get("data")
        return isinstance(data, dict) and bool(data.get("concepts"))

    def tell_touched(self, say: Callable[[str], None]) -> None:
        """Warn about files that were written to since the run started, if there are any."""
        if self.touched:
            say(
                f"warning: {len(self.touched)} files were written to since the run began, though "
                f"their sizes are the same: {first(self.touched)}. If pictures in them are others "
                "now, the run ends otherwise than without the stop"
            )

    def write_start(
        self,
        recipe_yaml: str,
        facts: dict[str, Any],
        rows: Iterable[Row] | None = None,
        step: int = 0,
    ) -> None:
        """Create the folders, and write recipe.yaml, environment.json and data.jsonl.gz.

        Args:
            recipe_yaml: the resolved recipe.
            facts: metadata of the images in environment.json.
            rows: rows of all images; if not given, their file is not changed.
            step: completed optimizer steps.

        Raises:
            SavingError: they cannot be written.
        """
        with self.saving(self.path, (OSError,)):
            self._write_start(recipe_yaml, facts, step)
            if rows is not None:
                write_rows(self.data, rows)

    def _write_start(self, recipe_yaml: str, facts: dict[str, Any], step: int) -> None:
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
        holders = self.path, self.artifacts, self.samples, self.path / "class_images"
        for folder in (folder for holder in holders for folder in holder.glob("*/")):
            remove_left_overs(folder)
        for file in (self.recipe, self.environment, self.data, self.listing.path):
            for left_over in self.path.glob(f".{file.name}.*"):
                left_over.unlink()
        write_atomically(self.recipe, lambda path: path.write_text(recipe_yaml, encoding="utf-8"))
        now = describe_environment()
        before = read_environment(self.environment) if step else None
        content = now | facts | self.identity | {ENVIRONMENTS: continued(before, now, step)}
        if self.base_print:
            content[BASE_FINGERPRINT] = self.base_print
        environment = json.dumps(content, indent=1)
        write_atomically(
            self.environment, lambda path: path.write_text(environment, encoding="utf-8")
        )
        if step == 0:
            self.listing.path.unlink(missing_ok=True)

    def write_checkpoint(
        self,
        step: int,
        write: Write,
        keep: int,
        facts: Mapping[str, Any] | None = None,
        together: Accelerator | None = None,
    ) -> Path:
        """Write a checkpoint atomically, then delete the oldest ones.

        Args:
            step: optimizer steps done.
            write: writes its files.
            keep: number of checkpoints to keep.
            facts: metadata of the run in its manifest.
            together: all processes call this, if it is given; see `Checkpoints.write`.

        Raises:
            SavingError: writing failed; earlier saves are intact.
        """
        known = {**(facts or {}), **self.identity}
        with self.saving(self.checkpoint(step)):
            return self.saved.write(step, write, known, keep, together)

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
            SavingError: writing failed, or this run has lost its folder; earlier saves are intact.
        """
        self.check_held()
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

    def point_last(self, artifact: Path, say: Callable[[str], None]) -> Path:
        """Let `last.*` stand for the newest artifact beside it; return its path.

        So for the files that belong to it. A convenience: if it cannot be made, that is reported,
        once.
        """
        stem, _, rest = artifact.name.rpartition("-")
        assert stem == (self.output_name or "step"), artifact
        suffix = rest.lstrip("0123456789")
        last = artifact.with_name(f"{self.output_name or 'last'}{suffix}")
        own_stem = artifact.name.removesuffix(suffix)
        pairs = [(last, artifact)]
        for other in companions_of(artifact):
            ending = other.name.removeprefix(own_stem)
            pairs.append((last.with_name(f"{last.name.removesuffix(suffix)}{ending}"), other))
        for path, target in pairs:
            try:
                point(path, target)
            except OSError as error:
                if path not in self._unlinked:
                    self._unlinked.add(path)
                    say(
                        f"warning: {path} cannot stand for the newest artifact "
                        f"({error.strerror or error}); use {target.name} beside it"
                    )
        return last

    def recorded(self, key: str) -> Any:
        """Return a fact of environment.json; None if the run has recorded none."""
        return read_environment(self.environment).get(key)

    def environment_changes(self) -> list[str]:
        """Return what the result depends on and has changed since the run was last trained."""
        return changes_since(read_environment(self.environment), describe_environment())
