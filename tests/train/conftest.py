"""Tiny pictures, a tiny recipe, and Limner's commands in processes of their own."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from inference.clips.output import write_webp
from inference.recipe.loader import load_recipe
from tests.copies import remember_reading
from tests.inference.models.cogvideox.models import make_video_model, write_video_folder
from train.config.recipe import TrainRecipe
from train.config.schema import train_schema

ROOT = Path(__file__).parents[2]

RECIPE = """
name: run
base_model: {{path: {base}}}
data: {{path: {pictures}}}
optimizer: {{learning_rate: 1.0e-2}}
max_train_steps: 4
train_batch_size: 2
log_every_n_steps: 1
saving: {{save_every_n_steps: 100}}
sampling: {{settings: {{steps: 2}}}}
"""

CLIP_RECIPE = """
name: run
base_model: {{path: {base}}}
data: {{path: {clips}, clips: {{frames: 9, height: 32, width: 32}}}}
loss: {{timestep_sampling: stratified}}
optimizer: {{learning_rate: 1.0e-2}}
max_train_steps: 4
train_batch_size: 2
log_every_n_steps: 1
saving: {{save_every_n_steps: 100}}
sampling: {{clip_settings: {{steps: 2, frames: 9, height: 16, width: 16}}}}
"""


def with_objective(overrides: tuple[str, ...]) -> list[str]:
    """The overrides, with a LoRA where they name no objective."""
    named = any(override.startswith("objective=") for override in overrides)
    return [*overrides] if named else ["objective={type: lora, rank: 2}", *overrides]


@pytest.fixture(autouse=True)
def no_accelerator_left() -> Iterator[None]:
    """accelerate keeps its state for the whole process; every test begins without."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of 16x16 pixels, each of one colour above another, with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    colours = ["red", "lime", "blue", "cyan", "magenta", "yellow", "black", "white"]
    for number, colour in enumerate(colours):
        image = Image.new("RGB", (16, 16), colour)
        image.paste(colours[number - 3], (0, 8 + number % 4, 16, 16))
        image.paste(colours[number - 5], (0, 0, 5, 5))
        image.save(folder / f"{number}-{colour}.png")
        caption = f"{colour}, number {number}, over {colours[number - 3]}"
        (folder / f"{number}-{colour}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="session")
def recipe_file(
    tiny_base_folder: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Four steps of two pictures on the tiny base model; it lacks an objective."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE.format(base=tiny_base_folder, pictures=pictures))
    return path


@pytest.fixture
def make_recipe(recipe_file: Path, tmp_path: Path) -> Callable[..., TrainRecipe]:
    """The tiny recipe with overrides; its runs go to the test's own folder."""

    def make(*overrides: str) -> TrainRecipe:
        return load_recipe(
            recipe_file, train_schema, [f"output_dir={tmp_path}", *with_objective(overrides)]
        )

    return make


def search_path() -> str:
    """The tree before the folders of PYTHONPATH, where optional libraries may be."""
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([str(ROOT), *filter(None, given.split(os.pathsep))])


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    """Negative: killed by this signal."""
    out: str
    err: str


class Commands:
    """Runs `python -m train` and `python -m inference`, by way of command_server.py."""

    def __init__(self, recipe: Path, base: Path, folder: Path, shared: Path) -> None:
        self.recipe = recipe
        self.base = base
        self.folder = folder
        self.server: subprocess.Popen[bytes] | None = None
        with (shared / "server.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.connect(shared):
                self.start(shared)
                assert self.connect(shared), (shared / "server.err").read_text()

    def start(self, shared: Path) -> None:
        """Start the server of all workers; it lives until this one closes its input."""
        with (
            socket.create_server(("localhost", 0)) as listener,
            (shared / "server.err").open("w") as errors,
        ):
            self.server = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("command_server.py")),
                    str(listener.fileno()),
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": search_path()},
                stdin=subprocess.PIPE,
                stderr=errors,
                pass_fds=[listener.fileno()],
            )
            (shared / "server.port").write_text(str(listener.getsockname()[1]))

    def connect(self, shared: Path) -> bool:
        """Connect to the server of all workers; return whether it is there."""
        port = shared / "server.port"
        try:
            self.connection = socket.create_connection(("localhost", int(port.read_text())))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        self.lines = self.connection.makefile("rw")
        worker = {"environment": dict(os.environ), "base": str(self.base)}
        try:
            print(json.dumps(worker), file=self.lines, flush=True)
            is_ready = self.lines.readline() == "ready\n"
        except ConnectionError:
            is_ready = False
        if not is_ready:  # it was about to end
            self.lines.close()
            self.connection.close()
        return is_ready

    def of(self, recipe: Path) -> Commands:
        """The same with another recipe."""
        other = copy(self)
        other.recipe = recipe
        return other

    def train(
        self,
        *overrides: str,
        stop: dict[str, object] | None = None,
        ignored: Sequence[signal.Signals] = (),
    ) -> Done:
        arguments = [str(self.recipe), *with_objective(overrides)]
        return self.run("train", arguments, [{}], stop, ignored)[0]

    def train_on_two(self, *overrides: str, stop: dict[str, object] | None = None) -> list[Done]:
        """On two processes, with the environment that torchrun gives them."""
        return self.train_on(2, *overrides, stop=stop)

    def train_on(
        self, ranks: int, *overrides: str, stop: dict[str, object] | None = None
    ) -> list[Done]:
        """On some processes, with the environment that torchrun gives them."""
        arguments = [str(self.recipe), *with_objective(overrides)]
        return self.run("train", arguments, self.environments(ranks), stop)

    def two_ranks(self) -> list[dict[str, str]]:
        """The environments of two processes."""
        return self.environments(2)

    def environments(self, ranks: int) -> list[dict[str, str]]:
        """The environments of processes; one needs none."""
        if ranks == 1:
            return [{}]
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
        shared |= {"WORLD_SIZE": str(ranks), "ACCELERATE_USE_CPU": "true"}
        shared["LIMNER_HEARTBEAT_SECONDS"] = "1"
        return [{**shared, "RANK": str(one), "LOCAL_RANK": str(one)} for one in range(ranks)]

    def draw(self, recipe: Path, *overrides: str) -> Done:
        return self.run("inference", [str(recipe), *overrides], [{}], None)[0]

    def draw_on_two(self, recipe: Path, *overrides: str) -> list[Done]:
        return self.run("inference", [str(recipe), *overrides], self.environments(2), None)

    def run(
        self,
        module: str,
        arguments: list[str],
        environments: list[dict[str, str]],
        stop: dict[str, object] | None,
        ignored: Sequence[signal.Signals] = (),
    ) -> list[Done]:
        request = {
            "module": module,
            "arguments": arguments,
            "output": str(self.folder),
            "environments": environments,
            "stop": stop,
            "ignored": list(ignored),
        }
        print(json.dumps(request), file=self.lines, flush=True)
        statuses = json.loads(self.lines.readline())
        return [
            Done(
                status,
                (self.folder / f"{number}.out").read_text(),
                (self.folder / f"{number}.err").read_text(),
            )
            for number, status in enumerate(statuses)
        ]

    def close(self) -> None:
        self.lines.close()
        self.connection.close()
        if self.server is not None:
            assert self.server.stdin
            self.server.stdin.close()
            self.server.wait()


@pytest.fixture(scope="session")
def commands(
    recipe_file: Path, tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Commands]:
    """The commands, quickly."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    commands = Commands(recipe_file, tiny_base_folder, tmp_path_factory.mktemp("commands"), shared)
    yield commands
    commands.close()


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def signals(*names: str) -> dict[str, object]:
    """What a `stop` does: the process gets these signals, one after the other."""
    return {"signals": [int(signal.Signals[name]) for name in names]}


def happens(
    function: str, call: int, what: Mapping[str, object], after: bool = False, rank: int = 0
) -> dict[str, object]:
    """A `stop` of command_server.py."""
    place = {"function": function, "call": call, "after": after, "rank": rank}
    return {**place, "what": what, "alone": False}


@pytest.fixture(scope="session")
def stop_at() -> Callable[..., dict[str, object]]:
    """`stop_at("train.trainer:Trainer.save", 2, "KILL")` is a signal in its second call."""

    def stop(
        function: str, call: int, name: str, after: bool = False, delay: float = 0, rank: int = 0
    ) -> dict[str, object]:
        return happens(function, call, {**signals(f"SIG{name}"), "delay": delay}, after, rank)

    return stop


@pytest.fixture(scope="session")
def disk_full_at() -> Callable[..., dict[str, object]]:
    """`disk_full_at("train.trainer:Trainer.save", 2)`: from its second call on writing fails."""

    def stop(function: str, call: int, file_size: int = 1000) -> dict[str, object]:
        return happens(function, call, {"file_size": file_size})

    return stop


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of 32x32 and 12 or, two of them, 17 frames: a square goes its way; captions."""
    folder = tmp_path_factory.mktemp("clips")
    ways = {"left": (0, -2), "right": (0, 2), "up": (-2, 0), "down": (2, 0)}
    for number, colour in enumerate(("red", "lime")):
        for way, (dy, dx) in ways.items():
            count = 17 if way == "down" else 12
            frames = np.full((count, 32, 32, 3), 40 * number, np.uint8)
            for time, frame in enumerate(frames):
                top, left = (4 + 12 * (d < 0) * 2 + d * time for d in (dy, dx))
                square = frame[max(top, 0) : top + 8, max(left, 0) : left + 8]
                square[:] = ImageColor.getrgb(colour)
            write_webp(folder / f"{colour}-{way}.webp", frames, 8, "")
            (folder / f"{colour}-{way}.txt").write_text(f"{colour}, {way}")
    return folder


@pytest.fixture(scope="session")
def clip_recipe_file(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of two clips on a tiny 5B-like model; it lacks an objective."""
    folder = tmp_path_factory.mktemp("clip_recipe")
    model = make_video_model()
    base = write_video_folder(model, folder / "tiny-video")
    remember_reading(base, *(type(part) for part in model.parts.values()), type(model.tokenizer))
    path = folder / "clips.yaml"
    path.write_text(CLIP_RECIPE.format(base=base, clips=clips))
    return path


@pytest.fixture(scope="session")
def image_to_video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like CogVideoX 1.5's for a picture as the beginning: its latents are padded."""
    return write_video_folder(make_video_model("1.5_i2v"), tmp_path_factory.mktemp("tiny_i2v"))


@pytest.fixture
def make_clip_recipe(clip_recipe_file: Path, tmp_path: Path) -> Callable[..., TrainRecipe]:
    """The tiny recipe of clips with overrides; its runs go to the test's own folder."""

    def make(*overrides: str) -> TrainRecipe:
        return load_recipe(
            clip_recipe_file, train_schema, [f"output_dir={tmp_path}", *with_objective(overrides)]
        )

    return make


@pytest.fixture(scope="session")
def clip_commands(commands: Commands, clip_recipe_file: Path) -> Commands:
    """The commands with the recipe of clips."""
    return commands.of(clip_recipe_file)
