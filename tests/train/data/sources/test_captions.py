"""What becomes of captions: kohya's semantics in numbers worked out by hand."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inference.recipe.loader import RecipeWarning
from train.common.errors import DataError
from train.config.data import DataConfig
from train.config.examples import CaptionConfig
from train.data.examples.examples import Examples
from train.data.examples.stream import Pace
from train.data.sources.captions import (
    MOST_CHOICES,
    StepInfo,
    all_captions,
    all_choices,
    count_choices,
    has_countless,
    make_caption,
    parts_of,
    warm_tags,
)
from train.data.sources.folder import Picture, find_pictures

START = StepInfo()


def made(text: str, count: int = 1, moment: StepInfo = START, **options: Any) -> Counter[str]:
    """How often each caption comes up in so many draws."""
    config = CaptionConfig(**options)
    assert not list(config.faults())
    return Counter(
        make_caption([text], config, random.Random(seed), moment=moment) for seed in range(count)
    )


def only(text: str, **options: Any) -> str:
    (caption,) = made(text, 20, **options)
    return caption


# Separators


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a,  b", {}, "a,  b"),
        ("a ||| b", {}, "a ||| b"),
        # signs go, even where nothing is shuffled
        ("a, b ||| c", {"keep_tokens_separator": "|||"}, "a, b, c"),
        ("a,b", {"keep_tokens_separator": "|||"}, "a,b"),
        ("sky;;;cloud, sun", {"secondary_separator": ";;;"}, "sky,cloud, sun"),
        ("a; b", {"caption_separator": ";", "tag_dropout_rate": 1.0, "keep_tokens": 1}, "a"),
        # the separator goes before keep_tokens, which counts where there is none
        ("a, b ||| c, d", {"keep_tokens_separator": "|||", "keep_tokens": 1,
                           "tag_dropout_rate": 1.0}, "a, b"),
        ("a, b, c", {"keep_tokens_separator": "|||", "keep_tokens": 1,
                     "tag_dropout_rate": 1.0}, "a"),
        # what stands after the second sign stays at the end
        ("a ||| b, c ||| d, e", {"keep_tokens_separator": "|||", "tag_dropout_rate": 1.0},
         "a, d, e"),
        ("a ||| b ||| c ||| d", {"keep_tokens_separator": "|||", "tag_dropout_rate": 1.0},
         "a, c, d"),
        ("||| b", {"keep_tokens_separator": "|||", "tag_dropout_rate": 1.0}, ""),
        # parts held together are one for keep_tokens
        ("a;;;b, c", {"secondary_separator": ";;;", "keep_tokens": 1, "tag_dropout_rate": 1.0},
         "a,b"),
        ("a, b, c", {"tag_dropout_rate": 1.0, "always_kept_tags": ["c", "a"]}, "a, c"),
        ("a,, b", {"shuffle_tags": True, "keep_tokens": 3}, "a, , b"),
    ],
)  # fmt: skip
def test_separators(text: str, options: dict[str, Any], expected: str) -> None:
    assert only(text, **options) == expected


def test_only_what_stands_between_the_signs_is_shuffled() -> None:
    orders = made(
        "x, y ||| a, b;;;c, d ||| z", 600, shuffle_tags=True, keep_tokens_separator="|||",
        secondary_separator=";;;",
    )  # fmt: skip
    assert set(orders) == {
        f"x, y, {middle}, z"
        for middle in (
            "a, b,c, d", "a, d, b,c", "b,c, a, d", "b,c, d, a", "d, a, b,c", "d, b,c, a",
        )
    }  # fmt: skip
    assert all(70 < count < 130 for count in orders.values())  # 100 +- 3.3 standard deviations


def test_share_of_tags_that_is_left_out() -> None:
    left = made("x, a, k, b", 1000, tag_dropout_rate=0.25, keep_tokens=1, always_kept_tags=["k"])
    # 9 of 16, 3 of 16, 3 of 16 and 1 of 16
    expected = {"x, a, k, b": 562, "x, k, b": 188, "x, a, k": 188, "x, k": 62}
    assert left.keys() == expected.keys()
    assert all(abs(left[text] - count) < 55 for text, count in expected.items())


# Wildcards


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("a cat", ["a cat"]),
        ("a {red|blue} cat", ["a red cat", "a blue cat"]),
        ("{a|b}{1|2|}", ["a1", "a2", "a", "b1", "b2", "b"]),
        ("{a}", ["a"]),
        ("{|}", ["", ""]),
        ("{}", ["{}"]),
        ("{{a|b}}", ["{a|b}"]),
        ("{a|{{b}}}", ["a", "{b}"]),
        ("{a{b|c}", ["a{b", "c"]),
        ("a|b", ["a|b"]),
        ("{a|b", ["{a|b"]),
        ("a} b", ["a} b"]),
        ("(a:1.2), {x|y}, [b]", ["(a:1.2), x, [b]", "(a:1.2), y, [b]"]),
    ],
)
def test_wildcards(text: str, choices: list[str]) -> None:
    assert list(all_choices(text)) == choices
    assert count_choices(text) == len(choices)
    assert set(made(text, 60, wildcards=True)) == set(choices)
    assert set(made(text, 5)) == {text}


def test_wildcards_are_drawn_equally_often() -> None:
    drawn = made("a {red|green|blue|blue} cat", 1000, wildcards=True)
    for colour, expected in (("red", 250), ("green", 250), ("blue", 500)):
        assert abs(drawn[f"a {colour} cat"] - expected) < 50  # 3.2 standard deviations or more


def test_signs_within_wildcards_are_read_after_the_choice() -> None:
    options = {"wildcards": True, "keep_tokens_separator": "|||", "tag_dropout_rate": 1.0}
    assert set(made("{a, b|c} ||| d, e", 40, **options)) == {"a, b", "c"}


def test_wildcards_stand_in_lines_of_the_template_too() -> None:
    config, line = CaptionConfig(wildcards=True), "{a|the} [filewords]"
    draws = {make_caption(["{x|y}"], config, random.Random(n), (line,)) for n in range(40)}
    assert draws == {*all_captions(["{x|y}"], (line,), config)}
    assert draws == {"a x", "a y", "the x", "the y"}


def test_few_wildcards_are_listed_and_many_are_not() -> None:
    wild, tame = CaptionConfig(wildcards=True), CaptionConfig()
    ten = "{" + "|".join("abcdefghij") + "}"
    assert count_choices(ten * 4) == MOST_CHOICES == 10_000
    plain = ("[filewords]",)
    assert not has_countless([((ten * 4,), plain, wild)])
    assert has_countless([((ten * 4,), plain, wild), (("{a|b}",), plain, wild)])
    assert has_countless([((ten * 4,), ("[filewords]", "a [filewords]"), wild)])
    assert not has_countless([(("a",), plain, wild)] * 20_000)  # no choices, no limit
    assert not has_countless([((ten * 5,), plain, tame)])
    for config in (
        CaptionConfig(shuffle_tags=True),
        CaptionConfig(tag_dropout_rate=0.1),
        CaptionConfig(token_warmup_step=2),
    ):
        assert has_countless([(("a",), ("[filewords]",), config)])


def test_listed_captions_are_those_that_come_up() -> None:
    captions = ["{a|b} ||| c;;;d", "e"]
    config = CaptionConfig(wildcards=True, secondary_separator=";;;", keep_tokens_separator="|||")
    drawn = {make_caption(captions, config, random.Random(n)) for n in range(60)}
    assert drawn == {*all_captions(captions, ("[filewords]",), config)} == {"a, c,d", "b, c,d", "e"}


# Epochs and steps


def test_captions_of_every_nth_epoch_are_empty() -> None:
    def epochs(n: int) -> list[bool]:
        return [
            make_caption(["a"], CaptionConfig(dropout_every_n_epochs=n), random.Random(0),
                         moment=StepInfo(epoch)) == ""
            for epoch in range(6)
        ]  # fmt: skip

    assert epochs(0) == [False] * 6
    assert epochs(2) == [False, True] * 3
    assert epochs(3) == [False, False, True] * 2


@pytest.mark.parametrize(
    ("count", "options", "counts"),
    [
        # 1 + floor(step x 9 / 6), and all of them from step 6 on
        (10, {"token_warmup_step": 6}, [1, 2, 4, 5, 7, 8, 10, 10]),
        # 4 + floor(step x 6 / 4)
        (10, {"token_warmup_step": 4, "token_warmup_min": 4}, [4, 5, 7, 8, 10]),
        # half of 9 steps: floor(4.5) = 4; 0 + floor(step x 3 / 4)
        (3, {"token_warmup_step": 0.5, "token_warmup_min": 0}, [0, 0, 1, 2, 3, 3]),
        (2, {"token_warmup_step": 4, "token_warmup_min": 5}, [2, 2, 2, 2]),
        (5, {"token_warmup_step": 0.1}, [5]),  # floor(0.9) = 0 steps
    ],
)
def test_tags_come_in_step_by_step(count: int, options: dict[str, Any], counts: list[int]) -> None:
    config = CaptionConfig(**options)
    got = [warm_tags(count, config, StepInfo(0, step, 9)) for step in range(len(counts))]
    assert got == counts


def test_warm_up_counts_behind_the_kept_tags_and_shuffles_what_is_there() -> None:
    options = {"token_warmup_step": 4, "shuffle_tags": True, "keep_tokens": 1}
    # 1 + floor(1 x 3 / 4) = 1, 1 + floor(2 x 3 / 4) = 2
    assert set(made("x, a, b, c, d", 40, StepInfo(0, 1), **options)) == {"x, a"}
    assert set(made("x, a, b, c, d", 40, StepInfo(0, 2), **options)) == {"x, a, b", "x, b, a"}


def test_steps_of_positions() -> None:
    pace = Pace(step_size=4, max_steps=9, first_step=3, first_position=12)
    assert [pace.step(position) for position in (12, 15, 16, ~12, ~19)] == [3, 3, 4, 3, 4]


def examples(tmp_path: Path, *captions: str, **options: Any) -> Examples:
    pictures = []
    for number, caption in enumerate(captions):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8)).save(path)
        pictures.append(Picture(path, (caption,)))
    return Examples(pictures, DataConfig(captions=CaptionConfig(**options)), 8, seed=5)


def test_examples_ask_by_epoch_and_step(tmp_path: Path) -> None:
    made = examples(tmp_path, "a, b, c", dropout_every_n_epochs=4, token_warmup_step=2)
    made.pace = Pace(step_size=1, max_steps=4)
    assert [made[p]["prompts"] for p in range(5)] == ["a", "a, b", "a, b, c", "", "a, b, c"]
    assert made.changes_words


def test_all_prompts_hold_all_that_comes_up(tmp_path: Path) -> None:
    made = examples(tmp_path, "{a|b} c", "d", wildcards=True, dropout_every_n_epochs=3)
    assert not made.changes_words
    assert made.all_prompts() == ["", "a c", "b c", "d"]
    assert {made[position]["prompts"] for position in range(60)} == {*made.all_prompts()}


def test_defaults_draw_what_they_drew_before(tmp_path: Path) -> None:
    """Captions of version 0.1, of seed 5, by (epoch, index): dropped, shuffled, dropped tags."""
    made = examples(
        tmp_path, "x, a, b, c", dropout_rate=0.2, shuffle_tags=True, keep_tokens=1,
        tag_dropout_rate=0.3,
    )  # fmt: skip
    before = ["", "x, a, c, b", "x, a, c, b", "", "x, a, b", "x, a, b, c"]
    assert [made.prompt(0, epoch) for epoch in range(6)] == before


# Caption files


def folder(tmp_path: Path, **files: str) -> DataConfig:
    """Pictures `a` and `b`, and files beside them by `name_ending`."""
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return DataConfig(path=str(tmp_path))


def captions_of(data: DataConfig, **options: Any) -> list[tuple[tuple[str, ...], str]]:
    data.captions = CaptionConfig(**options)
    return [(one.captions, one.told_by) for one in find_pictures(data, captioned=True)]


def test_where_captions_are_from(tmp_path: Path) -> None:
    data = folder(tmp_path, a_caption="by caption", b_txt="", b_caption="b too")
    assert captions_of(data) == [(("by caption",), ".caption"), (("b too",), ".caption")]
    (tmp_path / "b.caption").unlink()
    with pytest.warns(RecipeWarning, match=r"1 of 2 pictures have empty caption files"):
        assert captions_of(data, fallback="c")[1] == (("c",), "fallback")
    (tmp_path / "b.txt").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "meta"}')
    assert captions_of(data, fallback="c")[0] == (("meta",), "metadata.jsonl")


def test_files_of_another_ending_are_told(tmp_path: Path) -> None:
    data = folder(tmp_path, a_json='"x"', b_json='"y"', b_tags="z")
    with pytest.raises(DataError) as error:
        captions_of(data)
    assert str(error.value).endswith(
        "There are files ending in .json beside 2, .tags beside 1 of them: "
        "data.captions.extensions=[.txt, .caption, .json] reads them"
    )
    with pytest.warns(RecipeWarning, match=r"fallback: 2 of 2 pictures have it\. There are files"):
        captions_of(data, fallback="c")
    assert captions_of(data, extensions=[".json"]) == [(("x",), ".json"), (("y",), ".json")]


def test_without_other_files_nothing_is_said_of_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'fallback="…" gives them one$'):
        captions_of(folder(tmp_path, c_txt="of no picture", a_md="no caption"))


def test_lines_are_captions_with_wildcards_only(tmp_path: Path) -> None:
    data = folder(tmp_path, a_txt="one,\n  two \n\nthree", b_txt="b")
    assert captions_of(data, prefix="x ")[0][0] == ("x one, two three",)
    assert captions_of(data, prefix="x ", wildcards=True)[0][0] == ("x one,", "x two", "x three")


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('"a  cat"', ("a cat",)),
        ('["a", "b"]', ("a", "b")),
        ('{"caption": "a", "tags": ["b"]}', ("a",)),
        ('{"text": ["a", "b"]}', ("a", "b")),
        ('{"caption": "", "tags": ["b", "c"]}', ("b, c",)),
        ('{"tags": "b, c"}', ("b, c",)),
    ],
)
def test_captions_in_json(tmp_path: Path, text: str, captions: tuple[str, ...]) -> None:
    data = folder(tmp_path, a_json=text, b_json=text)
    assert captions_of(data, extensions=[".json"]) == [(captions, ".json")] * 2


@pytest.mark.parametrize("text", ["{", "{}", "[1]", "1", '{"label": "a"}'])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.json: (not JSON|expected a caption, a list)"):
        captions_of(folder(tmp_path, a_json=text), extensions=[".json"])


# Recipes


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"caption_separator": " "}, "caption_separator", "must be a sign"),
        ({"secondary_separator": ","}, "secondary_separator", "the same as caption_separator"),
        ({"keep_tokens_separator": ";;;", "secondary_separator": ";;;"}, "keep_tokens_separator",
         "the same as secondary_separator"),
        ({"extensions": ["txt"]}, "extensions", "must begin with a dot"),
        ({"dropout_every_n_epochs": -1}, "dropout_every_n_epochs", "at least 0"),
        ({"token_warmup_step": -1.0}, "token_warmup_step", "at least 0"),
    ],
)  # fmt: skip
def test_faults(options: dict[str, Any], key: str, words: str) -> None:
    (fault,) = CaptionConfig(**options).faults()
    assert fault[0] == key
    assert words in fault[1]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"keep_tokens": 1}, "keep_tokens"),
        ({"caption_separator": ";"}, "caption_separator"),
        ({"always_kept_tags": ["a"]}, "always_kept_tags"),
        ({"token_warmup_min": 2}, "token_warmup_min"),
        ({"dropout_mode": "zero_embedding"}, "dropout_mode"),
        ({"dropout_every_n_epochs": 1}, "dropout_every_n_epochs"),
    ],
)
def test_options_without_effect(options: dict[str, Any], key: str) -> None:
    assert [name for name, _ in CaptionConfig(**options).idle()] == [key]


def test_wildcard_parts() -> None:
    assert parts_of("a{b|c}d") == [("a",), ("b", "c"), ("d",)]
