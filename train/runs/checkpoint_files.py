"""The files of a checkpoint, with their sizes and hashes.

`manifest.json` contains the format, the step, every file's size and SHA-256, and the origin of the
run. The former format (1) has no manifest; its files are checked by their own metadata: lengths in
the header of safetensors, the CRC of each part of a zip file.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference.files import read_header
from inference.runtime import InputError

FORMAT = 2
MANIFEST = "manifest.json"
PROGRESS = "progress.json"


class HashedFile:
    """A file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None
        """Why writing failed; torch.save reports only that it did."""

    def write(self, content: Any) -> int:
        """Append bytes, or an object that has them (a memoryview, an array)."""
        view = memoryview(content).cast("B")
        left = view
        try:
            while left.nbytes:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = error
            raise
        self._digest.update(view)
        self.size += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Do nothing: no byte waits in memory."""

    def finish(self) -> None:
        """Make the file durable; it is no longer read from memory."""
        os.fsync(self._file.fileno())
        forget(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    @property
    def facts(self) -> dict[str, Any]:
        """Return its entry in the manifest."""
        return {"size": self.size, "sha256": self._digest.hexdigest()}


class CheckpointWriter:
    """Writes the files of a checkpoint into an empty folder, then their manifest.

    Several processes write into the same folder, each with a writer of its own.
    """

    def __init__(self, folder: Path, *, is_first: bool = True) -> None:
        self.folder = folder
        self.is_first = is_first
        """Whether it is that of the first process, which writes what all processes know."""
        self.files: dict[str, dict[str, Any]] = {}

    @contextmanager
    def file(self, name: str) -> Iterator[HashedFile]:
        """Open a new file to write to.

        Raises:
            OSError: it cannot be written, whatever exception the writing library raises.
        """
        file = HashedFile(self.folder / name)
        try:
            yield file
            file.finish()
        except (OSError, RuntimeError):
            if file.error is not None:
                raise file.error from None
            raise
        finally:
            file.close()
        self.files[name] = file.facts

    def text(self, name: str, content: str) -> None:
        with self.file(name) as file:
            file.write(content.encode())

    def seal(self, step: int, facts: Mapping[str, Any]) -> None:
        """Write the manifest, and read everything back.

        Raises:
            OSError: the files differ from what was written.
        """
        content = {"format": FORMAT, "step": step, "files": dict(self.files), "run": dict(facts)}
        self.text(MANIFEST, json.dumps(content, indent=1))
        found = damage(self.folder, step)
        if found:
            raise OSError(f"what was written is not what is on the disk: {'; '.join(found)}")


def damage(folder: Path, step: int) -> list[str]:
    """Return the damage of the checkpoint of a step, file by file; nothing if it is intact."""
    manifest = folder / MANIFEST
    if not manifest.is_file() and (folder / PROGRESS).is_file():
        return _former_damage(folder)
    try:
        content = json.loads(manifest.read_bytes())
        number, own_step, files = content["format"], content["step"], dict(content["files"])
        expected = {name: (one["size"], one["sha256"]) for name, one in files.items()}
        if not expected:
            raise ValueError("it lists no files")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"{MANIFEST}: cannot be read ({error})"]
    if number != FORMAT:
        return [f"{MANIFEST}: format {number}, this version of Limner knows {FORMAT}"]
    if own_step != step:
        return [f"{MANIFEST}: it belongs to step {own_step}"]
    faults = []
    for name, (size, digest) in expected.items():
        if fault := _fault(folder / name, size, digest):
            faults.append(f"{name}: {fault}")
    return faults


def origin(folder: Path) -> dict[str, Any] | None:
    """Return a checkpoint's data about its run; None if it has no manifest.

    It is intact: see `damage`.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    run = json.loads(manifest.read_bytes()).get("run")
    return run if isinstance(run, dict) else {}


def _fault(path: Path, size: int, digest: str) -> str:
    """Return what is wrong with a file; empty if nothing is."""
    try:
        if (found := path.stat().st_size) != size:
            return f"has {found} bytes, should have {size}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return "its content is not what was written"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def _former_damage(folder: Path) -> list[str]:
    """Return the damage of a checkpoint without a manifest."""
    faults = []
    for name in ("trained.safetensors", "optimizer.pt", PROGRESS, "ema.safetensors"):
        path = folder / name
        if name == "ema.safetensors" and not path.exists():
            continue
        try:
            if name.endswith(".safetensors"):
                _check_length(path)
            elif name == PROGRESS:
                int(json.loads(path.read_bytes())["step"])
            else:
                with zipfile.ZipFile(path) as file:
                    if part := file.testzip():
                        raise ValueError(f"{part} in it is damaged")
        except (OSError, InputError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            faults.append(f"{name}: cannot be read ({error})")
    return faults


def _check_length(path: Path) -> None:
    """Raise ValueError unless a safetensors file has the length in its header."""
    header = read_header(path)
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    with path.open("rb") as file:
        length = 8 + int.from_bytes(file.read(8), "little") + max(ends, default=0)
    if (found := path.stat().st_size) != length:
        raise ValueError(f"it has {found} bytes, should have {length}")


def forget(descriptor: int) -> None:
    """Drop a file from the page cache, if the system can, so that it is read from the disk."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
