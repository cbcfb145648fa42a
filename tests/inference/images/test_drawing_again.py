"""Infotext holds what drawing needs: pictures are drawn again byte for byte, settings read back."""

import dataclasses
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inference.__main__ import main
from inference.config.images import (
    RESIZE_MODES,
    HiresConfig,
    ImageConfig,
    ImageToImageConfig,
    InpaintConfig,
    ScheduleConfig,
)
from inference.config.recipes import draw_schema
from inference.files.hashes import sha256
from inference.images.infotext.describe import describe_drawing, passes, uses_ensd
from inference.images.redraw import load_picture, recipe_from_infotext
from inference.recipe.loader import load_mapping
from inference.sampling.registry import SAMPLERS as TABLE
from inference.sampling.registry import resolve_schedule, samplers_of
from inference.sampling.schedules import SCHEDULES, schedule_types

RECIPE = """\
base_model: {{path: "{base}"}}
artifact_dirs: [models]
settings: {{steps: 2, seed: 5, sampler: Euler a, width: 16, height: 24}}
images: {{one: {one}}}
output_dir: out
"""


@pytest.fixture
def place(tmp_path, tiny_base, monkeypatch):
    """The working folder, with a LoRA, an init image and a mask."""
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    tensors, generator = {}, torch.Generator().manual_seed(1)
    for path, module in tiny_base.unet.named_modules():
        if path.endswith("attn2.to_k"):
            name = f"lora_unet_{path.replace('.', '_')}"
            rows, columns = module.weight.shape
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
            tensors[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, "models/ink.safetensors")
    values = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save("init.png")
    mask = Image.new("L", (16, 24))
    mask.paste(255, (0, 0, 16, 12))
    mask.save("mask.png")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("one", "overrides"),
    [
        ("{prompt: 'a cat <lora:ink:0.5>'}", []),
        ("{prompt: a cat, seed: -1, variation_strength: 0.3, tiling: true}", []),
        ("{prompt: a cat, hires: {steps: 2, upscale: 1.5, prompt: '(a) <lora:ink:0.5>', "
         "sampler: DPM++ SDE, denoising_strength: 0.4}, emphasis: Ignore, s_noise: 1.1, eta: 0.5}",
         []),
        ("{prompt: a cat, sampler: DPM++ 2M, hires: {sampler: Euler, upscaler: Lanczos}}", []),
        ("{prompt: a cat, img2img: {init_image: init.png, denoising_strength: 0.6, "
         "color_correction: true}}",
         ["settings.img2img.init_image=init.png"]),
        ("{prompt: a cat, img2img: {init_image: init.png, inpaint: {mask: mask.png, mask_blur: 0, "
         "area: Only masked, padding: 3, masked_content: latent noise}}}",
         ["settings.img2img.init_image=init.png", "settings.img2img.inpaint.mask=mask.png"]),
        ("{prompt: a cat, img2img: {init_image: init.png, inpaint: {mask: mask.png, "
         "mask_blur: 0}}}",
         ["settings.img2img.init_image=init.png", "settings.img2img.inpaint.mask=mask.png"]),
    ],
)  # fmt: skip
def test_pictures_are_drawn_again_byte_for_byte(tiny_base_folder, capsys, one, overrides):
    Path("recipe.yaml").write_text(RECIPE.format(base=tiny_base_folder, one=one))
    assert main(["recipe.yaml"]) == 0, capsys.readouterr().err
    first = Path(capsys.readouterr().out.strip())
    folders = f"artifact_dirs=[models, {tiny_base_folder}]"
    assert main([str(first), folders, "output_dir=again", *overrides]) == 0, capsys.readouterr().err
    again = Path(capsys.readouterr().out.strip())
    assert again.parent.name == "again"
    assert again.read_bytes() == first.read_bytes()


@pytest.mark.usefixtures("place")
def test_a_picture_of_another_vae_is_drawn_again_with_it(tiny_base, tiny_base_folder, capsys):
    weights = {key: value + 0.05 for key, value in tiny_base.vae.state_dict().items()}
    torch.save({"state_dict": weights}, "models/other.vae.pt")
    hash_ = sha256(Path("models/other.vae.pt"))[:10]
    Path("recipe.yaml").write_text(RECIPE.format(base=tiny_base_folder, one="{prompt: a cat}"))

    def drawn(*arguments) -> Path:
        assert main([*arguments]) == 0, capsys.readouterr().err
        return Path(capsys.readouterr().out.strip().splitlines()[-1])

    named = "file_name=[vae_filename]-[number]"
    first = drawn("recipe.yaml", "base_model.vae=models/other.vae.pt", named)
    plain = drawn("recipe.yaml", named)
    assert (first.name.split("-")[0], plain.name.split("-")[0]) == ("other", "NoneType")
    texts, pixels = [], []
    for file in (first, plain):
        with Image.open(file) as picture:
            texts.append(picture.info["parameters"])
            pixels.append(picture.tobytes())
    infotext = texts[0]
    assert f", VAE hash: {hash_}, VAE: other.vae.pt, " in infotext
    assert infotext.index(", Model: ") < infotext.index(", VAE hash: ")
    assert "VAE" not in texts[1]
    again = drawn(str(first), f"artifact_dirs=[models, {tiny_base_folder}]", "output_dir=again")
    assert again.read_bytes() == first.read_bytes()
    assert pixels[0] != pixels[1]
    own = load_picture(first, [f"artifact_dirs=[{tiny_base_folder}]", "base_model.vae=null"])
    assert own[0].base_model.vae is None
    assert not [note for note in own[1] if "VAE" in note]


@pytest.mark.usefixtures("place")
def test_hires_prompt_is_called_as_here(tiny_base_folder):
    text = (
        "a <lora:pen:1>\nSteps: 2, Sampler: Euler, Seed: 1, Size: 16x16, Hires upscale: 2, "
        'Hires prompt: "b <lora:gone:1>", Model: picto, RNG: CPU'
    )
    made = recipe_from_infotext(text, ["models"])
    assert made.recipe["settings"]["hires"]["prompt"] == "b "
    assert [note.partition(">")[0] for note in made.notes] == ["<lora:pen:1", "<lora:gone:1"]


WORDS = [
    "cat",
    "(cat:1.2)",
    "[a:b:0.5]",
    "a, b",
    "AND x :1",
    "\n",
    '"',
    "Steps: 3",
    "é",
    " ",
    "\\(",
]


def some_text(rng):
    return " ".join(rng.choices(WORDS, k=rng.randrange(1, 5)))


def some(rng, usual, *others) -> Any:
    """Mostly the usual value."""
    return usual if rng.random() < 0.6 else rng.choice(others)


def number(rng, low=0.0, high=3.0):
    return round(rng.uniform(low, high), rng.choice([0, 1, 3, 12])) or 0.5


def some_hires(rng):
    resize = {} if rng.random() < 0.5 else {
        "resize_x": rng.choice([0, 32]), "resize_y": rng.choice([0, 40])
    }  # fmt: skip
    return HiresConfig(
        upscale=number(rng, 1, 3),
        **resize,
        upscaler=some(rng, "Latent", "Lanczos", "Latent (nearest-exact)"),
        steps=some(rng, 0, 7),
        denoising_strength=number(rng, 0.1, 1),
        sampler=some(rng, None, *samplers_of("pictures")),
        schedule_type=some(rng, None, *schedule_types()),
        prompt=some(rng, None, some_text(rng), ""),
        negative_prompt=some(rng, None, some_text(rng), ""),
    )


def some_img2img(rng):
    inpaint = InpaintConfig(
        mask="mask.png",
        mask_blur=rng.choice([0, 4, 9]),
        mask_mode=some(rng, "Inpaint masked", "Inpaint not masked"),
        masked_content=some(rng, "original", "fill", "latent noise", "latent nothing"),
        area=some(rng, "Whole picture", "Only masked"),
        padding=some(rng, 32, 0, 7),
        soft_edges=some(rng, False, True),
    )
    strength = rng.choice([0.0, 1.0, number(rng, 0, 1)])
    return ImageToImageConfig(
        init_image="init.png",
        denoising_strength=strength,
        resize_mode=some(rng, *RESIZE_MODES),
        noise_multiplier=some(rng, 1.0, number(rng)),
        extra_noise=some(rng, 0.0, number(rng)),
        exact_steps=strength > 0 and some(rng, False, True),
        color_correction=some(rng, False, True),
        background_color=some(rng, "#ffffff", "#00ff80", "red"),
        inpaint=some(rng, None, inpaint),
    )


def some_schedule(rng):
    return ScheduleConfig(
        sigma_min=some(rng, None, number(rng, 0.01, 0.2)),
        sigma_max=some(rng, None, number(rng, 5, 20)),
        rho=some(rng, None, 3.0, 7.0, 1.0),
        beta_alpha=some(rng, 0.6, number(rng)),
        beta_beta=some(rng, 0.6, number(rng)),
        discard_next_to_last_sigma=some(rng, False, True),
        use_old_karras=some(rng, False, True),
    )


def some_request(seed):
    """A sound request with any settings that infotext can carry; not all have an effect."""
    rng = random.Random(seed)
    kind = rng.choice(["txt2img", "hires", "img2img"])
    resize = rng.random() < 0.3
    return ImageConfig(
        prompt=some_text(rng),
        negative_prompt=some(rng, "", some_text(rng)),
        seed=rng.choice([0, 1, 2**63 - 1, rng.randrange(2**32)]),
        steps=rng.randrange(1, 50),
        cfg_scale=rng.choice([1.0, 7.0, number(rng, 0, 20)]),
        sampler=rng.choice([*samplers_of("pictures")]),
        schedule_type=some(rng, "Automatic", *schedule_types()),
        schedule=some_schedule(rng),
        eta=some(rng, None, 0.0, 1.0, number(rng)),
        s_churn=some(rng, 0.0, number(rng)),
        s_tmin=some(rng, 0.0, number(rng)),
        s_tmax=some(rng, 0.0, number(rng)),
        s_noise=some(rng, 1.0, number(rng)),
        width=8 * rng.randrange(1, 9),
        height=8 * rng.randrange(1, 9),
        rng=some(rng, "CPU", "NV"),
        ensd=some(rng, 0, 31337, -5),
        variation_seed=rng.randrange(2**32),
        variation_strength=some(rng, 0.0, 1.0, number(rng, 0, 1)),
        seed_resize_from_width=24 if resize else 0,
        seed_resize_from_height=16 if resize else 0,
        emphasis=some(rng, "Original", "No norm", "Ignore", "None"),
        comma_padding_backtrack=some(rng, 20, 0, 3),
        pad_conds=some(rng, False, True),
        old_prompt_editing=some(rng, False, True),
        s_min_uncond=some(rng, 0.0, number(rng)),
        skip_early_cond=some(rng, 0.0, number(rng, 0, 1)),
        sgm_noise_multiplier=some(rng, False, True),
        tiling=some(rng, False, True),
        restore_faces=some(rng, None, "CodeFormer", "GFPGAN"),
        hires=some_hires(rng) if kind == "hires" else None,
        img2img=some_img2img(rng) if kind == "img2img" else None,
    )


def normal(one):
    """What draws the same picture, written in one way: without settings that have no effect."""
    names, schedules = zip(*passes(one), strict=True)
    etas = {eta for name in names if (eta := TABLE[name].default_eta) is not None}
    texts = one.prompt + one.negative_prompt
    if one.hires:
        texts += (one.hires.prompt or "") + (one.hires.negative_prompt or "")
    is_churned = one.s_churn > 0 and any(TABLE[name].uses_churn for name in names)
    is_noisy = any(TABLE[name].uses_churn or TABLE[name].uses_s_noise for name in names)
    is_guided = one.cfg_scale != 1 or "DDIM CFG++" in names
    is_varied = one.variation_strength > 0
    changes = {
        "schedule_type": schedules[0],
        "schedule": normal_schedule(one.schedule, names, schedules),
        "eta": None if all(one.eta == eta for eta in etas) else one.eta,
        "s_noise": one.s_noise if is_noisy else 1.0,
        "ensd": one.ensd if uses_ensd(one) else 0,
        "variation_seed": one.variation_seed if is_varied else -1,
        "emphasis": one.emphasis if "(" in texts or "[" in texts else "Original",
        "old_prompt_editing": one.old_prompt_editing and "[" in texts,
        "sgm_noise_multiplier": one.sgm_noise_multiplier and one.img2img is None,
        "hires": one.hires and normal_hires(one, one.hires),
        "img2img": one.img2img and normal_img2img(one.img2img),
    }
    for name in ("s_churn", "s_tmin", "s_tmax"):
        changes[name] = getattr(one, name) if is_churned else 0.0
    if not is_guided:
        changes |= {"pad_conds": False, "s_min_uncond": 0.0, "skip_early_cond": 0.0}
    return replace(one, **changes)


def normal_schedule(schedule, names, schedules):
    changes = {}
    if not {"Karras", "Exponential", "Polyexponential"} & {*schedules}:
        changes |= {"sigma_min": None, "sigma_max": None}
    rhos = {SCHEDULES[name].default_rho for name in schedules if name != "Automatic"} - {None}
    if rhos <= {schedule.rho}:
        changes["rho"] = None
    if "Beta" not in schedules:
        changes |= {"beta_alpha": 0.6, "beta_beta": 0.6}
    if all(TABLE[name].discards_penultimate for name in names):
        changes["discard_next_to_last_sigma"] = False
    return replace(schedule, **changes)


def normal_hires(one, hires):
    has_size = hires.resize_x or hires.resize_y
    sampler = hires.sampler or one.sampler
    return replace(
        hires,
        upscale=2.0 if has_size else hires.upscale,
        sampler=sampler,
        schedule_type=resolve_schedule(sampler, hires.schedule_type or one.schedule_type),
        prompt=one.prompt if hires.prompt is None else hires.prompt,
        negative_prompt=(
            one.negative_prompt if hires.negative_prompt is None else hires.negative_prompt
        ),
    )


def normal_img2img(img2img):
    inpaint = img2img.inpaint
    if inpaint is not None and inpaint.area == "Whole picture":
        inpaint = replace(inpaint, padding=32)
    return replace(img2img, inpaint=inpaint)


@pytest.fixture
def base(tiny_base):
    tiny_base.path = "picto"
    return tiny_base


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(30), id="some"),
        pytest.param(range(30, 400), id="more", marks=pytest.mark.slow),
    ],
)
def test_any_settings_are_read_back(base, seeds):
    for seed in seeds:
        one = some_request(seed)
        assert not list(one.faults()), seed
        text = describe_drawing(one, base)
        made = recipe_from_infotext(text, restorers=["CodeFormer", "GFPGAN"])
        overrides = []
        if one.img2img:
            overrides.append("settings.img2img.init_image=init.png")
            if one.img2img.inpaint:
                overrides.append("settings.img2img.inpaint.mask=mask.png")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # of what has no effect
            recipe = load_mapping(made.recipe, "infotext", draw_schema, overrides)
        found = recipe.images["picture"]
        if found.img2img:
            start = found.img2img
            inpaint = start.inpaint and replace(start.inpaint, mask="mask.png")
            found = replace(found, img2img=replace(start, init_image="init.png", inpaint=inpaint))
        differing = {
            key: (value, asdict(normal(one))[key])
            for key, value in asdict(normal(found)).items()
            if value != asdict(normal(one))[key]
        }
        assert not differing, (seed, text)


def test_every_setting_is_tried():
    """A new setting has to find its place above."""
    tried = [some_request(seed) for seed in range(200)]
    left_out = {"count", "styles"}
    for field in dataclasses.fields(ImageConfig):
        values = {repr(getattr(one, field.name)) for one in tried}
        assert len(values) > 1 or field.name in left_out, field.name
