"""Init images, resize modes, masks, masked content, only masked, overlay: known bytes and sizes."""

import numpy as np
import pytest
import torch
from PIL import Image

from inference.images.img2img.masks import (
    blur_mask,
    fill,
    gaussian_kernel,
    invert_mask,
    is_blank,
    latent_mask,
    mask_tensor,
    masked_latents,
    masked_pixels,
    open_mask,
    sketch_init_image,
    sketch_mask,
    whole_picture_overlay_mask,
)
from inference.images.img2img.only_masked import (
    crop_region,
    expand_region,
    masked_region,
    overlay_original,
    overlay_region,
    uncrop,
)
from inference.images.img2img.opening import floor_to_images, open_init_image, to_pixels
from inference.images.img2img.resize import (
    CROP_AND_RESIZE,
    JUST_RESIZE,
    LATENT_UPSCALE,
    RESIZE_AND_FILL,
    contain,
    cover,
    resize_image,
)
from inference.runtime.errors import InputError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def noise(seed, width=40, height=30, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def block_mask(width, height, box):
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def stripes():
    """8 x 4: two red rows above two blue ones."""
    image = Image.new("RGB", (8, 4), RED)
    image.paste(BLUE, (0, 2, 8, 4))
    return image


# Opening


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    image.save(tmp_path / "turned.png", exif=exif)
    opened = open_init_image(tmp_path / "turned.png")
    assert (opened.mode, opened.size) == ("RGB", (1, 2))
    assert [opened.getpixel((0, 0)), opened.getpixel((0, 1))] == [RED, BLUE]


@pytest.mark.parametrize(
    ("color", "expected"), [("#ffffff", (127, 127, 127)), ("#ff0000", (127, 0, 0))]
)
def test_transparency_shows_the_background(color, expected):
    assert (
        open_init_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), color).getpixel((0, 0))
        == expected
    )


def test_transparent_palettes_and_16_bits_are_understood(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    opened = open_init_image(tmp_path / "p.png")
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), RED]
    Image.fromarray(np.array([[0, 32896, 65535]], np.uint16)).save(tmp_path / "16.png")
    assert np.asarray(open_init_image(tmp_path / "16.png"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("content", [None, b"not a picture", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_files_that_are_no_pictures_are_named(tmp_path, content):
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"init_image: .*broken\.png"):
        open_init_image(path)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "half.png"
    noise(0).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match=r"mask: .*half\.png.* cannot be read"):
        open_mask(path)


def test_a_background_that_is_no_color_is_refused():
    with pytest.raises(InputError, match="background_color: 'whit'"):
        open_init_image(Image.new("RGBA", (1, 1)), "whit")


def test_pixels_there_and_back():
    pixels = to_pixels([Image.new("RGB", (3, 2), (0, 255, 51))])
    assert pixels.shape == (1, 3, 2, 3)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])
    levels = torch.tensor([-1.2, -1, 199.9 / 127.5 - 1, 200.1 / 127.5 - 1, 1, 3])
    (image,) = floor_to_images(levels.expand(1, 3, 1, -1))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 199, 200, 255, 255]  # down, not nearest


# Resize modes


@pytest.mark.parametrize(
    ("size", "target", "covering", "contained"),
    [
        ((400, 300), (512, 512), (682, 512), (512, 384)),
        ((300, 400), (512, 512), (512, 682), (384, 512)),
        ((512, 512), (768, 512), (768, 768), (512, 512)),
        ((64, 64), (64, 64), (64, 64), (64, 64)),
        ((1000, 1), (64, 64), (64000, 64), (64, 1)),
    ],
)
def test_sizes_that_keep_the_ratio(size, target, covering, contained):
    assert cover(size, target) == covering
    assert contain(size, target) == contained


@pytest.mark.parametrize("height", [16, 15])  # 15: what is over is odd
def test_resize_and_fill_stretches_the_border_to_the_end(height):
    filled = np.asarray(resize_image(stripes(), 8, height, RESIZE_AND_FILL))
    top = height // 2 - 2
    assert filled.shape == (height, 8, 3)
    assert (filled[: top + 2] == RED).all()
    assert (filled[top + 2 :] == BLUE).all()
    across = np.asarray(resize_image(stripes().transpose(Image.Transpose.ROTATE_90), height, 8,
                                     RESIZE_AND_FILL))  # fmt: skip
    assert (across[:, : top + 2] == RED).all()
    assert (across[:, top + 2 :] == BLUE).all()


def test_crop_and_resize_cuts_the_middle_out():
    image = noise(1, 40, 20)
    cropped = resize_image(image, 20, 20, CROP_AND_RESIZE)
    assert np.array_equal(np.asarray(cropped), np.asarray(image)[:, 10:30])


def test_masks_keep_their_mode_and_meet_no_upscaler():
    def fails(image, scale):
        raise AssertionError

    for mode in (JUST_RESIZE, CROP_AND_RESIZE, RESIZE_AND_FILL, LATENT_UPSCALE):
        resized = resize_image(Image.new("L", (8, 4), 255), 30, 40, mode, fails)
        assert (resized.mode, resized.size) == ("L", (30, 40))
        assert resized.getextrema() == (255, 255)


def test_upscalers_take_part_in_enlarging_only():
    asked = []

    def upscaler(image, scale):
        asked.append(scale)
        return image.resize((image.width * 4, image.height * 4))

    assert resize_image(noise(2, 10, 10), 15, 20, JUST_RESIZE, upscaler).size == (15, 20)
    assert resize_image(noise(2, 10, 10), 10, 5, JUST_RESIZE, upscaler).size == (10, 5)
    assert asked == [2]


def test_an_unknown_resize_mode_is_refused():
    with pytest.raises(InputError, match="'Stretch' is not known; take one of Just resize"):
        resize_image(noise(0), 8, 8, "Stretch")


# Masks


def test_alpha_counts_from_129_and_brightness_as_it_is():
    layer = Image.new("RGBA", (4, 1), (255, 255, 255, 0))
    for x, alpha in enumerate((0, 128, 129, 255)):
        layer.putpixel((x, 0), (9, 9, 9, alpha))
    assert np.asarray(open_mask(layer)).tolist() == [[0, 0, 255, 255]]
    assert np.asarray(open_mask(layer, soft=True)).tolist() == [[0, 128, 129, 255]]
    assert open_mask(Image.new("RGBA", (1, 1), (100, 100, 100, 255))).getpixel((0, 0)) == 100
    assert open_mask(Image.new("RGB", (1, 1), RED)).getpixel((0, 0)) == 76


def test_the_mask_of_a_sketch_is_what_differs():
    original = noise(3)
    sketch = original.copy()
    red, green, blue = (int(value) for value in np.asarray(sketch)[5, 7])
    sketch.putpixel((7, 5), (red, green, blue ^ 1))
    mask = sketch_mask(sketch, original)
    assert (mask.getbbox(), mask.getpixel((7, 5))) == ((7, 5, 8, 6), 255)
    assert sketch_mask(sketch, original, mask_alpha=40).getpixel((7, 5)) == 153
    assert is_blank(sketch_mask(original, original))
    with pytest.raises(InputError, match="40x30 differs from the original's 30x40"):
        sketch_mask(sketch, original.transpose(Image.Transpose.ROTATE_90))


def test_a_sketch_is_laid_on_within_its_blurred_mask():
    original, sketch = Image.new("RGB", (60, 60)), Image.new("RGB", (60, 60))
    sketch.paste((200, 0, 0), (20, 20, 40, 40))
    init = sketch_init_image(sketch, original, sketch_mask(sketch, original), mask_blur=2)
    assert init.getpixel((30, 30)) == (200, 0, 0)
    assert init.getpixel((5, 5)) == (0, 0, 0)
    assert 0 < np.asarray(init)[30, 20, 0] < 120


# Worked out by hand for 1: exp(-d^2 / 2) / 2.50595 * 256 = 102.16, 61.96, 13.83, 1.13.
@pytest.mark.parametrize(
    ("blur", "expected"), [(1, [1, 14, 62, 102, 62, 14, 1]), (0.1, [256]), (0.5, [27, 202, 27])]
)
def test_the_kernel_is_opencvs(blur, expected):
    assert gaussian_kernel(blur).tolist() == expected


@pytest.mark.parametrize("blur", [1, 2.5, 4, 13, 32, 64])
def test_kernels_follow_the_formula(blur):
    kernel = gaussian_kernel(blur)
    distance = np.arange(len(kernel)) - len(kernel) // 2
    exact = np.exp(-(distance**2) / (2 * blur**2))
    exact *= 256 / exact.sum()
    assert len(kernel) == 2 * int(2.5 * blur + 0.5) + 1
    assert kernel.sum() == 256
    assert np.abs(kernel - exact).max() <= 1.01
    assert np.abs(np.cumsum(kernel - exact))[: len(kernel) // 2].max() <= 0.51  # nothing is lost


def test_blur_reflects_without_repeating_the_border():
    line = np.zeros((9, 12), np.uint8)
    line[:, 0] = 255
    assert np.asarray(blur_mask(Image.fromarray(line), 1))[4, :5].tolist() == [102, 62, 14, 1, 0]
    only_across = np.asarray(blur_mask(Image.fromarray(line.T), 1, 0))
    assert np.array_equal(only_across, line.T)


# cv2.GaussianBlur 4.14 of these rows with kernels (k, 1), then (1, k).
def test_blur_is_opencvs():
    values = np.array([[0, 255, 0, 0, 7], [255, 255, 0, 31, 0], [0, 0, 200, 255, 1]], np.uint8)
    assert np.asarray(blur_mask(Image.fromarray(values), 2, 1)).tolist() == [
        [117, 109, 89, 69, 62],
        [117, 111, 96, 82, 76],
        [116, 112, 103, 94, 90],
    ]


def test_a_blur_out_of_range_is_refused():
    with pytest.raises(InputError, match="mask_blur: 65 is out of range; take 0 to 64"):
        blur_mask(Image.new("L", (4, 4)), 65)


def test_latent_masks_are_rounded_unless_soft():
    mask = block_mask(16, 16, (0, 0, 8, 16))
    assert latent_mask(mask, 4, 4).tolist() == [[[[1, 1, 0, 0]] * 4]]
    soft = latent_mask(blur_mask(mask, 4), 4, 4, soft=True)
    assert soft.shape == (1, 1, 4, 4)
    assert 0 < soft[0, 0, 0, 2] < soft[0, 0, 0, 1] < 1
    grey = Image.fromarray(np.array([[127, 128]], np.uint8))
    assert mask_tensor(grey).tolist() == [[[[0, 1]]]]
    assert invert_mask(grey).getpixel((0, 0)) == 128


# Masked content


def test_fill_keeps_what_is_not_masked_and_spreads_its_colors():
    image = noise(4, 64, 48)
    mask = block_mask(64, 48, (20, 10, 40, 30))
    filled = np.asarray(fill(image, mask))
    kept = np.asarray(mask) == 0
    assert np.array_equal(filled[kept], np.asarray(image)[kept])
    plain = np.asarray(fill(Image.new("RGB", (64, 48), (200, 90, 30)), mask)).astype(int)
    assert np.abs(plain - (200, 90, 30)).max() <= 6  # colours times alpha, in bytes
    two = Image.new("RGB", (64, 48), RED)
    two.paste(BLUE, (32, 0, 64, 48))
    between = np.asarray(fill(two, mask))[20].astype(int)
    assert between[21, 0] > between[30, 0] > between[38, 0]


def test_masked_content_replaces_latents_under_the_mask():
    latents, fresh = torch.full((2, 4, 1, 2), 3.0), torch.full((2, 4, 1, 2), 5.0)
    mask = torch.tensor([[[[0.0, 1.0]]]])
    expected = {"fill": 3, "original": 3, "latent noise": 5, "latent nothing": 0}
    for content, value in expected.items():
        found = masked_latents(latents, mask, content, fresh)
        assert found[1, 2].tolist() == [[3, value]]
    image, picture_mask = noise(5), block_mask(40, 30, (5, 5, 20, 20))
    assert masked_pixels(image, picture_mask, "original").tobytes() == image.tobytes()
    filled = fill(image, picture_mask).tobytes()
    for content in ("fill", "latent noise", "latent nothing"):
        assert masked_pixels(image, picture_mask, content).tobytes() == filled
    with pytest.raises(InputError, match="masked_content: 'noise' is not known"):
        masked_latents(latents, mask, "noise")


# Only masked


@pytest.mark.parametrize(
    ("box", "target", "image", "expected"),
    [
        ((100, 100, 228, 132), (512, 512), (512, 512), (100, 52, 228, 180)),
        ((100, 0, 228, 32), (512, 512), (512, 512), (100, 0, 228, 128)),  # at the top
        ((100, 480, 228, 512), (512, 512), (512, 512), (100, 384, 228, 512)),  # at the bottom
        ((0, 40, 128, 72), (512, 512), (128, 100), (0, 0, 128, 100)),  # more than there is
        ((68, 18, 142, 92), (128, 64), (300, 200), (31, 18, 179, 92)),
        ((10, 10, 20, 21), (64, 32), (100, 100), (4, 10, 26, 21)),  # 12 more
        ((10, 10, 20, 25), (64, 64), (100, 100), (8, 10, 23, 25)),  # 5 more: 2 and 3
    ],
)
def test_regions_grow_to_the_ratio_within_the_picture(box, target, image, expected):
    assert expand_region(box, *target, *image) == expected


def test_the_region_is_the_mask_with_its_padding():
    mask = block_mask(300, 200, (100, 50, 110, 60))
    assert masked_region(mask, 64, 64) == (68, 18, 142, 92)
    assert masked_region(mask, 64, 64, padding=0) == (100, 50, 110, 60)
    assert masked_region(mask, 300, 200, padding=500) == (0, 0, 300, 200)
    assert masked_region(Image.new("L", (300, 200)), 64, 64) is None


def test_what_is_cropped_comes_back_to_its_place():
    image = noise(6, 90, 70)
    box = (10, 20, 42, 52)
    crop = crop_region(image, box, 32, 32)
    assert np.array_equal(np.asarray(crop), np.asarray(image)[20:52, 10:42])
    assert uncrop(crop, box, image).tobytes() == image.tobytes()
    blank = uncrop(Image.new("RGB", (64, 64)), box, image)
    changed = (np.asarray(blank) != np.asarray(image)).any(axis=-1)
    assert Image.fromarray(changed).getbbox() == box


# Overlay


@pytest.mark.parametrize("seed", range(5))
def test_every_byte_outside_the_mask_is_the_originals(seed):
    rng = np.random.default_rng(seed)
    width, height = rng.integers(40, 120, 2).tolist()
    original, result = noise(seed, width, height), noise(seed + 100, width, height)
    left, top = rng.integers(0, width // 2), rng.integers(0, height // 2)
    sharp = block_mask(width, height, (left, top, left + 12, top + 9))
    mask = blur_mask(sharp, seed)
    for over in (mask, whole_picture_overlay_mask(mask)):
        laid = np.asarray(overlay_original(result, original, over))
        values = np.asarray(over)
        assert np.array_equal(laid[values == 0], np.asarray(original)[values == 0])
        assert np.array_equal(laid[values == 255], np.asarray(result)[values == 255])
    assert (values == 255).any()
    assert (values == 0).any()


@pytest.mark.parametrize("seed", range(5))
def test_only_masked_changes_no_byte_outside_the_mask(seed):
    original = noise(seed, 130, 97)
    mask = blur_mask(block_mask(130, 97, (60, 50, 60 + 7 * seed + 3, 71)), 3)
    box = masked_region(mask, 64, 48, padding=8)
    assert box is not None
    laid = np.asarray(overlay_region(noise(seed + 50, 64, 48), box, original, mask))
    outside = np.asarray(mask) == 0
    assert np.array_equal(laid[outside], np.asarray(original)[outside])
    assert not np.array_equal(laid, np.asarray(original))


def test_the_overlay_of_a_whole_picture_takes_twice_the_mask():
    mask = Image.fromarray(np.array([[0, 1, 127, 128, 255]], np.uint8))
    assert np.asarray(whole_picture_overlay_mask(mask)).tolist() == [[0, 2, 254, 255, 255]]


def test_sizes_of_an_overlay_must_agree():
    with pytest.raises(ValueError, match="sizes differ"):
        overlay_original(noise(0), noise(1, 30, 30), Image.new("L", (40, 30)))
