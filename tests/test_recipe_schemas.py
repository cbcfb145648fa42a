"""The JSON Schemas of recipes: fresh, as strict as the loader, and true of every shipped recipe."""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest

from inference.recipe import RecipeError, load_recipe
from inference.recipe.json_schema import recipe_json_schema
from inference.recipe.yaml_nodes import parse, plain
from scripts.write_recipe_reference import SCHEMAS
from train.config.objectives import OBJECTIVE_CONFIGS, LoraConfig
from train.config.schema import recipe_schema, schema_text

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.relative_to(ROOT).parts[1] not in ("accelerate", "cluster")
)
SCHEMA_LINE = re.compile(r"# yaml-language-server: \$schema=(\S+)\n# \S")

TYPES = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "null": lambda value: value is None,
}
NOTES = {"$schema", "$defs", "title", "description", "default"}


def is_valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value is valid by the words of JSON Schema that the schemas are written in."""
    for word, said in schema.items():
        match word:
            case "$ref":
                sound = is_valid(value, root["$defs"][said.removeprefix("#/$defs/")], root)
            case "anyOf":
                sound = any(is_valid(value, one, root) for one in said)
            case "type":
                kinds = [said] if isinstance(said, str) else said
                sound = any(TYPES[one](value) for one in kinds)
            case "required":
                sound = not isinstance(value, dict) or value.keys() >= set(said)
            case "const":
                sound = value == said
            case "enum":
                sound = value in said
            case "pattern":
                sound = not isinstance(value, str) or re.search(said, value) is not None
            case "minItems":
                sound = not isinstance(value, list) or len(value) >= said
            case "maxItems":
                sound = not isinstance(value, list) or len(value) <= said
            case "items":
                items = value if isinstance(value, list) else []
                sound = all(is_valid(one, said, root) for one in items)
            case "properties":
                members = value if isinstance(value, dict) else {}
                sound = all(is_valid(members[k], said[k], root) for k in members.keys() & said)
            case "additionalProperties":
                members = value if isinstance(value, dict) else {}
                others = [members[k] for k in members if k not in schema.get("properties", {})]
                fits = said is not False and all(is_valid(one, said, root) for one in others)
                sound = not others or fits
            case _:
                assert word in NOTES, f"the checker of this test does not know {word!r}"
                sound = True
        if not sound:
            return False
    return True


@cache
def schema(command: str) -> dict[str, Any]:
    return json.loads(SCHEMAS[command].read_text(encoding="utf-8"))


def is_valid_recipe(text: str, command: str) -> bool:
    node = parse(text)
    assert node is not None
    return is_valid(plain(node), schema(command), schema(command))


@pytest.mark.parametrize("command", SCHEMAS)
def test_schema_is_fresh(command: str) -> None:
    remedy = "run `make docs`"
    assert SCHEMAS[command].read_text(encoding="utf-8") == schema_text(command), remedy


@pytest.mark.parametrize("recipe", SHIPPED)
def test_shipped_recipe_names_its_schema_and_is_valid_by_it(recipe: str) -> None:
    """In its first line, so that editors find it in a clone; the second begins its comment."""
    text = (ROOT / recipe).read_text(encoding="utf-8")
    line = SCHEMA_LINE.match(text)
    assert line, f"{recipe} begins without a schema and a comment"
    path = (ROOT / recipe).parent.joinpath(line[1]).resolve()
    command = next(name for name, one in SCHEMAS.items() if one.resolve() == path)
    draws = recipe.startswith(("configs/inference/", "configs/demo/animation_"))
    assert command == ("draw" if draws else "train")
    assert is_valid_recipe(text, command)


TYPOS = {
    "train": [
        "nam: dog",
        "objective: {rnk: 3}",
        "objective: {type: lora, rnk: 3}",
        "objective: {type: lorra}",
        "objective: {type: lora, token: x}",
        "objective: lora",
        "objective: null",
        "optimizer: {learning_rte: 1}",
        "optimizer: {betas: 0.9}",
        "optimizer: {betas: [0.9]}",
        "mixed_precision: bf17",
        "max_train_steps: many",
        "max_train_steps: 1.5",
        "max_train_steps: null",
        "gradient_checkpointing: 3",
        "sampling: {images: [a cat]}",
        "sampling: {images: {a: {promt: a cat}}}",
        "objective: {type: combined, members: {a: {objective: {type: text_to_image}}}}",
        "objective: {type: combined, members: {a: {objective: {type: lora, rang: 3}}}}",
        "base: 3",
        "type: images",
    ],
    "draw": [
        "type: image",
        "name: dog",
        "settings: {step: 3}",
        "settings: {zoom: '0: (1)'}",
        "images: {a: {prompt: [a]}}",
        "type: animation\nimages: {}",
        "images: {a: b}",
    ],
}
SOUND = {
    "train": [
        "base: [a.yaml, b.yaml]",
        "objective: {rank: 3}",
        "objective: {type: textual_inversion, token: x}",
        "objective: {type: combined, members: {a: {objective: {type: lora, rank: 3}}}}",
        "max_train_steps: ${sampling.sample_every_n_steps}",
        "optimizer: {learning_rate: '1e-4', betas: ['${ema.decay}', 0.99]}",
        "max_grad_norm: null\nema: {}",
        "sampling: {images: {a: null, b: {prompt: a cat}}}",
    ],
    "draw": [
        "images: {a: {prompt: a cat, steps: 3}}",
        "type: animation\nsettings: {zoom: '0: (1)', anything: [1, {a: b}]}",
        "base: a.yaml",
        "base: animation.yaml\nsettings: {zoom: '0: (1)'}",
    ],
}


@pytest.mark.parametrize(("command", "text"), [(c, t) for c, ts in TYPOS.items() for t in ts])
def test_typo_is_not_valid(command: str, text: str) -> None:
    assert not is_valid_recipe(text, command)


@pytest.mark.parametrize(("command", "text"), [(c, t) for c, ts in SOUND.items() for t in ts])
def test_sound_recipe_is_valid(command: str, text: str) -> None:
    assert is_valid_recipe(text, command)


@dataclass
class Inner:
    a: int = 1


@dataclass
class Recipe:
    """One key of each type."""

    i: int = 1
    """A number of steps,
    whole."""
    f: float = 1.0
    b: bool = False
    s: str = "x"
    si: str | None = None
    li: Literal["a", "b"] = "a"
    numbers: list[int] = field(default_factory=lambda: [3])
    texts: list[str] = field(default_factory=list)
    pair: tuple[float, float] = (1.0, 2.0)
    either: int | str = 1
    rates: dict[str, float] = field(default_factory=dict)
    named: dict[str, Inner | None] = field(default_factory=dict)
    maybe: Inner | None = None
    inner: Inner = field(default_factory=Inner)


LINES = """
i: 5; i: "5"; i: "+5"; i: "5.0"; i: "5e0"; i: "${either}"; i: x; i: true; i: 1.5; i: [1]; i: null
f: 5; f: 1e-4; f: "1e-4"; f: ".5"; f: "5."; f: "${i}"; f: "five"; f: true; f: null
b: true; b: yes; b: "yes"; b: "True"; b: "y"; b: "1"; b: "maybe"; b: 1; b: "${maybe}"; b: null
s: x; s: 5; s: true; s: "5"; s: 2020-01-01; s: "${i}"; s: [a]; s: {a: b}; s: null; s: ""
si: null; si: x; si: 1; li: a; li: A; li: "${li2}"; li: null
numbers: [1, "2"]; numbers: ["${i}"]; numbers: []; numbers: "1"; numbers: 1; numbers: [1, null]
numbers: "${texts}"; numbers: [a]; numbers: null; texts: [a, 1]; texts: [a, "1"]
pair: [1, 2]; pair: [1]; pair: [1, 2, 3]; pair: 1; pair: ["1e-3", "${i}"]
either: 1; either: a; either: 1.5; either: true; either: "${i}"; either: [1]
rates: {a: 1}; rates: {a: null}; rates: {a: "${i}"}; rates: {a: b}; rates: "${rates}"; rates: []
named: {x: null}; named: {x: {a: 2}}; named: {x: {b: 2}}; named: {x: 1}; named: null
maybe: null; maybe: {a: 1}; maybe: {b: 1}; maybe: "${inner}"; inner: null; inner: {}; inner: 1
base: []; base: null; base: 1; base: {a: b}; unknown: 1
"""
UNFILLED = re.compile(r"stands for another value of the recipe")


@pytest.mark.filterwarnings("ignore::inference.recipe.RecipeWarning")
@pytest.mark.parametrize("line", [one.strip() for one in re.split(r"[;\n]", LINES) if one.strip()])
def test_schema_accepts_what_the_loader_accepts(line: str, tmp_path: Path) -> None:
    """Where a `${...}` leads to is beyond a schema: what cannot be filled in is accepted."""
    made = recipe_json_schema([Recipe], "Recipe", lambda inner, owner: [inner])
    path = tmp_path / "recipe.yaml"
    path.write_text(line, encoding="utf-8")
    try:
        load_recipe(path, lambda untyped: Recipe)
        loads = True
    except RecipeError as error:
        loads = UNFILLED.search(str(error)) is not None
    node = parse(line)
    assert node is not None
    assert is_valid(plain(node), made, made) == loads


def test_fields_are_described() -> None:
    made = recipe_json_schema([Recipe], "A recipe", lambda inner, owner: [inner])
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert made["title"] == "A recipe"
    recipe = made["$defs"]["Recipe"]
    assert recipe["description"] == "One key of each type."
    assert recipe["properties"]["i"] == {
        "description": "A number of steps, whole.",
        "default": 1,
        "$ref": "#/$defs/integer",
    }
    defaults = {name: one.get("default") for name, one in recipe["properties"].items()}
    assert defaults["pair"] == [1.0, 2.0]
    assert defaults["numbers"] == [3]
    train = recipe_schema("train")["$defs"]
    assert train["LoraConfig"]["properties"]["alpha"]["default"] == "${.rank}"
    assert "default" not in train["TrainRecipe"]["properties"]["name"]
    assert train["TrainRecipe"]["properties"]["name"]["description"].endswith(
        "Must be given, here or in a base."
    )


def test_objective_of_a_plugin_is_in_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a name of its own, though its class is called as one of ours."""

    @dataclass
    class Mine(LoraConfig):
        type: Literal["mine"] = "mine"  # type: ignore[assignment]
        depth: int = 3

    Mine.__name__ = "LoraConfig"
    monkeypatch.setitem(OBJECTIVE_CONFIGS, "mine", Mine)
    made = recipe_schema("train")
    assert is_valid({"objective": {"type": "mine", "depth": 4}}, made, made)
    assert is_valid({"objective": {"type": "lora", "rank": 4}}, made, made)
    assert not is_valid({"objective": {"type": "lora", "depth": 4}}, made, made)


def test_checker_knows_its_words() -> None:
    with pytest.raises(AssertionError, match="'oneOf'"):
        is_valid(1, {"oneOf": []}, {})
