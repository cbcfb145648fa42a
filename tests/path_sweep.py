"""Runs commands with paths that cannot be used, in a process that obeys the rights of files.

    python tests/path_sweep.py < cases.json

Cases are [[name, [command, argument, ...], bytes], ...]: no file can grow beyond so many bytes in a
case, as on a full disk (null: any size). The answer is one line of JSON for each: name, exit status
or the exception's text, standard error, seconds. A case that takes longer than SECONDS, as one that
opens a pipe does, ends the process. Tests often run as root, whom no right stops: before the
process starts, `without_root` takes the capabilities away that make the difference, and `main`
fails where a file of mode 0 can be read anyway.
"""

import ctypes
import faulthandler
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

Case = tuple[str, list[str], int | None]


class Answer(NamedTuple):
    """What a command did."""

    name: str
    status: int | str
    err: str
    seconds: float

    @property
    def is_a_message(self) -> bool:
        """Whether it ended with a message for the user."""
        return self.status in (1, 2) and "Traceback" not in self.err and bool(self.err.strip())


SECONDS = 100
CAPABILITIES = 1, 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
PR_CAPBSET_DROP = 24


def without_root() -> None:
    """Drop the capabilities from those that a program started now can have."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in CAPABILITIES:
            if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "a capability cannot be dropped")


def check_rights() -> None:
    """End where a file that nobody may read can be read."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).chmod(0)
        try:
            Path(file.name).read_bytes()
        except PermissionError:
            return
    sys.exit("a file of mode 0 can be read: nothing is shown about paths without access")


def run(command: str, arguments: list[str]) -> tuple[int | str, str]:
    """Return what a command's main returns or raises, and its standard error."""
    from train.cli import COMMANDS

    err = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(err), warnings.catch_warnings():
            status: int | str = resolve_name(COMMANDS[command].main)(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else str(end.code)
    except BaseException:
        status = traceback.format_exc()
    return status, err.getvalue()


def answers(cases: list[Case], folder: Path) -> Iterator[Answer]:
    """Run cases in a process without rights, from a folder; one that ends it is answered too."""
    while cases:
        done = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps(cases),
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            preexec_fn=without_root,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stdout.splitlines()
        yield from (Answer(*json.loads(line)) for line in lines)
        cases = cases[len(lines) :]
        if cases:  # the process ended in the next one
            yield Answer(cases[0][0], done.returncode, done.stderr, 0)
            cases = cases[1:]


def main() -> None:
    check_rights()
    for name, (command, *arguments), file_size in json.load(sys.stdin):
        start = time.perf_counter()
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        limit = resource.RLIM_INFINITY if file_size is None else file_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        status, err = run(command, arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps([name, status, err, time.perf_counter() - start]), flush=True)
        forget_processes()


def forget_processes() -> None:
    """Let accelerate begin anew in the next case."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


if __name__ == "__main__":
    main()
