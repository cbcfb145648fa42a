"""The frame loop: frame after frame, each from the previous one."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.deforum.loop.depths import Depths
    from inference.deforum.loop.feedback import Colors, Feedback
    from inference.deforum.loop.frame_images import check_words
    from inference.deforum.loop.generator import (
        FrameGenerator,
        IdentityGenerator,
        PreviewGenerator,
    )
    from inference.deforum.loop.hybrid_frames import HybridVideo
    from inference.deforum.loop.loop import FeedbackLoop
    from inference.deforum.loop.masking import FrameMasks
    from inference.deforum.loop.model_generator import ModelGenerator
    from inference.deforum.loop.state import State, load_state, save_state
    from inference.deforum.loop.stills import IndependentFrames
    from inference.deforum.loop.tweens import Tweens

__all__ = [
    "Colors", "Depths", "Feedback", "FeedbackLoop", "FrameGenerator", "FrameMasks", "HybridVideo",
    "IdentityGenerator", "IndependentFrames", "ModelGenerator", "PreviewGenerator", "State",
    "Tweens", "check_words", "load_state", "save_state",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
