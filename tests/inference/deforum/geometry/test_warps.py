"""Camera motion: known shifts, turns and magnifications, against closed forms."""

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from inference.deforum.geometry.warp2d import Flip, Motion2D, flip_matrix, flip_perspective, warp_2d
from inference.deforum.geometry.warp3d import Motion3D, Sampling3D, projected_motion, warp_3d
from inference.deforum.settings.compat import DEFORUM, FIXED, Compat

BOTH = pytest.mark.parametrize("compat", [DEFORUM, FIXED])


def texture(seed=0, height=48, width=64):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height=96, width=128, seed=0):
    """Waves in all directions: bilinear sampling of them is exact to a level or two."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(0.02, 0.12, (3, 3))]
    return np.rint(np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8)


# 2D


@BOTH
@pytest.mark.parametrize(
    ("motion", "axis", "pixels"),
    [
        (Motion2D(translation_x=10), 1, 10),
        (Motion2D(translation_x=-7), 1, -7),
        (Motion2D(translation_y=10), 0, 10),
        (Motion2D(translation_x=64 * 3 + 5), 1, 5),
    ],
)
def test_a_wrapped_shift_rolls_the_picture(compat, motion, axis, pixels):
    image = texture()
    assert np.array_equal(
        warp_2d(image, motion, "wrap", compat=compat), np.roll(image, pixels, axis)
    )


@BOTH
def test_a_replicated_shift_repeats_the_edge(compat):
    image = texture()
    moved = warp_2d(image, Motion2D(translation_x=10, translation_y=-4), compat=compat)
    assert np.array_equal(moved[:-4, 10:], image[4:, :-10])
    assert np.array_equal(moved[:-4, :10], np.repeat(image[4:, :1], 10, axis=1))
    assert np.array_equal(moved[-4:, 10:], np.repeat(image[-1:, :-10], 4, axis=0))


@BOTH
def test_a_quarter_turn_is_rot90_one_pixel_lower(compat):
    image = texture(height=64)
    turned = warp_2d(image, Motion2D(angle=90), compat=compat)
    expected = np.roll(np.rot90(image), 1, 0)
    assert np.array_equal(turned[1:], expected[1:])


@BOTH
def test_the_translation_comes_before_the_zoom(compat):
    image = np.zeros((64, 64, 3), dtype=np.float32)
    image[32, 32] = 255
    zoomed = warp_2d(image, Motion2D(zoom=2, translation_x=5), compat=compat)
    assert np.unravel_index(zoomed[..., 0].argmax(), (64, 64)) == (32, 42)


def test_the_centre_is_what_stays():
    image = smooth()
    moved = warp_2d(image, Motion2D(zoom=1.5, angle=30, center_x=0.25, center_y=0.75))
    assert np.array_equal(moved[72, 32], image[72, 32])


@BOTH
def test_a_chain_of_shifts_is_their_sum(compat):
    image = frame = texture()
    for step in (3, -8, 11, 2):
        frame = warp_2d(frame, Motion2D(translation_x=step), "wrap", compat=compat)
    assert np.array_equal(frame, np.roll(image, 8, 1))


def test_slow_motion_moves_only_in_fixed_mode():
    ramp = np.repeat(np.arange(64, dtype=np.float32)[None, :, None] * 4, 64, 0).repeat(3, 2)
    moved = {
        compat: ramp[20, 30, 0] - warp_2d(ramp, Motion2D(translation_x=0.01), compat=compat)[20, 30]
        for compat in (DEFORUM, FIXED)
    }
    assert moved[DEFORUM] == pytest.approx(0)
    assert moved[FIXED] == pytest.approx(0.04, abs=1e-4)


def test_no_motion_changes_nothing():
    image = texture()
    assert np.array_equal(warp_2d(image, Motion2D()), image)


# Perspective flip


@pytest.mark.parametrize(
    ("width", "height", "shrunk"),
    [(128, 128, 0.99509), (512, 512, 0.99877), (512, 768, 0.99903)],
)
def test_a_flip_by_nothing(width, height, shrunk):
    kept = flip_matrix(Flip(), width, height, DEFORUM)
    assert kept[0, 0] == kept[1, 1] == pytest.approx(shrunk, abs=1e-5)
    assert np.allclose(flip_matrix(Flip(), width, height, FIXED), np.eye(3), atol=1e-9)


def test_a_flip_loses_the_translation_only_in_deforum():
    image, motion = texture(), Motion2D(translation_x=10)
    still = warp_2d(image, Motion2D(), flip=Flip(), compat=DEFORUM)
    assert np.array_equal(warp_2d(image, motion, flip=Flip(), compat=DEFORUM), still)
    moved = warp_2d(image, motion, flip=Flip(), compat=FIXED)
    assert np.array_equal(moved[:, 10:], image[:, :-10])


def test_a_flip_about_the_line_of_sight_turns_about_the_middle():
    matrix = flip_matrix(Flip(theta=90), 100, 60, FIXED)
    assert matrix @ [50, 30, 1] == pytest.approx(np.array([50, 30, 1]))
    assert matrix @ [60, 30, 1] == pytest.approx(np.array([50, 40, 1]))


def test_a_flip_about_the_horizontal_narrows_one_edge():
    matrix = flip_matrix(Flip(phi=40), 100, 60)

    def width_at(y):
        left, right = (matrix @ [x, y, 1] for x in (0, 100))
        return right[0] / right[2] - left[0] / left[2]

    assert width_at(0) != pytest.approx(width_at(60), rel=0.1)
    assert width_at(30) == pytest.approx(100)


# 3D


def test_standing_still_in_3d_stays_equal_for_ever():
    image = texture()
    frame = lost = image
    tiny = Motion3D(translation_x=1e-9)  # as good as still, but computed
    for _ in range(100):
        frame = warp_3d(frame, tiny)
        lost = warp_3d(lost, Motion3D(), sampling=Sampling3D(compat=DEFORUM))
    assert np.array_equal(frame, image)
    assert lost.mean(dtype=float) <= image.mean(dtype=float)


def test_deforum_cuts_decimals_off():
    image = np.full((16, 16, 3), 100, dtype=np.uint8)
    image[:, 8:] = 103
    motion = Motion3D(translation_x=22)
    exact = warp_3d(image.astype(np.float32), motion, sampling=Sampling3D(sampling_mode="bilinear"))
    cases: tuple[tuple[Compat, Any], ...] = (
        (DEFORUM, np.floor(exact)),
        (FIXED, np.rint(exact)),
    )
    for compat, expected in cases:
        moved = warp_3d(image, motion, sampling=Sampling3D(sampling_mode="bilinear", compat=compat))
        assert np.array_equal(moved, expected)
    assert not np.array_equal(np.floor(exact), np.rint(exact))


def test_a_shift_in_3d_goes_left():
    image = texture(width=128, height=128)
    moved = warp_3d(image, Motion3D(translation_x=21.8815))
    assert np.abs(moved[:, :-12].astype(int) - image[:, 10:-2]).max() <= 1


def test_the_magnification_in_3d():
    y, x = np.mgrid[:128, :128]
    spot = np.exp(-((x - 63.5 - 36) ** 2 + (y - 63.5) ** 2) / 8) * 255
    image = np.repeat(spot[..., None], 3, axis=-1).astype(np.float32)
    moved = warp_3d(image, Motion3D(translation_z=10))[..., 0]
    assert (moved * x).sum() / moved.sum() - 63.5 == pytest.approx(38.93, abs=0.1)


@pytest.mark.parametrize(
    ("motion", "down", "right"),
    [
        (Motion3D(translation_y=10), 1, 0),
        (Motion3D(rotation_x=2), 1, 0),
        (Motion3D(rotation_y=2), 0, -1),
    ],
)
def test_directions_in_3d(motion, down, right):
    y, x = np.mgrid[:64, :64]
    spot = np.exp(-((x - 31.5) ** 2 + (y - 31.5) ** 2) / 8).astype(np.float32) * 255
    moved = warp_3d(np.repeat(spot[..., None], 3, axis=-1), motion)[..., 0]
    place = np.array([(moved * y).sum(), (moved * x).sum()]) / moved.sum() - 31.5
    assert np.allclose(np.sign(np.round(place, 1)), [down, right])


def test_a_positive_roll_turns_counter_clockwise():
    y, x = np.mgrid[:64, :64]
    spot = np.exp(-((x - 47) ** 2 + (y - 31.5) ** 2) / 8).astype(np.float32) * 255
    moved = warp_3d(np.repeat(spot[..., None], 3, axis=-1), Motion3D(rotation_z=5))[..., 0]
    assert (moved * y).sum() / moved.sum() < 30.5


def closed_form(image, motion, z):
    """Pixel by pixel, bilinear, edges repeated."""
    height, width = image.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    rotation = Rotation.from_euler(
        "XYZ", [motion.rotation_x, motion.rotation_y, motion.rotation_z], degrees=True
    ).as_matrix()
    points = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    shift = np.array([-motion.translation_x, motion.translation_y, -motion.translation_z]) / 200
    moved = points @ rotation + shift
    focal = 1 / np.tan(np.radians(motion.fov) / 2)
    gone = [
        (moved[:, i] / moved[:, 2] - points[:, i] / points[:, 2]).reshape(height, width) * focal
        for i in range(2)
    ]
    rows, columns = np.mgrid[:height, :width]
    places = [rows - gone[1] * height / 2, columns - gone[0] / motion.aspect_ratio * width / 2]
    channels = [
        map_coordinates(image[..., i].astype(float), places, order=1, mode="nearest")
        for i in range(3)
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("seed", range(8))
@BOTH
def test_3d_is_its_closed_form(seed, compat):
    rng = np.random.default_rng(seed)
    image = texture(seed)
    motion = Motion3D(
        *rng.uniform(-15, 15, 3),
        *rng.uniform(-4, 4, 3),
        fov=rng.uniform(30, 110),
        aspect_ratio=rng.uniform(0.6, 1.6),
    )
    z = rng.uniform(1, 2, image.shape[:2])
    moved = warp_3d(image, motion, z, sampling=Sampling3D(sampling_mode="bilinear", compat=compat))
    assert np.abs(moved - closed_form(image, motion, z)).max() <= 1.001


def test_depth_that_is_the_same_everywhere_is_no_depth():
    image, motion = texture(), Motion3D(translation_x=8, rotation_y=2)
    flat = np.ones(image.shape[:2], dtype=np.float32)
    assert np.array_equal(warp_3d(image, motion, flat), warp_3d(image, motion))


def test_what_is_nearer_moves_further():
    y, x = np.mgrid[:64, :64]
    image = np.repeat((x * 3.0)[..., None], 3, axis=-1).astype(np.float32)
    z = np.where(y < 32, 1.0, 2.0)
    moved = image - warp_3d(
        image, Motion3D(translation_x=10), z, sampling=Sampling3D(sampling_mode="bilinear")
    )
    near, far = np.abs(moved[10, 32, 0]), np.abs(moved[50, 32, 0])
    assert near == pytest.approx(2 * far, rel=0.01)
    assert far > 1


def test_flying_through_the_picture_does_not_fail():
    moved = warp_3d(smooth(), Motion3D(translation_z=250, rotation_y=95))
    assert np.isfinite(moved.astype(float)).all()


def test_the_flip_comes_before_3d():
    image, flip = smooth(), Flip(gamma=20)
    motion = Motion3D(translation_x=6)
    both = warp_3d(image, motion, flip=flip)
    assert np.array_equal(both, warp_3d(flip_perspective(image, flip), motion))
    assert not np.array_equal(both, warp_3d(image, motion))


def keys(distance, a=-0.5):
    """Keys 1981, equation 4, for any a."""
    t = np.abs(distance)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


@pytest.mark.parametrize("padding", ["border", "reflection", "zeros"])
def test_bicubic_of_fixed_is_keys_own(padding):
    image = np.random.default_rng(0).uniform(0, 255, (20, 28, 3)).astype(np.float32)
    motion = Motion3D(30, -20, 15, 3, 2, 5, 70, 1.2)
    offset = projected_motion(motion, 28, 20)
    modes: dict[str, Any] = {"border": "edge", "reflection": "symmetric", "zeros": "constant"}
    padded = np.pad(image.astype(np.float64), ((30, 30), (30, 30), (0, 0)), mode=modes[padding])
    rows, columns = np.arange(-30, 50), np.arange(-30, 58)
    expected = np.empty((20, 28, 3))
    for y, x in np.ndindex(20, 28):
        down = keys(y - offset[y, x, 1] * 10 - rows)
        across = keys(x - offset[y, x, 0] * 14 - columns)
        expected[y, x] = np.einsum("y,x,yxc->c", down, across, padded)
    np.testing.assert_allclose(
        warp_3d(image, motion, sampling=Sampling3D(padding_mode=padding)), expected, atol=0.02
    )


@pytest.mark.parametrize(("compat", "grows"), [("fixed", False), ("deforum-3.0", True)])
def test_details_grow_only_as_in_deforum(compat, grows):
    wave = 128 + 20 * np.sin(np.arange(64) * 2 * np.pi / 6.4)
    image = np.repeat(np.broadcast_to(wave, (8, 64))[..., None], 3, axis=-1).astype(np.float32)
    half = Motion3D(translation_x=400 * np.tan(np.deg2rad(35)) / 64 / 2)
    for _ in range(20):
        image = warp_3d(image, half, sampling=Sampling3D(padding_mode="reflection", compat=compat))
    assert (image[:, 16:40].max() > 130 + 20) == grows
