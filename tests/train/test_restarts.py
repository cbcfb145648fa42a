"""A job that is started again resumes the run that it has begun, and no other one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from train.__main__ import continued
from train.config import TrainRecipe


@pytest.fixture
def recipe(
    make_recipe: Callable[..., TrainRecipe], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], TrainRecipe]:
    """The recipe with `overwrite` in the second start of a job, beside the run of another start."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    def make(job: str) -> TrainRecipe:
        made = make_recipe("overwrite=true")
        environment = Path(made.output_dir) / made.name / "environment.json"
        environment.parent.mkdir()
        environment.write_text(json.dumps({"limner": "1", **({"job": job} if job else {})}))
        return made

    return make


def test_its_own_run_is_resumed(recipe: Callable[[str], TrainRecipe]) -> None:
    made = continued(recipe("torchrun mine#0.0"))
    assert (made.resume, made.overwrite) == (True, False)


@pytest.mark.parametrize("job", ["", "torchrun mine#0.1", "torchrun other#0.0", "slurm 7#0.0"])
def test_another_run_is_left_as_it_is(job: str, recipe: Callable[[str], TrainRecipe]) -> None:
    made = continued(recipe(job))
    assert (made.resume, made.overwrite) == (False, True)


def test_a_first_start_resumes_nothing(make_recipe: Callable[..., TrainRecipe]) -> None:
    made = make_recipe()
    assert continued(made) == made
