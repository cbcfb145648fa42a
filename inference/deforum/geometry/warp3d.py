"""3D camera motion (Deforum 3.0 `deforum_helpers/animation.py`, after Disco Diffusion)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from inference.deforum.geometry.pixels import Border, Floats, Pixels, alike
from inference.deforum.geometry.warp2d import Flip, flip_perspective
from inference.deforum.settings import DEFORUM, FIXED, Compat

if TYPE_CHECKING:
    from torch import Tensor

PER_UNIT = 200
"""Translation of the schedules per unit of space; the image is 2 units wide and 1 away."""

NEAREST_DEPTH = 1e-3
"""Minimum depth in units; points closer to the camera, or behind it, get this depth."""

CUBIC = {DEFORUM: -0.75, FIXED: -0.5}
"""Parameter a of the cubic kernel of R. Keys 1981, "Cubic Convolution Interpolation for Digital
Image Processing". With -0.75, which Deforum 3.0 has from PyTorch, every warp amplifies details of
about 6 pixels by up to 2.9 % along each axis, so that contrast grows from frame to frame; with
-0.5, Keys' own choice, no detail is ever amplified."""

PaddingMode = Literal["border", "reflection", "zeros"]
SamplingMode = Literal["bicubic", "bilinear", "nearest"]


@dataclass(frozen=True)
class Motion3D:
    """The motion of one frame in 3D mode, and its camera.

    The near and far planes (`near_schedule`, `far_schedule`) cancel out of the formula.

    Attributes:
        translation_x: content moves left (unlike 2D mode), in units of 1/200.
        translation_y: content moves down.
        translation_z: content comes nearer.
        rotation_x: degrees; content moves down.
        rotation_y: degrees; content moves left.
        rotation_z: degrees, counter-clockwise.
        fov: vertical field of view in degrees, between 0 and 180.
        aspect_ratio: width / height of the camera's image (1, or that of the frame if
            `aspect_ratio_use_old_formula` is on).
    """

    translation_x: float = 0.0
    translation_y: float = 0.0
    translation_z: float = 0.0
    rotation_x: float = 0.0
    rotation_y: float = 0.0
    rotation_z: float = 0.0
    fov: float = 70.0
    aspect_ratio: float = 1.0

    @property
    def is_still(self) -> bool:
        """Return whether nothing moves."""
        return not any(
            (
                self.translation_x,
                self.translation_y,
                self.translation_z,
                self.rotation_x,
                self.rotation_y,
                self.rotation_z,
            )
        )


@dataclass(frozen=True)
class Sampling3D:
    """How `warp_3d` samples.

    Attributes:
        padding_mode: content beyond the edge: its pixels, the mirrored image, black.
        sampling_mode: interpolation between the pixels.
        border: content beyond the edge at the perspective flip.
        compat: "deforum-3.0" truncates instead of rounding: a loss of up to one level per frame.
        kernel: whose bicubic sampling (`CUBIC`); that of `compat` if None.
    """

    padding_mode: PaddingMode = "border"
    sampling_mode: SamplingMode = "bicubic"
    border: Border = "replicate"
    compat: Compat = FIXED
    kernel: Compat | None = None


def warp_3d(
    image: Pixels,
    motion: Motion3D,
    z: NDArray[np.floating] | None = None,
    flip: Flip | None = None,
    sampling: Sampling3D | None = None,
) -> Pixels:
    """Return the image after one frame's 3D motion.

    Each pixel is fetched from where the camera's motion would have brought it, to first order: this
    is not the homography of a pinhole camera, even at one depth.

    Args:
        image: (h, w, 3).
        motion: the schedules' values at this frame.
        z: (h, w), distances, 1 near to 2 far, as `depth.depth_to_z` gives; None is 1 everywhere.
        flip: the perspective flip, applied first, or None if it is off.
        sampling: how to sample; `Sampling3D()` if None.
    """
    sampling = sampling or Sampling3D()
    compat = sampling.compat
    if flip is not None:
        image = flip_perspective(image, flip, sampling.border, compat)
    if motion.is_still and compat != DEFORUM:
        return image.copy()
    height, width = image.shape[:2]
    offset = projected_motion(motion, width, height, z)
    cubic = CUBIC[sampling.kernel or compat]
    values = _sample(image, offset, sampling.padding_mode, sampling.sampling_mode, cubic)
    if compat == DEFORUM and image.dtype == np.uint8:
        return values.clip(0, 255).astype(np.uint8)
    return alike(values, image)


def projected_motion(
    motion: Motion3D, width: int, height: int, z: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Return how far each point's projection moves, (h, w, 2): x, y in halves of the image."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    depth = np.ones_like(x) if z is None else z.astype(np.float64)
    points = np.stack([x, y, depth], axis=-1)
    shift = np.array([-motion.translation_x, motion.translation_y, -motion.translation_z])
    moved = points @ rotation_matrix(motion) + shift / PER_UNIT
    return _project(moved, motion) - _project(points, motion)


def rotation_matrix(motion: Motion3D) -> NDArray[np.float64]:
    """Return (3, 3), for row vectors: about x, times about y, times about z."""
    angles = np.deg2rad([motion.rotation_x, motion.rotation_y, motion.rotation_z])
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def _project(points: NDArray[np.float64], motion: Motion3D) -> NDArray[np.float64]:
    slope = np.tan(np.deg2rad(motion.fov) / 2)
    scale = np.array([slope * motion.aspect_ratio, slope])
    return points[..., :2] / scale / np.maximum(points[..., 2:], NEAREST_DEPTH)


def _sample(
    image: Pixels,
    offset: NDArray[np.float64],
    padding_mode: PaddingMode,
    sampling_mode: SamplingMode,
    cubic: float,
) -> Floats:
    """Sample the image at each pixel minus its offset: (h, w, 3), float32, not clipped."""
    import torch
    from torch.nn import functional as F

    height, width = image.shape[:2]
    across, down = (np.arange(n) * 2.0 + 1 for n in (width, height))
    base = np.stack(np.meshgrid(across / width - 1, down / height - 1), axis=-1)
    grid = torch.from_numpy((base - offset).astype(np.float32))
    values = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
    if sampling_mode == "bicubic" and cubic == CUBIC[FIXED]:
        result = _keys(values[None], torch.from_numpy(base - offset), padding_mode)
    else:
        result = F.grid_sample(
            values[None], grid[None], sampling_mode, padding_mode, align_corners=False
        )
    return result[0].permute(1, 2, 0).contiguous().numpy()


def _keys(values: Tensor, grid: Tensor, padding_mode: PaddingMode) -> Tensor:
    """Sample bicubically with a = -0.5: values (1, c, h, w) at grid (h', w', 2), -1 … 1.

    PyTorch's a is always -0.75. The two inner taps of the kernel are never negative, so they are
    one bilinear tap between their pixels, and the sixteen taps become nine.
    """
    import torch
    from torch.nn import functional as F

    size = torch.tensor(values.shape[:-3:-1], dtype=grid.dtype)  # width, height
    places = (grid + 1) * size / 2 - 0.5
    whole = places.floor()
    t = places - whole
    first, last = -t * (1 - t) ** 2 / 2, -(t**2) * (1 - t) / 2
    inner = 1 - first - last
    second = t * (1 + 4 * t - 3 * t**2) / 2
    taps = ((first, whole - 1), (inner, whole + second / inner), (last, whole + 2))
    taps = [(weight, (2 * place + 1) / size - 1) for weight, place in taps]
    result = torch.zeros(1, values.shape[1], *grid.shape[:2])
    for (weight_x, x), (weight_y, y) in itertools.product(taps, taps):
        at = torch.stack([x[..., 0], y[..., 1]], dim=-1).float()
        found = F.grid_sample(values, at[None], "bilinear", padding_mode, align_corners=False)
        result += found * (weight_x[..., 0] * weight_y[..., 1]).float()
    return result
