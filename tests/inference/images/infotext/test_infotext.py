"""Infotext as A1111 writes and reads it."""

import dataclasses
import random
import string
import time

import pytest

import inference
from inference.artifacts.base import UsedArtifact
from inference.config.images import (
    HiresConfig,
    ImageConfig,
    ImageToImageConfig,
    InpaintConfig,
    ScheduleConfig,
)
from inference.files.hashes import sha256
from inference.images.infotext.describe import describe_drawing
from inference.images.infotext.redraw_keys import as_pasted
from inference.images.infotext.text import Infotext, parse_infotext, quote, unquote, write_infotext

# As the web UI's own documentation and files show it.
FROM_A1111 = """\
a photo of (sks dog:1.2) in a bucket, <lora:dog:0.8>
second line
Negative prompt: blurry, low quality
and a second line: of it
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 965400086, \
Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Denoising strength: 0.7, \
Clip skip: 2, Hires upscale: 2, Lora hashes: "dog: 39f7ae2f3d15, cat: e1e6dd3f0a2b", \
Version: v1.10.1"""

REQUEST = ImageConfig(prompt="a cat", seed=7, width=16, height=24)


def test_reads_what_a1111_writes():
    found = parse_infotext(FROM_A1111)
    assert found.prompt == "a photo of (sks dog:1.2) in a bucket, <lora:dog:0.8>\nsecond line"
    assert found.negative_prompt == "blurry, low quality\nand a second line: of it"
    assert found.parameters["Sampler"] == "DPM++ 2M"
    assert found.parameters["CFG scale"] == "7.5"
    assert found.parameters["Size"] == "512x768"
    assert found.parameters["Lora hashes"] == "dog: 39f7ae2f3d15, cat: e1e6dd3f0a2b"
    assert list(found.parameters)[-1] == "Version"
    assert len(found.parameters) == 13


def test_writes_what_a1111_wrote():
    found = parse_infotext(FROM_A1111)
    written = write_infotext(found.prompt, found.negative_prompt, found.parameters)
    assert written == FROM_A1111


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("Karras", "Karras"),
        ("a b", "a b"),
        ("a, b", '"a, b"'),
        ("a: b", '"a: b"'),
        ("a\nb", '"a\\nb"'),
        ('say "x", y', '"say \\"x\\", y"'),
        ("Ä, 絵", '"Ä, 絵"'),
        ('a"b', 'a"b'),
        ('"a"', '"\\"a\\""'),
        ("", '""'),
        (" a", '" a"'),
    ],
)
def test_values_are_quoted_where_they_could_be_misread(value, written):
    assert quote(value) == written
    assert unquote(written) == value


def test_text_that_only_looks_quoted_stays():
    assert unquote('"a" and "b"') == '"a" and "b"'
    assert unquote('"') == '"'


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"Steps": 20, "CFG scale": 7.0, "ENSD": None}, "Steps: 20, CFG scale: 7"),
        ({"Steps": 1, "CFG scale": 7.5, "Tiling": "Tiling"}, "Steps: 1, CFG scale: 7.5, Tiling"),
        ({"Steps": 1, "Seed": 2**63 - 1}, "Steps: 1, Seed: 9223372036854775807"),
    ],
)
def test_parameter_line(parameters, line):
    assert write_infotext("p", "", parameters) == f"p\n{line}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Infotext("")),
        ("only a prompt", Infotext("only a prompt")),
        ("a cat, mood: dark", Infotext("a cat, mood: dark")),  # too few to be parameters
        ("Negative prompt: x", Infotext("", "x")),
        ("Steps: 3", Infotext("", "", {"Steps": "3"})),
        ("p\nSteps: 3, N: 2", Infotext("p", "", {"Steps": "3", "N": "2"})),
        ("p\nA: 1, Bb: , C: 2", Infotext("p", "", {"A": "1", "Bb": "", "C": "2"})),
        (
            "p\nnegative prompt: q\nAa: 1, Bb: 2, Cc: 3",
            Infotext("p\nnegative prompt: q", "", {"Aa": "1", "Bb": "2", "Cc": "3"}),
        ),
        (
            'p\nSteps: 1, Template: "a: {b|c},\\n\\"d\\"", Size: 512×512',
            Infotext(
                "p", "", {"Steps": "1", "Template": 'a: {b|c},\n"d"', "Size": "512×512"}
            ),
        ),
    ],
)  # fmt: skip
def test_reads(text, expected):
    assert parse_infotext(text) == expected


SIGNS = string.ascii_letters + ' ,:"\\\n\r\t()[]<>|{}%é絵🙂-/;×1'
PHRASES = ["Negative prompt:", "Steps: ", "Exact prompt: ", "\n", ", ", ": ", '"', "512x512", "  "]


def random_text(randomness, longest=30):
    return "".join(
        randomness.choice(PHRASES if randomness.random() < 0.2 else SIGNS)
        for _ in range(randomness.randrange(longest))
    )


def test_everything_written_is_read_back():
    randomness = random.Random(0)
    for _ in range(1500):
        prompt, negative = random_text(randomness), random_text(randomness)
        keys = ["Steps", "Sampler", "CFG scale", "N", "Hires resize-1", "Tiling"]
        chosen = randomness.sample(keys, randomness.randrange(len(keys)))
        parameters = {key: randomness.choice([random_text(randomness), key]) for key in chosen}
        written = write_infotext(prompt, negative, parameters)
        assert parse_infotext(written) == Infotext(prompt, negative, parameters), written


def test_ordinary_prompts_are_told_once():
    written = write_infotext("a cat", "dog", {"Steps": 1, "Seed": 2, "Size": "8x8"})
    assert written == "a cat\nNegative prompt: dog\nSteps: 1, Seed: 2, Size: 8x8"
    odd = write_infotext(" a cat", "", {"Steps": 1})
    assert odd == 'a cat\nSteps: 1, Exact prompt: " a cat", Exact negative prompt: ""'


def test_key_that_cannot_be_written():
    with pytest.raises(ValueError, match="'a: b' cannot be a key"):
        write_infotext("", "", {"a: b": 1})


def test_any_text_is_read():
    randomness = random.Random(1)
    for _ in range(1000):
        text = f"{random_text(randomness)}\nSteps: {random_text(randomness, 200)}"
        found = as_pasted(parse_infotext(text))
        assert found["Prompt"] is not None
        assert all(isinstance(value, str) for value in found.values())


@pytest.mark.parametrize(
    "line",
    [
        "a" * 100_000, "a " * 50_000, 'a:"' * 30_000, 'a: "\\' * 30_000, "a\t" * 50_000,
        "\nSteps: 1" * 50_000, 'a: {"' * 30_000, "a: [" * 30_000,
        "-" * 100_000, "," * 100_000, "a:" * 50_000, "\t" * 50_000 + "x", "(" * 100_000,
    ],
)  # fmt: skip
def test_reading_takes_linear_time(line):
    started = time.process_time()
    parse_infotext(f"p\nSteps: 1, {line};")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Steps: 20", {"Clip skip": "1", "RNG": "GPU", "Hires resize-1": "0",
                       "Hires sampler": "Use same sampler", "Masked content": "original",
                       "Inpaint area": "Whole picture", "Masked area padding": "32",
                       "Schedule type": "Automatic", "VAE Encoder": "Full"}),
        ("Steps: 20, Size: 512x768", {"Size-1": "512", "Size-2": "768"}),
        ("Steps: 20, Size: 512×768", {"Size-1": "512", "Size-2": "768"}),
        ("Steps: 20, Sampler: DPM++ 2M Karras",
         {"Sampler": "DPM++ 2M", "Schedule type": "Karras"}),
        ("Steps: 20, Sampler: DPM++ 2M SDE Heun Exponential",
         {"Sampler": "DPM++ 2M SDE Heun", "Schedule type": "Exponential"}),
        ("Steps: 20, Sampler: Euler SGMUniform",
         {"Sampler": "Euler", "Schedule type": "SGM Uniform"}),
        ("Steps: 20, Sampler: k_euler_a", {"Sampler": "Euler a"}),
        ("Steps: 20, Sampler: Unheard of", {"Sampler": "Unheard of"}),
        ("Steps: 20, Sampler: DDIM, Schedule type: karras",
         {"Sampler": "DDIM", "Schedule type": "Karras"}),
        ("Steps: 20, Size: 1024x1024, First pass size: 512x512",
         {"Size-1": "512", "Hires resize-1": "1024", "Hires resize-2": "1024"}),
        ("Steps: 20, Size: 1024x512, First pass size: 0x0",
         {"Size-1": "768", "Size-2": "384", "Hires resize-1": "1024"}),
        ("Steps: 20, Hypernet: anime", {"Prompt": "a [b]<hypernet:anime:1.0>"}),
        ("Steps: 20, Version: v1.5.2", {"Old prompt editing timelines": "True",
                                        "Downcast alphas_cumprod": "True"}),
        ("Steps: 20, Version: v1.6.0", {"Old prompt editing timelines": None,
                                        "Downcast alphas_cumprod": "True"}),
        ("Steps: 20, Sampler: DDIM, Version: v1.5.0", {"Pad conds v0": "True"}),
        ("Steps: 20, Version: v1.7.0-224-gabc", {"Downcast alphas_cumprod": "True"}),
        ("Steps: 20, Version: v1.7.0-225-gabc", {"Downcast alphas_cumprod": None}),
        ("Steps: 20, Refiner: x, Version: v1.7.0", {"Refiner switch by sampling steps": "True"}),
        ("Steps: 20, Refiner: x, Version: v1.8.0", {"Refiner switch by sampling steps": "False"}),
        ("Steps: 20, Refiner: x, Version: 1.8.0-RC",
         {"Refiner switch by sampling steps": "True"}),
        ("Steps: 20, Version: f0.0.17v1.8.0rc", {"Downcast alphas_cumprod": None}),
        ("Steps: 20", {"Emphasis": "Original"}),
    ],
)  # fmt: skip
def test_pasted_as_by_a1111(line, expected):
    found = as_pasted(parse_infotext(f"a [b]\n{line}"))
    assert {key: found.get(key) for key in expected} == expected


def test_drawing_is_told_in_a1111s_words_and_order(tiny_base, tiny_base_folder):
    model_hash = sha256(tiny_base_folder / "unet" / "diffusion_pytorch_model.safetensors")[:10]
    tiny_base.clip_skip = 2
    request = dataclasses.replace(REQUEST, negative_prompt="dog", cfg_scale=4.0)
    text = describe_drawing(request, tiny_base)
    before, _, version = text.rpartition(", Version: ")
    assert before == (
        "a cat\nNegative prompt: dog\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, "
        f"CFG scale: 4, Seed: 7, Size: 16x24, Model hash: {model_hash}, "
        f"Model: {tiny_base_folder.name}, Clip skip: 2, RNG: CPU"
    )
    assert version == f"limner {inference.__version__}"


@pytest.mark.parametrize(
    ("sampler", "eta", "reported"),
    [
        ("Euler a", None, {}),
        ("Euler a", 1.0, {}),
        ("Euler a", 0.5, {"Eta": "0.5"}),
        ("DDIM", 0.0, {}),
        ("DDIM", 1.0, {"Eta DDIM": "1"}),
        ("Euler", 0.5, {}),
    ],
)
def test_eta_is_told_where_it_is_not_the_usual_one(tiny_base, sampler, eta, reported):
    request = dataclasses.replace(REQUEST, sampler=sampler, eta=eta)
    parameters = parse_infotext(describe_drawing(request, tiny_base)).parameters
    assert {key: value for key, value in parameters.items() if key.startswith("Eta")} == reported


def test_loras_at_work_are_told(tiny_base):
    used = [
        UsedArtifact("lora", "icons", 0.5, "0123456789abcdef"),
        UsedArtifact("lora", "od,d:name", 1.0, "fedcba9876543210"),
        UsedArtifact("lora", "off", 0.0, "0" * 16),
        UsedArtifact("lora", "unsaved", 1.0),
    ]
    found = parse_infotext(describe_drawing(REQUEST, tiny_base, used))
    assert found.prompt == "a cat <lora:icons:0.5> <lora:od,d:name:1> <lora:unsaved:1>"
    assert found.parameters["Lora hashes"] == "icons: 0123456789ab, oddname: fedcba987654"


def test_checkpoint_takes_the_base_models_place(tiny_base):
    used = [UsedArtifact("checkpoint", "mine", 1.0, "0123456789abcdef")]
    found = parse_infotext(describe_drawing(REQUEST, tiny_base, used))
    assert found.prompt == "a cat"
    assert (found.parameters["Model"], found.parameters["Model hash"]) == ("mine", "0123456789")


ORDER = (
    "Steps, Sampler, Schedule type, CFG scale, Seed, Face restoration, Size, Model hash, Model, "
    "Variation seed, Variation seed strength, Seed resize from, Denoising strength, Clip skip, "
    "ENSD, RNG, Tiling, Hires sampler, Hires prompt, Hires schedule type, Hires upscale, "
    "Hires steps, Hires upscaler, Lora hashes, Old prompt editing timelines, Emphasis, "
    "Eta, Sigma noise, Skip Early CFG, Pad conds, NGMS, Comma backtrack, Version"
)


def test_order_is_a1111s(tiny_base):
    tiny_base.clip_skip = 2
    request = dataclasses.replace(
        REQUEST, prompt="a [cat]", sampler="Euler a", restore_faces="GFPGAN", variation_seed=3,
        variation_strength=0.25, seed_resize_from_width=8, seed_resize_from_height=16,
        ensd=31337, rng="NV", tiling=True, old_prompt_editing=True, emphasis="No norm", eta=0.5,
        s_noise=1.1, skip_early_cond=0.1, pad_conds=True, s_min_uncond=2.0,
        comma_padding_backtrack=0,
        hires=HiresConfig(steps=5, sampler="DPM++ SDE", prompt="a dog", denoising_strength=0.5),
    )  # fmt: skip
    text = describe_drawing(request, tiny_base, [UsedArtifact("lora", "a", 1.0, "0" * 64)])
    found = parse_infotext(text).parameters
    assert ", ".join(found) == ORDER
    expected = {
        "Seed resize from": "8x16", "Denoising strength": "0.5", "Hires upscale": "2",
        "Hires schedule type": "Karras", "Tiling": "True", "ENSD": "31337", "NGMS": "2",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"ensd": 31337}, {}),  # DPM++ 2M has no fresh noise
        ({"ensd": 31337, "sampler": "Euler a"}, {"ENSD": "31337"}),
        ({"ensd": 31337, "sampler": "Euler a", "eta": 0.0}, {"Eta": "0"}),
        ({"ensd": 31337, "sampler": "LCM"}, {"ENSD": "31337"}),
        ({"rng": "GPU"}, {}),  # on a CPU, whose own noise it is
        ({"variation_seed": 4}, {}),
        ({"s_churn": 2.0, "s_tmax": 3.0, "sampler": "Euler"},
         {"Sigma churn": "2", "Sigma tmax": "3"}),
        ({"s_churn": 2.0}, {}),
        ({"cfg_scale": 1.0, "s_min_uncond": 3.0, "pad_conds": True}, {}),
        ({"emphasis": "Ignore"}, {}),
        ({"emphasis": "Ignore", "negative_prompt": "(x)"}, {"Emphasis": "Ignore"}),
        ({"schedule": ScheduleConfig(sigma_min=0.1, rho=5.0)},
         {"Schedule min sigma": "0.1", "Schedule rho": "5"}),
        ({"schedule": ScheduleConfig(sigma_max=9.0), "schedule_type": "Normal"},
         {"Schedule max sigma": "9"}),
        ({"schedule": ScheduleConfig(sigma_max=9.0), "schedule_type": "Simple"}, {}),
        ({"schedule": ScheduleConfig(rho=7.0)}, {}),
        ({"schedule": ScheduleConfig(discard_next_to_last_sigma=True)},
         {"Discard penultimate sigma": "True"}),
        ({"sgm_noise_multiplier": True}, {"SGM noise multiplier": "True"}),
        ({"hires": HiresConfig(resize_x=32, schedule_type="Uniform")},
         {"Denoising strength": "0.7", "Hires schedule type": "Uniform",
          "Hires resize": "32x0", "Hires upscaler": "Latent"}),
        ({"img2img": ImageToImageConfig("a.png", 0.4, noise_multiplier=0.9, extra_noise=0.1)},
         {"Denoising strength": "0.4", "Noise multiplier": "0.9", "Extra noise": "0.1"}),
        ({"img2img": ImageToImageConfig("a.png", inpaint=InpaintConfig("m.png"))},
         {"Denoising strength": "0.75", "Mask blur": "4"}),
        ({"img2img": ImageToImageConfig("a.png", inpaint=InpaintConfig(
            "m.png", mask_blur=0, mask_mode="Inpaint not masked", masked_content="fill",
            area="Only masked"))},
         {"Denoising strength": "0.75", "Mask mode": "Inpaint not masked",
          "Inpaint area": "Only masked", "Masked area padding": "32", "Masked content": "fill",
          "Mask blur": "0"}),
    ],
)  # fmt: skip
def test_what_is_unusual_is_told(tiny_base, changes, reported):
    usual = parse_infotext(describe_drawing(REQUEST, tiny_base)).parameters
    request = dataclasses.replace(REQUEST, **changes)
    found = parse_infotext(describe_drawing(request, tiny_base)).parameters
    known = {*usual} - {"CFG scale", "Sampler", "Schedule type"}
    assert {key: value for key, value in found.items() if key not in usual} | {
        key: found.get(key) for key in known if found.get(key) != usual[key]
    } == reported


def test_extra_parameters_keep_the_place_of_known_ones(tiny_base):
    extra = {"Init image hash": "abc", "Denoising strength": 0.5, "RNG": None, "Mine": "x, y"}
    text = describe_drawing(REQUEST, tiny_base, extra=extra)
    found = parse_infotext(text).parameters
    assert list(found)[8:] == ["Denoising strength", "Init image hash", "Mine", "Version"]
    assert found["Mine"] == "x, y"


def test_tags_are_added_unless_the_prompt_has_them(tiny_base):
    used = [
        UsedArtifact("lora", "a", 0.5, "0" * 64, is_called=True),
        UsedArtifact("lora", "b", 0.5, te_strength=1.0),
        UsedArtifact("lora", "c", 0.0, te_strength=1.0),
        UsedArtifact("hypernetwork", "d", 0.5, te_strength=0.5),
    ]
    request = dataclasses.replace(REQUEST, prompt="<lora:a:0.5> a cat")
    found = parse_infotext(describe_drawing(request, tiny_base, used))
    assert found.prompt == "<lora:a:0.5> a cat <lora:b:1:0.5> <lora:c:1:0> <hypernet:d:0.5>"
    assert found.parameters["Lora hashes"] == "a: 000000000000"
