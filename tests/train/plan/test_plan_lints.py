"""What the plan says of captions and pictures, counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference.models.stable_diffusion.model import BaseModel
from inference.recipe.layers import RecipeWarning
from train.config.recipe import TrainRecipe
from train.data.examples.build import build_examples
from train.data.pictures import index_file
from train.data.pictures.index import Known, picture_facts
from train.data.sources.sources import find_sources
from train.plan import likeness
from train.plan.__main__ import main
from train.plan.likeness import alike, equal
from train.plan.lint_table import caption_rows, picture_rows
from train.plan.lints import CaptionLint, lint_captions
from train.plan.plan import plan_run

Make = Callable[..., TrainRecipe]


def save(path: Path, size: tuple[int, int], seed: int = 0, **options: Any) -> Path:
    """Random blots."""
    small = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    return path


def write(folder: Path, **captions: str) -> None:
    for number, (name, text) in enumerate(captions.items()):
        save(folder / f"{name}.png", (20, 20), number)
        (folder / f"{name}.txt").write_text(text)


def lint(make: Make, folder: Path, base: BaseModel, *overrides: str) -> CaptionLint:
    recipe = make(f"data.path={folder}", *overrides)
    sources = find_sources(recipe)
    return lint_captions(recipe, sources, build_examples(recipe, sources, base), base)


def names(paths: list[str]) -> list[str]:
    return [Path(path).stem for path in paths]


# Captions


def test_where_captions_are_from_and_which_are_empty(
    make_recipe: Make, folder: Path, tiny_base: BaseModel
) -> None:
    write(folder, a="x, y", b="y", c="", d="y, z, y")
    with pytest.warns(RecipeWarning, match="1 of 4 pictures have empty caption files: they have"):
        found = lint(make_recipe, folder, tiny_base, 'data.captions.fallback=""')
    assert found.told_by == {".txt": 3, "fallback": 1}
    assert names(found.empty) == ["c"]
    assert found.tags == {"y": 3, "x": 1, "z": 1}  # once of each picture
    assert (found.without, found.triggers, found.balance) == (0, [], {})


def test_tags_within_a_group_count_one_by_one(
    make_recipe: Make, folder: Path, tiny_base: BaseModel
) -> None:
    write(folder, a="x;;;y, z", b="k ||| y")
    options = [
        'data.captions.secondary_separator=";;;"',
        'data.captions.keep_tokens_separator="|||"',
    ]
    assert lint(make_recipe, folder, tiny_base, *options).tags["y"] == 2


def test_prompts_over_the_limit_are_named(
    make_recipe: Make, folder: Path, tiny_base: BaseModel
) -> None:
    """A letter of the tiny tokenizer is a token, and begin and end are one each: 75 fit."""
    write(folder, a="a" * 75, b="b" * 76, c="c " * 50, d="d" * 90)
    found = lint(make_recipe, folder, tiny_base).tokens
    assert found is not None
    assert (found.limits, found.is_cut, found.pictures) == ({"tokenizer": 77}, False, 2)
    assert [(Path(one.picture).stem, one.tokens) for one in found.longest] == [("d", 92), ("b", 78)]
    shuffled = lint(make_recipe, folder, tiny_base, "data.captions.shuffle_tags=true").tokens
    assert shuffled == found
    prefixed = lint(make_recipe, folder, tiny_base, "data.captions.prefix=xx").tokens
    assert prefixed is not None
    assert prefixed.pictures == 3


def test_of_wildcards_the_longest_choice_counts(
    make_recipe: Make, folder: Path, tiny_base: BaseModel
) -> None:
    write(folder, a=f"{{a|{'a' * 40}}}{{b|{'b' * 40}}}", b="{c|{d}}", e="{{e}} {f|g}")
    with pytest.warns(RecipeWarning, match=r"1 of 3 pictures .* in prompts \| switches words"):
        found = lint(make_recipe, folder, tiny_base, "data.captions.wildcards=true")
    assert found.tokens is not None
    assert [(Path(one.picture).stem, one.tokens) for one in found.tokens.longest] == [("a", 82)]
    assert names(found.open_braces) == ["b"]


def test_both_tokenizers_are_asked(make_recipe: Make, folder: Path, tiny_sdxl: BaseModel) -> None:
    write(folder, a="a" * 76)
    assert tiny_sdxl.tokenizer_2 is not None
    tiny_sdxl.tokenizer_2.model_max_length = 80
    found = lint(make_recipe, folder, tiny_sdxl, "data.resolution=16").tokens
    assert found is not None
    assert found.limits == {"tokenizer": 77, "tokenizer_2": 80}
    assert [one.tokenizer for one in found.longest] == ["tokenizer"]


def test_prompts_of_clips(
    make_clip_recipe: Make, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """T5 reads 226 tokens, or what the model's config says, and nothing behind them."""
    recipe = make_clip_recipe(f"data.captions.suffix={' word' * 300}")
    found = plan_run(recipe).caption_lint
    assert found is not None
    assert found.tokens is not None
    count = len([path for path in clips.iterdir() if path.suffix == ".webp"])
    assert (found.tokens.is_cut, found.tokens.pictures) == (True, count)
    (limit,) = found.tokens.limits.values()
    assert found.tokens.longest[0].tokens > max(300, limit)
    assert "the rest is cut off" in dict(caption_rows(found))["long prompts"]


def test_kept_tag(make_recipe: Make, folder: Path, tiny_base: BaseModel) -> None:
    write(folder, a="sks, x", b="x, sks", c="sks", d="y")
    options = ["data.captions.keep_tokens=1", "data.captions.shuffle_tags=true"]
    (found,) = lint(make_recipe, folder, tiny_base, *options).triggers
    assert (found.word, found.kind, found.captions, found.having) == ("sks", "kept tag", 4, 2)
    assert names(found.without) == ["b", "d"]


def test_token_of_textual_inversion(make_recipe: Make, folder: Path, tiny_base: BaseModel) -> None:
    write(folder, a="a mycat", b="mycats", c="on mycat, x")
    objective = "objective={type: textual_inversion, token: mycat}"
    (found,) = lint(make_recipe, folder, tiny_base, objective).triggers
    assert (found.kind, found.captions, found.having) == ("token", 3, 2)
    assert names(found.without) == ["b"]
    template = "data.captions.template=subject_filewords"
    (found,) = lint(make_recipe, folder, tiny_base, objective, template).triggers
    assert found.having == found.captions  # every line of the template says it


def test_concepts(make_recipe: Make, tmp_path: Path, tiny_base: BaseModel) -> None:
    for name, count in (("dog", 4), ("cat", 1)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, **{str(n): "on grass" for n in range(count)})
    recipe = make_recipe(
        "data.path=null",
        f"data.concepts.dog={{instance_data_dir: {tmp_path}/dog, instance_token: sks}}",
        f"data.concepts.cat={{instance_data_dir: {tmp_path}/cat}}",
    )
    sources = find_sources(recipe)
    found = lint_captions(recipe, sources, build_examples(recipe, sources, tiny_base), tiny_base)
    assert found.balance == {"dog": 4, "cat": 1}
    assert [(one.concept, one.having, one.captions) for one in found.triggers] == [("dog", 4, 4)]
    reported = dict(caption_rows(found))
    assert reported["examples of an epoch"] == (
        "dog 4 (80%), cat 1 (20%); 4 times as many of one as of another"
    )
    assert reported["instance_token of dog"] == "'sks' in 4 of 4 captions"


# Pictures


def test_hashes_find_all_that_are_near() -> None:
    """Against comparing each with each."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, (200, 2), np.uint64)
    hashes[100:] = hashes[:100]
    for row in range(100, 200):
        for bit in random.choice(128, row % 14, replace=False):
            hashes[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2)
    near = {(int(a), int(b)) for a, b in zip(*np.nonzero(np.triu(apart <= 8, 1)), strict=True)}
    found = alike(hashes)
    assert {pair for group in found.groups for pair in combinations(group, 2)} == near
    assert found.is_complete
    assert len(near) > 50  # rows that differ in up to 8 bits


def test_chains_are_one_group_and_plain_pictures_are_left_out() -> None:
    ones = (1 << 40) - 1
    values = [ones, ones ^ 0xFF, ones ^ 0xFFFF, ones << 20, 0, 0, 1, 2**64 - 1]
    hashes = np.array([(value, value) for value in values], np.uint64)
    hashes[:4, 1] = 0
    found = alike(hashes)
    assert found.groups == [[0, 1, 2]]
    assert (found.plain, found.is_complete) == (4, True)


def test_what_is_not_compared_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "COMPARISONS", 0)
    monkeypatch.setattr(likeness, "COMPARISONS_AT_LEAST", 10)
    common = (1 << 30) - 1
    hashes = np.array([(common, number << 32) for number in range(60)], np.uint64)
    assert not alike(hashes).is_complete


def test_nothing_is_like_nothing() -> None:
    for count in (0, 1):
        assert alike(np.full((count, 2), 0xFFFF, np.uint64)).groups == []
    assert equal([b"a", b"b", b"a", b"c", b"b"]) == [[0, 2], [1, 4]]


def test_duplicates_of_files(
    make_recipe: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "SETTLED", -(10**12))  # new files count at once
    save(folder / "a.png", (200, 200), 1)
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    save(folder / "smaller.jpg", (150, 150), 1, quality=85)
    save(folder / "other.png", (200, 200), 2)
    Image.new("RGB", (50, 50), "red").save(folder / "plain.png")
    recipe = make_recipe(f"data.path={folder}", "data.captions.fallback=x")
    thorough = plan_run(recipe, check_pictures=True).picture_lint
    found = thorough.duplicates
    assert found is not None
    assert [names(group) for group in found.same] == [["a", "copy"]]
    assert [names(group) for group in found.near] == [["a", "smaller"]]
    assert (found.plain, found.is_complete) == (1, True)
    assert plan_run(recipe).picture_lint.duplicates is None
    reported = dict(picture_rows(thorough))
    assert reported["same bytes"] == "2 pictures in 1 groups: pictures/a.png = pictures/copy.png"
    paths = sorted(folder.glob("*.*g"))
    looked: list[int] = []
    known = picture_facts(paths, Known.SIZE | Known.LIKENESS, lambda: looked.append(1))
    assert not looked  # the index knows them
    assert known.size(0) == (200, 200)


def test_small_pictures(make_recipe: Make, folder: Path) -> None:
    """Of 16x16 examples: the shorter side decides."""
    for name, size in (("a", (16, 16)), ("b", (40, 8)), ("c", (10, 30)), ("d", (100, 100))):
        save(folder / f"{name}.png", size)
    recipe = make_recipe(f"data.path={folder}", "data.captions.fallback=x")
    found = plan_run(recipe).picture_lint
    assert found.small == 2
    assert [(Path(one.picture).stem, one.scale) for one in found.smallest] == [("b", 2), ("c", 1.6)]
    stages = ["stages={small: {steps: 2}, large: {resolution: 32}}"]
    staged = plan_run(make_recipe(f"data.path={folder}", "data.captions.fallback=x", *stages))
    assert [one.scale for one in staged.picture_lint.smallest] == [4.0, 3.2, 2.0]


def test_the_command_tells_it(
    recipe_file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, a="[red]hat[/red], sks", b="x" * 90)
    common = [
        str(recipe_file), "objective={type: lora, rank: 2}", f"output_dir={tmp_path}/runs",
        f"data.path={folder}",
    ]  # fmt: skip
    assert main([*common, "--check-pictures"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "captions from .txt 2",
        "long prompts 1 above 77 tokens (read in pieces): pictures/b.png 92",
        "frequent tags [red]hat[/red] 1, sks 1",  # no markup of the terminal
        "scaled up none",
        "same bytes none",
    ):
        assert words in shown
    assert main([*common, "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert checks["captions"]["tokens"]["pictures"] == 1
    assert checks["pictures"]["duplicates"] is None
