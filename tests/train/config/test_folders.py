"""Folders that would be learned along are refused, whichever key names them."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from inference.recipe.layers import RecipeError
from inference.recipe.loader import load_mapping
from train.config.schema import train_schema

DATA: dict[str, dict[str, Any]] = {
    "data.path": {"path": "DATA"},
    "data.subsets.a.path": {"subsets": {"a": {"path": "DATA"}}},
    "data.concepts.a.instance_data_dir": {"concepts": {"a": {"instance_data_dir": "DATA"}}},
    "data.concepts.a.class_data_dir": {
        "concepts": {
            "a": {
                "instance_data_dir": "ELSE",
                "class_data_dir": "DATA",
                "num_class_images_per": 1,
                "instance_prompt": "a",
                "class_prompt": "b",
            }
        }
    },
}
OTHERS: dict[str, dict[str, Any]] = {
    "output_dir": {"output_dir": "INNER"},
    "data.cache_dir": {"data": {"cache": "disk", "cache_dir": "INNER"}},
    "data.streaming.folder": {"data": {"streaming": {"folder": "INNER"}}},
    "validation.path": {"validation": {"path": "INNER"}},
}


def load(data: dict[str, Any], other: dict[str, Any], places: dict[str, Path]) -> Any:
    recipe = {"name": "x", "objective": {"type": "lora"}, "output_dir": "FAR"} | other
    recipe["data"] = {**data, **other.get("data", {})}
    text = json.dumps(recipe)
    for name, place in places.items():
        text = text.replace(name, str(place))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_mapping(json.loads(text), "recipe", train_schema)


@pytest.mark.parametrize(
    ("key", "other"),
    [
        pytest.param(key, other, marks=() if row == column else pytest.mark.slow)
        for row, key in enumerate(DATA)
        for column, other in enumerate(OTHERS)
    ],
)
def test_folders_within_the_data_are_refused(key: str, other: str, tmp_path: Path) -> None:
    places = {"DATA": tmp_path / "data", "ELSE": tmp_path / "else"}
    for place in places.values():
        place.mkdir()
    places["FAR"] = tmp_path / "far"
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for inner in ("data", "data/runs", "link/a/b"):
        reported = (
            rf"^recipe: {other}: '.*{inner}' lies within {key} '.*data', which is searched too"
        )
        with pytest.raises(RecipeError, match=reported):
            load(DATA[key], OTHERS[other], {**places, "INNER": tmp_path / inner})
    for inner in ("data2", "data/.runs", "runs"):
        load(DATA[key], OTHERS[other], {**places, "INNER": tmp_path / inner})


def test_data_within_the_validation_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    places = {"DATA": tmp_path / "data", "FAR": tmp_path / "far", "INNER": tmp_path}
    with pytest.raises(RecipeError, match=r"data.path: '.*data' lies within validation.path '"):
        load(DATA["data.path"], OTHERS["validation.path"], places)


def test_folders_around_the_data_are_taken(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    places = {"DATA": tmp_path / "data", "FAR": tmp_path / "far", "INNER": tmp_path}
    assert load(DATA["data.path"], OTHERS["output_dir"], places).output_dir == str(tmp_path)
