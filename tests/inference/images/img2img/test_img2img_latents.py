"""Upscalers, hires sizes, steps, tiling, blending, conditioning, colours: known numbers."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from inference.artifacts.adapters.low_rank import hang_in, initial_low_rank
from inference.images.img2img import upscalers
from inference.images.img2img.color_correction import (
    LUMA,
    blend_luminosity,
    correct_colors,
    lab_to_rgb,
    match_histogram,
    rgb_to_lab,
)
from inference.images.img2img.conditioning import (
    blend_latents,
    circular_padding,
    inpainting_conditioning,
    whole_picture_conditioning,
)
from inference.images.img2img.hires import hires_size
from inference.images.img2img.masks import SoftInpainting
from inference.images.img2img.resize import resize_image
from inference.images.img2img.upscalers import (
    UPSCALERS,
    check_upscaler,
    face_restorer,
    image_upscaler,
    is_latent_upscaler,
    register_face_restorer,
    register_upscaler,
    upscale_latents,
    upscaler,
    upscaler_names,
)
from inference.runtime.errors import InputError

# Upscalers


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(upscalers, "UPSCALERS", dict(UPSCALERS))
    monkeypatch.setattr(upscalers, "_face_restorers", {})


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("Latent", 4, [0, 0.25, 0.75, 1]),
        ("Latent (antialiased)", 4, [0, 0.25, 0.75, 1]),
        ("Latent (bicubic)", 4, [-0.1055, 0.2266, 0.7734, 1.1055]),  # torch's cubic, a = -0.75
        ("Latent (nearest)", 3, [0, 0, 1]),  # floor(2 i / 3)
        ("Latent (nearest-exact)", 3, [0, 1, 1]),  # floor(2 (i + 0.5) / 3)
    ],
)
def test_latents_are_interpolated(name, width, expected):
    latents = torch.tensor([0.0, 1.0]).expand(1, 4, 2, 2)
    found = upscale_latents(latents, width, 2, name)
    assert found.shape == (1, 4, 2, width)
    assert found[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_antialiased_latents_differ_where_they_should():
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    smaller = {
        name: upscale_latents(latents, 4, 4, name) for name in UPSCALERS if is_latent_upscaler(name)
    }
    assert not smaller["Latent"].allclose(smaller["Latent (antialiased)"], atol=0.05)
    assert not smaller["Latent (bicubic)"].allclose(
        smaller["Latent (bicubic antialiased)"], atol=0.05
    )


def test_nearest_and_lanczos_enlarge_pictures():
    image = Image.fromarray(np.array([[[0] * 3, [200] * 3]], np.uint8))
    nearest = resize_image(image, 6, 3, upscaler=image_upscaler("Nearest"))
    assert np.asarray(nearest)[1, :, 0].tolist() == [0, 0, 0, 200, 200, 200]
    plain = resize_image(image, 6, 3).tobytes()
    assert resize_image(image, 6, 3, upscaler=image_upscaler("None")).tobytes() == plain
    assert resize_image(image, 6, 3, upscaler=image_upscaler("Lanczos")).tobytes() == plain


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("R-ESRGAN 4x+", "hr_upscaler: .*needs weights that Limner does not ship; register it"),
        ("SwinIR 4x", "or take Lanczos"),
        ("R-ESRGAN 4x", r"there is no upscaler 'R-ESRGAN 4x'; did you mean 'R-ESRGAN [24]x\+'"),
        ("zzz", "known are Latent, "),
    ],
)
def test_absent_upscalers_are_explained(registry, name, message):
    with pytest.raises(InputError, match=message):
        check_upscaler(name)


def test_registered_upscalers_work(registry):
    register_upscaler("R-ESRGAN 4x+", lambda image, scale: Image.new("RGB", (64, 64), (1, 2, 3)))
    check_upscaler("R-ESRGAN 4x+")
    check_upscaler("Latent (bicubic)")
    assert upscaler_names()[-4:] == ["None", "Lanczos", "Nearest", "R-ESRGAN 4x+"]
    assert not is_latent_upscaler("R-ESRGAN 4x+")
    enlarged = resize_image(
        Image.new("RGB", (16, 16)), 24, 24, upscaler=image_upscaler("R-ESRGAN 4x+")
    )
    assert (enlarged.size, enlarged.getpixel((5, 5))) == ((24, 24), (1, 2, 3))
    with pytest.raises(ValueError, match="built in"):
        register_upscaler("Latent", lambda image, scale: image)
    with pytest.raises(InputError, match="works on latents"):
        image_upscaler("Latent")


def test_an_upscaler_is_entered_by_its_name(registry):
    @upscaler("Mirror")
    def mirror(image, scale):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    assert image_upscaler("Mirror") is mirror
    with pytest.raises(ValueError, match=r"'Lanczos' is taken by inference\.images.*; choose"):
        upscaler("Lanczos")(mirror)
    with pytest.raises(ValueError, match=r"'Mirror' is taken by .*mirror; choose"):
        upscaler("Mirror")(lambda image, scale: image)


def test_face_restorers_are_hooks(registry):
    with pytest.raises(InputError, match="'CodeFormer' needs weights that Limner does not ship"):
        face_restorer("CodeFormer")
    with pytest.raises(InputError, match="no face restorer 'Codeform'; known are CodeFormer, GFP"):
        face_restorer("Codeform")
    register_face_restorer("CodeFormer", lambda image, weight: image.point(lambda v: v * weight))
    restored = face_restorer("CodeFormer")(Image.new("RGB", (1, 1), (100, 60, 0)), 0.5)
    assert restored.getpixel((0, 0)) == (50, 30, 0)


# Hires sizes


@pytest.mark.parametrize(
    ("first", "step", "asked", "size", "upscale", "corner"),
    [
        ((512, 512), 8, {"scale": 2}, (1024, 1024), (1024, 1024), (0, 0)),
        ((512, 512), 8, {"scale": 1.3}, (664, 664), (664, 664), (0, 0)),  # 665.6
        ((64, 48), 4, {"scale": 1.5}, (96, 72), (96, 72), (0, 0)),
        ((512, 768), 8, {"resize_x": 1024}, (1024, 1536), (1024, 1536), (0, 0)),
        ((768, 512), 8, {"resize_y": 1000}, (1496, 1000), (1496, 1000), (0, 0)),
        ((512, 512), 8, {"resize_x": 1000, "resize_y": 700}, (1000, 704), (1000, 1000), (0, 144)),
        ((512, 768), 8, {"resize_x": 768, "resize_y": 768}, (768, 768), (768, 1152), (0, 192)),
        ((768, 512), 8, {"resize_x": 512, "resize_y": 512}, (512, 512), (768, 512), (128, 0)),
        ((512, 512), 8, {"resize_x": 1024, "resize_y": 1024}, (1024, 1024), (1024, 1024), (0, 0)),
    ],
)
def test_hires_sizes(first, step, asked, size, upscale, corner):
    found = hires_size(first[0], first[1], step, **asked)
    assert (found.width, found.height) == size
    assert (found.upscale_width, found.upscale_height) == upscale
    assert (found.left, found.top) == corner


def test_latents_are_cropped_centred():
    size = hires_size(512, 512, 8, resize_x=1000, resize_y=700)
    latents = torch.arange(125.0).reshape(1, 1, 125, 1).expand(2, 4, 125, 125)
    cropped = size.crop_latents(latents, 8)
    assert cropped.shape == (2, 4, 88, 125)
    assert cropped[0, 0, [0, -1], 0].tolist() == [18, 105]  # 37 rows over: 18 above, 19 below


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"scale": 0}, "hr_scale: 0 makes no picture"),
        ({"resize_x": -8}, "hr_resize_x: -8 makes no picture"),
        ({"scale": 0.05}, "64x64 would become 3x3 pixels, .* no side below 8"),
    ],
)
def test_impossible_hires_sizes_are_refused(asked, message):
    with pytest.raises(InputError, match=message):
        hires_size(64, 64, 8, **asked)


# Tiling


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(6, 6, 1),
        nn.Conv2d(6, 3, (5, 3), padding=(2, 1)),
        nn.Conv2d(3, 3, 3, padding="same", padding_mode="reflect"),
    ).requires_grad_(False)


def hang_lora(network):
    for index, seed in ((0, 1), (3, 2)):
        layer = network[index]
        lora = initial_low_rank(layer, 2, 2.0, 0.0, torch.Generator().manual_seed(seed))
        lora.lora_B.weight.data.normal_(generator=torch.Generator().manual_seed(seed))
        hang_in(network, str(index), "style", lora.requires_grad_(False))


@pytest.mark.parametrize("with_lora", [False, True])
def test_tiled_pictures_have_no_border(with_lora):
    network = small_network()
    x = torch.randn(1, 3, 9, 12, generator=torch.Generator().manual_seed(3))
    moved = x.roll((4, 5), (2, 3))
    if with_lora:
        plain = network(x)
        hang_lora(network)
        assert not network(x).allclose(plain, atol=1e-2)
    before = network(x)
    with circular_padding([network]):
        assert network(moved).allclose(network(x).roll((4, 5), (2, 3)), atol=1e-5)
    assert network(x).equal(before)
    assert not network(moved).allclose(before.roll((4, 5), (2, 3)), atol=1e-2)


def test_tiling_restores_every_convolution_after_an_exception():
    network = small_network()
    hang_lora(network)
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    before = [dict(vars(one)) for one in convolutions]
    with pytest.raises(KeyError), circular_padding([network, network]):
        assert [one.padding_mode for one in convolutions].count("circular") == 3
        raise KeyError
    assert [vars(one) for one in convolutions] == before
    assert network[4].padding_mode == "reflect"


# Latents


def test_latents_are_blended():
    init, noise = torch.full((2, 4, 1, 2), 2.0), torch.full((2, 4, 1, 2), -1.0)
    mask = torch.tensor([[[[0.0, 1.0]]]])
    assert blend_latents(noise, init, mask)[1, 3].tolist() == [[2, -1]]
    assert blend_latents(noise, init[:1], mask / 2)[1, 3].tolist() == [[2, 0.5]]


def test_soft_masks_open_as_the_noise_recedes():
    soft = SoftInpainting()
    mask = torch.tensor([0.0, 0.25, 1.0])
    assert soft.mask_at(mask, 1.0).tolist() == [0, 0.5, 1]
    assert soft.mask_at(mask, 4.0).tolist() == [0, 0.0625, 1]
    assert SoftInpainting(mask_blend_power=0).mask_at(mask, 9.0).tolist() == [0, 0.5, 1]


def test_soft_blending_keeps_the_length_of_latents():
    old, new = torch.zeros(1, 4, 1, 3), torch.zeros(1, 4, 1, 3)
    old[:, 0], new[:, 1] = 1, 1
    mask = torch.tensor([[[[0.0, 0.25, 1.0]]]])  # at sigma 1: 0, 0.5, 1
    found = SoftInpainting().blend(new, old, mask, 1.0)
    assert found.dtype == torch.float32
    assert found[0, 0, 0].tolist() == pytest.approx([1, math.sqrt(0.5), 0], abs=1e-4)
    assert found[0, 1, 0].tolist() == pytest.approx([0, math.sqrt(0.5), 1], abs=1e-4)


# Conditioning of inpainting models


@pytest.mark.parametrize(("strength", "masked"), [(1.0, 0), (0.5, -0.4), (0.0, -0.8)])
def test_the_masked_part_is_blanked_out(strength, masked):
    pixels = torch.full((2, 3, 4, 8), -0.8)
    mask = torch.zeros(1, 1, 4, 8)
    mask[..., 4:] = 1
    small, blanked = inpainting_conditioning(pixels, mask, 4, 2, strength)
    assert small.tolist() == [[[[0, 0, 1, 1]] * 2]] * 2
    assert blanked[1, 2, 3].tolist() == pytest.approx([-0.8] * 4 + [masked] * 4)
    of_half_the_size = inpainting_conditioning(pixels, mask[..., ::2, ::2], 4, 2, strength)
    assert of_half_the_size[1].equal(blanked)


def test_without_an_init_image_all_is_masked():
    mask, pixels = whole_picture_conditioning(2, (32, 16), (8, 4))
    assert (mask.shape, mask.unique().tolist()) == ((2, 1, 4, 8), [1])
    assert (pixels.shape, pixels.unique().tolist()) == ((2, 3, 16, 32), [0])


# Color correction


# OpenCV 4.14, COLOR_RGB2LAB of bytes.
LAB = [
    ((255, 255, 255), (255, 128, 128)),
    ((0, 0, 0), (0, 128, 128)),
    ((255, 0, 0), (136, 208, 195)),
    ((0, 255, 0), (224, 42, 211)),
    ((0, 0, 255), (82, 207, 20)),
    ((128, 128, 128), (137, 128, 128)),
    ((12, 200, 90), (181, 63, 171)),
]


@pytest.mark.parametrize(("rgb", "lab"), LAB)
def test_lab_is_opencvs(rgb, lab):
    found = rgb_to_lab(np.array([rgb], np.uint8))
    assert np.abs(found[0].astype(int) - lab).max() <= 1


# OpenCV 4.14, COLOR_LAB2RGB of bytes.
@pytest.mark.parametrize(
    ("lab", "rgb"),
    [
        ((255, 128, 128), (255, 255, 255)),
        ((136, 208, 195), (255, 2, 1)),
        ((224, 42, 211), (7, 255, 3)),
        ((82, 207, 20), (0, 1, 255)),
        ((150, 100, 160), (110, 153, 83)),
    ],
)
def test_the_way_back_from_lab_is_opencvs(lab, rgb):
    found = lab_to_rgb(np.array([lab], np.uint8))
    assert np.abs(found[0].astype(int) - rgb).max() <= 1


def test_histograms_are_matched():
    source = np.array([[0, 0, 1, 1]], np.uint8)
    assert match_histogram(source, np.array([10, 20], np.uint8)).tolist() == [[10, 10, 20, 20]]
    ramp = np.arange(4, dtype=np.uint8)
    # Quantiles 1/4, 1/2, 3/4, 1 of levels 10 (1/2) and 20 (1), interpolated.
    assert match_histogram(ramp, np.array([20, 10], np.uint8)).tolist() == [10, 10, 15, 20]
    noise = np.random.default_rng(0).integers(0, 256, 999, dtype=np.uint8)
    assert np.array_equal(match_histogram(noise, noise), noise)


@pytest.mark.parametrize(
    ("colors", "light", "expected"),
    [
        ((255, 0, 0), (128, 128, 128), (255, 74, 74)),  # too much red: towards grey by 0.71
        ((255, 0, 0), (0, 0, 0), (0, 0, 0)),
        ((10, 20, 30), (255, 255, 255), (255, 255, 255)),
        ((40, 50, 60), (90, 100, 110), (90, 100, 110)),  # a mere shift
    ],
)
def test_luminosity_is_put_back(colors, light, expected):
    found = blend_luminosity(*(np.array([[one]], np.uint8) for one in (colors, light)))
    assert tuple(found[0, 0].tolist()) == expected


def test_colors_follow_the_reference_and_light_the_result():
    rng = np.random.default_rng(1)
    blue = np.clip(rng.normal((100, 120, 170), 12, (40, 40, 3)), 0, 255).astype(np.uint8)
    orange = np.clip(rng.normal((180, 130, 80), 12, (30, 50, 3)), 0, 255).astype(np.uint8)
    corrected = np.asarray(correct_colors(Image.fromarray(blue), Image.fromarray(orange)))
    assert corrected.shape == blue.shape
    assert np.abs(corrected @ LUMA - blue @ LUMA).max() < 1
    hue = rgb_to_lab(corrected)[..., 1:].mean((0, 1)) - rgb_to_lab(orange)[..., 1:].mean((0, 1))
    assert np.abs(hue).max() < 4
    assert corrected[..., 0].mean() > corrected[..., 2].mean() + 80
