"""Every number of every recipe, with the values that no recipe should have.

Each is accepted or refused by messages; nothing else happens. Numbers beyond all
use are refused everywhere: they come from pictures and settings files of others too.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from inference.config import DRAWING_RECIPES
from inference.recipe import NO_LIMIT, RecipeError, fields_of, load_recipe, without_none
from inference.recipe.limits import LARGEST_REAL, LARGEST_WHOLE
from train.config import OBJECTIVE_CONFIGS, train_schema

VALUES = ("0", "-1", "4611686018427387904", "-4611686018427387905", "1e30", "-1e30")
NO_NUMBERS = (".nan", ".inf", "-.inf", "1e400", "9" * 5000, "nan", "inf")
NEEDED = {
    "textual_inversion": ("objective.token=mizu",),
    "combined": ("objective.members.x.objective.type=lora",),
    "images": ("images.x.prompt=x",),
    "clip": ("clips.x.prompt=x",),
    "animation": ("settings.W=64",),
}


@dataclass(frozen=True)
class Number:
    """An option that is a number, or several."""

    key: str
    hint: Any
    owner: type
    field: str
    needed: tuple[str, ...]
    """Overrides of a recipe that has it."""
    schema: Callable[[dict[str, Any]], type]

    def overrides(self, value: str) -> list[str]:
        kind, _ = without_none(self.hint)
        if get_origin(kind) is dict:
            return [*self.needed, f"{self.key}.x={value}"]
        if get_origin(kind) in (list, tuple):
            value = f"[{value}, {value}]"
        return [*self.needed, f"{self.key}={value}"]

    @property
    def has_own_range(self) -> bool:
        limits: dict[str, float] = {}
        for base in reversed(self.owner.__mro__):
            limits |= vars(base).get("limits", {})
        return limits.get(self.field) == NO_LIMIT


def is_number(hint: Any) -> bool:
    kind, _ = without_none(hint)
    arguments = get_args(kind)
    if get_origin(kind) in (list, tuple):
        kind, _ = without_none(arguments[0])
    if get_origin(kind) is dict:
        kind, _ = without_none(arguments[1])
    return kind in (int, float)


def numbers_of(kind: Any, key: str, needed: tuple[str, ...], schema: Any) -> Iterator[Number]:
    kind, _ = without_none(kind)
    if get_origin(kind) is dict:
        yield from numbers_of(get_args(kind)[1], f"{key}x.", needed, schema)
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        for name, hint in fields_of(kind).items():
            if is_number(hint):
                yield Number(f"{key}{name}", hint, kind, name, needed, schema)
            else:
                yield from numbers_of(hint, f"{key}{name}.", needed, schema)


def all_numbers() -> list[Number]:
    """One of each dataclass and field, wherever it occurs first."""
    found: dict[tuple[type, str], Number] = {}
    for name in OBJECTIVE_CONFIGS:
        needed = ("name=x", "data.path=x", f"objective.type={name}", *NEEDED.get(name, ()))
        members = {"x": {"objective": {"type": "lora"}}}
        kind = train_schema({"objective": {"type": name, "members": members}})
        for one in numbers_of(kind, "", needed, lambda _, kind=kind: kind):
            owner = one.owner if one.owner.__name__ != "TrainRecipe" else kind.__mro__[1]
            found.setdefault((owner, one.field), one)
    for name, kind in DRAWING_RECIPES.items():
        for one in numbers_of(kind, "", (f"type={name}", *NEEDED[name]), lambda _, kind=kind: kind):
            found.setdefault((one.owner, one.field), one)
    return list(found.values())


NUMBERS = all_numbers()
PARTS = 32
"""A part of the numbers is tried in every run of the tests."""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("numbers") / "r.yaml"
    path.write_text("{}")
    return path


def answer(path: Path, number: Number, value: str) -> str | None:
    """The messages; None if the recipe is accepted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load_recipe(path, number.schema, number.overrides(value))
        except RecipeError as error:
            return str(error)
    return None


def test_there_are_many() -> None:
    assert len(NUMBERS) > 120
    keys = {number.key for number in NUMBERS}
    assert {"optimizer.betas", "loss.min_timestep", "settings.width", "crf"} <= keys | {
        key.removeprefix("sampling.") for key in keys
    }


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, PARTS))]
)
def test_numbers_are_accepted_or_refused_in_words(empty: Path, part: int) -> None:
    wrong = []
    for number in NUMBERS[part::PARTS]:
        for value in VALUES:
            message = answer(empty, number, value)
            is_beyond = len(value) > 2 and not number.has_own_range
            if message is None and is_beyond:
                wrong.append(f"{number.key}={value} is accepted")
            if message is not None and not message.replace("\n", "").isprintable():
                wrong.append(f"{number.key}={value}: {message}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 4))]
)
def test_what_is_no_number_is_refused_everywhere(empty: Path, part: int) -> None:
    for place, number in [*enumerate(NUMBERS)][part::4]:
        value = NO_NUMBERS[place % len(NO_NUMBERS)]
        message = answer(empty, number, value)
        assert message is not None and number.key in message, (number.key, value)
        assert all("must be given" in line for line in message.splitlines()[1:])


WRONG = {
    "optimizer.betas=[1, 1]": "optimizer.betas: must lie in 0 … 1 (1 excluded), got [1.0, 1.0]",
    "optimizer.epsilon=-1": "optimizer.epsilon: must be at least 0, got -1.0",
    "max_train_steps=3000000000": "max_train_steps: must be at most 2147483647, got 3000000000",
    "loss.snr_gamma=1e13": "loss.snr_gamma: must be at most 1e+12, got 10000000000000.0",
    "sampling.settings.width=20000": "sampling.settings.width: must be at most 16384, got 20000",
    "sampling.settings.seed_resize_from_width=-1": "sampling.settings.seed_resize_from_width: and "
    "seed_resize_from_height must both be 8 pixels at least, or both 0",
    "objective.rank=100000": "objective.rank: must be at most 65536, got 100000",
}


@pytest.mark.parametrize("override", WRONG)
def test_limits_are_told(override: str, empty: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(empty, train_schema, ["name=x", "data.path=x", "objective.type=lora", override])
    assert str(caught.value) == f"command line: {WRONG[override]}"


def test_the_usual_limits() -> None:
    assert (LARGEST_WHOLE, LARGEST_REAL) == (2147483647, 1e12)
