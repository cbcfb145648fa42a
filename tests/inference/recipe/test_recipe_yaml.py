"""What recipes refuse of all that YAML allows, and how little of a harmful file they read."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inference.recipe.layers import RecipeError
from inference.recipe.loader import RecipeWarning, dump_recipe, load_recipe

HINT = (
    "text that begins with or contains one of : # [ ] { } , & * ! | > % @ ` needs quotes, "
    'as in prompt: "a cat: asleep"'
)


@dataclass
class Run:
    name: str = "x"
    number: float = 1.0
    count: int = 1
    words: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str | bytes, *overrides: str) -> Run:
    Path("r.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_recipe("r.yaml", lambda _: Run, overrides)


def complaint(text: str | bytes, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return str(caught.value)


def bomb(levels: int) -> str:
    text = "&l0 [x, x]"
    for level in range(1, levels):
        text = f"&l{level} [{text}" + f", *l{level - 1}" * 9 + "]"
    return text


PLACE = "r.yaml: line 1, column "
WRONG = {
    "number: .inf": PLACE + "9: .inf is not a finite number; text needs quotes",
    "number: .nan": PLACE + "9: .nan is not a finite number; text needs quotes",
    "number: 1e400": PLACE + "9: 1e400 is too large for a number; text needs quotes",
    "number: 1e-400": PLACE + "9: 1e-400 is too small for a number; text needs quotes",
    "count: " + "9" * 5000: PLACE + f"8: {'9' * 30}… is too large for a number; text needs quotes",
    f"number: 1{'0' * 30}": PLACE + f"9: 1{'0' * 29}… is too large for a number; text needs quotes",
    "number: nan": "r.yaml: number: expected a number, got 'nan'",
    "number: 'Infinity'": "r.yaml: number: expected a number, got 'Infinity'",
    "rates: {a: inf}": "r.yaml: rates.a: expected a number, got 'inf'",
    "count: '\u0661\u0662'": "r.yaml: count: expected a whole number, got '\u0661\u0662'",
    "name: !!int abc": PLACE + f"7: the tag !!int cannot be used here; {HINT}",
    "name: !!timestamp x": PLACE + f"7: the tag !!timestamp cannot be used here; {HINT}",
    "name: !!binary aGFsbG8=": PLACE + f"7: the tag !!binary cannot be used here; {HINT}",
    "name: !!null x": PLACE + f"7: the tag !!null cannot be used here; {HINT}",
    "rates: !!python/object:os.system {}": PLACE
    + f"8: the tag tag:yaml.org,2002:python/object:os.system cannot be used here; {HINT}".replace(
        "tag:yaml.org,2002:", "!!"
    ),
    "rates: !!set {a}": PLACE + f"8: the tag !!set cannot be used here; {HINT}",
    "rates: {'': 1}": PLACE + "9: a key is empty",
    "rates: {a: 1, <<: {b: 1, b: 2}}": PLACE + "26: key 'b' is given twice",
    'name: "a\\0b"': PLACE + "7: contains the character U+0000, which text cannot contain",
    'name: "\\ud800"': PLACE + "7: contains the character U+D800, which text cannot contain",
    "name: a\x07b": PLACE + "8: contains the character U+0007, which text cannot contain",
    "words: '\\${x}'": "r.yaml: words: expected a list of any length ([a, b]), each text, "
    "got '\\\\${x}'",
    "anything: " + "[" * 100000: PLACE + "42: more than 32 nested levels",
    f"anything: {{a: {bomb(12)}}}": "r.yaml: line 1, column 77: more than 100000 values, "
    "with aliases expanded",
    "a\u00a0b: 1": "r.yaml: a\\xa0b: Key 'a\\xa0b' not in 'Run'; its keys are name, number, "
    "count, words, rates, anything",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:30])
def test_what_yaml_allows_and_recipes_do_not(text: str) -> None:
    start = time.process_time()
    assert complaint(text) == WRONG[text]
    assert time.process_time() - start < 1


def test_text_that_yaml_takes_for_something_else() -> None:
    run = load("name: =\nwords: [<<, '.inf', '!', 2024-01-01]\nrates: {=: 1, <<: {b: 2}}")
    assert (run.name, run.words, run.rates) == (
        "=",
        ["<<", ".inf", "!", "2024-01-01"],
        {"=": 1, "b": 2},
    )
    Path("again.yaml").write_text(dump_recipe(run))
    assert load_recipe("again.yaml", lambda _: Run) == run


def test_the_same_object_twice_is_written_out_twice() -> None:
    shared = ["a"]
    text = dump_recipe(Run(words=shared, anything={"a": shared}))
    assert "&" not in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a." * 40 + "a=1", "has more than 32 levels"),
        ("name=\udc80", "name: contains the character U+DC80, which text cannot contain"),
        ("number=1e400", "number: '1e400' is not YAML: line 1, column 1: 1e400 is too large for a "
         "number; text needs quotes"),
    ],
)  # fmt: skip
def test_overrides_that_cannot_be(override: str, message: str) -> None:
    message_shown = complaint("", override)
    assert message_shown.startswith("command line: ")
    assert message_shown.endswith(message)


def test_text_on_the_command_line_may_be_no_number() -> None:
    assert load("", "name=.inf").name == ".inf"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("name: x".encode("utf-16"), "is not UTF-8 text (byte 0); save this UTF-16 as UTF-8"),
        (b"#" * (2**20 + 1), "is larger than 1 MiB; a recipe is a small YAML file"),
    ],
)
def test_files_that_are_no_recipes(data: bytes, message: str) -> None:
    assert complaint(data) == f"r.yaml: {message}"


def test_bases_that_are_no_files() -> None:
    os.mkfifo("pipe.yaml")
    assert complaint("base: pipe.yaml") == "r.yaml: base: pipe.yaml: is no file"
    assert complaint("base: /dev/zero") == "r.yaml: base: /dev/zero: is no file"
    long = "x" * 300
    assert complaint(f"base: {long}").endswith("cannot be read: File name too long")


def test_bases_that_multiply() -> None:
    for level in range(30):
        Path(f"b{level}.yaml").write_text(f"base: [b{level + 1}.yaml, b{level + 1}.yaml]")
    assert complaint("base: b0.yaml").endswith("more than 100 files are based on each other")


def test_a_message_is_never_endless() -> None:
    lines = complaint("".join(f"key{n}: 1\n" for n in range(3000))).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "r.yaml: and 2,950 more unknown keys"
    rates = "".join(f"  key{n}: x\n" for n in range(3000))
    lines = complaint(f"rates:\n{rates}").splitlines()
    assert len(lines) == 100
    assert lines[-1] == "... and 2901 more"
    assert len(complaint("x" * 10_000 + ": 1")) < 1000
    assert len(complaint("count: " + "x" * 10_000)) < 1000


def test_a_warning_can_be_read_too() -> None:
    with pytest.warns(RecipeWarning) as caught:
        Path("r.yaml").write_text('entries: {"a\\nb": null}')
        load_recipe("r.yaml", lambda _: Entries)
    assert str(caught[0].message).isprintable()


@dataclass
class Entries:
    entries: dict[str, float | None] = field(default_factory=dict)
