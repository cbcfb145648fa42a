"""Schedules: Deforum's values to the digit, ours where Deforum fails, and mistakes with a place."""

import random
import re

import numpy as np
import pytest

from inference.deforum.schedules.schedule_table import Schedules
from inference.deforum.schedules.schedules import evaluate, evaluate_text
from inference.deforum.settings.expressions import FormulaError, compute
from inference.deforum.settings.keys import KEYS
from inference.deforum.settings.settings_recipe import load_settings
from inference.runtime.errors import InputError

SINE = [0, 5.8753, 9.5086, 9.5135, 5.8882, 0.0159, -5.8624, -9.5037, -9.5184, -5.901]
POWER = [0.95, 0.9256, 0.8651, 0.7971, 0.745, 0.7159, 0.7041, 0.7007, 0.7001, 0.7]

VALUES = [
    ("0:(1), 9:(10)", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("0:(1), 5:(t*2)", [1, 2.8, 4.6, 6.4, 8.2, 10, 12, 14, 16, 18]),
    ("0:(t), 5:(3)", [0, 1, 2, 3, 4, 3, 3, 3, 3, 3]),
    ("0:(t),5:(3),8:(0)", [0, 1, 2, 3, 4, 3, 2, 1, 0, 0]),
    ("0:(1), 3:(t), 6:(0)", [1, 1.6667, 2.3333, 3, 4, 5, 0, 0, 0, 0]),
    ("0:(10*sin(2*3.14*t/10))", SINE),
    ("0:(0.25 * cos((72 / 60 * 3.141 * (t + 0) / 30))**13 + 0.7)", POWER),
    # Frames: formulas, quotes, parentheses, any order, the later of two, behind the end.
    ('0:(0), "max_f/2":(4)', [0, 1, 2, 3, 4, 4, 4, 4, 4, 4]),
    ("0:(0), (max_f/2):(4)", [0, 1, 2, 3, 4, 4, 4, 4, 4, 4]),
    ("9:(10), 0:(1)", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("0:(1), 0:(2)", [2] * 10),
    ("0:(1), 10:(50)", [1] * 10),
    ("0:(1), max_f-20:(50)", [1] * 10),
    # Values without parentheses, or in quotes.
    ("0:1.5, 5:2", [1.5, 1.6, 1.7, 1.8, 1.9, 2, 2, 2, 2, 2]),
    ("(0): 5", [5] * 10),
    ('0:("5")', [5] * 10),
    # A number with a point and nothing behind it is a formula: no line is drawn from it.
    ("0:(5.), 9:(0)", [5] * 9 + [0]),
    ("0:(1e-3), 9:(0)", [0.001] * 9 + [0]),
    ("0:( 5 ), 9:(0)", [5] * 9 + [0]),
    ("0:(-(9)), 9:((0))", [-9, -8, -7, -6, -5, -4, -3, -2, -1, 0]),
    # Where Deforum fails.
    ("0:(where(t>5,1,2)),", [2, 2, 2, 2, 2, 2, 1, 1, 1, 1]),
    ("3:(7)", [7] * 10),
    ("3:(t)", [3, 3, 3, 3, 4, 5, 6, 7, 8, 9]),
    ("0:(max(t, 3, s))", [7, 7, 7, 7, 7, 7, 7, 7, 8, 9]),
    ("0:(min(t, 3))", [0, 1, 2, 3, 3, 3, 3, 3, 3, 3]),
    ("0:(cos(pi*t))", [1, -1] * 5),
    ("0:(log(e)*s)", [7] * 10),
    ("0:(2<=t<5)", [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]),
    # numexpr's rules: true division, the sign of %, true and false as numbers, signs before powers.
    ("0:(t/4)", [t / 4 for t in range(10)]),
    ("0:(-t % 3)", [0, 2, 1, 0, 2, 1, 0, 2, 1, 0]),
    ("0:((t>5)*2)", [0] * 6 + [2] * 4),
    ("0:(-t**2)", [-t * t for t in range(10)]),
    ("0:(t**-1 if_later)".replace(" if_later", "*0+1"), None),  # 0 to the power of -1
    ("0:((t & 1) << 2)", [0, 4] * 5),
    ("0:(\n t *\n 2)", [2 * t for t in range(10)]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), VALUES)
def test_values(text, expected):
    if expected is None:
        with pytest.raises(InputError, match="frame 0"):
            evaluate("zoom", text, 10, seed=7)
        return
    assert evaluate("zoom", text, 10, seed=7) == pytest.approx(expected, abs=6e-5)


def test_deforums_defaults_at_five_frames():
    schedules = Schedules.of(load_settings({"seed": 1, "max_frames": 5}))
    assert [round(value, 3) for value in schedules.zoom] == [1.002, 1.003, 1.003, 1.003, 1.003]
    assert schedules.seed_schedule == [1, -1, -1, 1, 1]
    assert schedules.at(2).kernel_schedule == 5
    assert schedules.at(2)["sampler_schedule"] == "Euler a"
    assert isinstance(schedules.steps_schedule[0], int)


def test_numbers_are_joined_by_lines():
    rng = random.Random(0)
    for _ in range(50):
        frames = rng.sample(range(20), rng.randint(1, 6))
        values = [round(rng.uniform(-9, 9), 3) for _ in frames]
        text = ", ".join(f"{f}:({v})" for f, v in zip(frames, values, strict=True))
        order = np.argsort(frames)
        expected = np.interp(range(20), np.array(frames)[order], np.array(values)[order])
        assert evaluate("zoom", text, 20) == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('0: ("Euler a"), 2: ("DPM++ 2M")', ["Euler a", "Euler a", "DPM++ 2M", "DPM++ 2M"]),
        ("2: (a.safetensors)", ["a.safetensors"] * 4),
        ('0: ("<cat> & (!{everywhere})")', ["<cat> & (!{everywhere})"] * 4),
        ("0: (<a>) & (<b, c>), 3: {video_mask}", ["(<a>) & (<b, c>)"] * 3 + ["{video_mask}"]),
        ('0: ("a, b: c")', ["a, b: c"] * 4),
        ("0: don't.ckpt", ["don't.ckpt"] * 4),
    ],
)
def test_texts(text, expected):
    assert evaluate_text("mask_schedule", text, 4) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"zoom, column 1: expected frame:\(value\)"),
        ("  ", r"zoom, column 3: expected frame:\(value\)"),
        ("0:(1),,2:(3)", r"zoom, column 7: expected frame:\(value\)"),
        ("0:(1), 1.5", r"zoom, column 8: expected frame:\(value\), .* got '1.5' without a frame"),
        ("0:(1), :(2)", "zoom, column 8: expected a frame before ':'"),
        ("0:(1), 5:", "zoom, column 9: expected a value after ':'"),
        ("0:((1)", r"zoom, column 3: '\(' is not closed"),
        ("0:(1))", r"zoom, column 6: '\)' has no matching bracket"),
        ("0:('1)", "zoom, column 4: \"'\" is not closed"),
        ("0:(1), a:(2)", "zoom, column 8: the frame 'a' unknown name 'a'; known are s, max_f"),
        ("0:(1), t:(2)", "zoom, column 8: the frame 't' unknown name 't'"),
        ("30:(1)", "zoom, column 1: has no keyframe among 0 … 9"),
        ("0:(1), 3:(2*foo)", "zoom, frame 3, column 13: unknown name 'foo'; known are t, s, max_f"),
        ("0:(sin+1)", r"zoom, frame 0, column 4: unknown name 'sin'; sin\(…\) is a function"),
        ("0:(sinn(t))", "zoom, frame 0, column 4: unknown function 'sinn'"),
        ("0:(where(t,1))", "zoom, frame 0, column 4: where takes 3 values, got 2"),
        ("0:(1 2)", "zoom, frame 0, column 4|zoom, frame 0, column 6"),
        ("0:(t.real)", "zoom, frame 0, column 4: Attribute is not possible"),
        ("0:(t if t else 1)", r"'if' \(write where"),
        ("0:(t>1 and t<3)", r"'and' and 'or' \(write & and \|\)"),
        ("0:(1/(t-4))", "zoom, frame 4, column 4: comes to inf"),
        ("0:(sqrt(3-t))", "zoom, frame 4, column 4: comes to nan"),
        ("0:(9**9**9**9)", "zoom, frame 0, column 4: cannot be computed"),
        ("0:((9*9)**(9*9*9*9*9*9*9*9))", "zoom, frame 0, column 4: cannot be computed"),
        ("0:(1<<t)", "zoom, frame 0, column 7: << and >> take a whole number"),
        ("0:(1<<99999999999)", "<< and >> take a whole number"),
        ("0:(1j)", "1j is not a number"),
        ("0:(__import__('os'))", "unknown function '__import__'"),
        ("0:(" + "(" * 300 + "1" + ")" * 300 + "+t)", "zoom, frame 0, column"),
        ("0:(" + "-" * 3000 + "t)", "zoom, frame 0, column"),
        ("0:(t+" + "1" * 5000 + ")", "longer than 4000 characters"),
        ("0:(t+" + "9" * 400 + ")", "too large a number"),
        ("0:(t # x)", "zoom, frame 0, column 6: '#' has no meaning"),
        ("0:(+)", "zoom, frame 0, column 4"),
    ],
)  # fmt: skip
def test_mistakes_have_a_place(text, message):
    with pytest.raises(InputError, match=message):
        evaluate("zoom", text, 10)


def test_any_text_gives_values_or_a_message_with_key_and_column():
    rng = random.Random(1)
    pieces = [
        "0", "5", "max_f", "t", "s", "pi", ":", ",", "(", ")", "'", '"', "+", "-", "*", "**", "/",
        "%", "<", "&", "sin(", "where(", "1.5", "1e3", " ", ".", "[", "]", "#", "\n", "lambda", "é",
        "0:(", "):", "0:(t)", ", 3:(2)",
    ]  # fmt: skip
    count = 0
    for _ in range(400):
        text = rng.choice(VALUES)[0]
        for _ in range(rng.randint(1, 2)):
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(pieces) + text[place + rng.randint(0, 3) :]
        try:
            values = evaluate("zoom", text, 6, seed=3)
        except InputError as error:
            assert re.match(r"zoom(, frame \d+)?, column \d+: .", str(error)), text
            continue
        assert len(values) == 6 and np.all(np.isfinite(values)), text
        count += 1
    assert count > 20


def test_formulas_name_what_they_are_given_and_nothing_else():
    hidden = 5
    assert compute("a+1", {"a": np.arange(3)}).tolist() == [1, 2, 3]
    with pytest.raises(FormulaError, match="unknown name 'hidden'"):
        compute(f"hidden+0*{hidden}", {"a": 1})


def test_events_and_beats():
    """The numbers of deforum-studio's `test_schedule_events.py`."""
    settings = {"fps": 10, "seed": 4, "schedule_events": [{"time": 0.2}, 0.55, {"time": 0.8}]}
    ten = load_settings(settings | {"max_frames": 10})

    def of(formula, loaded=ten):
        return [round(v, 6) for v in Schedules.of(loaded.replace(angle=f"0:({formula})")).angle]

    assert of("frames_until_next_event") == [2, 1, 0, 2, 1, 0, 2, 1, 0, 0]
    assert of("frames_since_prev_event") == [0, 1, 2, 1, 2, 3, 1, 2, 3, 1]
    assert of("events_passed") == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert of("unique") == [4] * 10
    five = load_settings({"fps": 10, "max_frames": 5, "schedule_events": [0.2]})
    assert of("where(frames_until_next_event<1, 0.2, 0.8)", five) == [0.8, 0.8, 0.2, 0.8, 0.2]
    assert of("beat", five) == [0, 0.2, 0.4, 0.6, 0.8]
    assert of("beat", five.replace(beat_offset=0.1)) == [-0.1, 0.1, 0.3, 0.5, 0.7]
    assert of("frames_until_beat", five) == [0, 4, 3, 2, 1]
    assert of("whole_beat + progress_until_beat - beat", five) == [0] * 5
    assert of("sec*fps - t + bpm", five) == [120] * 5


def test_schedules_of_what_is_off_are_left_alone():
    broken = {"freeu_b1": "0:(", "cn_1_weight": "x", "steps_schedule": "0:(nothing)"}
    schedules = Schedules.of(load_settings(broken))
    with pytest.raises(InputError, match="freeu_b1, column 3"):
        schedules.freeu_b1  # noqa: B018
    with pytest.raises(InputError, match=r"steps_schedule, frame 0, column 4"):
        Schedules.of(load_settings({**broken, "enable_steps_scheduling": True}))


def test_samplers_of_any_dialect_in_a_schedule():
    text = "0: ('euler'), 1: (dpm++ 2m karras), 2: ('dpmpp_2s_a')"
    settings = load_settings({"sampler_schedule": text, "max_frames": 3}, origin="a.txt")
    on = settings.replace(enable_sampler_scheduling=True)
    assert Schedules.of(on).sampler_schedule == ["Euler", "DPM++ 2M Karras", "DPM++ 2S a"]
    wrong = on.replace(sampler_schedule="0:(DDIM), 2:(Eulr)")
    message = 'a.txt: sampler_schedule, frame 2: expected a sampler, .* got "Eulr"; the nearest'
    with pytest.raises(InputError, match=message):
        Schedules.of(wrong)
    assert Schedules.of(wrong.replace(enable_sampler_scheduling=False)).at(2).zoom > 1


def test_network_schedules():
    settings = load_settings({"network_schedules": {"style": "0:(0), 4:(1)"}, "max_frames": 5})
    assert Schedules.of(settings).networks == {"style": [0, 0.25, 0.5, 0.75, 1]}
    with pytest.raises(InputError, match=r"network_schedules\.style, column 1"):
        Schedules.of(settings.replace(network_schedules={"style": ""}))


def test_every_schedule_has_a_default_that_can_be_read():
    schedules = Schedules.of(load_settings({"max_frames": 3, "seed": 0}))
    names = [name for name, key in KEYS.items() if key.kind == "schedule"]
    assert len(names) == len(schedules.at(0)) == 76
    assert all(len(schedules[name]) == 3 for name in names)
    with pytest.raises(AttributeError):
        schedules.W  # noqa: B018
