"""Hybrid video: mix frames with a video's, or move them like it (Deforum 3.0 `hybrid_video.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageEnhance, ImageOps

from inference.deforum.geometry.pixels import Bytes, Pixels, alike, opencv, to_bytes
from inference.deforum.geometry.warp2d import warp_by_matrix
from inference.deforum.settings import FIXED, Compat
from inference.runtime import InputError

MATCHES_NEEDED = 9
"""Minimum number of matching points; with fewer, there is no motion."""

MATCH_RATIO = 0.75
"""A match counts if its distance is below this fraction of the second best (Lowe 2004)."""

MaskType = Literal["None", "Depth", "Video Depth", "Blend", "Difference"]


@dataclass(frozen=True)
class CompositeSettings:
    """How a frame of the video is mixed in; Deforum's keys start with `hybrid_comp_`.

    Attributes:
        alpha: weight of the mixture in the result, 0 … 1.
        mask_type: source of the mask: white shows the previous frame, black the video.
        mask_blend_alpha: weight of the video in a "Blend" mask.
        mask_inverse: swaps the two.
        mask_equalize: equalises the mask's histogram "Before" the contrast, "After" it, or "Both".
        mask_contrast: factor of the mask's contrast; 1 changes nothing.
        mask_auto_contrast: stretches the mask between two percentiles.
        cutoff_low: the percentile that becomes black, 0 … 100.
        cutoff_high: the one that becomes white, 0 … 100.
    """

    alpha: float = 0.5
    mask_type: MaskType = "None"
    mask_blend_alpha: float = 0.5
    mask_inverse: bool = False
    mask_equalize: Literal["None", "Before", "After", "Both"] = "None"
    mask_contrast: float = 1.0
    mask_auto_contrast: bool = False
    cutoff_low: float = 0
    cutoff_high: float = 100


def hybrid_composite(
    previous: Pixels, video: Bytes, settings: CompositeSettings, depth: Bytes | None = None
) -> Pixels:
    """Return the previous frame with the video's frame mixed in.

    Args:
        previous: (h, w, 3).
        video: of the same shape.
        settings: how they are mixed.
        depth: (h, w), the depth map as an image, for the mask types "Depth" (of the previous
            frame) and "Video Depth" (of the video's).

    Raises:
        InputError: the mask type needs depth and there is none.
    """
    mask = composite_mask(previous, video, settings, depth)
    mixed = video.astype(np.float32)
    if mask is not None:
        share = (mask / np.float32(255))[..., None]
        mixed = previous * share + mixed * (1 - share)
    alpha = np.float32(settings.alpha)
    return alike((previous * (1 - alpha) + mixed * alpha).clip(0, 255), previous)


def composite_mask(
    previous: Pixels, video: Bytes, settings: CompositeSettings, depth: Bytes | None = None
) -> Bytes | None:
    """Return the mask of the mixture, (h, w): 255 shows the previous frame; None without a mask.

    Raises:
        InputError: the mask type needs depth and there is none.
    """
    mask = _raw_mask(previous, video, settings, depth)
    if mask is None:
        return None
    if settings.mask_inverse:
        mask = ImageOps.invert(mask)
    if settings.mask_equalize in {"Before", "Both"}:
        mask = ImageOps.equalize(mask)
    if settings.mask_contrast != 1:
        mask = ImageEnhance.Contrast(mask).enhance(settings.mask_contrast)
    if settings.mask_auto_contrast:
        levels = auto_contrast(np.asarray(mask), settings.cutoff_low, settings.cutoff_high)
        mask = Image.fromarray(levels)
    if settings.mask_equalize in {"After", "Both"}:
        mask = ImageOps.equalize(mask)
    return np.asarray(mask)


def auto_contrast(mask: Bytes, cutoff_low: float, cutoff_high: float) -> Bytes:
    """Stretch the levels between two percentiles to 0 … 255; leave a uniform mask unchanged."""
    low, high = np.percentile(mask, [cutoff_low, cutoff_high])
    return mask if high <= low else to_bytes(255 * (mask - low) / (high - low))


def find_motion(
    first: Pixels, second: Pixels, kind: Literal["Affine", "Perspective"]
) -> NDArray[np.float64]:
    """Estimate the camera's motion from one frame to the next, (3, 3), pixels to pixels.

    SIFT points (Lowe 2004), matched by the ratio of distances, and RANSAC: "Affine" finds shift,
    rotation and scale, "Perspective" a homography. No motion if fewer than 9 points match.

    Args:
        first: (h, w, 3).
        second: of the same shape.
        kind: the type of transformation.
    """
    cv2 = opencv()
    finder = cv2.SIFT_create()
    greys = [cv2.cvtColor(to_bytes(image), cv2.COLOR_RGB2GRAY) for image in (first, second)]
    (points, described), (others, target) = (finder.detectAndCompute(g, None) for g in greys)
    if described is None or target is None or len(target) < 2:
        return np.eye(3)
    pairs = cv2.BFMatcher().knnMatch(described, target, k=2)
    good = [a for a, b in pairs if a.distance < MATCH_RATIO * b.distance]
    if len(good) < MATCHES_NEEDED:
        return np.eye(3)
    here = np.array([points[m.queryIdx].pt for m in good])
    there = np.array([others[m.trainIdx].pt for m in good])
    cv2.setRNGSeed(0)
    if kind == "Perspective":
        found, _ = cv2.findHomography(here, there, cv2.RANSAC, 5.0)
        return np.eye(3) if found is None else found
    found, _ = cv2.estimateAffinePartial2D(here, there)
    return np.eye(3) if found is None else np.vstack([found, [0, 0, 1]])


def move_like(image: Pixels, motion: NDArray[np.float64], compat: Compat = FIXED) -> Pixels:
    """Move an image by the result of `find_motion`, mirrored at the edges."""
    return warp_by_matrix(image, motion, "reflect", compat)


def _raw_mask(
    previous: Pixels, video: Bytes, settings: CompositeSettings, depth: Bytes | None
) -> Image.Image | None:
    kind = settings.mask_type
    if kind == "None":
        return None
    if kind in {"Depth", "Video Depth"}:
        if depth is None:
            raise InputError(
                f'hybrid_comp_mask_type: "{kind}" needs depth, and no depth model is in use; name '
                'one in the recipe\'s `depth_model`, or take "Blend" or "Difference"'
            )
        return Image.fromarray(depth)
    greys = [ImageOps.grayscale(Image.fromarray(to_bytes(image))) for image in (previous, video)]
    if kind == "Difference":
        return ImageChops.difference(*greys)
    return Image.blend(greys[0], greys[1], settings.mask_blend_alpha)
