"""Prompts, seeds, names and subtitles of frames."""

import re

import pytest

from inference.deforum.products.subtitles import (
    FIELDS,
    chosen_fields,
    subtitle_text,
    subtitles,
    time_of,
)
from inference.deforum.schedules.names import folder_name, frame_name, settings_name, timestring
from inference.deforum.schedules.prompts import Part, PromptAt, divided, frame_prompts
from inference.deforum.schedules.schedule_table import Schedules
from inference.deforum.schedules.seeds import SeedSequence, derived_seed, draw_seed
from inference.deforum.settings.settings_recipe import load_settings
from inference.runtime.errors import InputError


def prompts_of(prompts, frames=10, **settings):
    return frame_prompts(load_settings({"prompts": prompts, "max_frames": frames, **settings}))


def test_prompts_hold_until_the_next():
    prompts = prompts_of({"5": "b --neg c", "max_f/4": "a", "30": "d"})
    assert [one.prompt for one in prompts] == ["a"] * 5 + ["b"] * 5
    assert {one.negative for one in prompts[5:]} == {"c"}
    assert prompts_of({"30": "late"}, 2) == [PromptAt("late", "")] * 2
    assert [one.prompt for one in prompts_of(["a", "b"], 3)] == ["a", "b", "b"]
    assert [one.prompt for one in prompts_of("all", 2)] == ["all", "all"]


def test_formulas_in_prompts():
    prompts = prompts_of({"0": "(a:`t/max_f`), `s`"}, 120, seed=5)
    assert prompts[10].prompt == "(a:0.08403361344537816), 5"
    assert prompts[119].prompt == "(a:1.0), 5"
    text = "(b:`where(cos(6.28*t/10)>0, 1.8*cos(6.28*t/10), 0.001)`)"
    waves = [one.prompt for one in prompts_of({"0": text}, 11)]
    assert waves[0] == "(b:1.8)" and waves[5] == "(b:0.001)"
    assert prompts_of({"0": "`t` `sqrt(t)` `t>1`"}, 5)[4].prompt == "4 2.0 1.0"
    assert prompts_of({"0": "a` b"}, 1)[0].prompt == "a` b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a", "")),
        (" a  --neg  b ", ("a", "b")),
        ("--neg b", ("", "b")),
        ("a --neg ", ("a", "")),
        ("a --neg b --neg c", ("a", "b c")),
    ],
)
def test_negative_prompts(text, expected):
    assert divided(text) == expected


def test_interpolation_has_two_prompts_whose_weights_sum_to_one():
    prompts = prompts_of(
        {"0": "a --neg x", "4": "b `t`", "12": "c"}, 10, animation_mode="Interpolation"
    )
    assert prompts[0] == PromptAt("a", "x", (Part("a", "x", 1.0),))
    assert prompts[1].prompt == "(a):0.75 AND (b 1):0.25"
    assert prompts[1].negative == "(x):0.75"
    assert prompts[1].parts == (Part("a", "x", 0.75), Part("b 1", "", 0.25))
    assert prompts[4].prompt == "b 4"
    assert prompts[6].prompt == "(b 6):0.75 AND (c):0.25"  # towards a frame behind the end
    for one in prompts:
        assert sum(part.weight for part in one.parts) == 1


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"x": "a"}, "prompts, frame 'x', column 1: unknown name 'x'.*expected a frame"),
        ({"t": "a"}, "prompts, frame 't', column 1: unknown name"),
        ({"": "a"}, "prompts, frame '', column 1: is empty"),
        ({"0": "a `foo`"}, "prompts, frame 0, column 4: `foo` unknown name 'foo'"),
        ({"0": "a", "3": "b (`2 *`)"}, "prompts, frame 3, column 5: `2 \\*` is not a formula"),
        ({"0": "`1/t`"}, "prompts, frame 0, column 2: `1/t` does not come to a number"),
        ({"0": "``"}, "prompts, frame 0, column 2: `` is empty"),
    ],
)
def test_mistakes_in_prompts(prompts, message):
    with pytest.raises(InputError, match=re.sub("`", "`", message)):
        prompts_of(prompts)


@pytest.mark.parametrize(
    ("behavior", "iter_n", "expected"),
    [
        ("iter", 1, [10, 11, 12, 13, 14, 15]),
        ("iter", 2, [10, 11, 11, 12, 12, 13]),
        ("fixed", 1, [10] * 6),
        ("ladder", 1, [10, 12, 11, 13, 12, 14]),
        ("alternate", 1, [10, 11, 10, 11, 10, 11]),
        ("schedule", 1, [10, 11, 12, 13, 14, 15]),
    ],
)
def test_seeds(behavior, iter_n, expected):
    seeds = SeedSequence(behavior, 10, iter_n, [10.9, 11, 12, 13, 14, 15])
    assert [seeds.next(frame) for frame in range(6)] == expected


@pytest.mark.parametrize("behavior", ["iter", "fixed", "random", "ladder", "alternate", "schedule"])
def test_seeds_go_on_from_their_state(behavior):
    plan = [4, -1, -1, 5, -1, 6]
    whole = SeedSequence(behavior, 10, 2, plan)
    expected = [whole.next(frame) for frame in range(6)]
    for stop in range(6):
        first = SeedSequence(behavior, 10, 2, plan)
        begun = [first.next(frame) for frame in range(stop)]
        second = SeedSequence(behavior, 99, 2, plan)
        second.restore(first.state())
        assert begun + [second.next(frame) for frame in range(stop, 6)] == expected


def test_seeds_by_chance_follow_from_the_run():
    seeds = SeedSequence("random", 10)
    drawn = [seeds.next(frame) for frame in range(50)]
    assert drawn[0] == 10 and len(set(drawn)) == 50
    assert all(0 <= seed < 2**32 for seed in drawn)
    planned = SeedSequence("schedule", 10, 1, [-1, 7, -1])
    assert planned.at(0) == planned.at(0) != planned.at(2)
    assert planned.at(1) == 7
    assert derived_seed(1, 2, "redo") == derived_seed(1, 2, "redo") != derived_seed(1, 2, "noise")
    assert 0 <= draw_seed() < 2**32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sometimes", 1), "seed_behavior: expected one of"),
        (("iter", -1), "seed: expected a number from 0 on"),
        (("iter", 1, 0), "seed_iter_N: must be at least 1"),
        (("schedule", 1), "needs seed_schedule"),
    ],
)
def test_seeds_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        SeedSequence(*arguments)


@pytest.mark.parametrize(
    ("batch_name", "expected"),
    [
        ("Deforum_{timestring}", "Deforum_20260102030405"),
        ("{Seed}-{W}x{h}-{animation_mode}", "5-512x256-2d"),
        ("a b, c/d:e", "a_b__c_d_e"),
        ("{zoom}", "0__(1.0025+0.002_sin(1.25_3.14_t_30))"),
        ("../..", "_._.."),
        ("{batch_name}" * 3, ("{batch_name}" * 3).lower() * 3),
    ],
)
def test_folders(batch_name, expected):
    settings = load_settings({"batch_name": batch_name, "seed": 5, "H": 256})
    name = folder_name(settings, "20260102030405")
    assert "/" not in name and name not in (".", "..")
    if ".." not in batch_name:
        assert name == expected[:200]


def test_names():
    assert frame_name("20260102030405", 7) == "20260102030405_000000007.png"
    assert settings_name("20260102030405") == "20260102030405_settings.txt"
    assert re.fullmatch(r"\d{14}", timestring())
    for batch_name, message in [
        ("{nothing}", "'?{nothing}'? is not a setting"),
        (" ", "without a name"),
    ]:
        with pytest.raises(InputError, match=f"batch_name: .*{message}"):
            folder_name(load_settings({"batch_name": batch_name}), "1")


@pytest.mark.parametrize(
    ("frame", "fps", "expected"),
    [
        (0, 15, "00:00:00,000"),
        (1, 15, "00:00:00,066"),
        (2, 15, "00:00:00,133"),
        (15, 15, "00:00:01,000"),
        (7, 2.5, "00:00:02,800"),
        (3600 * 30 + 30 * 61 + 1, 30, "01:01:01,033"),
    ],
)
def test_times_are_cut_to_milliseconds(frame, fps, expected):
    assert time_of(frame, fps) == expected


def test_subtitles():
    settings = load_settings({"max_frames": 5, "seed": 1})
    schedules = Schedules.of(settings)
    fields = chosen_fields(["prompt", "Zoom", "angle", "Sampler Sch"])
    assert fields == ["angle", "zoom", "sampler_schedule", "Prompt"]
    text = subtitle_text(0, 1, schedules.at(0), "a\ncat --neg ; ", False, fields)
    assert text == (
        "F#: 0; Cadence: false; Seed: 1; Angle: 0; Zoom: 1.002; SamplerSchedule: Euler a; "
        "Prompt: a cat --neg"
    )
    assert subtitle_text(3, 2, schedules.at(3), is_tween=True) == "F#: 3; Cadence: true; Seed: 2"
    assert subtitles(["a", "b"], 15) == (
        "1\n00:00:00,000 --> 00:00:00,066\na\n\n2\n00:00:00,066 --> 00:00:00,133\nb\n\n"
    )
    with pytest.raises(InputError, match="there is no 'Zom'; the nearest is 'zoom'"):
        chosen_fields(["Zom"])
    assert all(subtitle_text(1, 1, schedules.at(1), fields=[key]) for key in FIELDS)
