"""Values per frame: keyframes, prompts, seeds, cadence."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.deforum.schedules.cadence import Block, diffused_frames
    from inference.deforum.schedules.features import (
        MOVING,
        check,
        faults,
        reads_video,
        switched_on,
        without_effect,
    )
    from inference.deforum.schedules.names import folder_name, timestring
    from inference.deforum.schedules.prompts import FORMULA, at_frames, frame_prompts
    from inference.deforum.schedules.schedule_table import SCHEDULES, Schedules
    from inference.deforum.schedules.schedules import frame_names, frame_of
    from inference.deforum.schedules.script import Script
    from inference.deforum.schedules.seeds import SeedSequence, derived_seed, draw_seed
    from inference.deforum.schedules.sources import (
        DIGITS,
        VideoFrames,
        open_alpha_picture,
        open_picture,
    )

__all__ = [
    "DIGITS", "FORMULA", "MOVING", "SCHEDULES", "Block", "Schedules", "Script", "SeedSequence",
    "VideoFrames", "at_frames", "check", "derived_seed", "diffused_frames", "draw_seed", "faults",
    "folder_name", "frame_names", "frame_of", "frame_prompts", "open_alpha_picture", "open_picture",
    "reads_video", "switched_on", "timestring", "without_effect",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
