"""Settings files of all ages and programs, and that a saved one loads to itself."""

import json
import random

import pytest

from inference.deforum.check import problems, settings_report
from inference.deforum.schedules.prompts import frame_prompts
from inference.deforum.schedules.schedule_table import Schedules
from inference.deforum.settings.dialects import RENAMED, joined
from inference.deforum.settings.keys import (
    ANIMATION,
    ANY_TEXT,
    CONTROLNET,
    KEYS,
    LOOPER,
    OURS,
    OUTPUT,
    PARSEQ,
    RUN,
)
from inference.deforum.settings.settings import DEFAULTS
from inference.deforum.settings.settings_recipe import load_settings
from inference.runtime.errors import InputError

FILES = {
    "run": {
        "W": 512, "H": 256, "seed": 7, "sampler": "DPM++ 2M Karras", "max_frames": 24,
        "legacy_colormatch": False, "diffusion_cadence": "3", "init_image": None,
        "prompts": {"0": "ink a cat --neg blur", "max_f/2": "ink a dog --neg blur"},
        "positive_prompts": "ink", "negative_prompts": "blur",
        "sd_model_name": "picto.safetensors", "sd_model_hash": "0123456789",
        "deforum_git_commit_id": "Unknown",
    },
    "page": {
        "W": 512, "seed": 7, "fill": 1, "reroll_patience": 10.0, "prompts": {"0": "a cat"},
        "animation_prompts_positive": "ink", "animation_prompts_negative": "blur --neg",
        "legacy_colormatch": True, "diffusion_redo": "2", "cn_1_threshold_a": 64.5,
    },
    "notebook": {
        "width": 448, "height": 704, "scale": 7, "fov": 40, "near_plane": 200, "far_plane": 10000,
        "sampler": "dpmpp_2s_a", "border": "warp", "enable_schedule_samplers": True,
        "sampler_schedule": "0: ('euler'), 5: ('ddim')", "hybrid_video_motion": "Affine",
        "prompts": ["a still"], "animation_prompts": {"0": "a cat", "20": "a dog"},
        "neg_prompts": {"0": "blur"}, "color_coherence": "Match Frame 0 LAB", "n_batch": 1,
    },
    "studio": {
        "width": 512, "height": 512, "sampler_name": "dpmpp_2m", "scheduler": "karras",
        "cfg_scale": 6, "prompts": {"0": "a cat"}, "bpm": 90, "schedule_events": [{"time": 1}],
    },
    "job": {"input": {"settings": {"W": 320, "prompts": "a cat"}}},
    "batch": {"deforum_settings": [{"W": 320, "prompts": ["a cat", "a dog"]}], "options": {}},
}  # fmt: skip


@pytest.fixture
def loaded(tmp_path):
    def load(settings, *overrides, name="a.txt"):
        path = tmp_path / name
        text = settings if isinstance(settings, str) else json.dumps(settings)
        path.write_text(text, "utf-8")
        return load_settings(path, overrides)

    return load


def test_keys_are_deforums():
    tables = (RUN, ANIMATION, LOOPER, PARSEQ, OUTPUT)
    assert sum(map(len, tables)) == 166
    assert len(CONTROLNET) == 85
    assert (KEYS["W"].default, KEYS["near_schedule"].default) == (512, "0: (200)")
    assert KEYS["seed_schedule"].default == '0:(s), 1:(-1), "max_f-2":(-1), "max_f-1":(s)'
    assert not OURS.keys() & {key for table in tables for key in table}


@pytest.mark.parametrize("name", FILES)
def test_saved_settings_load_to_themselves(name, loaded, tmp_path):
    first = loaded(FILES[name])
    first.save(tmp_path / "saved.txt")
    second = load_settings(tmp_path / "saved.txt")
    second.save(tmp_path / "again.txt")
    assert (tmp_path / "saved.txt").read_bytes() == (tmp_path / "again.txt").read_bytes()
    assert second.values == first.values
    assert second.notes == []
    assert Schedules.of(second).zoom == Schedules.of(first).zoom


def test_what_each_dialect_comes_to(loaded):
    run, page, notebook, studio, job, batch = (loaded(FILES[name]) for name in FILES)
    assert (run["seed"], run["diffusion_cadence"], run["init_image"]) == (7, 3, "")
    assert run["prompts"]["0"] == "ink a cat --neg blur"  # is not joined again
    assert run["sd_model_name"] == "picto.safetensors"
    assert page["prompts"] == {"0": "ink a cat --neg blur "}
    assert (page["fill"], page["diffusion_redo"], page["reroll_patience"]) == ("original", 2, 10)
    assert (page["positive_prompts"], page["negative_prompts"]) == ("ink", "blur --neg")
    assert (notebook["W"], notebook["H"], notebook["sampler"]) == (448, 704, "DPM++ 2S a")
    assert notebook["cfg_scale_schedule"] == "0:(7)"
    assert notebook["fov_schedule"] == "0:(40)"
    assert (notebook["near_schedule"], notebook["far_schedule"]) == ("0:(200)", "0:(10000)")
    assert (notebook["border"], notebook["hybrid_motion"]) == ("wrap", "Affine")
    assert notebook["enable_sampler_scheduling"]
    assert notebook["prompts"] == {"0": "a cat --neg blur", "20": "a dog --neg blur"}
    assert notebook["color_coherence"] == "LAB"
    assert any("'n_batch'" in note for note in notebook.notes)
    assert (studio["sampler"], studio["schedule_type"]) == ("DPM++ 2M", "Karras")
    assert (studio["bpm"], studio["schedule_events"]) == (90, [1])
    assert (job["W"], job["prompts"]) == (320, {"0": "a cat"})
    assert (batch["W"], batch["prompts"]) == (320, {"0": "a cat", "1": "a dog"})


def test_prompts_of_a_hosted_program(loaded):
    text = "0: red apple, line icon | 3: a {big|small} banana: ripe | 5:c"
    raw = {"input": {"animation_prompts": text, "num_inference_steps": 4, "guidance_scale": 6.5}}
    found = loaded(raw)
    expected = {"0": "red apple, line icon", "3": "a {big|small} banana: ripe", "5": "c"}
    assert found["prompts"] == expected
    assert (found["steps"], found["cfg_scale_schedule"]) == (4, "0:(6.5)")
    assert "prompts: read as 3 prompts, `frame: text | frame: text`" in found.notes
    for plain in ("a cat | a dog", "16:9 wallpaper | 2: x", "a 0: b | 3: c"):
        assert loaded({"prompts": plain})["prompts"] == {"0": plain}


def test_notebook_has_neither_perlin_noise_nor_a_multiplier(loaded):
    raw = {"width": 64, "scale": 7, "animation_prompts": {"0": "a"}}
    found = loaded(raw)
    assert (found["noise_type"], found["amount_schedule"]) == ("uniform", "0: (0.2)")
    assert not found["enable_noise_multiplier_scheduling"]
    assert [note for note in found.notes if note.startswith("a file of the notebook: as there,")]
    said = loaded(raw | {"amount_schedule": "0: (0)", "noise_type": "perlin"})
    assert (said["noise_type"], said["amount_schedule"]) == ("perlin", "0: (0)")
    others = loaded({"W": 64, "prompts": {"0": "a"}})
    assert (others["noise_type"], others["amount_schedule"]) == ("perlin", "0: (0.1)")
    assert others["enable_noise_multiplier_scheduling"]


@pytest.mark.parametrize("key", [key for key, one in KEYS.items() if one.choices])
def test_unknown_values_of_a_choice(loaded, key):
    """Of keys whose values change nothing any text is read; of others it is an error."""
    if key in ANY_TEXT:
        found = loaded({key: "Newer-Model-V9", "legacy_colormatch": True})
        assert found[key] == "Newer-Model-V9"
        assert f"{key}: 'Newer-Model-V9' is not known here" in " ".join(found.notes)
        assert not [note for note in loaded({key: KEYS[key].default}).notes if key in note]
        with pytest.raises(InputError, match=f"{key}: expected one of"):
            loaded({key: ["x"]})
    else:
        with pytest.raises(InputError, match=rf"{key}: expected (one of|a sampler)"):
            loaded({key: "Newer-Model-V9"})


def test_second_colon_is_named(loaded):
    found = loaded({"rotation_3d_x": "0: 0: (0.11*cos(t/24))", "prompts": {"0": "a"}, "seed": 1})
    message = r"rotation_3d_x, frame 0, column 5: a second ':' in one keyframe; expected frame:\("
    with pytest.raises(InputError, match=message):
        Schedules.of(found)


MIGRATIONS = [
    ({}, "legacy_colormatch", True),
    ({"legacy_colormatch": False}, "legacy_colormatch", False),
    ({"flip_2d_perspective": True}, "enable_perspective_flip", True),
    ({"skip_video_for_run_all": True}, "skip_video_creation", True),
    ({"color_coherence": "Match Frame 0 HSV"}, "color_coherence", "HSV"),
    ({"color_coherence": "Match Frame 0 LAB"}, "color_coherence", "LAB"),
    ({"color_coherence": "Match Frame 0 RGB"}, "color_coherence", "RGB"),
    ({"hybrid_composite": False}, "hybrid_composite", "None"),
    ({"hybrid_composite": True}, "hybrid_composite", "Normal"),
    ({"optical_flow_cadence": False}, "optical_flow_cadence", "None"),
    ({"optical_flow_cadence": True}, "optical_flow_cadence", "DIS Fine"),
    ({"optical_flow_redo_generation": False}, "optical_flow_redo_generation", "None"),
    ({"optical_flow_redo_generation": True}, "optical_flow_redo_generation", "DIS Fine"),
    (
        {"cn_1_resize_mode": "Envelope (Outer Fit)"},
        "cn_1_resize_mode",
        "Outer Fit (Shrink to Fit)",
    ),
    (
        {"cn_3_resize_mode": "Scale to Fit (Inner Fit)"},
        "cn_3_resize_mode",
        "Inner Fit (Scale to Fit)",
    ),
    ({"use_zoe_depth": True}, "depth_algorithm", "Zoe+AdaBins (old)"),
    ({"use_zoe_depth": False}, "depth_algorithm", "Midas+AdaBins (old)"),
    ({"cn_2_weight": 0.5}, "cn_2_weight", "0:(0.5)"),
    ({"cn_2_guidance_start": 0}, "cn_2_guidance_start", "0:(0)"),
    ({"cn_2_guidance_end": 1.0}, "cn_2_guidance_end", "0:(1.0)"),
    ({"add_soundtrack": True}, "add_soundtrack", "File"),
    ({"add_soundtrack": False}, "add_soundtrack", "None"),
    ({"blendFactorMax": 0.35}, "blendFactorMax", "0:(0.35)"),
    ({"zoom": "1.04"}, "zoom", "0:(1.04)"),
    ({"noise_schedule": 1e-05}, "noise_schedule", "0:(0.00001)"),
    ({"angle": {"0": 1, "9": "t"}}, "angle", "0:(1), 9:(t)"),
    ({"fill": "2"}, "fill", "latent noise"),
    ({"fill": "Latent Nothing"}, "fill", "latent nothing"),
    ({"sampler": 7}, "sampler", "DPM++ 2M"),
    ({"sampler": "euler A"}, "sampler", "Euler a"),
    ({"sampler": "klms"}, "sampler", "LMS"),
    ({"sampler": "dpm++ 2m sde Heun Exponential"}, "sampler", "DPM++ 2M SDE Heun Exponential"),
    ({"steps": 25.0}, "steps", 25),
    ({"max_frames": "12"}, "max_frames", 12),
    ({"use_init": 0}, "use_init", False),
    ({"use_init": "True"}, "use_init", True),
    ({"strength": "0.5"}, "strength", 0.5),
    ({"init_image": "None"}, "init_image", ""),
    ({"parseq_manifest": ""}, "parseq_manifest", None),
    ({"resume_timestring": 20230129210106}, "resume_timestring", "20230129210106"),
    ({"prompts": '{"0": "a", "5": "b"}'}, "prompts", {"0": "a", "5": "b"}),
    ({"perlin_octaves": None}, "perlin_octaves", 4),
]


@pytest.mark.parametrize(("old", "key", "value"), MIGRATIONS)
def test_old_values_are_read_as_todays(old, key, value, loaded):
    settings = loaded(old)
    assert settings[key] == value
    assert type(settings[key]) is type(value)


def test_what_was_read_otherwise_is_told(loaded):
    old = {"histogram_matching": True, "flip_2d_perspective": True, "zom": 1, "foo": 2}
    notes = "\n".join(loaded(old).notes)
    for words in (
        "histogram_matching has no meaning any more",
        "flip_2d_perspective is now called enable_perspective_flip",
        "legacy_colormatch: on",
        "ignored, as not known: 'zom' (is zoom meant?), 'foo'",
        "has no prompts",
    ):
        assert words in notes
    assert load_settings({"prompts": "a"}).notes == []
    assert not load_settings({})["legacy_colormatch"]  # a recipe is no old file


def test_nothing_that_settings_point_to_is_opened(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"opened {arguments}")

    settings = load_settings({"prompts": "a", "seed": 1, "max_frames": 3})
    for place in ("socket.socket", "builtins.open", "pathlib.Path.open", "pathlib.Path.exists"):
        monkeypatch.setattr(place, refuse)
    schedules = Schedules.of(settings)
    assert problems(settings, schedules) == []
    assert frame_prompts(settings)[2].prompt == "a"


def test_prompts_are_joined_once():
    assert joined("", "<text>", "") == " <text> --neg "
    assert joined("ink", "a --neg b", "c --neg d") == "ink a --neg b  c  d"


def test_notebooks_interpolation(loaded):
    raw = {
        "animation_mode": "Interpolation",
        "interpolate_key_frames": False,
        "interpolate_x_frames": 4,
        "animation_prompts": {"0": "a", "20": "b", "30": "c"},
    }
    settings = loaded(raw)
    assert settings["prompts"] == {"0": "a", "4": "b", "8": "c"}
    assert (settings["max_frames"], settings["interpolation_blend"]) == (9, "embedding")
    assert loaded({**raw, "interpolate_key_frames": True})["prompts"] == raw["animation_prompts"]


def test_overrides(loaded):
    settings = loaded(
        FILES["run"], "max_frames=5", "angle=0:(2)", "prompts.0=a = b", "zoom=1.5", "sampler=ddim"
    )
    assert settings["max_frames"] == 5
    assert (settings["angle"], settings["zoom"]) == ("0:(2)", "0:(1.5)")
    assert settings["prompts"] == {"0": "a = b", "max_f/2": "ink a dog --neg blur"}
    assert settings["sampler"] == "DDIM"
    for override, message in [
        ("zom=1", "zom: no such setting; the nearest is zoom"),
        ("zoom", "zoom: expected key=value"),
        ("zoom.1=2", "zoom has no keys inside"),
        ("max_frames=many", 'max_frames: expected a whole number, got "many"'),
    ]:
        with pytest.raises(InputError, match=message):
            loaded(FILES["run"], override)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{'W': 1}", r"a.txt: line 1, column 2: is not JSON"),
        ('{"W": NaN}', "a.txt: is not JSON that can be read: NaN is not a number"),
        ("[1]", "a.txt: expected settings"),
        ("[" * 100_000, "a.txt: is not JSON that can be read"),
        ("", "a.txt: line 1, column 1: is not JSON"),
        ({"deforum_settings": [{}, {}]}, "deforum_settings: holds 2 settings; expected one"),
        ({"W": 64.5}, "a.txt: W: expected a whole number, got 64.5"),
        ({"W": 0}, "a.txt: W: must lie between 8 and 16384, got 0"),
        ({"W": True}, "W: expected a whole number, got true"),
        ({"seed": -2}, "seed: must lie between -1 and"),
        ({"max_frames": 0}, "max_frames: must lie between 1 and 100000"),
        ({"max_frames": 10**30}, "max_frames: must lie between"),
        ({"fps": 0}, "fps: must lie between"),
        ({"strength": "1e999"}, "strength: expected a number"),
        ({"strength": [1]}, r"strength: expected a number, got \[1\]"),
        ({"use_init": "maybe"}, 'use_init: expected true or false, got "maybe"'),
        ({"animation_mode": "4D"}, "animation_mode: expected one of 2D, 3D, Video Input"),
        ({"sampler": "Eulr a"}, "sampler: expected a sampler, .* the nearest is Euler a"),
        ({"sampler": 99}, "sampler: expected a sampler"),
        ({"zoom": ["0:(1)"]}, "zoom: expected a schedule"),
        ({"zoom": True}, "zoom: expected a schedule"),
        ({"prompts": 5}, "prompts: expected frames and texts"),
        ({"prompts": {}}, "prompts: has no prompt"),
        ({"prompts": {"0": None}}, "prompts: at '0' expected a text, got null"),
        ({"prompts": {"0": "\ud800"}}, "prompts: character 1 is not valid Unicode"),
        ({"animation_prompts_positive": 5}, "animation_prompts_positive: expected a text"),
        ({"schedule_events": [{"when": 1}]}, "schedule_events: expected a number, got null"),
    ],
)  # fmt: skip
def test_mistakes_name_file_and_key(settings, message, loaded):
    with pytest.raises(InputError, match=message):
        loaded(settings)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_settings(tmp_path / "none.txt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_settings(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b'{"batch_name": "\xe9"}')
    with pytest.raises(InputError, match="is not UTF-8, at byte 16"):
        load_settings(tmp_path / "latin.txt")
    (tmp_path / "mark.txt").write_bytes('\ufeff{"W": 64}'.encode())
    assert load_settings(tmp_path / "mark.txt")["W"] == 64


def test_mutated_files_are_drawn_or_told_what_is_wrong(loaded):
    """200 files with up to two values exchanged: each is read, or its errors name the key."""
    rng = random.Random(2)
    values = [
        None, True, 0, -1, 3, 2.5, 1e300, "", "x", "0", "-5", "0:(t)", "0:(1), 5:(2", "0:(1/t)",
        "None", "\x00", "é" * 50, [], [1], {}, {"0": "a"}, {"0": {}}, {"a": "b"}, "`1/t`", "{seed}",
    ]  # fmt: skip
    texts = {"0": "a `t/2` --neg b", "max_f/2": "c"}
    base = {"max_frames": 6, "prompts": texts, "seed": 3, "enable_perspective_flip": True}
    keys = [key for key in DEFAULTS if not key.startswith("cn_")]
    counts = {"drawn": 0, "refused": 0}
    for _ in range(200):
        raw = json.loads(json.dumps(rng.choice([base, {**base, **FILES["notebook"]}])))
        changed = rng.choices([*keys, *raw], k=rng.randint(1, 2))
        for key in changed:
            raw[key] = rng.choice(values)
        if not isinstance(raw.get("max_frames"), int) or raw["max_frames"] > 50:
            raw["max_frames"] = 6
        try:
            settings = load_settings(raw)
            settings = settings.replace(seed=max(settings["seed"], 0))
            schedules = Schedules.of(settings)
            prompts = frame_prompts(settings, schedules.variables)
            settings_report(settings)
        except InputError as error:
            message = str(error)
            today = [RENAMED.get(key, key.replace("_video_", "_")) for key in changed]
            assert any(key in message for key in (*changed, *today)), (changed, message)
            counts["refused"] += 1
            continue
        assert len(prompts) == settings["max_frames"] == len(schedules.zoom)
        assert json.loads(settings.text())["W"] == settings["W"]
        counts["drawn"] += 1
    assert min(counts.values()) > 40
