"""A disk that fills up during a run, at each place where a run writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.run_tools import Straight, check_the_same, contents

OPTIONS = [
    "max_train_steps=4",
    "saving={save_every_n_steps: 1, keep_last_n_checkpoints: 9}",
    "sampling.sample_every_n_steps=2",
    "sampling.images.one.prompt=red",
    "data={flip: 0.5}",
]


@pytest.fixture(scope="module")
def straight(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The run on a disk with room enough."""
    folder = tmp_path_factory.mktemp("straight")
    done = commands.train(f"output_dir={folder}", *OPTIONS)
    assert done.status == 0, done.err
    return Straight(OPTIONS, contents(folder / "run"))


FULL = {
    "artifact": (
        "inference.artifacts.adapters.lora:Lora.save",
        2,
        "artifacts/step-000002.safetensors",
    ),
    "checkpoint": (
        "train.optimization.training_state:TrainingState.write",
        2,
        "checkpoints/step-000002",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", FULL)
def test_a_full_disk_is_told_and_the_run_goes_on(
    place: str,
    straight: Straight,
    commands: Any,
    disk_full_at: Callable[..., dict[str, object]],
    tmp_path: Path,
) -> None:
    """The checkpoint before is whole; once there is room, the run ends as the straight one."""
    function, call, target = FULL[place]
    arguments = [f"output_dir={tmp_path}", "resume=true", *straight.overrides]
    done = commands.train(*arguments, stop=disk_full_at(function, call))
    assert done.status == 1, done.err
    assert "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith(f"train: {tmp_path / 'run' / target} could not be written")
    assert "File too large" in last
    newest = tmp_path / "run" / "checkpoints" / "step-000001"
    assert last.endswith(f"resume=true continues from {newest}")
    done = commands.train(*arguments)
    assert done.status == 0, done.err
    check_the_same(tmp_path / "run", straight)
