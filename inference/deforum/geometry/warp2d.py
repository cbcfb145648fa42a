"""2D camera motion and the perspective flip (Deforum 3.0 `deforum_helpers/animation.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.deforum.geometry.pixels import Border, Pixels, alike, opencv, sample
from inference.deforum.settings import DEFORUM, FIXED, Compat

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Motion2D:
    """The motion of one frame in 2D mode.

    The image is shifted first, then rotated and scaled about the centre: with zoom 2, a translation
    of 5 shows as 10 pixels.

    Attributes:
        zoom: above 1 enlarges.
        angle: degrees, counter-clockwise.
        translation_x: pixels to the right.
        translation_y: pixels down.
        center_x: the fixed point, as a fraction of the width; 0.5 is the line between the two
            middle columns plus half a pixel (W / 2, counted from the first pixel's centre).
        center_y: the same for the height.
    """

    zoom: float = 1.0
    angle: float = 0.0
    translation_x: float = 0.0
    translation_y: float = 0.0
    center_x: float = 0.5
    center_y: float = 0.5


@dataclass(frozen=True)
class Flip:
    """The perspective flip of one frame: the image as a card rotated before a camera, in degrees.

    Attributes:
        theta: about the axis towards the camera.
        phi: about the horizontal axis.
        gamma: about the vertical axis.
        fov: the camera's field of view (`perspective_flip_fv`), between 0 and 180.
    """

    theta: float = 0.0
    phi: float = 0.0
    gamma: float = 0.0
    fov: float = 53.0


def warp_2d(
    image: Pixels,
    motion: Motion2D,
    border: Border = "replicate",
    flip: Flip | None = None,
    compat: Compat = FIXED,
) -> Pixels:
    """Return the image after one frame's 2D motion, bilinear.

    Deforum 3.0 loses the translation when the flip is on, and rounds coordinates to 1/32 pixel, so
    that motions slower than 1/64 pixel have no effect; both are fixed unless `compat` keeps them.

    Args:
        image: (h, w, 3).
        motion: the schedules' values at this frame.
        border: content beyond the edge.
        flip: the perspective flip, or None if it is off.
        compat: which bugs of Deforum are kept.
    """
    matrix = warp_matrix(motion, image.shape[1], image.shape[0], flip, compat)
    return warp_by_matrix(image, matrix, border, compat)


def warp_matrix(
    motion: Motion2D, width: int, height: int, flip: Flip | None = None, compat: Compat = FIXED
) -> Matrix:
    """Return the matrix (3, 3) by which `warp_2d` moves a point (x, y, 1), in pixels."""
    if flip is None:
        return motion_matrix(motion, width, height)
    moved = motion_matrix(motion, width, height, with_translation=compat != DEFORUM)
    return flip_matrix(flip, width, height, compat) @ moved


def flip_perspective(
    image: Pixels, flip: Flip, border: Border = "replicate", compat: Compat = FIXED
) -> Pixels:
    """Apply the perspective flip alone, as 3D mode does before its own motion."""
    height, width = image.shape[:2]
    return warp_by_matrix(image, flip_matrix(flip, width, height, compat), border, compat)


def warp_by_matrix(
    image: Pixels, matrix: Matrix, border: Border = "replicate", compat: Compat = FIXED
) -> Pixels:
    """Move each point (x, y, 1) of the image to `matrix` @ (x, y, 1), bilinear.

    Args:
        image: (h, w, 3).
        matrix: (3, 3), pixels to pixels.
        border: content beyond the edge.
        compat: "deforum-3.0" uses OpenCV's `warpPerspective`, "fixed" exact coordinates.
    """
    height, width = image.shape[:2]
    if compat == DEFORUM:
        cv2 = opencv()
        modes = {
            "replicate": cv2.BORDER_REPLICATE,
            "wrap": cv2.BORDER_WRAP,
            "reflect": cv2.BORDER_REFLECT_101,
        }
        return cv2.warpPerspective(image, matrix, (width, height), borderMode=modes[border])
    if np.array_equal(matrix, np.eye(3)):
        return image.copy()
    x, y = source_places(matrix, width, height)
    return alike(sample(image, x, y, border), image)


def source_places(matrix: Matrix, width: int, height: int) -> tuple[Matrix, Matrix]:
    """Return where each pixel of the warped image comes from: columns and rows, both (h, w)."""
    inverse = np.linalg.inv(matrix)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    across, down, depth = (row[0] * x + row[1] * y + row[2] for row in inverse)
    depth = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
    return across / depth, down / depth


def motion_matrix(
    motion: Motion2D, width: int, height: int, with_translation: bool = True
) -> Matrix:
    """Return (3, 3): rotation and scale about the centre, after the translation; y is down."""
    center = np.array([width * motion.center_x, height * motion.center_y])
    turn = np.deg2rad(motion.angle)
    cosine, sine = motion.zoom * np.cos(turn), motion.zoom * np.sin(turn)
    linear = np.array([[cosine, sine], [-sine, cosine]])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = center - linear @ center
    if with_translation:
        matrix[:2, 2] += linear @ [motion.translation_x, motion.translation_y]
    return matrix


def flip_matrix(flip: Flip, width: int, height: int, compat: Compat = FIXED) -> Matrix:
    """Return (3, 3): the image rotated in space, seen by a camera that it fills if not rotated.

    In Deforum 3.0 the last element of the projection stays 1, so that angles of zero shrink the
    image, and the shift that recentres the result comes before the projection, so that it rotates
    about a point far to the right and below the centre.
    """
    half = np.deg2rad(flip.fov / 2)
    diagonal = np.hypot(width, height)
    side = diagonal / np.cos(half)
    distance = diagonal / (2 * np.sin(half))
    turned = _rotation(flip)
    # A point (X, Y, 0) of the card, rotated, is at depth `distance` − z before the camera.
    to_card = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    scale = 1 / np.tan(half)
    project = np.array(
        [
            [scale * turned[0, 0], scale * turned[0, 1], 0],
            [scale * turned[1, 0], scale * turned[1, 1], 0],
            [-turned[2, 0], -turned[2, 1], distance + (1 if compat == DEFORUM else 0)],
        ]
    )
    to_side = np.array([[side / 2, 0, side / 2], [0, side / 2, side / 2], [0, 0, 1]])
    recentre = np.array([[1, 0, (width - side) / 2], [0, 1, (height - side) / 2], [0, 0, 1]])
    flipped = to_side @ project @ to_card
    matrix = flipped @ recentre if compat == DEFORUM else recentre @ flipped
    return matrix / matrix[2, 2]


def _rotation(flip: Flip) -> Matrix:
    """Return (3, 3): about x by phi, times about y by gamma, times about z by theta."""
    phi, gamma, theta = np.deg2rad([flip.phi, flip.gamma, flip.theta])
    cosine, sine = np.cos(phi), np.sin(phi)
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    cosine, sine = np.cos(gamma), np.sin(gamma)
    about_y = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    cosine, sine = np.cos(theta), np.sin(theta)
    about_z = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z
