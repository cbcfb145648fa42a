"""A run that was stopped anywhere and goes on ends in the same bytes as one that never stopped."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import happens, signals
from tests.train.run_tools import (
    Straight,
    check_killed_run_goes_on,
    check_stopped_run_goes_on,
    check_the_same,
    contents,
    straight_runs,
    with_slow,
)

ROOT = Path(__file__).parents[2]

STEPS = 6
RANDOM = [
    f"max_train_steps={STEPS}",
    "gradient_accumulation_steps=2",
    "saving.save_every_n_steps=2",
    "data={resize: none, resolution: 8, crop: random, flip: 0.5, latent_sampling: random}",
    "data.captions={dropout_rate: 0.3, shuffle_tags: true, tag_dropout_rate: 0.2}",
    "lr_scheduler={type: cosine, warmup_steps: 3}",
    "ema={decay: 0.8}",
    "sampling.sample_every_n_steps=3",
    "sampling.images.one={prompt: red}",
]
OBJECTIVES = {
    "lora": ["objective={type: lora, rank: 2, dropout: 0.2}"],
    "lora 8 bit": ["objective={type: lora, rank: 64}", "optimizer.type=adamw8bit"],
    "textual_inversion": [
        "objective={type: textual_inversion, token: xyz, num_vectors_per_token: 2}",
        "data.captions.template=style_filewords",
        "lr_scheduler={type: schedule, schedule: '1e-2:2, 5e-3:4, 1e-3', warmup_steps: 0}",
    ],
    "hypernetwork": [
        "objective={type: hypernetwork, activation_func: mish, add_layer_norm: true,"
        " dropout_structure: [0, 0.2, 0]}"
    ],
    "combined": [
        "objective={type: combined, members: {word: {objective: {type: textual_inversion, "
        "token: xyz}, learning_rate: 0.1, stop_step: 3}, look: {objective: {type: lora, rank: 2, "
        "dropout: 0.2}, lr_scheduler: {type: linear}}}}",
    ],
    "text_to_image": ["objective={type: text_to_image, train_text_encoder: true}"],
    "text_to_image bf16": ["objective={type: text_to_image}", "mixed_precision=bf16"],
    "autoencoder": ["objective={type: autoencoder}"],
}


@pytest.fixture(scope="session")
def straight(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Straight]:
    """Runs an objective without a stop, once."""
    return straight_runs(commands, lambda name: [*RANDOM, *OBJECTIVES[name]], tmp_path_factory)


def test_straight_run_leaves_what_it_should(straight: Callable[[str], Straight]) -> None:
    names = [name for name in straight("lora").contents if "base" not in name]
    assert names == [
        "artifacts/last.safetensors",
        "artifacts/step-000002.safetensors",
        "artifacts/step-000004.safetensors",
        "artifacts/step-000006.safetensors",
        "samples/step-000003.png",
        "samples/step-000006.png",
    ]


STOPS = {
    "before the first step": ("train.monitoring.previews:PromptGrid.keep_base_row", 1, True),
    "before anything was saved": ("torch.optim:AdamW.step", 2, False),
    "before the artifact of step 4": ("inference.artifacts.adapters.lora:Lora.save", 2, False),
    "while an artifact is written": ("pathlib:Path.write_bytes", 2, True),
    "before an artifact is linked": ("train.runs.run_directory:RunDirectory.point_last", 2, False),
    "between artifact and checkpoint": ("train.saving:Savings.checkpoint", 2, False),
    "while a checkpoint is written": (
        "train.optimization.training_state:TrainingState.write",
        2,
        True,
    ),
    "between two micro-batches": ("train.trainer:Trainer.forward_backward", 10, False),
    "in the last step": ("torch.optim:AdamW.step", 6, True),
    "between the last checkpoint and its grid": (
        "train.monitoring.reports:Previews.draw",
        2,
        False,
    ),
}
LESS_TELLING = (
    "before the first step",
    "before anything was saved",
    "before the artifact of step 4",
    "before an artifact is linked",
    "between two micro-batches",
    "while an artifact is written",
    "in the last step",
    "between the last checkpoint and its grid",
)


@pytest.mark.parametrize("place", with_slow(STOPS, LESS_TELLING))
def test_killed_run_goes_on(
    place: str,
    straight: Callable[[str], Straight],
    commands: Any,
    stop_at: Callable[..., dict[str, object]],
    tmp_path: Path,
) -> None:
    function, call, after = STOPS[place]
    stop = stop_at(function, call, "KILL", after)
    check_killed_run_goes_on(commands, straight("lora"), stop, tmp_path)


@pytest.mark.slow
def test_run_killed_again_and_again(
    straight: Callable[[str], Straight],
    commands: Any,
    stop_at: Callable[..., dict[str, object]],
    tmp_path: Path,
) -> None:
    """With and without workers that prepare examples, from 0 to 2, to 5, to 5."""
    expected = straight("lora")
    stops = [(4, "KILL", -9, 0), (3, "TERM", 143, 1), (1, "KILL", -9, 0)]
    for call, signal_name, status, num_workers in stops:
        stop = stop_at("torch.optim:AdamW.step", call, signal_name)
        overrides = [f"output_dir={tmp_path}", "resume=true", *expected.overrides]
        done = commands.train(*overrides, f"data.num_workers={num_workers}", stop=stop)
        assert done.status == status, done.err
    assert (tmp_path / "run" / "checkpoints" / "step-000005").is_dir()
    done = commands.train(f"output_dir={tmp_path}", "resume=true", *expected.overrides)
    assert done.status == 0, done.err
    check_the_same(tmp_path / "run", expected)


@pytest.mark.parametrize(
    ("name", "signal_name"),
    [
        ("lora", "TERM"),
        pytest.param("lora 8 bit", "INT", marks=pytest.mark.slow),
        pytest.param("textual_inversion", "INT", marks=pytest.mark.slow),
        pytest.param("hypernetwork", "TERM", marks=pytest.mark.slow),
        pytest.param("combined", "INT", marks=pytest.mark.slow),
        pytest.param("text_to_image", "TERM", marks=pytest.mark.slow),
        pytest.param("text_to_image bf16", "INT", marks=pytest.mark.slow),
        pytest.param("autoencoder", "TERM", marks=pytest.mark.slow),
    ],
)
def test_stopped_run_saves_its_state_and_goes_on(
    name: str,
    signal_name: str,
    straight: Callable[[str], Straight],
    commands: Any,
    stop_at: Callable[..., dict[str, object]],
    tmp_path: Path,
) -> None:
    stop = stop_at("train.trainer:Trainer.forward_backward", 6, signal_name)
    check_stopped_run_goes_on(commands, straight(name), stop, signal_name, tmp_path)


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_change_nothing(
    num_workers: int, straight: Callable[[str], Straight], commands: Any, tmp_path: Path
) -> None:
    expected = straight("lora")
    workers = f"data.num_workers={num_workers}"
    done = commands.train(f"output_dir={tmp_path}", *expected.overrides, workers)
    assert done.status == 0, done.err
    check_the_same(tmp_path / "run", expected)


def test_finished_run_is_left_as_it_is(commands: Any, tmp_path: Path) -> None:
    to = f"output_dir={tmp_path}"
    assert commands.train(to).status == 0
    before = contents(tmp_path / "run")
    done = commands.train(to, "resume=true")
    assert done.status == 0, done.err
    assert f"artifact: {tmp_path}/run/artifacts/last.safetensors" in done.out
    assert contents(tmp_path / "run") == before


def test_longer_run_is_the_beginning_of_it(commands: Any, tmp_path: Path) -> None:
    """With a constant learning rate, more steps can be asked for afterwards."""
    for name, steps in (("in_parts", [2, 4]), ("at_once", [4])):
        for number in steps:
            options = [f"name={name}", f"max_train_steps={number}", "resume=true"]
            assert commands.train(f"output_dir={tmp_path}", *options).status == 0
    weights = [
        torch.load(tmp_path / name / "checkpoints/step-000004/optimizer.pt", weights_only=True)
        for name in ("in_parts", "at_once")
    ]
    for one, two in zip(*(w["optimizer"]["state"].values() for w in weights), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


INTERRUPTED = """
import os, runpy, signal
from train.trainer import Trainer

step, calls = Trainer.forward_backward, 0

def interrupted(trainer, batch):
    global calls
    calls += 1
    if calls == 6:
        os.killpg(0, signal.SIGINT)
    return step(trainer, batch)

Trainer.forward_backward = interrupted
runpy.run_module("train", run_name="__main__", alter_sys=True)
"""


BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.slow
def test_interrupted_command_saves_its_state(
    recipe_file: Path, straight: Callable[[str], Straight], commands: Any, tmp_path: Path
) -> None:
    """SIGINT to the whole group of processes, as Ctrl-C does, in step 3."""
    expected = straight("lora")
    overrides = [f"output_dir={tmp_path}", *expected.overrides]
    command = [sys.executable, "-c", INTERRUPTED, str(recipe_file), *overrides]
    done = subprocess.run(
        [*command, "data.num_workers=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 130
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000003"
    last_line = f"train: stopped by SIGINT; saved {checkpoint}; resume=true continues"
    assert done.stderr.splitlines()[-1] == last_line
    assert "Traceback" not in done.stderr
    done = commands.train(*overrides, "resume=true")
    assert done.status == 0, done.err
    check_the_same(tmp_path / "run", expected)


@pytest.mark.parametrize(
    ("signal_name", "status", "ignored"),
    [
        pytest.param("TERM", -15, (), id="TERM"),
        pytest.param("INT", 130, (), id="INT", marks=pytest.mark.slow),
        pytest.param("TERM", -15, BOTH, id="TERM ignored", marks=pytest.mark.slow),
        pytest.param("INT", 130, BOTH, id="INT ignored"),
    ],
)
def test_a_second_signal_ends_the_run_at_once(
    signal_name: str, status: int, ignored: Sequence[int], commands: Any, tmp_path: Path
) -> None:
    """Within the step in which both come, whatever was inherited; nothing more is saved."""
    stop = happens("train.trainer:Trainer.forward_backward", 2, signals(*[f"SIG{signal_name}"] * 2))
    overrides = [f"output_dir={tmp_path}", "saving.save_every_n_steps=1"]
    done = commands.train(*overrides, stop=stop, ignored=ignored)
    assert done.status == status, done.err
    assert "stopping after this step; a second signal stops at once" in done.err
    assert "Traceback" not in done.err
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["step-000001"]
    if signal_name == "INT":
        reported = "train: stopped at once; resume=true continues from the newest checkpoint"
        assert done.err.splitlines()[-1] == reported


@pytest.mark.parametrize(("ignored", "status"), [((), 129), ((signal.SIGHUP,), 143)])
def test_a_terminal_that_closes_ends_no_run_of_nohup(
    ignored: Sequence[int], status: int, commands: Any, tmp_path: Path
) -> None:
    """Ignored, SIGHUP stays so before and after the first signal; the run saves its state."""
    stop = happens(
        "train.trainer:Trainer.forward_backward", 2, signals("SIGHUP", "SIGTERM", "SIGHUP")
    )
    done = commands.train(f"output_dir={tmp_path}", stop=stop, ignored=ignored)
    assert done.status == status, done.err
    assert ("train: stopped by SIGTERM; saved " in done.err) == bool(ignored)
