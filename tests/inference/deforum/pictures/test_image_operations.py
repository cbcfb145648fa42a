"""Noise, anti-blur, contrast, colour coherence: formulas and known numbers."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from inference.deforum.geometry.pixels import alike, blend, composite, sample
from inference.deforum.pictures.color import grayscale, match_colors
from inference.deforum.pictures.noise import NoiseSettings, add_noise, draw_noise
from inference.deforum.pictures.sharpen import anti_blur, contrast
from inference.deforum.settings.compat import DEFORUM, FIXED, Compat
from inference.runtime.errors import InputError

BOTH = pytest.mark.parametrize("compat", [DEFORUM, FIXED])


def texture(seed=0, height=64, width=64):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Rounding


def test_bytes_are_rounded_and_floats_are_not():
    values = np.array([-3.0, 1.5, 2.4, 300.0])
    assert alike(values, np.zeros(1, np.uint8)).tolist() == [0, 2, 2, 255]
    assert alike(values, np.zeros(1, np.float32)).tolist() == pytest.approx([-3, 1.5, 2.4, 300])


def test_a_blend_and_a_composite():
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert np.all(blend(black, white, 0.25) == 64)
    mask = np.array([[0, 255], [51, 0]], np.uint8)
    assert composite(white, black, mask)[..., 0].tolist() == [[0, 255], [51, 0]]


@pytest.mark.parametrize(
    ("border", "expected"),
    [("replicate", [10, 10, 10]), ("wrap", [40, 30, 20]), ("reflect", [20, 30, 40])],
)
def test_what_lies_beyond_the_edge(border, expected):
    row = np.array([10, 20, 30, 40], np.float32)[None, :, None].repeat(2, 0)
    x = np.array([[-1.0, -2, -3]])
    assert sample(row, x, np.zeros_like(x), border)[0, :, 0].tolist() == pytest.approx(expected)


# Noise


@BOTH
@pytest.mark.parametrize("kind", ["perlin", "uniform"])
def test_noise_of_a_seed(kind, compat):
    image, settings = texture(), NoiseSettings(kind)
    first = add_noise(image, 0.3, 7, settings, compat=compat)
    assert np.array_equal(first, add_noise(image, 0.3, 7, settings, compat=compat))
    assert not np.array_equal(first, add_noise(image, 0.3, 8, settings, compat=compat))
    assert np.array_equal(add_noise(image, 0, 7, settings, compat=compat), image)


@BOTH
@pytest.mark.parametrize("size", [(63, 63), (200, 100), (16, 24), (65, 130)])
@pytest.mark.parametrize("octaves", [1, 4, 7])
def test_noise_of_any_size(size, octaves, compat):
    image = texture(height=size[1], width=size[0])
    noisy = add_noise(image, 0.2, 1, NoiseSettings(octaves=octaves), compat=compat)
    assert noisy.shape == image.shape
    assert not np.array_equal(noisy, image)


@pytest.mark.parametrize("level", [0, 60, 255])
def test_noise_draws_the_mean_towards_the_middle(level):
    image = np.full((256, 256, 3), level, np.float32)
    moved = add_noise(image, 0.065, 3, NoiseSettings("uniform")).mean(dtype=float) - level
    middle = (draw_noise(256, 256, 3, NoiseSettings("uniform")) / 2 + 0.5).clip(0, 1).mean() * 255
    assert moved == pytest.approx(0.065 * (middle - level), abs=0.01)
    assert middle == pytest.approx(127.5, abs=0.5)


def test_noise_is_the_formula():
    image = texture()
    white = torch.randn((3, 64, 64), generator=torch.Generator().manual_seed(5)).permute(1, 2, 0)
    levels = (white / 2 + 0.5).clamp(0, 1).numpy() * 255
    noisy = add_noise(image, 0.2, 5, NoiseSettings("uniform"))
    assert np.array_equal(noisy, np.rint(image * 0.8 + levels * 0.2))
    cut = levels.astype(np.uint8)[..., ::-1]
    kept = add_noise(image, 0.2, 5, NoiseSettings("uniform"), compat=DEFORUM)
    assert np.abs(kept - (image * 0.8 + cut * 0.2)).max() <= 0.501


def test_clouds_have_mean_zero_and_are_zero_where_cells_meet():
    settings = NoiseSettings(octaves=1)
    white = torch.randn((3, 128, 128), generator=torch.Generator().manual_seed(2)).permute(1, 2, 0)
    clouds = draw_noise(128, 128, 2, settings) / white.numpy() * 2 - 1
    assert np.abs(clouds[::16, ::16]).max() < 1e-4
    assert 0.15 < clouds.std() < 0.45
    assert np.abs(clouds).max() <= 1.01


def test_a_noise_mask():
    image = np.full((64, 64, 3), 200, np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    fixed = add_noise(image, 0.5, 1, mask=mask)
    assert np.array_equal(fixed[:, :32], image[:, :32])
    assert np.array_equal(fixed[:, 32:], add_noise(image, 0.5, 1)[:, 32:])
    kept = add_noise(image, 0.5, 1, mask=mask, compat=DEFORUM)
    assert np.all(kept[:, :32] == 164)  # 200 / 2 + 127 / 2: mid-grey instead of no noise


# Anti-blur and contrast


def gaussian(image, size, sigma):
    taps = np.exp(-((np.arange(size) - size // 2.0) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    blurred = correlate1d(image.astype(float), taps, axis=0, mode="mirror")
    return correlate1d(blurred, taps, axis=1, mode="mirror")


@pytest.mark.parametrize(("kernel", "size"), [(5, 5), (4, 5), (6, 7), (1, 1)])
def test_anti_blur_is_the_formula(kernel, size):
    image = texture()
    blurred = gaussian(image, size, 1)
    expected = np.rint((1.3 * image - 0.3 * blurred).clip(0, 255))
    sharp = anti_blur(image, 0.3, kernel, 1)
    assert np.abs(sharp - expected).max() <= 1
    assert (sharp != expected).mean() < 0.001
    assert np.abs(anti_blur(image, 0.3, kernel, 1, compat=DEFORUM) - expected).max() <= 1


def test_the_threshold_is_signed():
    image = texture(height=128)
    blurred = gaussian(image, 5, 1)
    spared = np.abs(image - blurred) < 40
    for compat in (DEFORUM, FIXED):
        equal = anti_blur(image, 3, 5, 1, threshold=40, compat=compat) == image
        plain = anti_blur(image, 3, 5, 1, compat=compat) == image
        if compat == FIXED:
            assert np.array_equal(equal, spared | plain)
        else:  # differences below zero count as large ones
            below = (image < blurred - 1) & (image > 0) & (image < 255)
            assert np.array_equal(equal[below], plain[below])


def test_anti_blur_spares_what_is_not_masked():
    image, mask = texture(), np.zeros((64, 64), np.uint8)
    mask[:10] = 255
    sharp = anti_blur(image, 0.5, 5, 1, mask=mask)
    assert np.array_equal(sharp[10:], image[10:])
    assert np.array_equal(sharp[:10], anti_blur(image, 0.5, 5, 1)[:10])


def test_anti_blur_that_does_nothing_and_one_that_cannot_be():
    image = texture()
    assert np.array_equal(anti_blur(image, 0, 5, 1), image)
    with pytest.raises(InputError, match="kernel_schedule: 0"):
        anti_blur(image, 0.1, 0, 1)


def test_contrast_is_cut_off_and_does_not_wrap():
    image = np.array([[[10, 100, 200]]], np.uint8)
    assert contrast(image, 1.35).tolist() == [[[14, 135, 255]]]
    assert np.array_equal(contrast(texture(), 1), texture())


# Colour


@pytest.mark.parametrize("space", ["RGB", "HSV", "LAB"])
def test_a_sample_matched_to_itself(space):
    image = texture(height=96, width=96)
    assert np.array_equal(match_colors(image, image, space), image)
    flat = np.full((8, 8, 3), (13, 200, 77), np.uint8)
    assert np.array_equal(match_colors(flat, flat, space), flat)


@pytest.mark.parametrize("space", ["RGB", "HSV", "LAB"])
def test_saturated_colours_matched_to_themselves(space):
    levels = np.array([0, 1, 2, 3, 5, 8, 13, 60, 128, 200, 252, 253, 254, 255], np.uint8)
    palette = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(49, 56, 3)
    assert np.array_equal(match_colors(palette, palette, space), palette)


def test_deforums_colours_drift_where_fixed_ones_stay():
    image = texture()
    frames: dict[Compat, Any] = dict.fromkeys((DEFORUM, FIXED), image)
    for compat in frames:
        for _ in range(5):
            frames[compat] = match_colors(frames[compat], image, "LAB", compat)
    assert np.array_equal(frames[FIXED], image)
    assert np.abs(frames[DEFORUM].astype(int) - image).mean() > 0.5


@BOTH
@pytest.mark.parametrize("space", ["RGB", "HSV", "LAB"])
def test_matched_colours_are_close_to_the_sample(space, compat):
    rng = np.random.default_rng(1)
    image = rng.normal(90, 20, (96, 96, 3)).clip(0, 255).astype(np.uint8)
    reference = rng.normal((150, 120, 60), 30, (80, 70, 3)).clip(0, 255).astype(np.uint8)
    matched = match_colors(image, reference, space, compat).reshape(-1, 3)
    wanted = reference.reshape(-1, 3)
    assert np.abs(matched.mean(0) - wanted.mean(0)).max() < 6
    if space == "RGB":
        marks = np.linspace(5, 95, 10)
        gap = np.percentile(matched, marks, axis=0) - np.percentile(wanted, marks, axis=0)
        assert np.abs(gap).max() <= 2


def test_deforum_matches_channels_in_the_wrong_order():
    image, reference = texture(0), texture(1) // 2
    straight = match_colors(image, reference, "LAB", DEFORUM)
    swapped = match_colors(image[..., ::-1], reference[..., ::-1], "LAB", DEFORUM)[..., ::-1]
    assert not np.array_equal(straight, swapped)


def test_matched_greys_stay_grey():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    matched = match_colors(ramp, (ramp // 2 + 40).astype(np.uint8), "LAB").astype(int)
    assert np.ptp(matched, axis=-1).max() <= 1


def test_grayscale_is_the_luminosity():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)
    assert grayscale(image)[0, :, 0].tolist() == [76, 150, 29, 9]
