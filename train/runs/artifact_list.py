"""The list of a run's artifacts, `artifacts.json`, and the newest of them, `last.*` or `NAME.*`.

Both are written after each checkpoint. The list names the run, and holds the size and SHA-256 of
every file of its artifacts, and the output name if the recipe has one. `last.*` is a link, or a
copy where the disk has no links.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from inference.artifacts import MANIFEST
from inference.files import sync, write_atomically
from train.common import RunDirectoryError
from train.runs.identity import RESULT_HASH, RUN_ID

FORMAT = 1


class ArtifactList:
    """The artifacts that a run has saved."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / MANIFEST

    def read(self) -> dict[str, Any]:
        """Return its content; empty if there is none.

        Raises:
            RunDirectoryError: it is damaged.
        """
        try:
            content = json.loads(self.path.read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, this version knows {FORMAT}")
            files = {
                str(name): {"size": int(one["size"]), "sha256": str(one["sha256"])}
                for name, one in content["files"].items()
            }
        except FileNotFoundError:
            return {}
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise RunDirectoryError(
                f"{self.path}: damaged ({error}); restore it, or delete it: the artifacts are "
                "then not compared with what was written"
            ) from error
        return {**content, "files": files}

    def refuse_other(self, identity: Mapping[str, str]) -> None:
        """Raise RunDirectoryError if it belongs to another run than its folder."""
        content = self.read()
        own = {key: content.get(key) for key in (RUN_ID, RESULT_HASH)}
        if content and identity and own != dict(identity):
            raise RunDirectoryError(
                f"{self.path} belongs to another run ({own[RUN_ID]}) than its folder "
                f"({identity[RUN_ID]}): restore this run's artifacts, or overwrite=true starts over"
            )

    @property
    def output_name(self) -> str | None:
        """Return the name of the run's artifacts; None for `step-000500` and `last`.

        Raises:
            RunDirectoryError: the list is damaged.
        """
        name = self.read().get("output_name")
        return name if isinstance(name, str) else None

    def add(
        self, paths: Iterable[Path], identity: Mapping[str, str], output_name: str | None = None
    ) -> None:
        """List artifacts that were saved; those that were deleted since are dropped."""
        known = self.read().get("files", {})
        files = {name: one for name, one in known.items() if (self.run / name).is_file()}
        for file in (file for path in paths for file in files_of(path)):
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            name = file.relative_to(self.run).as_posix()
            files[name] = {"size": file.stat().st_size, "sha256": digest}
        named = {} if output_name is None else {"output_name": output_name}
        text = json.dumps({"format": FORMAT, **identity, **named, "files": files}, indent=1)
        write_atomically(self.path, lambda path: path.write_text(text, encoding="utf-8"))

    def matches(self, paths: Iterable[Path]) -> bool:
        """Return whether artifacts are what was written, as far as they are listed."""
        known = self.read().get("files", {})
        for path in paths:
            prefix = path.relative_to(self.run).as_posix()
            listed = {n for n in known if n == prefix or n.startswith(f"{prefix}/")}
            for name in listed:
                file, one = self.run / name, known[name]
                if not file.is_file() or file.stat().st_size != one["size"]:
                    return False
                with file.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != one["sha256"]:
                        return False
        return True


def files_of(path: Path) -> list[Path]:
    """Return a file, or all files of a folder; nothing if it does not exist."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []


def point(path: Path, target: Path) -> None:
    """Make a path stand for a file or folder beside it, atomically.

    A symbolic link; without those (exFAT, shared folders, Google Drive) a hard link of each file;
    without either a copy.

    Raises:
        OSError: none of these is possible; what the path stood for before is removed.
    """
    if path.is_dir() and not path.is_symlink() and not target.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    unfinished = path.with_name(f".{path.name}")
    error: OSError | None = None
    for make in (_symbolic, _hard, _copy):
        remove(unfinished)
        try:
            make(unfinished, target)
            if path.is_dir() and not path.is_symlink():  # a folder can only replace an empty one
                remove(path)
            unfinished.replace(path)
            return sync(path.parent)
        except OSError as failed:
            error = failed
    remove(unfinished)
    remove(path)
    assert error is not None
    raise error


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _symbolic(path: Path, target: Path) -> None:
    path.symlink_to(target.name)


def _hard(path: Path, target: Path) -> None:
    _each_file(path, target, os.link)


def _copy(path: Path, target: Path) -> None:
    _each_file(path, target, shutil.copyfile)
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        sync(file)


def _each_file(path: Path, target: Path, make: Callable[[Any, Any], object]) -> None:
    """Make a file, or all files of a folder."""
    if target.is_dir():
        shutil.copytree(target, path, copy_function=make)
    else:
        make(target, path)
