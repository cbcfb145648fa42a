"""Cameras, warps, depth and optical flow."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.deforum.geometry.camera import Camera
    from inference.deforum.geometry.depth import DepthEstimator, DepthPictures, open_depth
    from inference.deforum.geometry.flow import (
        carry_flow,
        check_flow_method,
        optical_flow,
        reliability,
        warp_by_flow,
    )
    from inference.deforum.geometry.hybrid import (
        CompositeSettings,
        find_motion,
        hybrid_composite,
        move_like,
    )
    from inference.deforum.geometry.metrics import (
        Temporal,
        TemporalMeter,
        expected_by_flow,
        visible_2d,
        visible_3d,
    )
    from inference.deforum.geometry.pixels import (
        Bytes,
        Floats,
        Pixels,
        alike,
        blend,
        composite,
        opencv,
        to_bytes,
    )
    from inference.deforum.geometry.tracking import box_mask, track_mask
    from inference.deforum.geometry.tween import smooth_frames
    from inference.deforum.geometry.warp2d import warp_matrix

__all__ = [
    "Bytes", "Camera", "CompositeSettings", "DepthEstimator", "DepthPictures", "Floats", "Pixels",
    "Temporal", "TemporalMeter", "alike", "blend", "box_mask", "carry_flow", "check_flow_method",
    "composite", "expected_by_flow", "find_motion", "hybrid_composite", "move_like", "open_depth",
    "opencv", "optical_flow", "reliability", "smooth_frames", "to_bytes", "track_mask",
    "visible_2d", "visible_3d", "warp_by_flow", "warp_matrix",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
