"""2,000 infotexts, settings of Deforum and headers of tensor files, changed as others change them.

Each follows from its number. Of every kind one half is valid by construction (reordered, quoted
otherwise, with other separators, with the keys of extensions, in the dialects of other programs)
and has to give the values that went in; the other half is broken in one place, and has to give one
message that names it.
"""

import json
import random
import struct
import warnings
from typing import Any

import pytest
import torch

from inference.artifacts.adapters.lora import Lora
from inference.artifacts.base import load_artifact
from inference.config.recipes import draw_schema
from inference.deforum.schedules.prompts import frame_prompts
from inference.deforum.schedules.schedules import evaluate
from inference.deforum.settings.keys import ANY_TEXT, KEYS
from inference.deforum.settings.settings_recipe import load_settings
from inference.files.tensors import read_tensors
from inference.images.infotext.json_programs import translate_json
from inference.images.redraw import recipe_from_infotext
from inference.recipe.loader import load_mapping
from inference.runtime.errors import InputError

COUNTS = {"infotext": 1000, "settings": 600, "header": 400}
"""Cases of each kind, half of them valid."""
SHARE = 10
"""One in so many is part of the quick tests."""


def rng_of(kind, number):
    return random.Random(f"{kind} {number}")


# Infotexts

PROMPTS = [
    "a cat", "red apple, line icon", "(a:1.2), [b|c], {x|y}", "Steps to heaven\nsecond line: of it",
    "mood: dark, light: soft, lens: 50mm\nlast", "", "「絵」, ü", 'says "no", twice',
]  # fmt: skip
SAMPLERS = [  # written, without a schedule type -> sampler, schedule type
    ("Euler a", "Euler a", "Automatic"), ("DPM++ 2M Karras", "DPM++ 2M", "Karras"),
    ("DPM++ 2M", "DPM++ 2M", "Uniform"), ("euler_ancestral", "Euler a", "Automatic"),
    ("dpmpp_2m_sde_gpu", "DPM++ 2M SDE", "Uniform"), ("dpmpp_sde_karras", "DPM++ SDE", "Karras"),
    ("k_lms", "LMS", "Automatic"), ("DDIM", "DDIM", "Automatic"),
    ("DPM++ 2S a Exponential", "DPM++ 2S a", "Exponential"),
]  # fmt: skip
NOT_NUMBERS = {"Steps", "CFG scale", "Seed", "ENSD", "Eta", "NGMS", "Hires steps",
               "Variation seed", "Hires upscale"}  # fmt: skip


def drawn_settings(rng):
    """Parameters in A1111's words, and the settings that they stand for."""
    written, sampler, schedule = rng.choice(SAMPLERS)
    steps, seed, scale = rng.randint(1, 99), rng.randrange(2**32), rng.choice([1, 4.5, 7, 11.25])
    width, height = rng.choice([64, 512, 768]), rng.choice([32, 640])
    rng_source = rng.choice(["CPU", "NV"])
    parameters = {"Steps": steps, "Sampler": written, "CFG scale": scale, "Seed": seed,
                  "Size": f"{width}x{height}", "RNG": rng_source}  # fmt: skip
    settings = {"steps": steps, "sampler": sampler, "schedule_type": schedule,
                "cfg_scale": float(scale), "seed": seed, "width": width, "height": height,
                "rng": rng_source}  # fmt: skip
    if rng.random() < 0.3:
        schedule = rng.choice(["Karras", "Simple", "Automatic"])
        if not any(written.endswith(end) for end in ("Karras", "Exponential", "karras")):
            parameters["Schedule type"] = settings["schedule_type"] = schedule
    if rng.random() < 0.3:
        parameters |= {"ENSD": 31337, "Eta": 0.5}
        settings |= {"ensd": 31337, "eta": 0.5}
    if rng.random() < 0.3:
        parameters |= {"Variation seed": 3, "Variation seed strength": 0.25, "Tiling": "True"}
        settings |= {"variation_seed": 3, "variation_strength": 0.25, "tiling": True}
    if rng.random() < 0.3:
        upscaler = rng.choice(["Latent", "Lanczos", "Latent (nearest-exact)"])
        parameters |= {"Denoising strength": 0.4, "Hires upscale": 1.5, "Hires steps": 7,
                       "Hires upscaler": upscaler}  # fmt: skip
        settings["hires"] = {"denoising_strength": 0.4, "upscale": 1.5, "steps": 7,
                             "upscaler": upscaler}  # fmt: skip
    if rng.random() < 0.2:
        parameters["NGMS"] = settings["s_min_uncond"] = 2
    return parameters, settings


EXTENSIONS = [
    'ControlNet 0: "Module: canny, Model: x [43d4be0d], Weight: 1"',
    'ADetailer model: face.pt, ADetailer confidence: 0.3, ADetailer version: 24.5.0',
    'Wildcard prompt: "red,\n{a|b}"', 'Hashes: {"vae": "0123456789", "note": "a, b: c"}',
    "Civitai metadata: {}", "TI: a, Version: v1.10.1", "Distilled CFG Scale: 3.5",
]  # fmt: skip
BELOW = ["Template: # a\n(b:1.2), c: d, e: f, g: h\n", "Time taken: 3 sec.", "Negative Template: x"]


def written(rng, parameters):
    """A line of parameters in one of the ways in which they are written."""
    entries = [(key, str(value)) for key, value in parameters.items()]
    if rng.random() < 0.5:  # reordered; Steps stays first where other lines follow
        tail = entries[1:]
        rng.shuffle(tail)
        entries = entries[:1] + tail
    quoted = rng.random() < 0.4
    words = []
    for key, value in entries:
        if key == "CFG scale" and rng.random() < 0.2:
            key = "CFG Scale"
        if key == "Size" and rng.random() < 0.2:
            value = value.replace("x", "×")
        if key == "Tiling" and rng.random() < 0.2:
            value = "true"
        if quoted and rng.random() < 0.5:
            value = json.dumps(value)
        words.append(f"{key}: {value}")
    if rng.random() < 0.15:
        return rng.choice([" | ", "| ", " |"]).join([*words, "App: SD.Next"])
    for extra in rng.sample(EXTENSIONS, rng.randint(0, 2)):
        words.insert(rng.randint(1, len(words)), extra)
    return rng.choice([", ", ",", ",  ", " , "]).join(words)


def infotext(rng):
    """An infotext, its prompts, its settings, and its parameters."""
    parameters, settings = drawn_settings(rng)
    prompt, negative = rng.choice(PROMPTS), rng.choice(PROMPTS)
    lines = [prompt, *([f"Negative prompt: {negative}"] if negative else [])]
    lines.append(written(rng, parameters))
    if rng.random() < 0.25:
        lines.append(rng.choice(BELOW))
    text = "\n".join(lines)
    return text, (prompt, negative), settings, parameters


JSON_SAMPLERS = [one for one in SAMPLERS if one[0].islower() and not one[0].startswith("k_")]


def json_text(rng):
    """What SwarmUI, Fooocus or Easy Diffusion write, prompts and settings."""
    sampler, name, schedule = rng.choice(JSON_SAMPLERS)
    prompt, negative = rng.choice(PROMPTS), rng.choice(PROMPTS)
    steps, seed = rng.randint(1, 99), rng.randrange(2**32)
    common = {"prompt": prompt, "seed": seed}
    swarm = {"negativeprompt": negative, "steps": steps, "cfgscale": 6.5, "width": 512,
             "height": 640, "sampler": sampler, "scheduler": "karras"}  # fmt: skip
    others = {"negative_prompt": negative, "guidance_scale": 6.5}
    fooocus = others | {"steps": steps, "sampler": sampler, "scheduler": "karras",
                        "resolution": "(512, 640)", "sharpness": 2}  # fmt: skip
    easy = others | {"num_inference_steps": steps, "sampler_name": sampler, "width": 512,
                     "height": 640, "tiling": "none"}  # fmt: skip
    own = rng.choice([swarm, fooocus, easy])
    schedule = "Karras" if own is not easy or sampler.endswith("karras") else schedule
    entries = [*(common | own).items()]
    rng.shuffle(entries)
    content = {"sui_image_params": dict(entries)} if own is swarm else dict(entries)
    text = json.dumps(content, indent=rng.choice([None, 1, 4]), ensure_ascii=rng.random() < 0.5)
    settings = {"steps": steps, "sampler": name, "schedule_type": schedule, "cfg_scale": 6.5,
                "seed": seed, "width": 512, "height": 640, "rng": "CPU"}  # fmt: skip
    return text, (prompt, negative), settings


def redrawn(text):
    made = recipe_from_infotext(text, base_model="picto")
    settings = dict(made.recipe["settings"])
    prompts = made.recipe["images"]["picture"]["prompt"], settings.pop("negative_prompt", "")
    return made, prompts, settings


def valid_infotext(number, is_whole):
    rng = rng_of("infotext", number)
    if rng.random() < 0.2:
        text, prompts, settings = json_text(rng)
        text = translate_json(text, (512, 640))
    else:
        text, prompts, settings, _ = infotext(rng)
        if rng.random() < 0.2:
            text = text.replace("\n", "\r\n")
    made, found_prompts, found = redrawn(text)
    assert found_prompts == tuple(part.strip("\n") for part in prompts), text
    assert found == settings, text
    if is_whole:
        with warnings.catch_warnings(action="ignore"):
            load_mapping(made.recipe, "a.png", draw_schema)


def broken_infotext(number, is_whole):
    """One note or error more than of the same text without the fault."""
    rng = rng_of("broken infotext", number)
    if rng.random() < 0.15:
        text, _, _ = json_text(rng)
        text = text[: rng.randrange(3, len(text))]
        with pytest.raises(InputError, match=r"its text is damaged JSON, at line \d+, column") as e:
            translate_json(text, (512, 640))
        assert "\n" not in str(e.value)
        return
    parameters, _ = drawn_settings(rng)
    line = ", ".join(f"{key}: {value}" for key, value in parameters.items())
    numbers = sorted(NOT_NUMBERS & parameters.keys())
    key = rng.choice([*numbers, "Sampler", "RNG", "Emphasis", "Clip skip", "Hashes", "Bogus",
                      "Hires upscaler", "Civitai resources"])  # fmt: skip
    odd = {"Hashes": rng.choice(["{broken", '"[]"', '{"model": "xyz"}']),
           "Civitai resources": rng.choice(['"[1,"', "{}", "[1]"])}  # fmt: skip
    fault = odd.get(key, rng.choice(["many", "1e", "x2", "--1", "Zz top"]))
    parameters[key] = fault
    if key == "Hires upscaler":
        parameters |= {"Hires upscale": 2, "Denoising strength": 0.5}
        line += ", Hires upscale: 2, Denoising strength: 0.5, Hires upscaler: Latent"
    broken = ", ".join(f"{key}: {value}" for key, value in parameters.items())
    before = recipe_from_infotext(f"p\n{line}", base_model="picto").notes
    after = recipe_from_infotext(f"p\n{broken}", base_model="picto").notes
    new = [note for note in after if note not in before]
    assert len(new) == 1, (broken, new)
    assert new[0].startswith(f"{key}: "), (broken, new)
    assert "\n" not in new[0]


# Settings of Deforum

TYPED = {kind: [key for key, one in KEYS.items() if one.kind == kind and key not in ANY_TEXT
                and not key.startswith("cn_")] for kind in ("bool", "enum")}  # fmt: skip
TYPED["enum"] = [key for key in TYPED["enum"] if key != "sampler"]
WHOLE = ["steps", "max_frames", "seed", "diffusion_cadence", "extract_nth_frame", "W", "H"]
SCHEDULES = [
    "zoom",
    "angle",
    "translation_x",
    "rotation_3d_y",
    "strength_schedule",
    "amount_schedule",
]
FRAMES = 8


def canonical_settings(rng):
    """Values by Deforum's keys; schedules as two keyframes (frame, value)."""
    values: dict[str, Any] = {"W": rng.choice([64, 128]), "H": 64, "steps": rng.randint(1, 50)}
    values["seed"] = 7
    values |= {key: rng.random() < 0.5 for key in rng.sample(TYPED["bool"], 3)}
    values |= {key: rng.choice(KEYS[key].choices) for key in rng.sample(TYPED["enum"], 3)}
    schedules = {
        key: [(0, rng.randint(0, 9)), (rng.randint(1, FRAMES - 1), rng.randint(0, 9))]
        for key in rng.sample(SCHEDULES, 3)
    }
    prompts = {"0": "a cat, sitting", str(rng.randint(1, 6)): rng.choice(["dogs (x:1.2)", "b: c"])}
    return values, schedules, prompts


def form_of(rng, value):
    if isinstance(value, bool):
        return rng.choice([value, int(value), str(value), str(value).lower()])
    if isinstance(value, int):
        return rng.choice([value, str(value), float(value), f" {value} "])
    return rng.choice([value, value.upper(), f" {value} "])


def schedule_text(rng, points):
    (first, one), (second, other) = points
    return rng.choice([
        f"{first}: ({one}), {second}: ({other})", f"{first}:({one}),{second}:({other}),",
        {str(first): one, str(second): str(other)}, f'"{first}":({one}), {second}.0: "({other})"',
        f"{second}:({other}), {first}:({one})",
    ])  # fmt: skip


def settings_file(rng):
    """A settings file's content in some dialect, and what it has to come to."""
    values, schedules, prompts = canonical_settings(rng)
    scale = rng.randint(1, 12)
    content = {key: form_of(rng, value) for key, value in values.items()}
    content |= {key: schedule_text(rng, points) for key, points in schedules.items()}
    dialect = rng.choice(["deforum", "notebook", "hosted", "studio"])
    names = {
        "deforum": {"cfg": "cfg_scale_schedule", "steps": "steps", "prompts": "prompts"},
        "notebook": {"cfg": "scale", "steps": "steps", "prompts": "animation_prompts"},
        "hosted": {"cfg": "guidance_scale", "steps": "num_inference_steps", "prompts": "prompts"},
        "studio": {"cfg": "cfg_scale", "steps": "steps", "prompts": "prompts"},
    }[dialect]
    content[names["cfg"]] = rng.choice([scale, str(scale), f"0: ({scale})"])
    content[names["steps"]] = content.pop("steps")
    if dialect != "deforum":
        content["width"], content["height"] = content.pop("W"), content.pop("H")
    content[names["prompts"]] = prompts
    if dialect == "hosted":
        content["prompts"] = " | ".join(f"{frame}: {text}" for frame, text in prompts.items())
    if rng.random() < 0.3:
        content |= {"shake_name": "X", "of_a_fork": [1], "n_batch": 1, "wan_model": None}
    entries = [*content.items()]
    rng.shuffle(entries)
    content = dict(entries)
    wrappers = [lambda s: {"input": s}, lambda s: {"input": {"settings": s}},
                lambda s: {"deforum_settings": [s]}]  # fmt: skip
    if rng.random() < 0.3:
        content = rng.choice(wrappers)(content)
    return content, values, schedules, prompts, scale


def saved(rng, path, content):
    text = json.dumps(content, indent=rng.choice([None, 1, 4]), ensure_ascii=rng.random() < 0.5)
    text = text.replace("\n", rng.choice(["\n", "\r\n"]))
    path.write_bytes(rng.choice(["", "\ufeff"]).encode() + text.encode())
    return path


def valid_settings(number, folder):
    rng = rng_of("settings", number)
    content, values, schedules, prompts, scale = settings_file(rng)
    found = load_settings(saved(rng, folder / "a.txt", content))
    assert {key: found[key] for key in values} == values, content
    assert found["prompts"] == prompts, content
    schedules |= {"cfg_scale_schedule": [(0, scale), (1, scale)]}
    for key, ((first, one), (second, other)) in schedules.items():
        series = evaluate(key, found[key], FRAMES)
        assert (series[first], series[second], series[-1]) == (one, other, other), content


def broken_settings(number, folder):
    rng = rng_of("broken settings", number)
    values, schedules, prompts = canonical_settings(rng)
    content = values | {key: f"0:({points[0][1]})" for key, points in schedules.items()}
    content["prompts"] = prompts
    path = folder / "a.txt"
    schedule = rng.choice([*schedules])
    key, fault, message = rng.choice([
        (rng.choice(WHOLE), rng.choice(["abc", 1.5, [1], {}]), "expected a whole number"),
        (rng.choice(TYPED["bool"]), rng.choice(["maybe", 2, []]), "expected true or false"),
        (rng.choice(TYPED["enum"]), rng.choice(["Zz", 77, []]), "expected one of"),
        ("sampler", "Zz top", "expected a sampler"),
        ("W", 4, "must lie between 8 and 16384"),
        (schedule, "0:(1", "'(' is not closed"),
        (schedule, "0:(1)), 3:(2)", "')' has no matching bracket"),
        (schedule, "(t)", "without a frame"),
        (schedule, "0: 0:(x)", "a second ':'"),
        (schedule, "0:(1), 5: 6: (t)", "a second ':'"),
        (schedule, "0:(foo+1)", "unknown name 'foo'"),
        (schedule, "0:(sin(t", "is not closed"),
        (schedule, "0:(sin(1,2))", "sin takes 1 values"),
        (schedule, "0:(1/0)", "cannot be computed: division by zero"),
        (schedule, "0:(1/(t-3))", "which is not a number to use"),
        (schedule, "900:(1)", "has no keyframe among"),
        (schedule, [1], "expected a schedule"),
        ("prompts", {}, "has no prompt"),
        ("prompts", {"0": ["a"]}, "expected a text"),
        ("prompts", {"0": "a", "x y": "b"}, "expected a frame"),
        ("prompts", {"0": "a `t+`"}, "is not a formula"),
        ("neg_prompts", 5, "expected frames and texts"),
        ("", "cut", "is not JSON"),
        ("deforum_settings", [{}, {}], "holds 2 settings; expected one in a file"),
    ])  # fmt: skip
    content[key] = fault
    content = {key: fault} if key == "deforum_settings" else content
    saved(rng, path, content)
    if not key:
        path.write_bytes(path.read_bytes()[: -rng.randint(1, 40)])
    with pytest.raises(InputError) as error:
        found = load_settings(path).replace(max_frames=FRAMES)
        for name in schedules:
            try:
                evaluate(name, found[name], FRAMES)
            except InputError as one:
                raise found.error(str(one)) from None
        frame_prompts(found, {})
    text = str(error.value)
    assert text.startswith(f"{path}: {key}"), (content, text)
    assert message in text, (content, text)
    assert "\n" not in text
    assert key or "line " in text


# Headers of safetensors files

PLACE = "down_blocks_0_attentions_0_transformer_blocks_0"
LAYERS = [f"lora_unet_{PLACE}_attn1_to_{end}" for end in "qkv"]
METADATA = {"ss_network_dim": "2", "ss_output_name": "ink", "modelspec.title": "Ink",
            "ss_tag_frequency": '{"a": {"b, c": 1}}', "author": "ü", "format": "pt"}  # fmt: skip
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def lora(rng):
    """A small LoRA's tensors by kohya's names, and the alpha of its layers."""
    generator = torch.Generator().manual_seed(rng.randrange(1000))
    alpha, tensors = float(rng.choice([1, 2, 0.5])), {}
    for layer in LAYERS[: rng.randint(1, 3)]:
        tensors[f"{layer}.lora_down.weight"] = torch.randn(2, 4, generator=generator)
        tensors[f"{layer}.lora_up.weight"] = torch.randn(4, 2, generator=generator)
        tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    kind = rng.choice([*DTYPES])
    return {key: value.to(DTYPES[kind]) for key, value in tensors.items()}, kind, alpha


def header_and_data(rng, tensors, kind):
    """A header in some order, and the bytes of the tensors."""
    order, header, data = [*tensors], {}, b""
    rng.shuffle(order)
    for key in order:
        start = len(data)
        data += tensors[key].reshape(-1).view(torch.uint8).numpy().tobytes()
        shape = list(tensors[key].shape)
        entry = [("dtype", kind), ("shape", shape), ("data_offsets", [start, len(data)])]
        rng.shuffle(entry)
        header[key] = dict(entry)
    if rng.random() < 0.7:
        header["__metadata__"] = dict(rng.sample([*METADATA.items()], rng.randint(0, 6)))
    entries = [*header.items()]
    rng.shuffle(entries)
    return dict(entries), data


def framed(text, data):
    return struct.pack("<Q", len(text)) + text + data


def valid_header(number, folder):
    rng = rng_of("header", number)
    tensors, kind, alpha = lora(rng)
    header, data = header_and_data(rng, tensors, kind)
    separators = rng.choice([(",", ":"), (", ", ": ")])
    text = json.dumps(header, separators=separators, ensure_ascii=rng.random() < 0.5).encode()
    text += b" " * (-len(text) % 8 + 8 * rng.randint(0, 3))
    path = folder / "a.safetensors"
    path.write_bytes(framed(text, data))
    found, metadata = read_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert metadata == header.get("__metadata__", {})
    artifact = load_artifact(path)
    assert isinstance(artifact, Lora)
    layers = artifact.layers
    assert {*layers} == {key.partition(".")[0] for key in tensors}
    assert {(layer.rank, layer.alpha) for layer in layers.values()} == {(2, alpha)}


def broken_header(number, folder):
    rng = rng_of("broken header", number)
    tensors, kind, _ = lora(rng)
    header, data = header_and_data(rng, tensors, kind)
    key = rng.choice([name for name in header if name != "__metadata__"])
    entry, fault = header[key], rng.randrange(11)
    text = None
    if fault == 0:
        entry["dtype"] = rng.choice(["F99", "", "float32", 3])
    elif fault == 1:
        entry["data_offsets"] = [entry["data_offsets"][0], entry["data_offsets"][1] + 8]
    elif fault == 2:
        entry["shape"] = [*entry["shape"], rng.choice([2, 10**6])]
    elif fault == 3:
        del entry[rng.choice(["dtype", "shape", "data_offsets"])]
    elif fault == 4:
        data = data[: -rng.randint(1, len(data))]
    elif fault == 5:
        header["__metadata__"] = rng.choice([{"a": 1}, [], {"a": {"b": "c"}}, "x"])
    elif fault == 6:
        entry["shape"] = rng.choice([[-1, 4], "x", [1.5]])
    elif fault == 7:
        entry["data_offsets"] = [-4, 4]
    elif fault == 8:
        text = json.dumps(header).encode()[: -rng.randint(1, 20)]
    elif fault == 9:
        text = b"[" + json.dumps(header).encode() + b"]"
    text = json.dumps(header).encode() if text is None else text
    whole = framed(text, data)
    if fault == 10:
        whole = struct.pack("<Q", rng.choice([0, 1, 2**63, len(text) + 10**6])) + whole[8:]
    path = folder / "a.safetensors"
    path.write_bytes(whole)
    with pytest.raises(InputError) as error:
        load_artifact(path)
    assert str(error.value).startswith(f"{path}: "), str(error.value)
    assert "\n" not in str(error.value)


def run(kind, step, folder, is_whole):
    """Run every `step`-th case of a kind; return how many of either half."""
    valid, broken = {
        "infotext": (lambda n: valid_infotext(n, is_whole), lambda n: broken_infotext(n, is_whole)),
        "settings": (lambda n: valid_settings(n, folder), lambda n: broken_settings(n, folder)),
        "header": (lambda n: valid_header(n, folder), lambda n: broken_header(n, folder)),
    }[kind]
    numbers = range(0, COUNTS[kind] // 2, step)
    for number in numbers:
        valid(number)
        broken(number)
    return 2 * len(numbers)


def test_share_of_the_cases(tmp_path):
    """200 of them; they take half a second, without the imports."""
    assert sum(COUNTS.values()) == 2000
    assert sum(run(kind, SHARE, tmp_path, False) for kind in COUNTS) == 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_all_cases(tmp_path, kind):
    """Every valid infotext gives a recipe that loads, too."""
    assert run(kind, 1, tmp_path, True) == COUNTS[kind]
