"""The whole way from init image and mask to what is encoded, and back to the picture."""

import numpy as np
import pytest
from PIL import Image

from inference.images.img2img.masks import blur_mask, fill, invert_mask, latent_mask
from inference.images.img2img.preparation import ONLY_MASKED, InpaintOptions, prepare
from inference.images.img2img.resize import CROP_AND_RESIZE, LATENT_UPSCALE, resize_image
from inference.runtime.errors import InputError


def noise(seed, width=96, height=64):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask_of(box, size=(96, 64)):
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def differing(one, two):
    return (np.asarray(one) != np.asarray(two)).any(axis=-1)


def test_without_a_mask_the_result_is_the_picture():
    prepared = prepare(noise(0), 64, 64, resize_mode=CROP_AND_RESIZE)
    assert prepared.image.tobytes() == noise(0).crop((16, 0, 80, 64)).tobytes()
    assert (prepared.mask, prepared.original, prepared.notes) == (None, None, ())
    assert prepared.finish(noise(1, 64, 64)).tobytes() == noise(1, 64, 64).tobytes()


def test_a_whole_picture_keeps_what_is_far_from_the_mask():
    image, mask = noise(2), mask_of((40, 20, 60, 40))
    prepared = prepare(image, 96, 64, mask, InpaintOptions(mask_blur_x=2))
    assert prepared.image.tobytes() == image.tobytes()
    assert prepared.mask and prepared.mask.tobytes() == blur_mask(mask, 2).tobytes()
    finished = prepared.finish(noise(3))
    changed = differing(finished, image)
    assert Image.fromarray(changed).getbbox() is not None
    assert not changed[np.asarray(prepared.mask) == 0].any()
    # Twice the blurred mask: wherever it is at least one half, the result shows fully.
    shown = np.asarray(prepared.mask) >= 128
    assert np.array_equal(np.asarray(finished)[shown], np.asarray(noise(3))[shown])


def test_masks_are_blurred_before_they_are_resized():
    mask = mask_of((40, 20, 60, 40))
    prepared = prepare(noise(2), 192, 128, mask)
    assert prepared.mask and prepared.original and prepared.overlay_mask
    assert prepared.mask.tobytes() == resize_image(blur_mask(mask, 4), 192, 128).tobytes()
    assert prepared.original.size == prepared.overlay_mask.size == (192, 128)


def test_only_masked_draws_the_region_and_gives_the_whole_picture_back():
    image, mask = noise(4), mask_of((50, 30, 58, 38))
    options = InpaintOptions(mask_blur_x=1, inpaint_area=ONLY_MASKED, padding=4)
    prepared = prepare(image, 64, 64, mask, options)
    assert prepared.box == (43, 23, 65, 45)  # 3 pixels of blur and 4 of padding around
    assert prepared.mask and prepared.image.size == prepared.mask.size == (64, 64)
    assert (
        prepared.image.tobytes()
        == image.crop(prepared.box).resize((64, 64), Image.Resampling.LANCZOS).tobytes()
    )
    finished = prepared.finish(noise(5, 64, 64))
    assert finished.size == image.size
    assert Image.fromarray(differing(finished, image)).getbbox() == (47, 27, 61, 41)


@pytest.mark.parametrize("content", ["fill", "latent noise"])
def test_what_is_masked_is_filled_before_encoding(content):
    image, mask = noise(6), mask_of((0, 0, 48, 64))
    options = InpaintOptions(invert=True, mask_blur_x=0, masked_content=content)
    prepared = prepare(image, 96, 64, mask, options)
    assert prepared.mask and prepared.mask.tobytes() == invert_mask(mask).tobytes()
    assert prepared.image.tobytes() == fill(image, invert_mask(mask)).tobytes()
    assert np.asarray(prepared.image)[:, :48].tobytes() == np.asarray(image)[:, :48].tobytes()


def test_latent_upscale_encodes_the_image_as_it_is():
    image, mask = noise(7), mask_of((0, 0, 48, 64))
    options = InpaintOptions(mask_blur_x=0)
    prepared = prepare(image, 128, 128, mask, options, LATENT_UPSCALE)
    assert prepared.image.tobytes() == image.tobytes()
    assert prepared.mask
    assert latent_mask(prepared.mask, 32, 32)[0, 0].sum(dim=0).tolist() == [32] * 16 + [0] * 16
    finished = prepared.finish(noise(8, 128, 128))
    kept = np.asarray(prepared.overlay_mask) == 0
    stretched = image.resize((128, 128), Image.Resampling.LANCZOS)
    assert not differing(finished, stretched)[kept].any()
    assert kept.any()


def test_blank_masks_are_told_of():
    blank = Image.new("L", (96, 64))
    prepared = prepare(noise(9), 96, 64, blank, InpaintOptions(inpaint_area=ONLY_MASKED))
    assert prepared.mask is None
    assert prepared.notes[0].startswith("the mask is blank")
    assert prepared.finish(noise(1)).tobytes() == noise(1).tobytes()
    whole = prepare(noise(9), 96, 64, blank)
    assert whole.notes
    assert whole.finish(noise(1)).tobytes() == noise(9).tobytes()


def test_wrong_options_are_refused():
    with pytest.raises(InputError, match="mask: its size 30x30 differs from the init image's 96x6"):
        prepare(noise(0), 64, 64, Image.new("L", (30, 30)))
    with pytest.raises(InputError, match="inpaint_area: 'Masked' is not known; take one of Whole"):
        prepare(noise(0), 64, 64, mask_of((0, 0, 9, 9)), InpaintOptions(inpaint_area="Masked"))
