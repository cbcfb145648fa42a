"""Runs Limner's commands in new processes that have the libraries already.

Importing them takes ten times as long as a tiny run. So this script imports them once, for all of
pytest's workers. Its argument is the descriptor of a listening socket. For each connection it forks
a process, which takes the environment of a worker and reads the worker's base model once:

    {"environment": {...}, "base": folder}

It answers `ready`, and then forks a process for every request (a line of JSON):

    {"module": "train", "arguments": [...], "output": folder, "environments": [{...}, ...],
     "ignored": [2, ...],
     "stop": null or {"function": "module:Class.name", "call": 3, "after": false, "rank": 0,
                      "what": {"signals": [9]}, "alone": false}}

There is a process for each of the environments, with its number in place of `{number}` in the
arguments; what they print goes to `output`/NUMBER.out and .err. Each inherits the signals of
`ignored` as ignored, as background jobs and those of `nohup` do; SIGHUP, SIGINT and SIGTERM
otherwise have their defaults. With `stop` something happens to the one of that rank, from within,
in the named function's call of that number:

    {"signals": [9, ...], "delay": 0.0}  it gets the signals, maybe so many seconds later
    {"file_size": 1000}  no file can grow beyond so many bytes any more, as on a disk that is full
    {"descriptors": 40}  no more files can be open at once
    {"error": "text"}    the function raises a RuntimeError
    {"run": "code"}      it executes Python code
    {"poor_disk": true}  the disk has no links, no locks, and flushes no folders
    {"nan": 2}           what this call and the next one return is no number any more

Where one is killed the others are, as launchers do; with `alone` they have SECONDS_ALONE. Answers
with a line: the list of their exit statuses, negative for signals.
"""

import atexit
import errno
import faulthandler
import fcntl
import functools
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import select
import shutil
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

from scripts.kill_sweep import PRELOADED

SECONDS_TO_LIVE = 200
SECONDS_ALONE = 30
"""For processes to find out that another one is gone, and to end."""


def prepare() -> None:
    """Imports what the commands will import."""
    from inference.runtime.warnings import quiet_libraries

    quiet_libraries()
    for name in PRELOADED:
        importlib.import_module(name)
    from PIL import Image

    Image.init()


def read_base(base: str) -> None:
    """Has the libraries fill their own caches; commands copy what is read here."""
    from inference.config.models import BaseModelConfig
    from inference.models.stable_diffusion.loading import load_base_model
    from tests.copies import remember_reading  # imports torch, for which `prepare` sets variables

    loaded = load_base_model(BaseModelConfig(path=base))
    remember_reading(
        Path(base), *(type(part) for part in (*loaded.parts.values(), loaded.tokenizer))
    )
    load_base_model(BaseModelConfig(path=base))
    gc.collect()
    gc.freeze()  # or every collection of a child would walk, and copy, all of the libraries


def arm(function: str, call: int, after: bool, what: dict[str, Any]) -> None:
    """Has something happen to this process before or after a certain call of a function."""
    owner_name, _, name = function.rpartition("." if "." in function.split(":")[1] else ":")
    owner = pkgutil.resolve_name(owner_name)
    original = getattr(owner, name)
    calls = 0

    @functools.wraps(original)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            strike(what)
        try:
            result = original(*arguments, **options)
        finally:  # also where there was nothing to delete
            if calls == call and after:
                strike(what)
        if call <= calls < call + what.get("nan", 0):
            result = result * float("nan")
        return result

    setattr(owner, name, wrapped)


def strike(what: dict[str, Any]) -> None:
    """What happens to this process, see above."""
    if "error" in what:
        raise RuntimeError(what["error"])
    if "run" in what:
        exec(what["run"], {"os": os, "shutil": shutil})
    if "poor_disk" in what:
        make_disk_poor()
    if "file_size" in what:
        resource.setrlimit(resource.RLIMIT_FSIZE, (what["file_size"], resource.RLIM_INFINITY))
    if "descriptors" in what:
        resource.setrlimit(resource.RLIMIT_NOFILE, (what["descriptors"], what["descriptors"]))
    for number in what.get("signals", ()):
        if what.get("delay"):
            threading.Timer(what["delay"], os.kill, (os.getpid(), number)).start()
        else:
            signal.raise_signal(number)  # Python's handler has run when this returns


def make_disk_poor() -> None:
    """Has this process see a disk like exFAT, Google Drive in Colab, or a shared folder."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    flush = os.fsync

    def flush_file(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(descriptor)

    os.symlink = os.link = fcntl.flock = refuse  # pyright: ignore[reportAttributeAccessIssue]
    os.fsync = flush_file  # pyright: ignore[reportAttributeAccessIssue]


def inherit_signals(ignored: list[int]) -> None:
    """Has the signals stand as if this process had been started so, whatever its parent has."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def become(request: dict[str, Any], number: int) -> None:
    """What a forked process does; it never returns.

    It ends without taking the libraries down, which copies every page that it shares with the
    server and takes as long as a tiny run.
    """
    inherit_signals(request["ignored"])
    os.environ |= request["environments"][number]
    for descriptor, end in ((1, "out"), (2, "err")):
        path = Path(request["output"]) / f"{number}.{end}"
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    faulthandler.dump_traceback_later(SECONDS_TO_LIVE, exit=True)  # says where it hangs
    stop = request["stop"]
    if stop and number == stop["rank"]:
        arm(stop["function"], stop["call"], stop["after"], stop["what"])
    arguments = (one.replace("{number}", str(number)) for one in request["arguments"])
    sys.argv = [request["module"], *arguments]
    status: object = None
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def main() -> None:
    """Serve all connections until the standard input is closed and the last one has ended."""
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        before = dict(os.environ)
        prepare()
        quiet = {name: value for name, value in os.environ.items() if before.get(name) != value}
        while sys.stdin not in (ready := select.select([listener, sys.stdin], [], [])[0]):
            assert ready == [listener]
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                serve(connection, quiet)
            connection.close()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def serve(connection: socket.socket, quiet: dict[str, str]) -> None:
    """What the process of a connection does; it never returns.

    Args:
        connection: to a worker of pytest.
        quiet: the variables with which the libraries were imported.
    """
    with connection, connection.makefile("rw") as lines:
        worker = json.loads(lines.readline())
        os.environ.clear()
        os.environ.update(worker["environment"] | quiet)
        read_base(worker["base"])
        print("ready", file=lines, flush=True)
        for line in lines:
            request = json.loads(line)
            children = []
            for number in range(len(request["environments"])):
                child = os.fork()
                if child == 0:
                    become(request, number)
                children.append(child)
            alone = bool(request["stop"] and request["stop"]["alone"])
            print(json.dumps(await_all(children, alone)), file=lines, flush=True)
    os._exit(0)


def await_all(children: list[int], alone: bool) -> list[int]:
    """The exit statuses of processes, in their order; once one is killed, all are.

    With `alone` they are only when they are still there so long after the first one has ended.
    """
    statuses: dict[int, int] = {}
    deadline = float("inf")
    while len(statuses) < len(children):
        child, status = os.waitpid(-1, os.WNOHANG if alone and statuses else 0)
        if child:
            statuses[child] = os.waitstatus_to_exitcode(status)
            deadline = min(deadline, time.monotonic() + SECONDS_ALONE)
        if time.monotonic() > deadline or (not alone and -signal.SIGKILL in statuses.values()):
            for other in set(children) - set(statuses):
                os.kill(other, signal.SIGKILL)
        if not child:
            time.sleep(0.02)
    return [statuses[child] for child in children]


if __name__ == "__main__":
    main()
