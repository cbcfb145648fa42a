"""Entries that are copies of another one are what OmegaConf makes of them."""

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from inference.config import draw_schema
from inference.recipe import MISSING, load_recipe, loader
from inference.recipe.layers import Layer, RecipeError
from inference.recipe.plain_entries import set_aside


@dataclass
class Inner:
    strength: float = 0.5
    words: list[str] = field(default_factory=list)


@dataclass
class Settings:
    steps: int = 20
    cfg: float = 7.5
    negative: str | None = None
    inner: Inner = field(default_factory=Inner)
    sizes: tuple[int, int] = (8, 8)

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.steps < 1:
            yield "steps", f"must be at least 1, got {self.steps}"

    def idle(self) -> Iterator[tuple[str, str]]:
        if self.cfg == 1.0:
            yield "cfg", "has no effect at 1"


@dataclass
class Entry(Settings):
    prompt: str = MISSING
    seed: int | None = None
    upside_down: bool = False
    mode: Literal["a", "b"] = "a"


@dataclass
class Sampling:
    inherits: ClassVar[dict[str, str]] = {"images": "settings"}

    settings: Settings = field(default_factory=Settings)
    images: dict[str, Entry | None] = field(default_factory=dict)


@dataclass
class Run:
    note: str = ""
    sampling: Sampling = field(default_factory=Sampling)


VALUES = {
    "prompt": ["a cat", "'1'", "a \\${b}", "'???'", "${note}", "no", "7", "[a]", "x", "y"],
    "seed": ["1", "'4'", "null", "2", "2.0", "'4.0'", "0123", "x"],
    "steps": ["4", "'5'", "-1", "${.seed}", "1e1", "'1e1'"],
    "cfg": ["1.0", "3", "'2.5'", "2.5", "true", "'x'"],
    "negative": ["ugly", "null", "''"],
    "upside_down": ["true", "no", "'true'", "1"],
    "mode": ["a", "b", "c"],
    "inner": ["{strength: 1.5, words: [a]}", "{strength: '2', words: [b, 'c']}", "{strength: 3}",
              "{strength: x}", "{words: []}", "{words: [1, yes]}", "{words: [q, '${note}']}",
              "{words: [a, null]}", "{words: [[a]]}", "{words: q}", "null"],
    "nothing": ["1"],
}  # fmt: skip
"""Fields -> what recipes say, the plain values first."""


def a_recipe(dice: random.Random) -> tuple[str, list[str]]:
    """Return the text of a recipe with mostly plain entries, and overrides."""
    fancy = dice.random() < 0.7
    sets = [
        dice.sample(["prompt", "seed", "steps", "cfg", "negative", "mode", "inner"], 3)
        for _ in range(2)
    ]
    rows = []
    for number in range(dice.randint(1, 8)):
        names = list(dice.choice(sets))
        if fancy and dice.random() < 0.2:
            names.append(dice.choice(list(VALUES)))
        odd = fancy and dice.random() < 0.25
        values = {n: dice.choice(VALUES[n] if odd else VALUES[n][:2]) for n in names}
        rows.append(f"    e{number}: {{{', '.join(f'{n}: {v}' for n, v in values.items())}}}")
    if fancy and dice.random() < 0.3:
        rows.append(dice.choice(["    a.b: {prompt: z}", "    z: 5", "    z: {}", "    z: null"]))
    settings = dice.choice(["{steps: 3}", "{cfg: 1.0, inner: {words: [a, b]}}", "{}"])
    if fancy and dice.random() < 0.3:
        settings = dice.choice(["{steps: '${note}'}", "{steps: 0}", "{negative: '${note}'}"])
    overrides = dice.sample(
        [
            "sampling.images.e1=null", "sampling.images.e2.seed=9", "sampling.images.e0.prompt=no",
            "note=${sampling.images.e1.prompt}", "sampling.settings.steps=8", "note=hello",
            "sampling.images.e9.prompt=new", "sampling.images=null", "sampling.images.q=null",
            "sampling.images.e1={prompt: again}",
        ],
        dice.randint(0, 3) if fancy else 0,
    )  # fmt: skip
    lines = ["sampling:", f"  settings: {settings}", "  images:", *rows]
    return "\n".join(lines), overrides


def answer(text: str, overrides: list[str]) -> tuple[Any, list[str], list[str]]:
    """Return the recipe or None, the lines of the error, and the warnings."""
    Path("r.yaml").write_text(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            recipe, lines = load_recipe("r.yaml", lambda _: Run, overrides), []
        except RecipeError as error:
            recipe, lines = None, sorted(str(error).splitlines())
    return recipe, lines, sorted(str(one.message) for one in caught)


def none_aside(kind: type, layers: list[Layer]) -> tuple[list[Layer], list[Any]]:
    return list(layers), []


@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 600), marks=pytest.mark.slow)])
def test_copies_are_what_omegaconf_makes(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copies = 0
    for seed in seeds:
        text, overrides = a_recipe(random.Random(seed))
        found = answer(text, overrides)
        with monkeypatch.context() as patch:
            patch.setattr(loader, "set_aside", none_aside)
            expected = answer(text, overrides)
        assert found == expected, f"seed {seed}\n{text}\n{overrides}"
        if found[0] is not None:
            assert list(found[0].sampling.images) == list(expected[0].sampling.images)
            types = [
                type(value)
                for one in found[0].sampling.images.values()
                for value in vars(one).values()
            ]
            assert types == [
                type(value)
                for one in expected[0].sampling.images.values()
                for value in vars(one).values()
            ]
        copies += len(aside_of(text))
    assert copies > len(seeds) / 2


def aside_of(text: str) -> list[str]:
    """Return the names of the entries of a recipe that OmegaConf does not read."""
    from inference.recipe.layers import file_layers

    Path("r.yaml").write_text(text)
    _, aside = set_aside(Run, file_layers(Path("r.yaml").absolute(), []))
    return [name for one in aside for others in one.alike.values() for name in others]


def test_what_is_left_to_omegaconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries with nested lists, references or faults, and the first of each other kind."""
    monkeypatch.chdir(tmp_path)

    def of(*entries: str) -> list[str]:
        rows = [f"    e{number}: {{{entry}}}" for number, entry in enumerate(entries)]
        return aside_of("\n".join(["sampling:", "  images:", *rows]))

    assert of("prompt: a", "prompt: b", "prompt: c") == ["e1", "e2"]
    assert of("prompt: a", "seed: 1", "prompt: c", "seed: 2") == ["e2", "e3"]
    for entry in ("'???'", "${note}", "\\${x}", "7", "no", "null", "[a]"):
        assert of("prompt: a", f"prompt: {entry}", f"prompt: {entry}") == []
    for entry in (
        "cfg: x",
        "inner: {words: [[a]]}",
        "inner: {words: ['${note}']}",
        "mode: c",
        "sizes: [1, 2]",
        "seed: 2.0",
        "steps: null",
    ):
        assert of(entry, entry, entry) == []
    for plain in (
        "cfg: 3",
        "cfg: '2'",
        "seed: null",
        "mode: b",
        "inner: {strength: '1'}",
        "inner: {words: [a]}",
    ):
        assert of("prompt: x", plain, plain, f"{plain}, prompt: y") == ["e2"]
    assert of("inner: {strength: 1}", "inner: {}", "inner: {strength: 2}") == ["e2"]


def test_a_value_that_a_giver_lacks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if entries inherit the group that lacks it, of which all but the first are copies."""
    monkeypatch.chdir(tmp_path)
    rows = "a: {prompt: a}, b: {prompt: b}"
    Path("r.yaml").write_text(f"settings: {{img2img: {{exact_steps: true}}}}\nimages: {{{rows}}}")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", draw_schema, ["base_model.path=picto"])
    (line,) = str(caught.value).splitlines()
    assert line.startswith("r.yaml: settings.img2img.init_image: must be given")


def test_copies_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "a: {prompt: a}, b: {prompt: b}, c: {prompt: c}"
    text = f"sampling: {{settings: {{inner: {{words: [x]}}}}, images: {{{rows}}}}}"
    images = answer(text, [])[0].sampling.images
    images["b"].inner.words.append("y")
    assert [one.inner.words for one in images.values()] == [["x"], ["x", "y"], ["x"]]


def test_a_list_within_a_pair_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, lines, _ = answer("sampling: {settings: {sizes: [[1], 2]}}", [])
    assert lines == [
        "r.yaml: sampling.settings.sizes: expected a list of 2 values ([a, b]), each a whole "
        "number, got [[1], 2]"
    ]
