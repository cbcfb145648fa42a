"""The figures of a run, on motion and drift that are known."""

import cv2
import numpy as np
import pytest

from inference.deforum.geometry.metrics import (
    TemporalMeter,
    expected_by_flow,
    look,
    visible_2d,
    visible_3d,
    warp_error,
)
from inference.deforum.geometry.warp2d import Motion2D, warp_2d, warp_matrix
from inference.deforum.geometry.warp3d import Motion3D, Sampling3D, warp_3d
from inference.deforum.settings.compat import DEFORUM, FIXED


def blobs(seed=0, size=64):
    noise = np.random.default_rng(seed).normal(size=(size, size, 3))
    soft = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.rint((soft / soft.std() * 45 + 128).clip(0, 255)).astype(np.uint8)


def test_the_look_of_a_frame():
    board = np.indices((8, 8)).sum(0) % 2 * 200
    seen = look(board[..., None].repeat(3, -1).astype(np.uint8))
    assert (seen.mean, seen.deviation) == pytest.approx((100, 100))
    assert seen.sharpness == pytest.approx(800**2, rel=1e-4)
    assert look(np.full((8, 8, 3), 7, np.uint8)).sharpness == 0


def test_the_warp_error_of_a_known_difference():
    black = np.zeros((4, 4, 3), np.uint8)
    frame = black.copy()
    frame[0, 0] = 255
    assert warp_error(frame, black) == pytest.approx(1 / 16)
    assert warp_error(frame, black, np.arange(16).reshape(4, 4) > 0) == 0
    assert warp_error(frame, black, np.zeros((4, 4), bool)) is None


def test_a_run_with_the_known_camera():
    motion = Motion2D(translation_x=2)
    visible = visible_2d(warp_matrix(motion, 64, 64), 64, 64)
    assert visible.sum() == 64 * 62
    steady, flickering = TemporalMeter(), TemporalMeter()
    frame = blobs()
    steady.add(frame)
    flickering.add(frame)
    for count in range(4):
        expected = warp_2d(frame, motion)
        steady.add(expected, expected, visible)
        flickering.add(expected // 2 if count % 2 else expected, expected, visible)
        frame = expected
    figures = steady.figures()
    assert (figures.frames, figures.warp_error) == (5, 0)
    assert (flickering.figures().warp_error or 0) > 0.02
    assert flickering.figures().largest_drift.mean > 50
    assert "5 frames: warp error 0.000000; mean " in figures.summary()


def test_one_frame_has_no_warp_error():
    meter = TemporalMeter()
    meter.add(blobs())
    assert meter.figures().warp_error is None
    assert meter.figures().summary().startswith("1 frames: warp error none")


def test_the_flow_finds_what_the_camera_did():
    image = blobs()
    moved = warp_2d(image, Motion2D(translation_x=3))
    expected, visible = expected_by_flow(image, moved)
    assert visible.mean() > 0.7
    assert not visible[:, 0].any()
    errors = [warp_error(moved, other, visible) for other in (expected, image)]
    assert errors[0] is not None and errors[0] < 1e-4
    assert errors[1] is not None and errors[1] > 0.01


def test_what_can_be_seen_in_3d():
    assert visible_3d(Motion3D(), 32, 32).all()
    assert visible_3d(Motion3D(translation_z=5), 32, 32).all()
    left = visible_3d(Motion3D(translation_x=21.8815), 128, 128)
    assert np.array_equal(left.sum(axis=1), np.full(128, 118))
    assert not left[:, -10:].any()


def test_the_fixed_mode_drifts_less_than_deforum():
    motion = Motion3D(rotation_z=0.4, translation_z=0.5)
    drift = {}
    for compat in (DEFORUM, FIXED):
        meter, frame = TemporalMeter(), blobs().astype(np.float32 if compat == FIXED else np.uint8)
        for _ in range(40):
            meter.add(frame)
            frame = warp_3d(
                frame, motion, sampling=Sampling3D(padding_mode="reflection", compat=compat)
            )
        drift[compat] = meter.figures().largest_drift.mean
    assert drift[DEFORUM] > 10
    assert drift[FIXED] < drift[DEFORUM] / 4
