"""A single value in place of a mapping."""

from pathlib import Path

import pytest

from inference.config import draw_schema
from inference.recipe import RecipeError, dump_recipe, load_recipe

RECIPE = "type: clip\nclips: {a: {prompt: a ball}}\n"


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("memory: model_offload", []),
        ("memory: {offload: model_offload}", []),
        ("", ["memory=model_offload"]),
        ("memory: none", ["memory.offload=model_offload"]),
        ("memory: {offload: none}", ["memory=model_offload"]),
    ],
)
def test_a_word_is_the_mapping_with_this_value(
    tmp_path: Path, text: str, overrides: list[str]
) -> None:
    path = tmp_path / "clip.yaml"
    path.write_text(RECIPE + text)
    recipe = load_recipe(path, draw_schema, overrides)
    assert recipe.memory.offload == "model_offload"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path, draw_schema) == recipe


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("nowhere", "memory.offload: Invalid value 'nowhere', expected one of"),
        ("[none]", "memory: expected one of ['auto', 'none', "),
        ("null", "or a mapping with keys of MemoryConfig"),
    ],
)
def test_what_is_neither_is_refused(tmp_path: Path, value: str, told: str) -> None:
    path = tmp_path / "clip.yaml"
    path.write_text(f"{RECIPE}memory: {value}")
    with pytest.raises(RecipeError, match=r"^\S+clip.yaml: ") as error:
        load_recipe(path, draw_schema)
    assert told in str(error.value)
