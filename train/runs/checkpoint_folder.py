"""The folder of a run's checkpoints, each in a folder named by its step."""

import itertools
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inference.files import remove_left_overs, sync
from train.common import RunDirectoryError
from train.runs.checkpoint_files import MANIFEST, CheckpointWriter, damage, origin
from train.runs.identity import RESULT_HASH, RUN_ID

Write = Callable[[CheckpointWriter], None]


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

    def write(self, step: int, write: Write, facts: Mapping[str, Any], keep: int) -> Path:
        """Write a checkpoint atomically, then delete the oldest ones.

        It is read back from the disk before it counts, and before another one is deleted.

        Raises:
            OSError: it cannot be written, or reads differently.
        """
        target = self.path(step)
        if target.exists():
            own = {key: facts[key] for key in (RUN_ID, RESULT_HASH) if key in facts}
            if not damage(target, step) and not foreign(origin(target) or {}, own):
                return target
            quarantine(target)
        remove_left_overs(self.folder)
        unfinished = self.folder / f".{target.name}"
        unfinished.mkdir(parents=True)
        writer = CheckpointWriter(unfinished)
        write(writer)
        writer.seal(step, facts)
        sync(unfinished)
        unfinished.rename(target)
        sync(self.folder)
        for _, old in self.all()[:-keep]:
            # Under another name first: a partial folder never looks like a checkpoint.
            gone = old.rename(old.with_name(f".{old.name}"))
            shutil.rmtree(gone)
        return target


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
