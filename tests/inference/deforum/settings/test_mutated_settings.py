"""300 settings files with something wrong or odd in them: each is drawn, or says what is wrong."""

import json
import random
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from inference.config.recipes import AnimationRecipe
from inference.deforum.animation import Animation
from inference.deforum.check import settings_report
from inference.deforum.loop.generator import SeededGenerator, random_picture
from inference.deforum.settings.keys import KEYS
from inference.deforum.settings.settings_recipe import recipe_settings
from inference.runtime.errors import DrawWarning, InputError

CHUNKS, IN_CHUNK = 12, 25
QUICK_CHUNKS = 2
FRAMES = 3
DEAR = (
    "diffusion_redo", "reroll_patience", "perlin_octaves", "max_frames", "W", "H", "depth_model",
    "word_mask_model",
)  # fmt: skip
"""Keys whose values may only take time (or the import of transformers); some are tried apart."""

NAMES = [key for key in KEYS if not key.startswith("cn_") and key not in DEAR]
KINDS = {kind: [key for key in NAMES if KEYS[key].kind == kind] for kind in ("bool", "enum")}
ODD = [None, "abc", -1, 0, 1e308, [], {}, True, "", "1", [[1]], {"a": {"b": 1}}]
NUMBERS = [-1, 0, 1, 2, 3, 7, 0.5, 100, 1000, -1000, "3", "0.5"]
SCHEDULES = [
    "0:(1)", "0:(0)", "0:(-5)", "0:(1e9)", "0:(t)", "0:(sin(t))", "", "x", "0:(1", "0:(1),",
    "5:(2)",
    "0:(1/0)", "0:(where(t>1,2,0.1))", "max_f:(3)", "0:(-1e300)", "0: (0.5), 2:(nan)", "0:('a')",
    "0:(100)", 0.3, 7, "0:(__import__('os'))", "0:(rms)", "0:(t), 0:(2)", "t:(1)", "0:(9**9**9)",
]  # fmt: skip
PROMPTS = [
    {}, [], {"0": "b `t`"}, {"x": "y"}, {"max_f/2": "c"}, [8, 8, 30, 30], "text", {"0": ["a"]},
    {"0": "a <x> --neg q --neg z"}, {"-1": "d"}, {"0": "`t +`"}, {"0": "a (b:1.2), `1/0`"},
]  # fmt: skip
MASKS = [
    "{video_mask}", "!{everywhere}", "{tracked}", "<cat>", "{a", "[%m] & {everywhere}", "(", "",
    "{video_mask} ^ [%m]", "[nowhere.png]", "1 & 2",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a picture, a mask and a video of four frames."""
    folder = tmp_path_factory.mktemp("mutated")
    Image.fromarray(random_picture(50, 40, 1)).save(folder / "a.png")
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 5:20] = 255
    Image.fromarray(mask).save(folder / "m.png")
    (folder / "v").mkdir()
    for number in range(4):
        moved = np.roll(random_picture(40, 40, 3), 3 * number, 1)
        Image.fromarray(moved).save(folder / "v" / f"{number}.png")
    return folder


def base(folder):
    """Settings that can be drawn, with files for whatever is switched on."""
    picture, mask, video = (str(folder / name) for name in ("a.png", "m.png", "v"))
    return {
        "W": 40, "H": 40, "max_frames": FRAMES, "seed": 3, "skip_video_creation": True,
        "prompts": {"0": "a"}, "init_image": picture, "mask_file": mask, "video_init_path": video,
        "video_mask_path": video, "color_coherence_image_path": picture, "depth_model": "cues",
        "hybrid_flow_method": "DIS Fine", "batch_name": "x", "diffusion_cadence": 1,
        "init_images": json.dumps({"0": picture, "max_f/2": mask}),
    }  # fmt: skip


def odd_value(name, folder, rng):
    """A value that the key may or may not hold."""
    key = KEYS[name]
    if rng.random() < 0.1:
        return rng.choice(ODD)
    if key.kind == "bool":
        return not key.default if rng.random() < 0.8 else rng.choice([0, 1, "true", "x"])
    if key.choices:
        return rng.choice(key.choices)
    if key.kind == "schedule":
        return rng.choice(SCHEDULES)
    if key.kind in ("int", "float"):
        return rng.choice(NUMBERS)
    if key.kind == "str":
        paths = [str(folder / name) for name in ("a.png", "v")]
        return rng.choice(["", "x", "None", *paths, "/nowhere", "https://x/y.png", "\0", 5, None])
    return rng.choice(PROMPTS)


def mutated(folder, rng):
    """The text of a settings file, and what is not as in `base`."""
    settings = base(folder)
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(rng.choice([NAMES, NAMES, KINDS["bool"], KINDS["enum"]]))
        if name not in ("skip_video_creation", "make_gif"):
            settings[name] = odd_value(name, folder, rng)
    if rng.random() < 0.4:
        settings["animation_mode"] = rng.choice(KEYS["animation_mode"].choices)
    for mask in ("mask", "noise_mask"):
        if rng.random() < 0.15:
            settings[f"use_{mask}"] = True
            term = rng.choice(MASKS).replace("%m", str(folder / "m.png"))
            settings[f"{mask}_schedule"] = f'0:("{term}")'
    if rng.random() < 0.2:
        settings["diffusion_cadence"] = rng.randint(1, 4)
    if rng.random() < 0.1:
        settings["W"], settings["H"] = rng.choice([8, 16, 40, 65]), rng.choice([8, 24, 40])
    if rng.random() < 0.1:
        settings["diffusion_redo"] = rng.choice([-1, 1, 2, "x"])
    if rng.random() < 0.1:
        settings["depth_model"] = rng.choice(["", "none", None])
    if rng.random() < 0.1:
        settings["max_frames"] = rng.choice([0, 1, 2, 5, "5", "x"])
    if rng.random() < 0.1:
        settings[rng.choice(["width", "sampler_name", "fov", "zoomm", "use_zoe_depth"])] = 16
    plain = base(folder)
    changed = {key: value for key, value in settings.items() if plain.get(key, plain) != value}
    return broken(json.dumps(settings), rng), changed


def broken(text, rng):
    """One text of ten with a letter too few, too many or cut off."""
    place = rng.randrange(1, len(text))
    if rng.random() > 0.1:
        return text
    return rng.choice(
        [text[:place], text[: place - 1] + text[place:], text[:place] + '"' + text[place:]]
    )


def outcome(recipe):
    """`drawn`, or what is wrong."""
    animation = Animation(recipe)
    try:
        animation.prepare()
        animation.draw(SeededGenerator(), log=lambda text: None)
    except InputError as error:
        return str(error)
    assert animation.run.frames()
    assert "Problems:" not in settings_report(recipe_settings(recipe))
    return "drawn"


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(chunk, marks=[pytest.mark.slow] if chunk >= QUICK_CHUNKS else [])
        for chunk in range(CHUNKS)
    ],
)
def test_mutated_settings_are_drawn_or_told(files, tmp_path, chunk):
    drawn = 0
    for number in range(IN_CHUNK):
        rng = random.Random(1000 * chunk + number)
        path = tmp_path / f"{number}.txt"
        text, changed = mutated(files, rng)
        path.write_text(text, "utf-8")
        recipe = AnimationRecipe(
            settings_file=str(path),
            output_dir=str(tmp_path / str(number)),
            contact_sheet=False,
            subtitles=False,
            compat=rng.choice(["fixed", "deforum-3.0"]),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DrawWarning)
            try:
                message = outcome(recipe)
            except Exception as error:
                error.add_note(f"chunk {chunk}, file {number}: {changed}")
                raise
        drawn += message == "drawn"
        where = f"chunk {chunk}, file {number}: {message!r} does not name what of {changed}"
        names_key = any(re.search(rf"\b{re.escape(key)}\b", message) for key in (*KEYS, *changed))
        assert message == "drawn" or names_key or re.search(r"line \d+, column \d+", message), where
    assert IN_CHUNK // 5 <= drawn <= IN_CHUNK - 2, f"{drawn} of {IN_CHUNK} were drawn"
