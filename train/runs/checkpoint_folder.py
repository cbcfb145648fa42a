"""The folder of a run's checkpoints, each in a folder named by its step."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from safetensors import SafetensorError

from inference.files import remove_left_overs, sync
from inference.runtime import is_system_fault
from train.common import RunDirectoryError, of_all, of_first
from train.runs.checkpoint_files import MANIFEST, CheckpointWriter, damage, origin
from train.runs.identity import RESULT_HASH, RUN_ID

if TYPE_CHECKING:
    from accelerate import Accelerator

Write = Callable[[CheckpointWriter], None]
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of a run, of which the last ones are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def all(self) -> list[tuple[int, Path]]:
        """Return all checkpoints by step, which has more than six digits from a million on."""
        found = [(step_of(path), path) for path in self.folder.glob("step-*")]
        return sorted((step, path) for step, path in found if step is not None)

    def newest(self) -> Path | None:
        """Return the newest checkpoint, intact or not."""
        return self.all()[-1][1] if self.all() else None

    def newest_sound(
        self, say: Callable[[str], None], identity: Mapping[str, str] | None = None
    ) -> Path | None:
        """Return the newest intact checkpoint; quarantine damaged ones after it, with a warning.

        Args:
            say: shows the warning.
            identity: the run's id and hash, which its checkpoints must name, if it has them.

        Raises:
            RunDirectoryError: there are checkpoints, and all of them are damaged; or one is of
                another run.
        """
        lines: list[str] = []
        damaged: list[Path] = []
        for step, path in reversed(self.all()):
            faults = damage(path, step)
            known = None if faults else origin(path)
            if identity and not faults and known is None:
                faults = [f"{MANIFEST}: is gone"]
            if identity and known is not None and (other := foreign(known, identity)):
                raise RunDirectoryError(
                    f"{path} is a checkpoint of {other}, not of the run in this folder "
                    f"({identity[RUN_ID]}): move it elsewhere to resume this run"
                )
            if not faults:
                for line, folder in zip(lines, damaged, strict=True):
                    say(f"{line}; moved to {quarantine(folder).name}")
                return path
            lines.append(f"damaged checkpoint {path}: {'; '.join(faults)}")
            damaged.append(path)
        if lines:
            raise RunDirectoryError(
                f"{self.folder.parent} has no intact checkpoint to continue from. "
                f"{'. '.join(lines)}. "
                "Restore one of them from a copy; or overwrite=true starts over and renames this "
                "run"
            )
        return None

    def write(
        self,
        step: int,
        write: Write,
        facts: Mapping[str, Any],
        keep: int,
        together: Accelerator | None = None,
    ) -> Path:
        """Write a checkpoint atomically, then delete the oldest ones.

        It is read back from the disk before it counts, and before another one is deleted.

        Args:
            step: optimizer steps done.
            write: writes the files, of several processes those of one.
            facts: metadata of the run in its manifest.
            keep: number of checkpoints to keep.
            together: all processes call this; they write into one folder on one disk. None if the
                first one writes alone.

        Raises:
            OSError: it cannot be written, or reads differently; in all processes.
        """
        if together is None:
            if self._begin(step, facts):
                writer = CheckpointWriter(self._unfinished(step))
                write(writer)
                self._finish(writer, step, facts, keep)
            return self.path(step)
        if of_first_of_all(together, lambda: self._begin(step, facts)):
            writer = CheckpointWriter(self._unfinished(step), is_first=together.is_main_process)
            done = of_all(together, [attempted(lambda: write(writer))])
            if faults := [fault for _, fault in done if fault is not None]:
                raise OSError(faults[0])
            for files in of_all(together, [writer.files]):
                writer.files |= files
            of_first_of_all(together, lambda: self._finish(writer, step, facts, keep))
        return self.path(step)

    def _unfinished(self, step: int) -> Path:
        return self.folder / f".{self.path(step).name}"

    def _begin(self, step: int, facts: Mapping[str, Any]) -> bool:
        """Make an empty folder for a checkpoint; return False if it exists already, intact."""
        target = self.path(step)
        if target.exists():
            own = {key: facts[key] for key in (RUN_ID, RESULT_HASH) if key in facts}
            if not damage(target, step) and not foreign(origin(target) or {}, own):
                return False
            quarantine(target)
        remove_left_overs(self.folder)
        self._unfinished(step).mkdir(parents=True)
        return True

    def _finish(
        self, writer: CheckpointWriter, step: int, facts: Mapping[str, Any], keep: int
    ) -> None:
        """Seal a checkpoint, give it its name, and delete the oldest ones."""
        writer.seal(step, facts)
        sync(writer.folder)
        writer.folder.rename(self.path(step))
        sync(self.folder)
        for _, old in self.all()[:-keep]:
            # Under another name first: a partial folder never looks like a checkpoint.
            gone = old.rename(old.with_name(f".{old.name}"))
            shutil.rmtree(gone)


def attempted(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """Do work; return its result, or why a file could not be written."""
    try:
        return work(), None
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_system_fault(error):
            raise
        return None, str(error)


def of_first_of_all(together: Accelerator, work: Callable[[], T]) -> T:
    """Return the result of the first process to all.

    Raises:
        OSError: it could not write; in all processes.
    """
    result, fault = of_first(together, lambda: attempted(work))
    if fault is not None:
        raise OSError(fault)
    return cast("T", result)


def foreign(known: Mapping[str, Any], identity: Mapping[str, str]) -> str:
    """Return what other run a checkpoint's manifest names; empty if it is this one."""
    if known.get(RUN_ID) != identity.get(RUN_ID):
        return f"another run ({known.get(RUN_ID, 'which it does not name')})"
    if known.get(RESULT_HASH) != identity.get(RESULT_HASH):
        return "another recipe, other data or another base model"
    return ""


def step_of(path: Path) -> int | None:
    """Return the step of a checkpoint's folder; None for another folder."""
    found = re.fullmatch(r"step-(\d+)", path.name)
    return int(found[1]) if found else None


def quarantine(path: Path) -> Path:
    """Rename a folder to damaged-NAME, or the first free damaged-NAME.1, …; return the new path."""
    places = (f"damaged-{path.name}" + (f".{n}" if n else "") for n in itertools.count())
    free = next(place for name in places if not (place := path.with_name(name)).exists())
    return path.rename(free)
