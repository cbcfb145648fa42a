"""Hires. fix, tiling, random seeds, inpainting checkpoints, and SDXL, with tiny base models."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from inference.config.images import HiresConfig, ImageConfig, ImageToImageConfig, InpaintConfig
from inference.images import drawing as sampling
from inference.images.drawing import draw
from inference.images.img2img.upscalers import register_face_restorer, upscaler_names
from inference.images.infotext.text import parse_infotext
from inference.runtime.errors import InputError
from tests.inference.images.decoding import decoded_latents

CAT = ImageConfig(prompt="a cat", seed=1, steps=3, width=16, height=24)


def hires(**changes):
    return dataclasses.replace(CAT, hires=HiresConfig(**{"denoising_strength": 0.6, **changes}))


def pixels(drawing):
    return np.asarray(drawing.image, dtype=int)


def draw_one(base, one):
    return draw(base, [one])[0]


def drawn_latents(base, one):
    with decoded_latents() as decoded:
        draw_one(base, one)
    return decoded[-1]


@pytest.fixture
def asked(tiny_base, monkeypatch):
    """Latents' (height, width) of every evaluation."""
    return spy(tiny_base, monkeypatch)


def spy(base, monkeypatch):
    seen = []
    predict = base.predict

    def watched(noisy, timesteps, conditions, sizes=None):
        seen.append(tuple(noisy.shape[2:]))
        return predict(noisy, timesteps, conditions, sizes)

    monkeypatch.setattr(base, "predict", watched)
    return seen


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (32, 48)),
        ({"upscale": 1.5}, (24, 36)),
        ({"resize_x": 24}, (24, 36)),
        ({"resize_y": 32}, (20, 32)),
        ({"resize_x": 24, "resize_y": 24}, (24, 24)),
    ],
)
def test_sizes(tiny_base, changes, size):
    drawing = draw_one(tiny_base, hires(**changes))
    assert drawing.image.size == size
    assert parse_infotext(drawing.infotext).parameters["Size"] == "16x24"


@pytest.mark.parametrize("upscaler", upscaler_names())
def test_upscalers(tiny_base, upscaler):
    """Antialiasing shows where a picture is made smaller: it does nothing in enlarging."""
    antialiased = "antialiased" in upscaler
    scale, size = (0.5, (8, 12)) if antialiased else (2.0, (32, 48))
    other = {
        "Latent": "Lanczos",
        "Latent (antialiased)": "Latent",
        "Latent (bicubic antialiased)": "Latent (bicubic)",
    }.get(upscaler, "Latent")
    found = [draw_one(tiny_base, hires(upscaler=one, upscale=scale)) for one in (upscaler, other)]
    assert found[0].image.size == size
    assert abs(pixels(found[0]) - pixels(found[1])).max() >= 8


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({}, 3, 3),
        ({"steps": 5}, 3, 5),
        ({"steps": 2, "denoising_strength": 0.1}, 3, 2),
        ({"sampler": "Heun", "steps": 2}, 3, 3),
        ({"denoising_strength": 0.0}, 3, 0),
    ],
)
def test_steps_of_both_passes(tiny_base, asked, changes, first, second):
    one = dataclasses.replace(hires(**changes), sampler="Euler", cfg_scale=1.0)
    heard = []
    draw(tiny_base, [one], progress=lambda *counts: heard.append(counts))
    assert asked == [(6, 4)] * first + [(12, 8)] * second
    assert heard == sorted(heard)
    done, total = heard[-1]
    assert done == total


def test_second_pass_has_settings_of_its_own(tiny_base):
    changes = [
        {},
        {"prompt": "a dog"},
        {"negative_prompt": "a dog"},
        {"sampler": "Euler"},
        {"schedule_type": "Uniform"},
        {"steps": 4},
        {"denoising_strength": 0.7},
        {"prompt": "a cat"},
    ]
    *drawn, again = [drawn_latents(tiny_base, hires(**change)) for change in changes]
    for one, two in itertools.combinations(drawn, 2):
        assert (one - two).abs().max() > 0.01
    assert torch.equal(drawn[0], again)


def test_without_denoising_the_first_pass_is_enlarged(tiny_base):
    with decoded_latents() as decoded:
        draw_one(tiny_base, CAT)
        drawing = draw_one(tiny_base, hires(denoising_strength=0.0, upscaler="Latent (nearest)"))
    small, large = decoded
    assert torch.equal(large, small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert drawing.image.size == (32, 48)
    assert parse_infotext(drawing.infotext).parameters["Denoising strength"] == "0"


def test_prompt_editing_counts_the_first_passes_steps(tiny_base):
    """`[cat:dog:1.5]` changes in the middle of the second pass: both words matter there."""
    whole, alone = (
        drawn_latents(tiny_base, dataclasses.replace(one, prompt="[cat:dog:1.5]"))
        for one in (hires(), hires(prompt="dog"))
    )
    assert (whole - alone).abs().max() > 0.01
    first = dataclasses.replace(CAT, prompt="[cat:dog:1.5]")
    cat = dataclasses.replace(CAT, prompt="cat")
    first_drawn, then_drawn = (pixels(draw_one(tiny_base, one)) for one in (first, cat))
    assert np.array_equal(first_drawn, then_drawn)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (hires(upscaler="Latnt"), r"hires\.upscaler: there is no upscaler 'Latnt'; did you mean"),
        (hires(upscaler="ESRGAN_4x"), r"hires\.upscaler: 'ESRGAN_4x' needs weights"),
        (hires(upscale=0.1), "hires fix: 16x24 would become 1x2 pixels"),
        (dataclasses.replace(CAT, restore_faces="GFPGAN"), "restore_faces: 'GFPGAN' needs weights"),
        (dataclasses.replace(CAT, restore_faces="x"), "restore_faces: there is no face restorer"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_drawn(tiny_base, monkeypatch, one, message):
    monkeypatch.setattr(sampling, "draw_batch", lambda *_: pytest.fail("a picture was drawn"))
    with pytest.raises(InputError, match=message):
        draw(tiny_base, [CAT, one])


def test_registered_face_restorer_is_at_work(tiny_base, monkeypatch):
    monkeypatch.setattr("inference.images.img2img.upscalers._face_restorers", {})
    register_face_restorer("GFPGAN", lambda image, weight: Image.eval(image, lambda v: 255 - v))
    plain, restored = draw(tiny_base, [CAT, dataclasses.replace(CAT, restore_faces="GFPGAN")])
    assert np.array_equal(pixels(restored), 255 - pixels(plain))
    assert parse_infotext(restored.infotext).parameters["Face restoration"] == "GFPGAN"


def test_batches_equal_single_pictures(tiny_base):
    both = [
        dataclasses.replace(hires(upscaler=name), prompt=prompt, seed=seed)
        for name in ("Latent", "Lanczos")
        for prompt, seed in [("a cat", 1), ("c " * 90, 2)]
    ]
    together, alone = (draw(tiny_base, both, size) for size in (8, 1))
    for one, two in zip(together, alone, strict=True):
        assert abs(pixels(one) - pixels(two)).max() <= 1
        assert one.infotext == two.infotext


def step_across(values):
    """Mean difference of neighbours across the border, and of those inside, along both axes."""
    across = [abs(values[0] - values[-1]).mean(), abs(values[:, 0] - values[:, -1]).mean()]
    inside = [abs(np.diff(values, axis=axis)).mean() for axis in (0, 1)]
    return sum(across), sum(inside)


def test_tiles_have_no_border(tiny_base):
    """A picture shifted around is drawn from noise shifted around: nothing sees the border."""
    before = [module.padding_mode for module in convolutions(tiny_base)]
    one = dataclasses.replace(CAT, width=32, height=32, tiling=True, sampler="Euler")
    tiled, shifted = pixels(draw_one(tiny_base, one)), draw_shifted(tiny_base, one)
    assert abs(np.roll(tiled, (8, 16), (0, 1)) - shifted).max() <= 1
    plain = dataclasses.replace(one, tiling=False)
    usual = pixels(draw_one(tiny_base, plain))
    assert abs(np.roll(usual, (8, 16), (0, 1)) - draw_shifted(tiny_base, plain)).max() > 8
    assert not np.array_equal(usual, tiled)
    assert [module.padding_mode for module in convolutions(tiny_base)] == before
    assert set(before) == {"zeros"}


def convolutions(base):
    parts = (base.unet, base.vae)
    return [m for part in parts for m in part.modules() if isinstance(m, torch.nn.Conv2d)]


def draw_shifted(base, one):
    """Drawn from the same noise, shifted by 2 and 4 latents."""
    from inference.sampling.noise import NoiseSource

    normal = NoiseSource.normal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoiseSource, "normal", lambda self: normal(self).roll((2, 4), (2, 3)))
        return pixels(draw_one(base, one))


def test_seams_of_picto_close():
    from inference.config.models import BaseModelConfig
    from inference.models.stable_diffusion.loading import load_base_model

    base = load_base_model(BaseModelConfig(path="picto"))
    one = ImageConfig(prompt="a red house", seed=3, steps=4, width=64, height=64)
    tiled, plain = draw(base, [dataclasses.replace(one, tiling=True), one])
    across, inside = step_across(pixels(tiled))
    assert across <= 1.5 * inside, (across, inside, step_across(pixels(plain)))


def test_error_while_tiling_leaves_the_model_as_it_was(tiny_base, monkeypatch):
    def fail(*_, **__):
        raise FloatingPointError("no number")

    monkeypatch.setattr(sampling, "sample", fail)
    with pytest.raises(FloatingPointError):
        draw(tiny_base, [dataclasses.replace(CAT, tiling=True)])
    assert {module.padding_mode for module in convolutions(tiny_base)} == {"zeros"}


def test_random_seeds_differ_and_are_told(tiny_base):
    one = dataclasses.replace(CAT, seed=-1, count=2)
    drawings = draw(tiny_base, [one, one])
    seeds = [drawing.request.seed for drawing in drawings]
    assert seeds[1] == seeds[0] + 1 and seeds[3] == seeds[2] + 1
    assert len(set(seeds)) == 4
    assert len({pixels(drawing).tobytes() for drawing in drawings}) == 4
    for drawing in drawings:
        seed = drawing.request.seed
        assert parse_infotext(drawing.infotext).parameters["Seed"] == str(seed)
        again = draw_one(tiny_base, dataclasses.replace(CAT, seed=seed))
        assert abs(pixels(again) - pixels(drawing)).max() <= 1


def test_variations(tiny_base):
    one = dataclasses.replace(CAT, variation_seed=5, variation_strength=0.4, count=2)
    drawings = draw(tiny_base, [one])
    reported = [parse_infotext(drawing.infotext).parameters for drawing in drawings]
    assert [(each["Seed"], each["Variation seed"]) for each in reported] == [("1", "5"), ("1", "6")]
    assert not np.array_equal(pixels(drawings[0]), pixels(drawings[1]))
    whole = dataclasses.replace(CAT, variation_seed=5, variation_strength=1.0)
    other = dataclasses.replace(CAT, seed=5)
    assert abs(pixels(draw_one(tiny_base, whole)) - pixels(draw_one(tiny_base, other))).max() <= 1
    rolled = draw_one(tiny_base, dataclasses.replace(one, variation_seed=-1, count=1))
    assert int(parse_infotext(rolled.infotext).parameters["Variation seed"]) >= 0
    resized = dataclasses.replace(CAT, seed_resize_from_width=8, seed_resize_from_height=16)
    assert not np.array_equal(
        pixels(draw_one(tiny_base, resized)), pixels(draw_one(tiny_base, CAT))
    )


@pytest.fixture
def nine_channels(tiny_base):
    """The tiny base model with a UNet that is conditioned on a mask and the masked image."""
    config = {**tiny_base.unet.config, "in_channels": 9}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(config)
    tiny_base.unet = unet.requires_grad_(False).eval()
    return tiny_base


@pytest.fixture
def init(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "init.png")
    mask = Image.new("L", (16, 24))
    mask.paste(255, (0, 0, 16, 12))
    mask.save(tmp_path / "mask.png")
    inpaint = InpaintConfig(mask=str(tmp_path / "mask.png"), mask_blur=0)
    return ImageToImageConfig(init_image=str(tmp_path / "init.png"), inpaint=inpaint)


def test_inpainting_checkpoints(nine_channels, init, monkeypatch):
    reported = []
    predict = nine_channels.predict

    def watched(noisy, *rest):
        reported.append(noisy[0, 4:])
        return predict(noisy, *rest)

    monkeypatch.setattr(nine_channels, "predict", watched)
    with torch.inference_mode():
        grey, _ = nine_channels.encode_images(torch.zeros(1, 3, 24, 16))
    alone = [CAT, dataclasses.replace(CAT, seed=2), hires()]
    assert [one.image.size for one in draw(nine_channels, alone, 8)] == [(16, 24)] * 2 + [(32, 48)]
    assert bool((reported[0][:1] == 1).all())
    torch.testing.assert_close(reported[0][1:], grey[0])
    assert reported[-1].shape == (5, 12, 8)
    assert bool((reported[-1][:1] == 1).all())
    reported.clear()
    drawing = draw_one(nine_channels, dataclasses.replace(CAT, img2img=init))
    expected = torch.tensor([1.0, 1, 1, 0, 0, 0])[:, None].expand(6, 4)
    assert torch.equal(reported[0][0], expected)
    kept = np.asarray(Image.open(init.init_image), dtype=int)[12:]
    assert np.array_equal(pixels(drawing)[12:], kept)
    assert parse_infotext(drawing.infotext).parameters["Conditional mask weight"] == "1"
    inpaint = dataclasses.replace(init.inpaint, conditioning_mask_strength=0.2)
    weaker = dataclasses.replace(init, inpaint=inpaint)
    other = draw_one(nine_channels, dataclasses.replace(CAT, img2img=weaker))
    assert not np.array_equal(pixels(other), pixels(drawing))


def test_sdxl(tiny_sdxl, init, monkeypatch):
    asked = spy(tiny_sdxl, monkeypatch)
    sizes = []
    forward = tiny_sdxl.unet.forward

    def watched(*arguments, added_cond_kwargs, **options):
        sizes.append(tuple(added_cond_kwargs["time_ids"][0].int().tolist()))
        return forward(*arguments, added_cond_kwargs=added_cond_kwargs, **options)

    monkeypatch.setattr(tiny_sdxl.unet, "forward", watched)
    assert draw_one(tiny_sdxl, hires()).image.size == (32, 48)
    assert list(dict.fromkeys(asked)) == [(6, 4), (12, 8)]
    assert list(dict.fromkeys(sizes)) == [(24, 16, 0, 0, 24, 16), (48, 32, 0, 0, 48, 32)]
    masked = draw_one(tiny_sdxl, dataclasses.replace(CAT, img2img=init))
    plain = draw_one(
        tiny_sdxl, dataclasses.replace(CAT, img2img=dataclasses.replace(init, inpaint=None))
    )
    kept = np.asarray(Image.open(init.init_image), dtype=int)[12:]
    assert np.array_equal(pixels(masked)[12:], kept)
    assert not np.array_equal(pixels(plain)[12:], kept)
