"""img2img and inpainting from requests to pictures, with a tiny base model."""

import dataclasses
import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from inference.config.images import RESIZE_MODES, ImageConfig, ImageToImageConfig, InpaintConfig
from inference.images import drawing as sampling
from inference.images.drawing import draw
from inference.images.img2img.masks import blur_mask, whole_picture_overlay_mask
from inference.images.img2img.resize import resize_image
from inference.images.infotext.text import parse_infotext
from inference.runtime.errors import DrawWarning, InputError
from inference.sampling.img2img import img2img_steps
from inference.sampling.registry import samplers_of
from tests.inference.images.decoding import decoded_latents

SIZE = 32


def noise_picture(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A picture of 32x32 pixels, one of 40x24, and masks: a square, nothing, one too small."""
    folder = tmp_path_factory.mktemp("init")
    noise_picture(SIZE, SIZE).save(folder / "square.png")
    noise_picture(40, 24, 1).save(folder / "wide.png")
    for name, size in (("mask", SIZE), ("blank", SIZE), ("small", 16)):
        mask = Image.new("L", (size, size))
        if name != "blank":
            ImageDraw.Draw(mask).rectangle((size // 2, 4, size - 1, size - 9), fill=255)
        mask.save(folder / f"{name}.png")
    painted = Image.open(folder / "square.png")
    ImageDraw.Draw(painted).rectangle((20, 8, 28, 20), fill="red")
    painted.save(folder / "sketch.png")
    return folder


def request(files, init="square.png", inpaint=None, **changes):
    """A request whose img2img keys differ from its own."""
    own = {field.name for field in dataclasses.fields(ImageToImageConfig)}
    start = {key: changes.pop(key) for key in list(changes) if key in own}
    img2img = ImageToImageConfig(init_image=str(files / init), inpaint=inpaint, **start)
    usual = {"prompt": "a cat", "seed": 1, "steps": 3, "width": SIZE, "height": SIZE}
    return ImageConfig(**{**usual, **changes}, img2img=img2img)


def masked(files, mask="mask.png", **changes):
    return InpaintConfig(**{"mask": str(files / mask), "mask_blur": 1, **changes})


def pixels(drawing):
    return np.asarray(drawing.image, dtype=int)


def draw_one(base, one):
    return draw(base, [one])[0]


@pytest.fixture
def evaluations(tiny_base, monkeypatch):
    """Every evaluation's noise level, as the model's timestep; with cfg_scale 1."""
    seen = []
    predict = tiny_base.predict

    def spy(noisy, timesteps, conditions, sizes=None):
        seen.append(float(timesteps[0]))
        return predict(noisy, timesteps, conditions, sizes)

    monkeypatch.setattr(tiny_base, "predict", spy)
    return seen


@pytest.mark.parametrize(
    ("steps", "strength", "exact", "expected"),
    [
        (20, 0.75, False, 16),  # A1111 draws int(0.75 * 20) + 1
        (20, 0.5, False, 11),
        (10, 0.33, False, 4),
        (4, 0.0, False, 1),
        (4, 1.0, False, 4),  # 0.999
        (5, 0.5, True, 5),
        (5, 0.1, True, 5),
    ],
)
def test_steps_of_img2img(tiny_base, files, evaluations, steps, strength, exact, expected):
    changes = {"steps": steps, "denoising_strength": strength, "exact_steps": exact}
    draw_one(tiny_base, request(files, sampler="Euler", cfg_scale=1.0, **changes))
    assert len(evaluations) == expected
    assert evaluations == sorted(evaluations, reverse=True)


def test_samplers_by_timesteps_go_one_step_less(tiny_base, files, evaluations):
    draw_one(tiny_base, request(files, sampler="DDIM", cfg_scale=1.0, steps=10,
                                denoising_strength=0.5))  # fmt: skip
    assert len(evaluations) == img2img_steps(10, 0.5)[1] - 1 == 4


def test_strength_says_how_much_stays(tiny_base, files):
    distances = []
    for strength in (0.0, 0.3, 1.0):
        one = request(files, steps=10, sampler="Euler", denoising_strength=strength)
        distances.append(latent_distance(tiny_base, one, files))
    assert distances[0] < 0.1 * distances[1] < 0.1 * distances[2]


def latent_distance(base, one, files):
    """Root mean square between what was drawn and the init image, both as the VAE has them."""
    with decoded_latents() as kept:
        draw_one(base, one)
    with torch.inference_mode():
        pictures = [Image.open(one.img2img.init_image).convert("RGB")]
        init, _ = base.encode_images(sampling_pixels(pictures))
    return float((kept[0] - init).square().mean().sqrt())


def sampling_pixels(pictures):
    values = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(values).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(16, 32), (24, 8)])
def test_every_resize_mode_gives_the_size_asked_for(tiny_base, files, mode, size):
    width, height = size
    one = request(files, "wide.png", resize_mode=mode, width=width, height=height)
    drawing = draw_one(tiny_base, one)
    assert drawing.image.size == size
    assert parse_infotext(drawing.infotext).parameters["Size"] == f"{width}x{height}"


def test_resize_modes_differ(tiny_base, files):
    requests = [request(files, "wide.png", resize_mode=mode) for mode in RESIZE_MODES]
    drawn = drawn_latents(tiny_base, requests, 1)
    for one, two in itertools.combinations(drawn, 2):
        assert abs(one - two).max() > 0.01


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.8},
        {"extra_noise": 0.1},
        {"exact_steps": True},
        {"denoising_strength": 0.6},
        {"init": "wide.png"},
    ],
)
def test_settings_of_img2img_matter(tiny_base, files, change):
    plain, changed = drawn_latents(tiny_base, [request(files), request(files, **change)], 1)
    assert (plain - changed).abs().max() > 0.01


def test_color_correction_matters(tiny_base, files):
    requests = [request(files, color_correction=switch) for switch in (False, True)]
    plain, changed = (pixels(draw_one(tiny_base, one)) for one in requests)
    assert abs(plain - changed).max() > 10


def test_color_correction_brings_the_init_images_colours(tiny_base, tmp_path):
    values = np.random.default_rng(0).integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
    values[..., 0] += 150  # red
    Image.fromarray(values).save(tmp_path / "red.png")
    plain, corrected = (
        pixels(draw_one(tiny_base, request(tmp_path, "red.png", color_correction=on)))
        for on in (False, True)
    )
    redness = [(one[..., 0] - one[..., 1]).mean() for one in (plain, corrected)]
    assert redness[1] > redness[0] + 20


def test_transparent_places_show_the_background(tiny_base, tmp_path):
    Image.new("RGBA", (SIZE, SIZE)).save(tmp_path / "clear.png")
    Image.new("RGB", (SIZE, SIZE), "#102030").save(tmp_path / "full.png")
    one = request(tmp_path, "clear.png", background_color="#102030")
    two = request(tmp_path, "full.png")
    first_drawn, then_drawn = (pixels(draw_one(tiny_base, each)) for each in (one, two))
    assert np.array_equal(first_drawn, then_drawn)


OF_EVERY_KIND = ["Euler a", "DPM++ 2M", "DPM++ SDE", "LMS", "LCM", "Restart", "DDIM", "DDIM CFG++",
                 "PLMS", "UniPC"]  # fmt: skip


@pytest.mark.parametrize(
    ("sampler", "area"),
    [
        pytest.param(sampler, area, marks=() if number % 2 == of_area else pytest.mark.slow)
        for number, sampler in enumerate(OF_EVERY_KIND)
        for of_area, area in enumerate(("Whole picture", "Only masked"))
    ],
)
def test_nothing_changes_outside_of_the_mask(tiny_base, files, sampler, area):
    inpaint = masked(files, area=area, padding=4)
    drawing = draw_one(tiny_base, request(files, inpaint=inpaint, sampler=sampler))
    check_outside(drawing, files, area)


@pytest.mark.parametrize("content", ["fill", "original", "latent noise", "latent nothing"])
@pytest.mark.parametrize("area", ["Whole picture", "Only masked"])
def test_masked_contents(tiny_base, files, content, area):
    inpaint = masked(files, area=area, masked_content=content)
    one = request(files, inpaint=inpaint, denoising_strength=0.5)
    drawing = draw_one(tiny_base, one)
    check_outside(drawing, files, area)
    if content != "original":
        inpaint = dataclasses.replace(inpaint, masked_content="original")
        usual = draw_one(tiny_base, request(files, inpaint=inpaint, denoising_strength=0.5))
        assert not np.array_equal(pixels(drawing), pixels(usual))


def check_outside(drawing, files, area, invert=False):
    """What the blurred mask leaves out is the init image's, byte for byte; the rest is not."""
    mask = Image.open(files / "mask.png")
    if invert:
        mask = Image.eval(mask, lambda value: 255 - value)
    mask = blur_mask(mask, 1)
    if area == "Whole picture":
        mask = whole_picture_overlay_mask(mask)
    outside = np.asarray(mask) == 0
    init = np.asarray(Image.open(files / "square.png"), dtype=int)
    assert 0.1 < outside.mean() < 0.9
    assert np.array_equal(pixels(drawing)[outside], init[outside])
    inside = np.asarray(mask) == 255
    assert abs(pixels(drawing)[inside] - init[inside]).mean() > 10


@pytest.mark.parametrize("area", ["Whole picture", "Only masked"])
def test_soft_edges(tiny_base, files, area):
    inpaint = masked(files, area=area, soft_edges=True)
    soft = draw_one(tiny_base, request(files, inpaint=inpaint))
    hard = draw_one(tiny_base, request(files, inpaint=masked(files, area=area)))
    check_outside(soft, files, area)
    assert not np.array_equal(pixels(soft), pixels(hard))


def test_inpaint_not_masked(tiny_base, files):
    inpaint = masked(files, mask_mode="Inpaint not masked")
    drawing = draw_one(tiny_base, request(files, inpaint=inpaint))
    check_outside(drawing, files, "Whole picture", invert=True)


def test_only_masked_keeps_the_init_images_size(tiny_base, files):
    mask = Image.new("L", (40, 24))
    mask.paste(255, (4, 4, 12, 12))
    mask.save(files / "wide-mask.png")
    inpaint = masked(files, "wide-mask.png", area="Only masked", padding=2)
    drawing = draw_one(tiny_base, request(files, "wide.png", inpaint, width=16, height=16))
    assert drawing.image.size == (40, 24)
    outside = np.asarray(blur_mask(mask, 1)) == 0
    init = np.asarray(Image.open(files / "wide.png"), dtype=int)
    assert np.array_equal(pixels(drawing)[outside], init[outside])


def test_whole_picture_is_resized_with_its_mask(tiny_base, files):
    inpaint = masked(files)
    drawing = draw_one(tiny_base, request(files, inpaint=inpaint, width=16, height=24))
    assert drawing.image.size == (16, 24)
    mask = blur_mask(Image.open(files / "mask.png"), 1)
    outside = np.asarray(whole_picture_overlay_mask(resize_image(mask, 16, 24))) == 0
    init = np.asarray(resize_image(Image.open(files / "square.png"), 16, 24), dtype=int)
    assert np.array_equal(pixels(drawing)[outside], init[outside])


def test_sketch(tiny_base, files):
    inpaint = InpaintConfig(sketch=str(files / "sketch.png"), mask_blur=0)
    drawing = draw_one(tiny_base, request(files, inpaint=inpaint))
    init, sketch = (
        np.asarray(Image.open(files / name), dtype=int) for name in ("square.png", "sketch.png")
    )
    painted = (init != sketch).any(-1)
    assert np.array_equal(pixels(drawing)[~painted], init[~painted])
    other = InpaintConfig(sketch=str(files / "sketch.png"), mask_blur=0, mask_transparency=30)
    softer = draw_one(tiny_base, request(files, inpaint=other))
    assert not np.array_equal(pixels(softer), pixels(drawing))


@pytest.mark.parametrize("area", ["Whole picture", "Only masked"])
def test_blank_mask_is_warned_about(tiny_base, files, area):
    blank = request(files, inpaint=masked(files, "blank.png", area=area))
    with pytest.warns(DrawWarning, match=r"square\.png: the mask is blank"):
        drawing = draw_one(tiny_base, blank)
    init = np.asarray(Image.open(files / "square.png"), dtype=int)
    if area == "Whole picture":
        assert np.array_equal(pixels(drawing), init)
    else:  # as without a mask
        plain = draw_one(tiny_base, request(files))
        assert np.array_equal(pixels(drawing), pixels(plain))


@pytest.fixture
def nothing_drawn(monkeypatch):
    """Fails the test if a picture is begun."""
    monkeypatch.setattr(sampling, "draw_batch", lambda *_: pytest.fail("a picture was drawn"))


@pytest.mark.usefixtures("nothing_drawn")
@pytest.mark.parametrize(
    ("change", "inpaint", "message"),
    [
        ({"init": "none.png"}, None, r"img2img\.init_image: there is no file"),
        ({}, {"mask": "none.png"}, r"img2img\.inpaint\.mask: there is no file"),
        ({}, {"mask": "small.png"}, r"mask: .*small\.png, 16x16, differs from .* 32x32"),
        ({}, {"mask": None, "sketch": "wide.png"}, r"sketch: .*wide\.png, 40x24, differs"),
        ({"exact_steps": True, "denoising_strength": 0.0}, None, "denoising_strength: must be abo"),
        ({"background_color": "reddish"}, None, "background_color: 'reddish' is no colour"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_drawn(tiny_base, files, change, inpaint, message):
    if inpaint is not None:
        paths: dict[str, Any] = {key: name and str(files / name) for key, name in inpaint.items()}
        inpaint = InpaintConfig(**paths)
    with pytest.raises(InputError, match=message):
        draw(tiny_base, [ImageConfig(prompt="a"), request(files, inpaint=inpaint, **change)])


def drawn_latents(base, requests, batch_size):
    """What is decoded, batch after batch."""
    kept = []

    def keep(base, latents):
        kept.extend(latents)
        return [Image.new("RGB", (16, 16))] * len(latents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "to_images", keep)
        draw(base, requests, batch_size)
    return torch.stack(kept)


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(one, marks=() if one in OF_EVERY_KIND else pytest.mark.slow)
        for one in sorted(samplers_of("pictures").keys() - {"DPM adaptive"})
    ],
)
def test_batches_equal_single_pictures(tiny_base, files, sampler):
    """Of noise and of inpainting; DPM adaptive draws one at a time anyway.

    Matrices of other sizes are multiplied by other routes, whose rounding some samplers amplify.
    """
    inpainted = [
        request(files, init, masked(files), prompt=prompt, seed=seed, sampler=sampler, steps=2,
                width=16, height=16)
        for init, prompt, seed in [("square.png", "a cat", 1), ("sketch.png", "c " * 90, 2)]
    ]  # fmt: skip
    requests = [*(dataclasses.replace(one, img2img=None) for one in inpainted), *inpainted]
    together, alone = (drawn_latents(tiny_base, requests, size) for size in (8, 1))
    differences = (together - alone).abs().amax((1, 2, 3)) / alone.abs().amax((1, 2, 3))
    assert differences.max() < 1e-3


def test_folder_gives_a_picture_for_each_with_the_mask_of_its_name(tiny_base, files, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "masks").mkdir()
    for number, name in enumerate(["b", "a"]):
        noise_picture(SIZE, SIZE, 7 + number).save(tmp_path / "in" / f"{name}.png")
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(255, (0, 0, 16, 32) if name == "a" else (16, 0, 32, 32))
        mask.save(tmp_path / "masks" / f"{name}.bmp")
    inpaint = InpaintConfig(mask=str(tmp_path / "masks"), mask_blur=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawings = draw(tiny_base, [request(tmp_path, "in", inpaint, count=2)])
    assert [drawing.request.seed for drawing in drawings] == [1, 2, 1, 2]
    starts = [drawing.request.img2img for drawing in drawings]
    paths = [start.init_image for start in starts if start and start.init_image]
    names = [path[-5:] for path in paths]
    assert names == ["a.png", "a.png", "b.png", "b.png"]
    hashes = [
        parse_infotext(drawing.infotext).parameters["Init image hash"] for drawing in drawings
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    halves = [slice(16, 32)] * 2 + [slice(0, 16)] * 2
    for drawing, path, kept in zip(drawings, paths, halves, strict=True):
        init = np.asarray(Image.open(path), dtype=int)
        assert np.array_equal(pixels(drawing)[:, kept], init[:, kept])
    (tmp_path / "masks" / "b.bmp").unlink()
    with pytest.raises(InputError, match=r"img2img\.inpaint\.mask: .* has none of the name b"):
        draw(tiny_base, [request(tmp_path, "in", inpaint)])
