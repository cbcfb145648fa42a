"""The range of timesteps against the base model's, before anything is trained."""

from collections.abc import Callable

import pytest

from inference.runtime import InputError
from tests.inference.artifacts.conftest import build_base
from train.config import TrainRecipe
from train.objectives.loading import check_timesteps

WRONG = {
    "loss.min_timestep=1000": "loss.min_timestep: must be below 1000, the number of the base "
    "model's timesteps, got 1000",
    "loss.max_timestep=5000": "loss.max_timestep: must be at most 1000, the number of the base "
    "model's timesteps, got 5000",
}


@pytest.mark.parametrize("override", WRONG)
def test_timesteps_beyond_the_models_are_refused(
    override: str, make_recipe: Callable[..., TrainRecipe]
) -> None:
    with pytest.raises(InputError) as caught:
        check_timesteps(make_recipe(override), build_base())
    assert str(caught.value) == WRONG[override]


def test_the_models_own_are_fine(make_recipe: Callable[..., TrainRecipe]) -> None:
    check_timesteps(make_recipe("loss={min_timestep: 999, max_timestep: 1000}"), build_base())
