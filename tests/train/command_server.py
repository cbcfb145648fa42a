"""Runs Limner's commands in new processes that have the libraries already.

Importing them takes ten times as long as a tiny run. So this script imports them once, reads the
base model of its argument once, and forks a process for every request on its standard input (a line
of JSON):

    {"module": "train", "arguments": [...], "output": folder, "environments": [{...}, ...],
     "stop": null or {"function": "module:Class.name", "call": 3, "signal": 9, "after": false,
                      "delay": 0.0, "rank": 0, "file_size": null}}

There is a process for each of the environments; what they print goes to `output`/NUMBER.out and
.err. With `stop` the one of that rank gets the signal from within, in the named function's call of
that number, or so many seconds later; or, with `file_size`, from then on no file can grow beyond so
many bytes, as on a disk that is full. Where one is killed the others are, as launchers do. Answers
with a line: the list of their exit statuses, negative for signals.
"""

import faulthandler
import functools
import importlib
import json
import os
import pkgutil
import resource
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

SECONDS_TO_LIVE = 200


def prepare(base: str) -> None:
    """Imports what the commands will import, and has the libraries fill their own caches."""
    from inference.quiet import quiet_libraries

    quiet_libraries()
    for name in (
        "diffusers.models.autoencoders.autoencoder_kl_cogvideox",
        "diffusers.models.transformers.cogvideox_transformer_3d",
        "diffusers.schedulers.scheduling_ddim_cogvideox",
        "diffusers.schedulers.scheduling_dpm_cogvideox",
        "inference.images",
        "inference.video.clips",
        "torch.utils.tensorboard.writer",
        "train.objectives.autoencoder",
        "train.objectives.lora",
        "train.objectives.text_to_image",
        "train.trainer",
        "transformers.models.clip.modeling_clip",
        "transformers.models.clip.tokenization_clip",
        "transformers.models.t5.modeling_t5",
        "transformers.optimization",
    ):
        importlib.import_module(name)
    from PIL import Image

    from inference.base_model_loading import load_base_model
    from inference.config import BaseModelConfig

    Image.init()
    load_base_model(BaseModelConfig(path=base))


def arm(
    function: str,
    call: int,
    signal: int,
    after: bool,
    delay: float,
    rank: int,
    file_size: int | None,
) -> None:
    """Has something happen to this process before or after a certain call of a function."""
    owner_name, _, name = function.rpartition("." if "." in function.split(":")[1] else ":")
    owner = pkgutil.resolve_name(owner_name)
    original = getattr(owner, name)
    calls = 0

    def strike() -> None:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
        elif delay:
            threading.Timer(delay, os.kill, (os.getpid(), signal)).start()
        else:
            os.kill(os.getpid(), signal)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            strike()
        result = original(*arguments, **options)
        if calls == call and after:
            strike()
        return result

    setattr(owner, name, wrapped)


def become(request: dict[str, Any], number: int) -> None:
    """What a forked process does; it never returns."""
    os.environ |= request["environments"][number]
    for descriptor, end in ((1, "out"), (2, "err")):
        path = Path(request["output"]) / f"{number}.{end}"
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    faulthandler.dump_traceback_later(SECONDS_TO_LIVE, exit=True)  # says where it hangs
    if request["stop"] and number == request["stop"]["rank"]:
        arm(**request["stop"])
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    sys.exit(0)


def main() -> None:
    prepare(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for number in range(len(request["environments"])):
            child = os.fork()
            if child == 0:
                become(request, number)
            children.append(child)
        print(json.dumps(await_all(children)), flush=True)


def await_all(children: list[int]) -> list[int]:
    """The exit statuses of processes, in their order; once one is killed, all are."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(children):
        child, status = os.wait()
        statuses[child] = os.waitstatus_to_exitcode(status)
        if statuses[child] == -signal.SIGKILL:
            for other in set(children) - set(statuses):
                os.kill(other, signal.SIGKILL)
    return [statuses[child] for child in children]


if __name__ == "__main__":
    main()
