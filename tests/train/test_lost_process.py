"""One of two processes is gone, or finds what the other does not: both end, and nothing is lost."""

from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import happens, signals
from tests.train.run_tools import Straight, check_the_same, contents, largest_difference, succeed

OPTIONS = [
    "max_train_steps=4",
    "saving={save_every_n_steps: 1}",
    "sampling.sample_every_n_steps=2",
    "sampling.images.one.prompt=red",
    "objective={type: lora, rank: 2, dropout: 0.2}",
    "data={flip: 0.5}",
    "ema={decay: 0.8}",
    "optimizer.epsilon=1e-4",
]
STEP = "train.trainer:Trainer.forward_backward"


@pytest.fixture(scope="module")
def straight(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The run of two processes that both stay."""
    folder = tmp_path_factory.mktemp("straight")
    succeed(commands.train_on_two(f"output_dir={folder}", *OPTIONS))
    return Straight(OPTIONS, contents(folder / "run"))


FULL = {"file_size": 8000}
"""Less than a state, more than what is printed, which goes to a file too."""
LOST: dict[str, tuple[int, dict[str, object], int, str]] = {
    "the second is killed": (1, happens(STEP, 3, signals("SIGKILL")), -9, ""),
    "the first is killed": (0, happens(STEP, 3, signals("SIGKILL")), -9, ""),
    "the second breaks": (1, happens(STEP, 3, {"error": "broken"}), 1, "RuntimeError: broken"),
    "the first breaks": (
        0,
        happens("train.monitoring.reports:Previews.draw", 2, {"error": "broken"}),
        1,
        "RuntimeError: broken",
    ),
    "the first cannot save": (
        0,
        happens("train.optimization.training_state:TrainingState.write", 3, FULL),
        1,
        "resume=true continues from",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOST)
def test_a_process_that_is_alone_ends_and_says_so(
    name: str, straight: Straight, commands: Any, tmp_path: Path
) -> None:
    """Within the server's SECONDS_ALONE, with one message; the run goes on as if nothing was."""
    rank, stop, status, message = LOST[name]
    arguments = [f"output_dir={tmp_path}", "resume=true", *straight.overrides]
    stop = {**stop, "rank": rank, "alone": True}
    done = commands.train_on_two(*arguments, stop=stop)
    gone, other = done[rank], done[1 - rank]
    assert (gone.status, other.status) == (status, 1), other.err
    assert message in gone.err
    reported = [line for line in other.err.splitlines() if line.startswith("train: ")]
    assert len(reported) == 1 and "another process of this run has ended" in reported[0], other.err
    assert reported[0].endswith("resume=true continues from the newest checkpoint")
    assert "Traceback" not in other.err
    succeed(commands.train_on_two(*arguments))
    check_the_same(tmp_path / "run", straight)


@pytest.mark.slow
def test_both_skip_and_both_stop_where_one_has_no_number(commands: Any, tmp_path: Path) -> None:
    """Step 2 is skipped, step 3 ends the run; what goes on equals one process that skips step 2."""
    losses = "train.objectives.lora:LoraObjective.forward"
    options = [f"output_dir={tmp_path}", *OPTIONS]
    options += ["guards={non_finite: skip, max_skips_in_a_row: 1}"]
    stop = happens(losses, 2, {"nan": 2}, rank=1)
    first, second = commands.train_on_two(*options, "name=two", stop=stop)
    assert (first.status, second.status) == (1, 1), first.err + second.err
    assert "warning: skipped, 1 so far: loss is not finite at step 2" in first.err
    assert "train: loss is not finite at step 3" in first.err
    assert second.err == ""
    assert (tmp_path / "two" / "checkpoints" / "step-000002").is_dir()
    succeed(commands.train_on_two(*options, "name=two", "resume=true"))
    stop = happens(losses, 4, {"nan": 1})
    one = commands.train(*options, "name=one", "gradient_accumulation_steps=2", stop=stop)
    assert one.status == 0, one.err
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 2e-6
