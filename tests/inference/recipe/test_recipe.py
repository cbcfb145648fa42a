"""Recipes: what is read, what wins, and the errors of every wrong recipe."""

import os
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from omegaconf import MISSING, SI

from inference.config import draw_schema
from inference.config.recipes import ImagesRecipe
from inference.recipe import loader
from inference.recipe.layers import RecipeError
from inference.recipe.loader import RecipeWarning, dump_recipe, load_recipe
from inference.recipe.schema import all_keys, field_docs


@dataclass
class Settings:
    steps: int = 20
    size: tuple[int, int] = (64, 64)
    sampler: Literal["euler", "ddim", "off"] = "euler"

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.steps < 1:
            yield "steps", f"must be at least 1, got {self.steps}"


@dataclass
class Picture(Settings):
    prompt: str = MISSING
    """What it
    shows. Said in words."""
    seed: int | None = None


@dataclass
class Optimizer:
    learning_rate: float = 1e-4
    learning_rates: dict[str, float] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    fused: bool = False


@dataclass
class Average:
    decay: float = 0.99


@dataclass
class Drawing:
    inherits: ClassVar[dict[str, str]] = {"images": "settings"}

    settings: Settings = field(default_factory=Settings)
    images: dict[str, Picture | None] = field(default_factory=dict)


@dataclass
class Lora:
    type: Literal["lora"] = "lora"
    rank: int = 4
    alpha: float = SI("${.rank}")

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.rank < 1:
            yield "rank", f"must be at least 1, got {self.rank}"


@dataclass
class Run:
    name: str = MISSING
    objective: Lora = field(default_factory=Lora)
    optimizer: Optimizer = field(default_factory=Optimizer)
    sampling: Drawing = field(default_factory=Drawing)
    ema: Average | None = None
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    words: list[str] = field(default_factory=list)
    every: int | Literal["never"] = 10
    note: str | None = None
    max_steps: int = 100
    warmup_steps: int = 0

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.warmup_steps >= self.max_steps:
            yield "warmup_steps", f"must be below max_steps ({self.max_steps})"
        if self.name == "nobody":
            yield "", "is nobody's recipe"
        if self.precision == "fp16" and self.optimizer.fused:
            yield "optimizer.fused", "needs precision fp32 or bf16"

    def idle(self) -> Iterator[tuple[str, str]]:
        if self.note and not self.words:
            yield "note", "has no effect without words"


def schema(untyped: dict[str, Any]) -> type:
    kind = (untyped.get("objective") or {}).get("type", "lora")
    if kind != "lora":
        raise RecipeError(f"objective.type: expected one of lora; got {kind!r}")
    return Run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return name


def load(text: str, *overrides: str) -> Run:
    return load_recipe(write("r.yaml", text), schema, overrides)


def complaint(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return str(caught.value)


QUOTES = (
    "text that begins with or contains one of : # [ ] { } , & * ! | > % @ ` needs quotes, "
    'as in prompt: "a cat: asleep"'
)

WRONG = {
    "unknown key": (
        "objective: {rnk: 3}",
        "r.yaml: objective.rnk: Key 'rnk' not in 'Lora'. Did you mean: 'rank'?",
    ),
    "unknown key, several near": (
        "optimizer: {learning_rte: 3}",
        "r.yaml: optimizer.learning_rte: Key 'learning_rte' not in 'Optimizer'. "
        "Did you mean one of: 'learning_rate', 'learning_rates'?",
    ),
    "unknown key that exists elsewhere": (
        "learning_rate: 1e-4",
        "r.yaml: learning_rate: Key 'learning_rate' not in 'Run'; 'optimizer.learning_rate' exists",
    ),
    "unknown key that exists in two places": (
        "steps: 3",
        "r.yaml: steps: Key 'steps' not in 'Run'; "
        "'sampling.settings.steps' and 'sampling.images.<name>.steps' exist. "
        "Did you mean: 'max_steps'?",
    ),
    "unknown key, a similar one elsewhere": (
        "decya: 3",
        "r.yaml: decya: Key 'decya' not in 'Run'. Did you mean: 'ema.decay'?",
    ),
    "unknown key like no other": (
        "ema: {qqq: 3}",
        "r.yaml: ema.qqq: Key 'qqq' not in 'Average'; its keys are decay",
    ),
    "dotted key in a file": (
        "sampling.settings.steps: 3",
        "r.yaml: sampling.settings.steps: Key 'sampling.settings.steps' not in 'Run'; "
        "in a file it is written sampling: {settings: {steps: ...}}",
    ),
    "wrong choice": (
        "precision: bf17",
        "r.yaml: precision: Invalid value 'bf17', expected one of ['fp32', 'fp16', 'bf16']",
    ),
    "choice read as a boolean": (
        "precision: no",
        "r.yaml: precision: YAML reads no as false; expected one of ['fp32', 'fp16', 'bf16']",
    ),
    "choice that wants quotes": (
        "sampling: {settings: {sampler: off}}",
        'r.yaml: sampling.settings.sampler: YAML reads off as false; write "off"',
    ),
    "choice from the schema": (
        "objective: {type: lorra}",
        "r.yaml: objective.type: expected one of lora; got 'lorra'",
    ),
    "text where a number belongs": (
        "max_steps: many",
        "r.yaml: max_steps: expected a whole number, got 'many'",
    ),
    "fraction where a whole number belongs": (
        "max_steps: 2.5",
        "r.yaml: max_steps: expected a whole number, got 2.5",
    ),
    "whole number written as a fraction": (
        "max_steps: 1e3",
        "r.yaml: max_steps: expected a whole number, got 1000.0; write 1000",
    ),
    "boolean where a number belongs": (
        "optimizer: {learning_rate: yes}",
        "r.yaml: optimizer.learning_rate: expected a number, got true",
    ),
    "number where a boolean belongs": (
        "optimizer: {fused: 2}",
        "r.yaml: optimizer.fused: expected true or false, got 2",
    ),
    "wrong value in a named mapping": (
        "optimizer: {learning_rates: {unet: fast}}",
        "r.yaml: optimizer.learning_rates.unet: expected a number, got 'fast'",
    ),
    "neither of two types": (
        "every: sometimes",
        "r.yaml: every: expected a whole number or one of ['never'], got 'sometimes'",
    ),
    "too few values": (
        "sampling: {settings: {size: [64]}}",
        "r.yaml: sampling.settings.size: expected a list of 2 values ([a, b]), "
        "each a whole number, got [64]",
    ),
    "one value for a list": (
        "words: cat",
        "r.yaml: words: expected a list of any length ([a, b]), each text, got 'cat'",
    ),
    "value for a mapping": (
        "ema: true",
        "r.yaml: ema: expected a mapping with keys of Average (decay), got true",
    ),
    "list for a named mapping": (
        "sampling: {images: [cat]}",
        "r.yaml: sampling.images: expected a mapping of names of your choice "
        "(`name: ...`, not `- ...`), got ['cat']",
    ),
    "null": ("max_steps:", "r.yaml: max_steps: must not be null; expected a whole number"),
    "null for a mapping": (
        "objective:",
        "r.yaml: objective: must not be null; "
        "expected a mapping with keys of Lora (type, rank, alpha)",
    ),
    "number for a text": (
        "note: 0123",
        'r.yaml: note: YAML reads 0123 as 83; write "0123"',
    ),
    "boolean for a text": ("note: no", 'r.yaml: note: YAML reads no as false; write "no"'),
    "time for a text": ("note: 12:30", 'r.yaml: note: YAML reads 12:30 as 750; write "12:30"'),
    "boolean in a list of texts": (
        "words: [yes, cat]",
        'r.yaml: words: YAML reads yes as true; write "yes"',
    ),
    "octal number": (
        "max_steps: 0123",
        "r.yaml: max_steps: YAML reads 0123 as 83; write 83 if that is meant",
    ),
    "list for a text": (
        "sampling: {images: {a: {prompt: [cat:dog:0.5]}}}",
        "r.yaml: sampling.images.a.prompt: YAML reads this as a list; put the text in quotes",
    ),
    "mapping for a text": (
        "note: {red|blue}",
        "r.yaml: note: YAML reads this as a mapping; put the text in quotes",
    ),
    "variable in a prompt": (
        "note: '${colour=red}'",
        "r.yaml: note: ${colour=red} stands for another value of the recipe "
        "(Interpolation key 'colour=red' not found); for text write \\${colour=red}",
    ),
    "mandatory key": (
        "sampling: {images: {a: {seed: 1}}}",
        "r.yaml: sampling.images.a.prompt: must be given (What it shows)",
    ),
    "syntax": (
        "name: x\nnote: a cat: asleep",
        f"r.yaml: line 2, column 12: mapping values are not allowed here; {QUOTES}",
    ),
    "quote that never ends": (
        "name: x\nnote: 'a cat\n",
        "r.yaml: line 3, column 1: found unexpected end of stream "
        f"(while scanning a quoted scalar that begins at line 2); {QUOTES}",
    ),
    "tab": (
        "objective:\n\trank: 3",
        "r.yaml: line 2, column 1: found character '\\t' that cannot start any token; "
        "indent with spaces, not tabs",
    ),
    "key given twice": (
        "objective:\n  rank: 3\n  rank: 4",
        "r.yaml: line 3, column 3: key 'rank' is given twice",
    ),
    "tag": (
        "note: !cat x",
        f"r.yaml: line 1, column 7: the tag !cat cannot be used here; {QUOTES}",
    ),
    "no mapping": ("- name", "r.yaml: line 1, column 1: a recipe is a mapping of keys"),
    "value out of range": (
        "objective: {rank: 0}",
        "r.yaml: objective.rank: must be at least 1, got 0",
    ),
    "the recipe as a whole": ("name: nobody", "r.yaml: is nobody's recipe"),
    "impossible combination": (
        "warmup_steps: 100",
        "r.yaml: warmup_steps: must be below max_steps (100)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipe_is_told(case: str) -> None:
    text, message = WRONG[case]
    overrides = [] if text.startswith("name") else ["name=x"]
    assert complaint(text, *overrides).splitlines() == [message]


WRONG_OVERRIDES = {
    "objective.rnk=3": "command line: objective.rnk: Key 'rnk' not in 'Lora'. "
    "Did you mean: 'rank'?",
    "precision=no": "command line: precision: Invalid value 'no', "
    "expected one of ['fp32', 'fp16', 'bf16']",
    "max_steps=[1": "command line: max_steps: '[1' is not YAML: line 1, column 3: "
    f"expected ',' or ']', but got '<stream end>'; {QUOTES}",
    "max_steps=": "command line: max_steps: must not be null; expected a whole number",
    "name=null": "command line: name: must not be null; expected text",
    "objective.rank=0": "command line: objective.rank: must be at least 1, got 0",
    "objective.type=x": "command line: objective.type: expected one of lora; got 'x'",
    "--rank=3": "'--rank=3': an override is written key=value",
    "rank": "'rank': an override is written key=value",
    "objective..rank=3": "'objective..rank=3': an override is written key=value",
    "base=b.yaml": "command line: base: is a key of files; write a recipe with this line",
}


@pytest.mark.parametrize("override", WRONG_OVERRIDES)
def test_wrong_override_is_told(override: str) -> None:
    assert complaint("name: x", override).splitlines() == [WRONG_OVERRIDES[override]]


def test_faults_of_all_layers_are_told_together() -> None:
    write("base.yaml", "precision: bf17\nobjective: {rank: none}")
    text = "base: base.yaml\nmax_stps: 5\noptimizer: {fused: 3}\nsampling: {settings: {steps: 0}}"
    assert complaint(text, "nothing", "ema.decy=1").splitlines() == [
        "'nothing': an override is written key=value",
        "base.yaml: precision: Invalid value 'bf17', expected one of ['fp32', 'fp16', 'bf16']",
        "base.yaml: objective.rank: expected a whole number, got 'none'",
        "r.yaml: max_stps: Key 'max_stps' not in 'Run'. "
        "Did you mean one of: 'max_steps', 'warmup_steps'?",
        "r.yaml: optimizer.fused: expected true or false, got 3",
        "command line: ema.decy: Key 'decy' not in 'Average'. Did you mean: 'decay'?",
        "r.yaml: name: must be given",
        "r.yaml: sampling.settings.steps: must be at least 1, got 0",
    ]


def test_semantic_faults_name_the_layer_that_set_the_key() -> None:
    write("base.yaml", "objective: {rank: 0}\noptimizer: {fused: true}")
    text = "base: base.yaml\nname: x\nprecision: fp16\nwarmup_steps: 50"
    assert complaint(text, "max_steps=10").splitlines() == [
        "r.yaml: warmup_steps: must be below max_steps (10)",
        "base.yaml: optimizer.fused: needs precision fp32 or bf16",
        "base.yaml: objective.rank: must be at least 1, got 0",
    ]


def test_a_fault_of_a_key_nobody_set_goes_to_the_nearest_layer_above_or_the_file() -> None:
    write("base.yaml", "name: x")
    assert complaint("base: base.yaml", "max_steps=0") == (
        "r.yaml: warmup_steps: must be below max_steps (0)"
    )
    assert complaint("name: x", "sampling.images.a.seed=1").startswith(
        "command line: sampling.images.a.prompt: must be given"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("configs/lorra.yaml", "no such file. Did you mean: configs/lora.yaml?"),
        ("configs/lora", "no such file. Did you mean: configs/lora.yaml?"),
        ("configs/q.yaml", "no such file"),
        ("conf/lora.yaml", "no such file: there is no folder conf"),
        ("configs", "is a folder, not a recipe"),
        ("configs/p.png", "is not UTF-8 text (byte 0); a recipe is a YAML file"),
    ],
)
def test_unreadable_recipe_is_told(name: str, message: str) -> None:
    write("configs/lora.yaml", "name: x")
    Path("configs/p.png").write_bytes(b"\x89PNG")
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, schema)
    assert str(caught.value) == f"{name}: {message}"


def test_a_recipe_outside_the_working_folder_is_told_by_its_whole_path(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("elsewhere") / "r.yaml"
    path.write_text("nam: x")
    with pytest.raises(RecipeError) as caught:
        load_recipe(os.path.relpath(path), schema, ["name=x"])
    assert str(caught.value) == f"{path}: nam: Key 'nam' not in 'Run'. Did you mean: 'name'?"


def test_missing_bases_are_told_by_the_file_that_asks() -> None:
    write("configs/base/sd15.yaml", "base: none.yaml")
    path = write("configs/lora.yaml", "base: [base/sd16.yaml, base/sd15.yaml]\nname: x")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, schema)
    assert str(caught.value).splitlines() == [
        "configs/lora.yaml: base: configs/base/sd16.yaml: no such file. "
        "Did you mean: configs/base/sd15.yaml?",
        "configs/base/sd15.yaml: base: configs/base/none.yaml: no such file",
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "a"}, "a.yaml: base: a.yaml is based on this file"),
        ({"a": "b", "b": "a"}, "b.yaml: base: a.yaml is based on this file"),
        (
            {"a": "b", "b": "c", "c": "a"},
            "c.yaml: base: a.yaml is based on this file (a.yaml -> b.yaml -> c.yaml -> a.yaml)",
        ),
    ],
)
def test_circles_of_bases_are_told(files: dict[str, str], message: str) -> None:
    for name, base in files.items():
        write(f"{name}.yaml", f"base: {base}.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe("a.yaml", schema)
    assert str(caught.value) == message


@pytest.mark.parametrize("base", ["5", "{a: b}", "[1]"])
def test_base_is_a_file_name_or_a_list(base: str) -> None:
    message = complaint(f"base: {base}")
    assert message.startswith("r.yaml: line 1, column 7: base: expected a file name or a list of")


def test_layers_win_over_those_before_them() -> None:
    write("configs/deep.yaml", "name: deep\nmax_steps: 1\nprecision: bf16\nwords: [a, b]")
    write("configs/base/one.yaml", "base: ../deep.yaml\nmax_steps: 2\nobjective: {rank: 1}")
    write("configs/base/two.yaml", "objective: {rank: 2}\noptimizer: {learning_rates: {a: 1}}")
    text = "base: [base/one.yaml, base/two.yaml]\nname: file\noptimizer: {learning_rates: {b: 2}}"
    path = write("configs/r.yaml", text)
    run = load_recipe(path, schema, ["words=[c]", "max_steps=7", "max_steps=8"])
    assert (run.name, run.max_steps, run.precision, run.words) == ("file", 8, "bf16", ["c"])
    assert run.objective == Lora(rank=2, alpha=2.0)
    assert run.optimizer.learning_rates == {"a": 1.0, "b": 2.0}


def test_only_plain_objects_are_left() -> None:
    text = """
    name: x
    ema: {}
    words: [a, b]
    optimizer: {arguments: {nested: {list: [1, {a: b}]}}}
    sampling: {images: {a: {prompt: hi, size: [8, 16]}}}
    """
    run = load(text)

    def check(value: Any) -> None:
        if is_dataclass(value):
            value = {item.name: getattr(value, item.name) for item in fields(value)}
        assert type(value) in (dict, list, tuple, str, int, float, bool, type(None))
        if isinstance(value, dict | list | tuple):
            for inner in value.values() if isinstance(value, dict) else value:
                check(inner)

    check(run)
    assert type(run) is Run
    assert run.ema == Average()
    assert run.sampling.images["a"] == Picture(prompt="hi", size=(8, 16))
    assert run.optimizer.arguments == {"nested": {"list": [1, {"a": "b"}]}}


def test_null_drops_an_entry_and_what_was_set_in_it() -> None:
    write(
        "base.yaml",
        "name: x\nema: {decay: 0.5}\nsampling: {images: {a: {prompt: a, seed: 5}, b: {prompt: b}}}",
    )
    run = load("base: base.yaml\nsampling: {images: {a: null}}\nema: null")
    assert run.sampling.images == {"b": Picture(prompt="b")}
    assert run.ema is None
    run = load_recipe(write("again.yaml", "base: r.yaml"), schema, ["sampling.images.a.prompt=new"])
    assert run.sampling.images["a"] == Picture(prompt="new")


def test_null_that_drops_nothing_is_warned_about() -> None:
    with pytest.warns(RecipeWarning) as caught:
        load("name: x\nsampling: {images: {a: {prompt: a}, aa: null}}")
    assert [str(one.message) for one in caught] == [
        "r.yaml: sampling.images.aa: null removes nothing; the entries are a"
    ]


def test_idle_keys_are_warned_about_with_their_source() -> None:
    write("base.yaml", "name: x\nnote: hello")
    with pytest.warns(RecipeWarning) as caught:
        load("base: base.yaml")
    assert [str(one.message) for one in caught] == ["base.yaml: note: has no effect without words"]
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("base: base.yaml", "words=[a]")


def test_entries_inherit_what_they_do_not_say() -> None:
    text = """
    name: x
    sampling:
      settings: {steps: 5, size: [8, 8]}
      images: {a: {prompt: a}, b: {prompt: b, steps: 20}}
    """
    images = load(text, "sampling.settings.sampler=ddim").sampling.images
    assert images["a"] == Picture(prompt="a", steps=5, size=(8, 8), sampler="ddim")
    assert images["b"] == Picture(prompt="b", steps=20, size=(8, 8), sampler="ddim")


def test_a_fault_in_what_is_inherited_is_told_once_where_it_was_set() -> None:
    text = "name: x\nsampling: {images: {a: {prompt: a}, b: {prompt: b, steps: -1}}}"
    assert complaint(text, "sampling.settings.steps=0").splitlines() == [
        "command line: sampling.settings.steps: must be at least 1, got 0",
        "r.yaml: sampling.images.b.steps: must be at least 1, got -1",
    ]


def test_groups_of_an_entry_inherit_too(tmp_path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("""
    settings: {hires: {upscale: 3, steps: 7}}
    images: {a: {prompt: a}, b: {prompt: b, hires: {steps: 9}}, c: {prompt: c, hires: null}}
    """)
    images = load_recipe(file, lambda _: ImagesRecipe).images
    assert [(i.hires and (i.hires.upscale, i.hires.steps)) for i in images.values()] == [
        (3, 7),
        (3, 9),
        None,
    ]
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, lambda _: ImagesRecipe, ["settings.hires.upscale=-1"])
    assert str(caught.value) == "command line: settings.hires.upscale: must be above 0, got -1.0"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("0123", "0123"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("1e-4", "1e-4"),
        ("", ""),
        ("a cat: asleep # soundly", "a cat: asleep # soundly"),
        ("[cat:dog:0.5]", "[cat:dog:0.5]"),
        ("{red|blue} cat", "{red|blue} cat"),
        ("a=b", "a=b"),
        ("'quoted'", "quoted"),
        ('"quo\\nted"', "quo\nted"),
        ('"a cat", dog', '"a cat", dog'),
        ("\\${x}", "${x}"),
        ("${precision}", "fp32"),
    ],
)
def test_text_on_the_command_line_is_taken_as_typed(typed: str, meant: str) -> None:
    run = load("name: x", f"sampling.images.a.prompt={typed}")
    image = run.sampling.images["a"]
    assert image and image.prompt == meant


def test_other_values_on_the_command_line_are_yaml() -> None:
    run = load(
        "name: x\nnote: hello\nwords: [a]",
        "note=null",
        "words=[no, 7, b]",
        "optimizer={learning_rate: 1e-3, arguments: {a: 1}}",
        "optimizer.arguments.b=[1]",
        "sampling.settings.sampler=off",
        "every=never",
    )
    assert run.note is None
    assert run.words == ["no", "7", "b"]
    assert run.optimizer == Optimizer(learning_rate=1e-3, arguments={"a": 1, "b": [1]})
    assert (run.sampling.settings.sampler, run.every) == ("off", "never")


def test_yaml_anchors_and_merges() -> None:
    text = """
    name: x
    sampling:
      images:
        a: &a {prompt: a, seed: 1}
        b: {<<: *a, seed: 2}
    """
    images = load(text).sampling.images
    assert images == {"a": Picture(prompt="a", seed=1), "b": Picture(prompt="a", seed=2)}


def test_names_of_entries_are_taken_as_written() -> None:
    run = load("name: x\nsampling: {images: {no: {prompt: a}, 007: {prompt: b}, a.b: {prompt: c}}}")
    assert {name: image.prompt for name, image in run.sampling.images.items() if image} == {
        "no": "a",
        "007": "b",
        "a.b": "c",
    }


def reloaded(run: Run) -> Run:
    return load_recipe(write("snapshot.yaml", dump_recipe(run)), schema)


def test_a_snapshot_loads_back_to_an_equal_object() -> None:
    text = """
    name: x
    objective: {rank: 8}
    optimizer: {learning_rates: {unet: 1e-5}, arguments: {betas: [0.9, 0.99], on: true}}
    sampling: {settings: {steps: 3}, images: {a: {prompt: "a \\\\${b}"}, "no": {prompt: "no"}}}
    """
    run = load(text)
    assert reloaded(run) == run
    assert reloaded(run).objective.alpha == 8.0
    assert dump_recipe(reloaded(run)) == dump_recipe(run)
    assert "size: [64, 64]" in dump_recipe(run)


def test_any_text_survives_a_snapshot() -> None:
    parts = ["a", "\\", "${", "}", "$", "{x}", "???", ":", " ", "#", "\n", "'", '"', "é", "🙂", "-"]
    parts += ["0123", "1e-4", "no", "null", "~", "\t", "%", "[", "2024-01-01", "=", "<<"]
    random_texts = random.Random(0)
    texts = ["".join(random_texts.choices(parts, k=k)) for k in range(7) for _ in range(60)]
    run = replace(load("name: x"), words=[*texts, *parts], note=texts[-1])
    run.optimizer.learning_rates = dict.fromkeys({*texts, *parts} - {""}, 1.0)
    assert reloaded(run) == run


def test_field_docs_and_keys() -> None:
    assert field_docs(Picture) == {"prompt": "What it\nshows. Said in words."}
    assert list(all_keys(Drawing))[:3] == ["settings", "settings.steps", "settings.size"]
    assert "images.<name>.prompt" in list(all_keys(Drawing))


@pytest.mark.parametrize("place", ["", "settings"])
def test_of_very_many_unknown_keys_some_are_named_and_the_others_counted(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Close names are searched for only a few: with 90,000 keys that took hours once."""
    searched = []
    monkeypatch.setattr(loader, "unknown_key", lambda name, *_: searched.append(name) or "unknown")
    count, indent = 9000, "  " if place else ""
    rows = "".join(f"{indent}k{number}: 1\n" for number in range(count))
    (tmp_path / "r.yaml").write_text(f"{place}:\n{rows}" if place else rows)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml", draw_schema)
    lines = str(caught.value).splitlines()
    assert len(searched) == 20
    named = loader.MOST_UNKNOWN
    assert sum("unknown" in line or "no such key" in line for line in lines) == named + 1
    (rest,) = [line for line in lines if "more unknown keys" in line]
    assert rest.endswith(f"{f'{place}: ' if place else ''}and {count - named:,} more unknown keys")
