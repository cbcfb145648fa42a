"""Depth for 3D motion: from a user's depth model, or from cues in the image.

Deforum 3.0 (`deforum_helpers/depth.py` and its models) converts the output of any model to
distances of 1 (near) to 2 (far), spread evenly over the pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.deforum.geometry.pixels import Bytes, Floats, Pixels, opencv, to_bytes
from inference.models import load_auto
from inference.runtime import InputError

BINS = 1024
"""Number of bins of the histogram that is equalised."""

METRIC_MODELS = ("chmv2", "depth_pro", "glpn", "zoedepth")
"""Model types of transformers that predict distances; the others predict their inverse."""


class DepthEstimator(Protocol):
    """Estimates the distance of each pixel."""

    def distances(self, image: Pixels) -> Floats:
        """Return distances (h, w), 1 near to 2 far, of an image (h, w, 3)."""
        ...


def open_depth(name: str, device: str = "cpu") -> DepthEstimator | None:
    """Return the depth estimator of a recipe's `depth_model`.

    Args:
        name: "none"; "cues", the embedded method; or a depth model of transformers: its folder, or
            its id on the Hugging Face Hub if it was downloaded before.
        device: device of the model.

    Raises:
        InputError: there is no such model, or it cannot be loaded.
    """
    if name.lower() == "none":
        return None
    return CueDepth() if name.lower() == "cues" else TransformersDepth(name, device)


def depth_to_z(depth: NDArray[np.floating], near_is_high: bool) -> Floats:
    """Return distances of 1 to 2, uniformly distributed over the pixels: (h, w), float32.

    Scaled to 0 … 1, histogram-equalised, then 2 − d or 1 + d. Depth that is constant or not finite
    becomes 1.

    Args:
        depth: (h, w), in any unit.
        near_is_high: whether it is an inverse distance (disparity).
    """
    low, high = depth.min(), depth.max()
    if not np.isfinite([low, high]).all() or high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        return np.ones(depth.shape, dtype=np.float32)
    stretched = (depth - low) / (high - low)
    counts, edges = np.histogram(stretched, bins=BINS, range=(0, 1))
    shares = np.cumsum(counts) / depth.size
    equal = np.interp(stretched, (edges[:-1] + edges[1:]) / 2, shares)
    return (2 - equal if near_is_high else 1 + equal).astype(np.float32)


class DepthPictures:
    """Depth maps as images, all on the scale of the nearest and farthest of the run so far.

    Attributes:
        low: the smallest distance so far.
        high: the largest.
    """

    def __init__(self, low: float = 1000, high: float = -1000) -> None:
        self.low, self.high = low, high

    def picture(self, distances: Floats) -> Bytes:
        """Return a depth map as an image (h, w), 0 near to 255 far; extend the scale."""
        self.low = min(self.low, float(distances.min()))
        self.high = max(self.high, float(distances.max()))
        spread = max(self.high - self.low, 1e-8)
        return to_bytes((distances - self.low) / spread * 255)


class CueDepth:
    """The embedded method: pixels that are low in the image, and sharp ones, are near.

    No network. A guided filter (He et al. 2010) aligns both cues with the image's own edges. For
    scenes with a floor the order is passable, for others the relief is plausible.
    """

    GROUND = 0.6
    """Weight of the height in the image; the rest is the weight of sharpness."""

    def distances(self, image: Pixels) -> Floats:
        cv2 = opencv()
        grey = cv2.cvtColor(to_bytes(image), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        height, width = grey.shape
        sigma = max(1.0, min(height, width) / 16)
        detail = cv2.GaussianBlur(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), (0, 0), sigma)
        detail = detail / (cv2.GaussianBlur(grey, (0, 0), sigma) + 0.05)
        detail = detail / max(float(detail.max()), 1e-6)
        low = np.linspace(0, 1, height, dtype=np.float32)[:, None]
        nearness = self.GROUND * low + (1 - self.GROUND) * detail
        return depth_to_z(_guided(nearness, grey, max(2, min(height, width) // 16)), True)


class TransformersDepth:
    """A depth model of transformers (DPT, Depth Anything, ZoeDepth, GLPN, Depth Pro …)."""

    def __init__(self, source: str, device: str = "cpu") -> None:
        """Load the model from this machine.

        Args:
            source: a folder, or an id on the Hugging Face Hub that was downloaded before.
            device: device of the model.

        Raises:
            InputError: it cannot be loaded.
        """
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        here = {"local_files_only": True}
        try:
            self.processor: Any = load_auto(AutoImageProcessor, source, backend="pil", **here)
            self.model: Any = load_auto(AutoModelForDepthEstimation, source, **here)
        except (OSError, ValueError, ImportError, KeyError) as error:
            there = "cannot be loaded" if Path(source).exists() else "is no folder here"
            raise InputError(
                f"depth_model: {source!r} {there} ({_first_line(error)}); expected the folder of a "
                'depth model of transformers, with preprocessor_config.json, or "cues", or "none"'
            ) from error
        self.device = device
        self.model.to(device).eval()
        facts = self.model.config.to_dict()
        kind = facts.get("depth_estimation_type", "relative")
        self.near_is_high = facts["model_type"] not in METRIC_MODELS and kind != "metric"

    def distances(self, image: Pixels) -> Floats:
        import torch
        from torch.nn import functional as F

        inputs = self.processor(images=Image.fromarray(to_bytes(image)), return_tensors="pt")
        with torch.inference_mode():
            pixels = inputs["pixel_values"].to(self.device)
            depth = self.model(pixel_values=pixels).predicted_depth.float()
        depth = depth.reshape(1, 1, *depth.shape[-2:])
        depth = F.interpolate(depth, size=image.shape[:2], mode="bicubic", align_corners=False)
        return depth_to_z(depth[0, 0].cpu().numpy(), self.near_is_high)


def _guided(
    values: NDArray[np.floating],
    guide: NDArray[np.floating],
    radius: int,
    smoothness: float = 1e-3,
) -> NDArray[np.floating]:
    """Return `values` as a locally linear function of `guide` (guided filter), both (h, w)."""
    cv2 = opencv()

    def mean(of: NDArray[np.floating]) -> NDArray[np.floating]:
        return cv2.blur(of, (2 * radius + 1, 2 * radius + 1))

    center, level = mean(guide), mean(values)
    variance = mean(guide * guide) - center * center
    slope = (mean(guide * values) - center * level) / (variance + smoothness)
    return mean(slope) * guide + mean(level - slope * center)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
