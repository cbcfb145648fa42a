"""What `${...}` can name, and how little a recipe can make of it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference.config import ImagesRecipe, draw_schema
from inference.recipe import MISSING, RecipeError, load_mapping, load_recipe, reference
from inference.recipe.references import MOST_TEXT
from inference.recipe.yaml_nodes import QUICK_FROM, parse, plain
from train.config import train_schema

RESOLVERS = [
    "${oc.env:A_TOKEN}", "${oc.env:A_TOKEN,x}", "${oc.decode:'1'}", "${oc.create:{a: 1}}",
    "${oc.select:name}", "${oc.dict.keys:data}", "${env:HOME}", "${x:}", "${:x}", "a ${x:y} b",
]  # fmt: skip


@dataclass
class Group:
    a: int = 3
    b: float = reference(".a")
    words: list[str] = field(default_factory=list)


@dataclass
class Run:
    name: str = "x"
    needed: str = MISSING
    note: str = ""
    other: str | None = None
    count: int = 1
    truth: bool = False
    words: list[str] = field(default_factory=list)
    pair: tuple[int, int] = (1, 2)
    group: Group = field(default_factory=Group)
    options: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_TOKEN", "swordfish")


def load(text: str, *overrides: str) -> Run:
    Path("r.yaml").write_text(text)
    return load_recipe("r.yaml", lambda _: Run, ["needed=n", *overrides])


def complaint(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return str(caught.value)


@pytest.mark.parametrize("text", RESOLVERS)
@pytest.mark.parametrize(
    "place", ["note: '{}'", "words: ['{}']", "options: {{a: {{b: ['{}']}}}}", "count: '{}'"]
)
def test_nothing_but_the_recipe_is_read(place: str, text: str) -> None:
    lines = complaint(place.format(text.replace("'", "''"))).splitlines()
    assert len(lines) == 1
    assert "a recipe refers only to its own values" in lines[0] or "names no key" in lines[0]
    assert "swordfish" not in lines[0]
    assert "for text write \\${" in lines[0]


def test_nothing_but_the_recipe_is_read_from_overrides_and_bases() -> None:
    for override in ("note=${oc.env:A_TOKEN}", "options.a=${oc.env:A_TOKEN}"):
        key = override.partition("=")[0]
        assert complaint("", override) == (
            f"command line: {key}: ${{oc.env:A_TOKEN}}: a recipe refers only to its own values, as "
            "${optimizer.type}, not to the environment, files or functions; write the value "
            "itself, or give it on the command line; for text write \\${oc.env:A_TOKEN}"
        )
    Path("base.yaml").write_text("note: ${oc.env:A_TOKEN}")
    assert complaint("base: base.yaml").startswith("base.yaml: note: ${oc.env:A_TOKEN}: ")


def test_what_other_programs_wrote_is_text() -> None:
    mapping = {"images": {"a": {"prompt": "a ${oc.env:A_TOKEN} ${settings.steps} \\${x} ???"}}}
    recipe = load_mapping(mapping, "picture.png", lambda _: ImagesRecipe)
    assert recipe.images["a"].prompt == mapping["images"]["a"]["prompt"]


def test_settings_of_deforum_are_text() -> None:
    from inference.deforum import load_settings_recipe

    Path("s.txt").write_text('{"prompts": {"0": "${oc.env:A_TOKEN}"}, "W": 64, "H": 64}')
    assert "swordfish" not in repr(load_settings_recipe("s.txt", ["base_model.path=picto"]))


def test_values_that_are_referred_to() -> None:
    run = load(
        """
        name: "${group.words.1}"
        note: "${.name}, ${count} and ${truth}, \\\\${name} \\\\\\\\${name}"
        other: ${rates.a}
        words: ["${needed}", "${..group.words[0]}"]
        group: {a: "${count}", words: [one, two]}
        options: {a: [{b: "${words}"}], c: "${.a.0.b}"}
        rates: {a: "${group.a}"}
        pair: ["${count}", "${.0}"]
        """
    )
    assert (run.name, run.note) == ("two", "two, 1 and False, ${name} \\two")
    assert (run.other, run.words, run.pair) == ("1.0", ["n", "one"], (1, 1))
    assert (run.group.a, run.group.b, run.rates) == (1, 1.0, {"a": 1.0})
    assert run.options == {"a": [{"b": ["n", "one"]}], "c": ["n", "one"]}
    assert load("other: ${note}", "note=x").other == "x"


WRONG = {
    "note: ${nothing}": "Interpolation key 'nothing' not found",
    "note: ${group.c}": "Interpolation key 'group.c' not found",
    "note: ${name.x}": "Interpolation key 'name.x' not found",
    "note: ${words.3}": "Interpolation key 'words.3' not found",
    "note: ${words.99999999999999999999}": "Interpolation key 'words.99999999999999999999' not",
    "note: ${...name}": "it has too many leading dots",
    "note: ${note}": "it leads back to itself",
    "{note: '${other}', other: '${note}'}": "it leads back to itself",
    "note: ${group}": "it names a group of values, not one",
    "note: '${rates} '": "it names a group of values, not one",
    "note: a ${words}": "a list cannot be part of a text",
    "note: ${words}": "expected text, got []",
    "count: ${name}": "expected a whole number, got 'x'",
    "group: {b: '${note}'}\nnote: nan": "expected a number, got 'nan'",
    "note: ${other}": "expected text, got null",
    "note: '${${${'": "a reference cannot contain another one",
    "note: '${${name}}'": "a reference cannot contain another one",
    "note: ${": "it has no closing }",
    "note: ${}": "it names no key",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_references_that_lead_nowhere(text: str) -> None:
    lines = complaint(text).splitlines()
    assert f"stands for another value of the recipe ({WRONG[text]}" in lines[0]
    assert len(lines) == (2 if text.startswith("{") else 1)


def test_a_missing_value_is_reported_where_it_is_missing() -> None:
    Path("r.yaml").write_text("note: ${needed}")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", lambda _: Run)
    assert "r.yaml: needed: must be given" in str(caught.value).splitlines()


@pytest.mark.parametrize(
    "text", ["${a.b}${a.b}", "x ${oc.env:A_TOKEN} z", "${${${", "${a${b}}", "${", "${count", "${}"]
)
def test_the_remedy_for_text_is_read_as_the_text(text: str) -> None:
    remedy = complaint(yaml.safe_dump({"note": text})).rpartition("for text write ")[2]
    written = text.replace(remedy.replace("\\", ""), remedy)
    assert load(yaml.safe_dump({"note": written})).note == text


def doubling(levels: int) -> str:
    lines = ["options:", "  a0: xxxxxxxxxx"]
    names = range(1, levels)
    return "\n".join([*lines, *(f'  a{n}: "${{.a{n - 1}}}${{.a{n - 1}}}"' for n in names)])


@pytest.mark.parametrize("is_reversed", [False, True])
def test_texts_that_multiply_are_bounded(is_reversed: bool) -> None:
    """With 24 levels they would take 170 MB, with 60 all memory there is."""
    for levels in (24, 28):
        lines = doubling(levels).split("\n")
        lines[1:] = reversed(lines[1:]) if is_reversed else lines[1:]
        message = complaint("\n".join(lines))
        assert message.count("\n") == 0
        assert f"expand to more than {MOST_TEXT >> 20} MiB" in message
    assert len(load(doubling(10)).options["a9"]) == 10 * 2**9


def test_long_chains_of_references_are_bounded() -> None:
    """Without exhausting the stack, in either order."""
    chain = [f'  a{n}: "${{.a{n + 1}}}"' for n in range(500)]
    message = complaint("\n".join(["options:", *chain, "  a500: x"]))
    assert "leads through more than 32 others" in message
    assert len(message.splitlines()) <= 100
    run = load("\n".join(["options:", *chain[:20], "  a20: x"]))
    assert run.options["a0"] == "x"


def test_lists_that_multiply_are_refused() -> None:
    lines = [f'  a{n}: ["${{..a{n - 1}}}", "${{..a{n - 1}}}"]' for n in range(1, 30)]
    message = complaint("\n".join(["options:", "  a0: [x, x]", *lines]))
    assert "it names a group of values, not one" in message


def test_backslashes_take_no_time() -> None:
    """A million of them in the infotext of a picture; once this was quadratic."""
    text = "\\" * 1_000_000 + "x"
    recipe = load_mapping(
        {"images": {"a": {"prompt": text}}}, "picture.png", lambda _: ImagesRecipe
    )
    assert recipe.images["a"].prompt == text


def calls_of(count: int) -> int:
    """How many functions `load_recipe` calls for a recipe of so many images."""
    rows = "".join(f"  i{n}: {{prompt: a cat, seed: {n}}}\n" for n in range(count))
    path = Path(f"images{count}.yaml")
    path.write_text(f"base_model: {{path: picto}}\nsettings: {{steps: 3}}\nimages:\n{rows}")
    calls = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        recipe = load_recipe(path, draw_schema)
    finally:
        sys.setprofile(before)
    assert len(recipe.images) == count and recipe.images["i3"].steps == 3
    return calls


def test_entries_cost_little() -> None:
    """8 ms an entry once; each takes the same, however many there are."""
    calls_of(5)  # fills caches
    few, some, many = map(calls_of, (100, 200, 400))
    assert (many - some) / 200 < 1500
    assert (many - some) <= 2.1 * (some - few)


def test_unknown_keys_cost_little() -> None:
    """Thousands of them take a message each, and the words of only the first are compared."""

    def calls(count: int) -> int:
        Path("r.yaml").write_text("".join(f"k{n}: 1\n" for n in range(count)))
        found = 0

        def note(frame: Any, event: str, argument: Any) -> None:
            nonlocal found
            found += event == "call"

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            with pytest.raises(RecipeError):
                load_recipe("r.yaml", lambda _: Run)
        finally:
            sys.setprofile(before)
        return found

    calls(30)
    few, some, many = map(calls, (200, 400, 800))
    assert many - some <= 2.1 * (some - few)


def shipped() -> Iterator[Path]:
    root = Path(__file__).parents[3] / "configs"
    yield from sorted(root.rglob("*.yaml"))


def test_large_files_are_read_as_small_ones() -> None:
    """libyaml scans those above a size: its nodes are those of PyYAML, and so are its errors."""
    for path in shipped():
        text = path.read_text("utf-8")
        filler = "\n" + "# x\n" * (QUICK_FROM // 4)
        small, large = parse(text), parse(text + filler)
        assert small is not None and large is not None
        assert plain(small) == plain(large)
    large = "# x\n" * (QUICK_FROM // 4) + "{}\n"
    for wrong in ("a: b: c", "\ta: 1", "a: [1", "a: !x 1", "a: 1\na: 2", "a: " + "[" * 40):
        with pytest.raises(RecipeError) as caught:
            Path("r.yaml").write_text(large.replace("{}", wrong))
            load_recipe("r.yaml", train_schema)
        first = large.count("\n")
        small_error = complaint(f"{wrong}\n")
        line = int(small_error.split("line ")[1].split(",")[0])
        assert str(caught.value) == small_error.replace(
            f"line {line},", f"line {line + first - 1},"
        ).replace("begins at line 1", f"begins at line {first}")
