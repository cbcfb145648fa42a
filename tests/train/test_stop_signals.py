"""Every signal that asks for the end, in every phase of a run: its status, and what is left."""

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.train.conftest import happens
from tests.train.run_tools import Straight, check_the_same, contents

OPTIONS = [
    "max_train_steps=4",
    "saving.save_every_n_steps=2",
    "sampling.sample_every_n_steps=2",
    "sampling.images.one.prompt=red",
    "data.cache=disk",
    "validation={path: {pictures}, every_n_steps: 2, num_timesteps: 1}",
    "stages={first: {steps: 3}, second: {resolution: 8}}",
]
NOTHING = "nothing yet, since no step was taken"
PHASES: dict[str, tuple[str, int, str]] = {
    "loading": ("train.trainer:load_objective", 1, ""),
    "base row": ("train.monitoring.previews:PromptGrid.draw", 1, NOTHING),
    "caches": ("train.data.caching.content_cache:ContentCache.has", 1, NOTHING),
    "caches of captions": ("train.caches:PromptStates.fill", 1, NOTHING),
    "validation before step 1": ("train.monitoring.validation:Validation.fill_in", 1, NOTHING),
    "micro-batch": ("train.trainer:Trainer.forward_backward", 2, "step-000002"),
    "saving": ("train.optimization.training_state:TrainingState.write", 1, "step-000002"),
    "preview": ("train.monitoring.previews:PromptGrid.draw", 2, "step-000002"),
    "second stage": ("train.caches:Caches.fill", 2, "step-000003"),
}
"""Phase -> a function that runs then, in which of its calls, and what is saved."""

NAMES = "INT", "TERM", "HUP", "USR1", "USR2"
QUICK = {
    ("HUP", "preview"),
    ("INT", "loading"),
}


@pytest.fixture(scope="module")
def straight(commands: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The run that no signal stops."""
    folder = tmp_path_factory.mktemp("straight")
    validation = shutil.copytree(pictures, tmp_path_factory.mktemp("validation") / "pictures")
    options = [one.replace("{pictures}", str(validation)) for one in OPTIONS]
    done = commands.train(f"output_dir={folder}", *options)
    assert done.status == 0, done.err
    return Straight(options, contents(folder / "run"))


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        pytest.param(name, phase, marks=() if (name, phase) in QUICK else pytest.mark.slow)
        for name in NAMES
        for phase in PHASES
    ],
)
def test_a_signal_ends_the_run_with_its_number_and_the_state_is_saved(
    name: str,
    phase: str,
    straight: Straight,
    commands: Any,
    stop_at: Callable[..., dict[str, object]],
    tmp_path: Path,
) -> None:
    function, call, saved = PHASES[phase]
    overrides = [f"output_dir={tmp_path}", *straight.overrides]
    done = commands.train(*overrides, stop=stop_at(function, call, name))
    assert done.status == 128 + signal.Signals[f"SIG{name}"], done.err
    assert "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith(f"train: stopped by SIG{name}")
    run = tmp_path / "run"
    if saved == NOTHING:
        assert last.endswith(f"saved {NOTHING}; resume=true continues")
        assert "step 1/4" not in done.err
        assert not list(run.glob("checkpoints/*"))
    elif saved:
        assert last.endswith(f"saved {run / 'checkpoints' / saved}; resume=true continues")
    done = commands.train(*overrides, "resume=true")
    assert done.status == 0, done.err
    check_the_same(run, straight)


WORKERS = "train.data.examples.examples:Examples.__getitems__"


@pytest.mark.parametrize("name", ["TERM", pytest.param("HUP", marks=pytest.mark.slow)])
def test_a_signal_to_all_processes_of_a_job_ends_no_worker(
    name: str, commands: Any, stop_at: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    """Batch systems signal each process; the trainer needs its workers until its step is done."""
    stop = stop_at(WORKERS, 1, name)
    done = commands.train(f"output_dir={tmp_path}", "data.num_workers=2", stop=stop)
    assert done.status == 0, done.err


FAULTS = {
    "a worker that the system kills": (
        (WORKERS, 2, {"signals": [9]}),
        "data.num_workers=2",
        "a process that prepares examples was ended from outside",
    ),
    "eight workers at forty descriptors": (
        ("train.run_data:build_loader", 1, {"descriptors": 40}),
        "data.num_workers=8",
        "data.num_workers: 8 need about 64 open files, and ",
    ),
    "too little memory": (
        (
            "train.trainer:Trainer.forward_backward",
            2,
            {"error": "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"},
        ),
        "gradient_checkpointing=true",
        "the system has not enough memory for 8 bytes more; train_batch_size is 2, "
        "data.resolution the base model's own, gradient_checkpointing true: lower the first two",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lack_of_the_system_is_one_message_with_its_cause(
    fault: str, commands: Any, tmp_path: Path
) -> None:
    place, option, message = FAULTS[fault]
    done = commands.train(f"output_dir={tmp_path}", option, stop=happens(*place))
    assert done.status == (2 if "descriptors" in fault else 1), done.err
    assert done.err.splitlines()[-1].startswith(f"train: {message}"), done.err
    assert "Traceback" not in done.err
    assert "picture" not in done.err.splitlines()[-1]
    if "memory" in fault:
        figures = r"`limner plan .*` computes a peak of [\d.]+ [GM]iB on each device: a step takes "
        assert re.search(figures, done.err.splitlines()[-1])


IMAGES = """
base_model: {{path: {base}}}
settings: {{steps: 1, seed: 1}}
images: {{a: {{prompt: cat}}, b: {{prompt: dog}}}}
batch_size: 1
output_dir: {out}
"""
ANIMATION = """
type: animation
base_model: {{path: {base}}}
settings: {{max_frames: 3, W: 16, H: 16, steps: 1, seed: 1, diffusion_cadence: 1}}
output_dir: {out}
preset: ultrafast
"""
FRAMES = f"*_{'[0-9]' * 9}.png"


@pytest.mark.parametrize(
    "name", ["HUP", *(pytest.param(one, marks=pytest.mark.slow) for one in NAMES if one != "HUP")]
)
def test_a_signal_ends_drawing_and_what_was_saved_is_whole(
    name: str,
    commands: Any,
    stop_at: Callable[..., dict[str, object]],
    tiny_base_folder: Path,
    tmp_path: Path,
) -> None:
    recipe, out = tmp_path / "images.yaml", tmp_path / "out"
    recipe.write_text(IMAGES.format(base=tiny_base_folder, out=out))
    stop = stop_at("inference.images.drawing:draw_batch", 2, name)
    (done,) = commands.run("inference", [str(recipe)], [{}], stop)
    assert done.status == 128 + signal.Signals[f"SIG{name}"], done.err
    assert done.err == f"draw: stopped by SIG{name}; what was saved before is complete\n"
    (picture,) = out.iterdir()
    assert done.out == f"{picture}\n"
    with Image.open(picture) as image:
        image.load()


@pytest.mark.parametrize(
    ("name", "call"),
    [("USR1", 2), pytest.param("KILL", 1, id="killed before its first state")]
    + [pytest.param(one, 2, marks=pytest.mark.slow) for one in NAMES if one != "USR1"],
)
def test_a_signal_ends_an_animation_that_is_resumed(
    name: str,
    call: int,
    commands: Any,
    stop_at: Callable[..., dict[str, object]],
    tiny_base_folder: Path,
    tmp_path: Path,
) -> None:
    recipe, out = tmp_path / "animation.yaml", tmp_path / "out"
    recipe.write_text(ANIMATION.format(base=tiny_base_folder, out=out))
    stop = stop_at("inference.deforum.loop.loop:FeedbackLoop.diffuse", call, name)
    (done,) = commands.run("inference", [str(recipe)], [{}], stop)
    status = -9 if name == "KILL" else 128 + signal.Signals[f"SIG{name}"]
    assert done.status == status, done.err
    assert "Traceback" not in done.err
    assert len([*out.rglob(FRAMES)]) == (0 if name == "KILL" else call)
    done = commands.draw(recipe, "resume=true")
    assert done.status == 0, done.err
    (folder,) = out.iterdir()
    assert len([*folder.glob(FRAMES)]) == 3
