"""Optical flow, hybrid video, tracking, in-between frames: known motion is found and kept."""

from typing import Any, cast

import cv2
import numpy as np
import pytest

from inference.deforum.geometry.flow import (
    carry_flow,
    check_flow_method,
    leads_back,
    optical_flow,
    reliability,
    warp_by_flow,
)
from inference.deforum.geometry.hybrid import (
    CompositeSettings,
    auto_contrast,
    composite_mask,
    find_motion,
    hybrid_composite,
    move_like,
)
from inference.deforum.geometry.tracking import box_mask, track_mask
from inference.deforum.geometry.tween import in_betweens, smooth_frames
from inference.deforum.geometry.warp2d import Motion2D, warp_2d
from inference.deforum.settings.compat import DEFORUM, FIXED
from inference.runtime.errors import InputError

BOTH = pytest.mark.parametrize("compat", [DEFORUM, FIXED])


def blobs(height=96, width=96, seed=0, sigma=2.0):
    """A texture that flow can hold on to."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    soft = cv2.GaussianBlur(noise, (0, 0), sigma)
    return np.rint((soft / soft.std() * 45 + 128).clip(0, 255)).astype(np.uint8)


def shifted(image, right, down=0):
    return warp_2d(image, Motion2D(translation_x=right, translation_y=down), "reflect")


def uniform(right, down, height=48, width=48):
    return np.full((height, width, 2), (right, down), np.float32)


# Flow


@pytest.mark.parametrize("method", ["DIS Medium", "DIS Fine", "Farneback"])
def test_a_known_shift_is_found(method):
    image = blobs()
    flow = optical_flow(image, shifted(image, 5, 3), method)
    inner = flow[16:-16, 16:-16].reshape(-1, 2)
    assert np.median(inner, axis=0) == pytest.approx([5, 3], abs=0.05)


@pytest.mark.parametrize("size", [(8, 8), (10, 40), (33, 17)])
def test_small_frames_have_flow_too(size):
    image = blobs(*size)
    for method in ("DIS Fine", "Farneback"):
        assert optical_flow(image, image, method).shape == (*size, 2)


def test_dis_starts_from_a_known_flow():
    image = blobs(24, 40)
    flow = optical_flow(image, shifted(image, 2), "DIS Medium", uniform(2, 0, 24, 40))
    assert np.median(flow[..., 0]) == pytest.approx(2, abs=0.1)


def test_raft_is_refused_with_a_remedy():
    with pytest.raises(InputError, match=r'optical_flow_cadence: "RAFT".*DIS Fine'):
        check_flow_method("RAFT", "optical_flow_cadence")
    with pytest.raises(InputError, match='"SIFT" is unknown; take one of DIS Medium'):
        optical_flow(blobs(), blobs(), cast(Any, "SIFT"))


@BOTH
def test_a_flow_moves_whole_pixels_exactly(compat):
    image = blobs(48, 48)
    assert np.array_equal(
        warp_by_flow(image, uniform(10, 0), compat=compat)[:, 10:], image[:, :-10]
    )
    down = warp_by_flow(image, uniform(0, 3), factor=2, compat=compat)
    assert np.array_equal(down[6:], image[:-6])
    assert np.array_equal(down[:6], image[6:0:-1])  # mirrored beyond the edge


def test_flow_cadence_keeps_its_pixels_only_in_fixed_mode():
    still = {compat: carry_flow(uniform(5, 0), lambda x: x, compat) for compat in (DEFORUM, FIXED)}
    assert np.all(still[FIXED] == (5, 0))
    assert np.abs(still[DEFORUM]).max() == pytest.approx(1)
    uneven = uniform(5, 0)
    uneven[10, 10] = 23.7, -4
    assert np.abs(carry_flow(uneven, lambda x: x, DEFORUM)).max() == pytest.approx(1)
    assert np.array_equal(carry_flow(uniform(0, 0), lambda x: x, DEFORUM), uniform(0, 0))


@BOTH
def test_a_flow_is_carried_along_by_the_camera(compat):
    flow = uniform(0, 0)
    flow[20:24, 20:24] = -3, 1
    carried = carry_flow(
        flow, lambda x: warp_2d(x, Motion2D(translation_x=8), compat=compat), compat
    )
    expected = (-3, 1) if compat == FIXED else (-1, 1 / 3)
    assert np.allclose(carried[20:24, 28:32], expected)
    assert np.all(carried[:, :20] == 0)


def test_what_does_not_lead_back_is_not_relied_on():
    forward, backward = uniform(4, 0), uniform(-4, 0)
    assert leads_back(forward, backward).all()
    backward[20:30, 20:30] = 3, 0
    lost = ~leads_back(forward, backward)
    assert lost[20:30, 16:26].all()
    assert lost.sum() == 100
    assert np.array_equal(reliability(forward, backward) == 0, lost)
    soft = reliability(forward, backward, 2)
    assert soft[25, 21] == 0
    assert 0 < soft[25, 10] <= 1
    assert soft[5, 40] == pytest.approx(1)


# Hybrid motion


@pytest.mark.parametrize("kind", ["Affine", "Perspective"])
def test_the_cameras_motion_is_found(kind):
    image = blobs(160, 160, sigma=3)
    center = np.array([80, 80, 1.0])
    motion = Motion2D(zoom=1.1, angle=6, translation_x=4)
    found = find_motion(image, warp_2d(image, motion), kind)
    turned = found @ center / (found @ center)[2]
    assert turned[:2] == pytest.approx([80 + 4.4 * np.cos(np.radians(6)), 79.54], abs=0.3)
    scale = np.sqrt(np.linalg.det(found[:2, :2]))
    assert scale == pytest.approx(1.1, abs=0.01)
    assert np.array_equal(find_motion(image, warp_2d(image, motion), kind), found)
    expected, moved = warp_2d(image, motion).astype(int), move_like(image, found)
    assert np.abs(moved - expected)[30:-30, 30:-30].mean() < 2


def test_where_nothing_matches_nothing_moves():
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert np.array_equal(find_motion(flat, blobs(64, 64), "Perspective"), np.eye(3))
    assert np.array_equal(find_motion(blobs(64, 64), flat, "Affine"), np.eye(3))
    image = blobs(40, 40)
    assert np.array_equal(move_like(image, np.eye(3)), image)


# Hybrid composite


def flat(value):
    return np.full((4, 4, 3), value, np.uint8)


def test_a_composite_without_a_mask_is_a_blend():
    result = hybrid_composite(flat(100), flat(200), CompositeSettings(alpha=0.3))
    assert np.all(result == 130)


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({"mask_type": "Difference"}, 100),
        ({"mask_type": "Difference", "mask_inverse": True}, 155),
        ({"mask_type": "Blend", "mask_blend_alpha": 0.25}, 125),
        ({"mask_type": "Depth"}, 51),
    ],
)
def test_composite_masks(settings, level):
    chosen = CompositeSettings(alpha=1, **settings)
    depth = np.full((4, 4), 51, np.uint8)
    mask = composite_mask(flat(100), flat(200), chosen, depth)
    assert np.all(mask == level)
    expected = round((100 * level + 200 * (255 - level)) / 255)
    assert np.all(hybrid_composite(flat(100), flat(200), chosen, depth) == expected)


def test_a_depth_mask_without_depth_is_refused():
    with pytest.raises(InputError, match='hybrid_comp_mask_type: "Video Depth" needs depth'):
        hybrid_composite(flat(1), flat(2), CompositeSettings(mask_type="Video Depth"))


def test_masks_are_equalised_and_spread():
    ramp = np.repeat(np.linspace(100, 140, 41).astype(np.uint8)[None], 41, 0)
    spread = auto_contrast(ramp, 25, 75)
    assert spread[0, 10] == 0
    assert spread[0, 20] == 128
    assert spread[0, 31] == 255
    assert np.array_equal(auto_contrast(flat(9), 0, 100), flat(9))
    image = np.zeros((41, 41, 3), np.uint8)
    chosen = CompositeSettings(mask_type="Depth", mask_equalize="Before", mask_contrast=1.0)
    mask = composite_mask(image, image, chosen, ramp)
    assert mask is not None and np.ptp(mask) > 240


# Tracking


def moving_disc(count=8, step=3):
    """A textured disc of radius 14 that goes right by `step` before a texture at rest."""
    ground, thing = blobs(96, 96, 1), blobs(96, 96, 2)[..., ::-1] // 2 + 100
    y, x = np.mgrid[:96, :96]
    masks, frames = [], []
    for frame in range(count):
        inside = (x - 30 - step * frame) ** 2 + (y - 48) ** 2 < 14**2
        frames.append(np.where(inside[..., None], np.roll(thing, step * frame, 1), ground))
        masks.append(np.where(inside, 255, 0).astype(np.uint8))
    return frames, masks


def overlap(first, second):
    return ((first > 0) & (second > 0)).sum() / ((first > 0) | (second > 0)).sum()


@pytest.mark.parametrize(("method", "least"), [("Optical Flow", 0.95), ("MIL", 0.7)])
def test_an_object_is_followed_both_ways(method, least):
    frames, masks = moving_disc()
    tracked = track_mask(frames, masks[3], 3, method)
    assert len(tracked) == len(frames)
    assert np.array_equal(tracked[3], masks[3])
    scores = [overlap(*pair) for pair in zip(tracked, masks, strict=True)]
    assert min(scores) > least, scores
    assert overlap(masks[3], masks[7]) < 0.4


def test_an_object_that_turns_and_grows_is_followed():
    ground, thing = blobs(96, 96, 1), np.ascontiguousarray(blobs(96, 96, 2)[..., ::-1] // 2 + 100)
    disc = cv2.circle(np.zeros((96, 96), np.uint8), (48, 48), 14, 255, -1)
    frames, masks = [], []
    for frame in range(8):
        matrix = cv2.getRotationMatrix2D((48, 48), 3 * frame, 1.04**frame)
        matrix[0, 2] += 2 * frame - 10
        inside = cv2.warpAffine(disc, matrix, (96, 96)) > 127
        moved = cv2.warpAffine(thing, matrix, (96, 96))
        frames.append(np.where(inside[..., None], moved, ground))
        masks.append(np.where(inside, 255, 0).astype(np.uint8))
    scores = [overlap(*pair) for pair in zip(track_mask(frames, masks[0]), masks, strict=True)]
    assert min(scores) > 0.85, scores
    assert overlap(masks[0], masks[-1]) < 0.4


def test_a_plain_object_stays_where_it_is():
    flat = [np.full((48, 48, 3), 90, np.uint8)] * 3
    mask = box_mask([10, 10, 30, 30], 48, 48)
    assert all(np.array_equal(tracked, mask) for tracked in track_mask(flat, mask))


def test_a_mask_on_a_still_video_stays():
    mask = box_mask([10, 20, 40, 60], 96, 96)
    for tracked in track_mask([blobs()] * 3, mask):
        assert np.array_equal(tracked, mask)


def test_boxes():
    assert box_mask([0.25, 0, 0.5, 1], 8, 4).sum() / 255 == 8
    assert box_mask([-5, 2, 3, 90], 8, 4).sum() / 255 == 6
    for box, message in (([1, 2, 3], "not have four numbers"), ([9, 9, 20, 20], "holds nothing")):
        with pytest.raises(InputError, match=message):
            box_mask(box, 8, 4)


@pytest.mark.parametrize(
    ("mask", "start", "message"),
    [
        (np.full((96, 96), 255, np.uint8), 2, "tracked_frame: 2 is outside the video of 2"),
        (np.full((9, 8), 255, np.uint8), 0, "8x9 differs from the video's 96x96"),
        (box_mask([3, 3, 5, 9], 96, 96), 0, r"2x6 pixels at \(3, 3\) are too few"),
    ],
)
def test_what_cannot_be_tracked(mask, start, message):
    with pytest.raises(InputError, match=message):
        track_mask([blobs(), blobs()], mask, start)


# In-between frames


def test_frames_between_are_halfway():
    image = blobs()
    middle = in_betweens(image, shifted(image, 8), 1)[0].astype(int)
    expected = shifted(image, 4).astype(int)
    inner = (slice(16, -16), slice(16, -16))
    assert np.abs(middle - expected)[inner].mean() < 1.5
    cross_fade = (image.astype(int) + shifted(image, 8)) // 2
    assert np.abs(cross_fade - expected)[inner].mean() > 8


def test_frames_between_equal_frames_are_equal():
    image = blobs(40, 40)
    assert all(np.array_equal(frame, image) for frame in in_betweens(image, image, 3))
    assert in_betweens(image, image, 0) == []


def test_smoothing_keeps_the_frames_and_counts_right():
    frames = [shifted(blobs(40, 40), 2 * k) for k in range(3)]
    smoothed = list(smooth_frames(frames, 3, "DIS Medium"))
    assert len(smoothed) == 7
    assert all(np.array_equal(smoothed[3 * k], frames[k]) for k in range(3))
    with pytest.raises(InputError, match="frame_interpolation_x_amount: 0"):
        list(smooth_frames(frames, 0))
