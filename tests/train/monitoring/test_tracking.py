"""What a person sees: TensorBoard, the lines of a log, and the clock behind them."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from tensorboard.summary.writer.event_file_writer import AtomicCounter

from train.config.recipe import TrainRecipe
from train.monitoring.tracking import Board, ProgressBar, StepClock, duration
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]


def read(logs: Path) -> Any:
    events = EventAccumulator(str(logs))
    events.Reload()
    return events


def steps(events: Any, name: str) -> list[int]:
    return [event.step for event in events.Scalars(name)]


def test_board_of_a_run(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(
        "objective={type: lora, rank: 2, train_text_encoder: true}",
        "optimizer.learning_rates.text_encoder=1e-3",
        "lr_scheduler={type: linear}",
        "sampling.images.red.prompt=red",
        "sampling.sample_every_n_steps=3",
        "log_every_n_steps=2",
    )
    trainer = Trainer(recipe)
    trainer.train()
    events = read(trainer.run.folder.logs)
    assert set(events.Tags()["scalars"]) == {
        "loss",
        "gradient_norm",
        "images_per_second",
        "learning_rate/unet",
        "learning_rate/text_encoder",
    } | {name for name in events.Tags()["scalars"] if name.startswith("loss_by_timestep/")}
    assert "loss_by_timestep/000-249" in events.Tags()["scalars"]
    for name in events.Tags()["scalars"]:
        if not name.startswith("loss_by_timestep/"):  # a band without examples has no entry
            assert steps(events, name) == [2, 4]
        assert all(event.value >= 0 for event in events.Scalars(name))
    rates = [event.value for event in events.Scalars("learning_rate/text_encoder")]
    assert rates == pytest.approx([0.75e-3, 0.25e-3])  # those of steps 2 and 4
    assert [image.step for image in events.Images("grid")] == [3, 4]
    (text,) = events.Tensors("recipe/text_summary")
    assert text.tensor_proto.string_val[0].startswith(b"    name: run\n")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("step")] == [
        "step 2/4",
        "step 4/4",
    ]


def test_resumed_board_takes_back_what_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where both files are of one second: by its name alone, file 10 is read before file 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", AtomicCounter(9))  # then 10
    first = Board(tmp_path, 0, "name: x", print)
    for step in (1, 2, 3, 4):
        first.scalars({"loss": float(step)}, step)
    first.close()
    second = Board(tmp_path, 2, "name: x", print)
    second.scalars({"loss": 30.0}, 3)
    second.close()
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("loss")] == [(1, 1), (2, 2), (3, 30)]


def test_scalars_are_on_disk_at_once(tmp_path: Path) -> None:
    board = Board(tmp_path, 0, "name: x", print)
    board.scalars({"loss": 1.0}, 1)
    assert steps(read(tmp_path), "loss") == [1]
    board.close()


@pytest.mark.parametrize("fault", ["full", "deleted", "full at the end"])
def test_board_that_cannot_be_written_warns_once_and_the_run_goes_on(
    fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    board = Board(tmp_path / "logs", 0, "name: x", said.append)
    board.scalars({"loss": 1.0}, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == "deleted":
        shutil.rmtree(tmp_path / "logs")
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        for step in () if fault == "full at the end" else (2, 3):
            board.scalars({"loss": 1.0}, step)
            board.image("grid", Image.new("RGB", (64, 64)), step)
        if fault == "full at the end":
            board.writer.add_scalar("loss", 1.0, 4)
        board.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = said
    assert line.startswith(f"warning: {tmp_path / 'logs'} cannot be written to (")
    assert line.endswith("training goes on")
    assert capfd.readouterr().err == ""


def test_clock_leaves_out_what_stands_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock = StepClock()
    now = 5.0
    clock.go_on()  # what was before does not count
    now = 7.0
    with clock.paused():
        now = 100.0
    now = 101.0
    assert clock.take() == 3
    now = 105.0
    assert clock.take() == 4


def test_lines_of_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(10, visible=True) as progress:
        progress.report(4, 0.12345, 20.0)
        progress.say("saved [bold] runs/x")
        assert list(progress.track([1, 2], "encoding")) == [1, 2]
    assert capsys.readouterr().err.splitlines()[:2] == [
        "step 4/10  loss 0.1235  20.00 s/step  2:00 left",
        "saved [bold] runs/x",
    ]


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(10, visible=False) as progress:
        progress.advance(4)
        progress.report(4, 0.1, 1.0)
        progress.say("x")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3599, "59:59"), (3725, "1:02:05")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
