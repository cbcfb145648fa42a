"""CogVideoX (Yang et al. 2024, arXiv 2408.06072): detect, load, encode prompts, latents."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.models.cogvideox.arithmetic import (
        FrameRule,
        check_positions,
        padding,
        video_to_video_multiple,
        video_tokens,
    )
    from inference.models.cogvideox.detect import (
        FAMILIES,
        TEXT_ENCODER,
        VideoFamily,
        family_of,
        family_on_hub,
    )
    from inference.models.cogvideox.image_condition import (
        LatentScale,
        image_latents,
        offset,
        place,
        with_noise,
        without,
    )
    from inference.models.cogvideox.loading import check_parts, load_video_model
    from inference.models.cogvideox.model import VideoModel
    from inference.models.cogvideox.transformer import (
        Kind,
        Rotary,
        drop_learned_positions,
        rotary_positions,
    )

__all__ = [
    "FAMILIES", "TEXT_ENCODER", "FrameRule", "Kind", "LatentScale", "Rotary", "VideoFamily",
    "VideoModel", "check_parts", "check_positions", "drop_learned_positions", "family_of",
    "family_on_hub", "image_latents", "load_video_model", "offset", "padding", "place",
    "rotary_positions", "video_to_video_multiple", "video_tokens", "with_noise", "without",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
