"""Previews that several processes draw together: the same bytes, and one end for all."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import happens
from tests.train.run_tools import contents, largest_difference, succeed

PICTURES = [
    "objective={type: lora, rank: 2, dropout: 0.2}",
    "sampling.images.red={prompt: red, count: 5}",
    "sampling.images.late={prompt: blue, sampler: Euler a}",
    "sampling.batch_size=2",
]
"""Four batches: 2, 2, 1 and one of another sampler."""
CLIPS = [
    "objective={type: lora, rank: 2}",
    "sampling.clips.a={prompt: red}",
    "sampling.clips.b={prompt: lime, frames: 17}",
    "sampling.clips.c={prompt: lime}",
]
STEPS = ["max_train_steps=2", "sampling.sample_every_n_steps=1"]


def redrawn(run: Path, there: Path) -> Path:
    """A copy of a run that lacks its last preview, and has another parent."""
    copy = Path(shutil.copytree(run, there / run.name, symlinks=True))
    for left in copy.glob("samples/step-000002*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pictures", "clips"])
def test_two_processes_draw_the_bytes_of_one(
    kind: str, commands: Any, clip_commands: Any, tmp_path: Path
) -> None:
    """The base row is that of one process; so is a grid with the weights of two."""
    command, options = {"pictures": (commands, PICTURES), "clips": (clip_commands, CLIPS)}[kind]
    options = [*options, *STEPS]
    succeed(command.train_on_two(f"output_dir={tmp_path}/two", *options))
    two = tmp_path / "two" / "run"
    one = redrawn(two, tmp_path / "one")
    done = command.train(f"output_dir={tmp_path}/one", "resume=true", *options)
    assert done.status == 0, done.err
    assert contents(one) == contents(two)
    assert len([*two.glob("samples/step-000002*")]) == (1 if kind == "pictures" else 3)
    done = command.train(f"output_dir={tmp_path}/alone", *options)
    assert done.status == 0, done.err
    rows = [
        {n: h for n, h in contents(run).items() if "samples/base/" in n}
        for run in (two, tmp_path / "alone" / "run")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == (6 if kind == "pictures" else 3)


FAULTS: dict[str, tuple[dict[str, object], int, str]] = {
    "not finite": ({"run": "raise FloatingPointError('it is not finite')"}, 0, "it is not finite"),
    "breaks": ({"error": "broken"}, 1, "RuntimeError: broken"),
}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_process_is_one_of_all(
    fault: str, rank: int, commands: Any, tmp_path: Path
) -> None:
    """In its third batch, the first one after the base row: a grid that is not finite is left out.

    What breaks ends both, with its message.
    """
    what, status, message = FAULTS[fault]
    stop = happens("inference.images.drawing:draw_batch", 3, what, rank=rank)
    arguments = [f"output_dir={tmp_path}", *PICTURES, *STEPS]
    ranks = commands.train_on_two(*arguments, stop={**stop, "alone": True})
    assert [one.status for one in ranks] == [status, status], ranks
    assert message in ranks[0].err
    samples = tmp_path / "run" / "samples"
    assert not (samples / "step-000001.png").is_file()
    assert (samples / "step-000002.png").is_file() == (status == 0)
    if status:
        assert "another process of this run has ended: RuntimeError: broken" in ranks[1 - rank].err


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["INT", "TERM", "USR1"])
def test_a_signal_to_one_process_ends_the_drawing_of_both(
    name: str,
    rank: int,
    commands: Any,
    stop_at: Callable[..., dict[str, object]],
    tmp_path: Path,
) -> None:
    arguments = [f"output_dir={tmp_path}", *PICTURES, *STEPS]
    stop = stop_at("inference.images.drawing:draw_batch", 3, name, rank=rank)
    ranks = commands.train_on_two(*arguments, stop=stop)
    number = 128 + signal.Signals[f"SIG{name}"]
    assert [one.status for one in ranks] == [number, number], ranks
    run = tmp_path / "run"
    assert (run / "checkpoints" / "step-000001").is_dir()
    assert not [*run.glob("samples/step-*")]
    succeed(commands.train_on_two(*arguments, "resume=true"))
    grids = sorted(path.name for path in run.glob("samples/step-*"))
    assert grids == ["step-000001.png", "step-000002.png"]


@pytest.mark.slow
def test_latents_that_processes_encode_for_each_other(commands: Any, tmp_path: Path) -> None:
    """With workers they are encoded in advance: half in each process, and all have all."""
    options = [*PICTURES, *STEPS, "data.num_workers=1", "data.buckets={min_side: 8, step: 4}"]
    two = commands.train_on_two(f"output_dir={tmp_path}/two", *options)
    succeed(two)
    one = commands.train(f"output_dir={tmp_path}/one", *options, "gradient_accumulation_steps=2")
    assert one.status == 0, one.err
    runs = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert largest_difference(*runs, step=2) < 2e-6
