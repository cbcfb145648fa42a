"""Everything that is known about an animation before its first frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.deforum.schedules.cadence import Block, blocks, diffused_frames
from inference.deforum.schedules.prompts import PromptAt, frame_prompts
from inference.deforum.schedules.schedule_table import Schedules
from inference.deforum.schedules.schedules import frame_names, frame_of
from inference.deforum.schedules.sources import Extraction, VideoFrames, open_picture
from inference.deforum.settings import FormulaError
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.deforum.settings import Compat, Settings

SIZE_STEP = 8
"""Widths and heights are rounded down to multiples of it, as in Deforum."""

FEEDBACK_MODES = ("2D", "3D")
"""Modes in which each frame starts from the previous one; in others frames are independent."""


class Script:
    """Settings and the values derived from them: schedules, prompts, sizes, diffused frames.

    Args:
        settings: with the run's seed drawn.
        compat: `fixed` or `deforum-3.0`.
        folder: of the run; extracted video frames are written to it.
        artifact_names: the recipe's names of artifacts.
        timestring: prefix of the run's files.
        cadence_blend: whether diffused frames fade in.
        is_dry: whether nothing is written: frames of a video are counted, and the first is kept.

    Raises:
        InputError: a schedule, a prompt or a video cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        compat: Compat = "fixed",
        folder: Path = Path(),
        artifact_names: Sequence[str] = (),
        timestring: str = "",
        cadence_blend: bool = True,
        is_dry: bool = False,
    ) -> None:
        self.compat: Compat = compat
        self.folder = folder
        self.artifact_names = list(artifact_names)
        self.timestring = timestring
        self.cadence_blend = cadence_blend
        self.is_dry = is_dry
        self.width, self.height = (settings[name] // SIZE_STEP * SIZE_STEP for name in ("W", "H"))
        self.settings = settings
        self.video = self.open_video("video_init_path", "inputframes") if self.needs_video else None
        if self.video is not None and self.follows_video:
            self.settings = settings.replace(max_frames=len(self.video))
        if settings["animation_mode"] == "None":
            self.settings = one_frame_each(settings)
        self.max_frames: int = self["max_frames"]
        self.seed: int = self["seed"]
        self.schedules = Schedules.of(self.settings)
        self.prompts = frame_prompts(self.settings, self.schedules.variables)
        self.check_networks()
        if self.has_feedback and not self.shown_frames:
            raise InputError(
                f"diffusion_cadence: {self.cadence} leaves none of {self.max_frames} frames to be "
                f"written with compat {compat}, as in Deforum; take a smaller cadence, or compat "
                "fixed"
            )

    def __getitem__(self, key: str) -> Any:
        """Return a setting."""
        return self.settings[key]

    def number(self, key: str, frame: int) -> float:
        """Return the value of a numeric schedule at a frame."""
        return self.schedules[key][frame]

    def text(self, key: str, frame: int) -> str:
        """Return the value of a text schedule at a frame."""
        return self.schedules[key][frame]

    def texts(self, key: str) -> list[str]:
        """Return the values of a text schedule, frame by frame."""
        return self.schedules[key]

    def prompt(self, frame: int) -> PromptAt:
        """Return prompt and negative prompt of a frame.

        If the prompts on both sides of a frame of mode Interpolation have the same negative prompt,
        it is used unchanged; Deforum 3.0 writes it twice, with weights that negative prompts
        ignore.
        """
        found = self.prompts[frame]
        if self.mixes_embeddings and len(found.parts) > 1:
            parts = " AND ".join(f"{part.prompt} :{part.weight}" for part in found.parts)
            found = found._replace(prompt=parts)
        negatives = {part.negative for part in found.parts}
        if self.compat == "fixed" and len(negatives) == 1:
            return found._replace(negative=negatives.pop())
        return found

    @property
    def mixes_embeddings(self) -> bool:
        """Return whether mode Interpolation mixes prompts by their embeddings."""
        is_mixed = self["interpolation_blend"] == "embedding"
        return is_mixed and self["animation_mode"] == "Interpolation"

    def steps(self, frame: int) -> int:
        if self["enable_steps_scheduling"]:
            return int(self.number("steps_schedule", frame))
        return self["steps"]

    def sampler(self, frame: int) -> str:
        """Return the sampler with its schedule type, in A1111's names before 1.9."""
        if self["enable_sampler_scheduling"]:
            return self.text("sampler_schedule", frame)
        kind = self["schedule_type"]
        return self["sampler"] if kind == "Automatic" else f"{self['sampler']} {kind}"

    def network_strengths(self, frame: int) -> dict[str, float]:
        """Return the strengths of networks by name, if `network_schedules` sets them."""
        return {name: values[frame] for name, values in self.schedules.networks.items()}

    def strength(self, frame: int) -> float:
        """Return how much of the previous frame stays, 0 … 1."""
        key = "strength_schedule"
        if self["keyframe_distribution"] != "Off" and frame in self.keyframes:
            key = "keyframe_strength_schedule"
        return min(max(self.number(key, frame), 0.0), 1.0)

    @property
    def has_feedback(self) -> bool:
        return self["animation_mode"] in FEEDBACK_MODES

    @property
    def is_hybrid(self) -> bool:
        """Return whether a video is mixed in, or moves the frames."""
        on = self["hybrid_composite"] != "None" or self["hybrid_motion"] != "None"
        return self.has_feedback and on

    @property
    def colors_of_video(self) -> bool:
        """Return whether the video's frames are the colour samples."""
        return self["color_coherence"] == "Video Input" and self.is_hybrid

    @property
    def needs_video(self) -> bool:
        tracks = any("{tracked}" in self[k] for k in ("mask_schedule", "noise_mask_schedule"))
        is_asked = tracks and (self["use_mask"] or self["use_noise_mask"])
        return (
            self["animation_mode"] == "Video Input"
            or self.is_hybrid
            or bool(self["use_mask_video"])
            or is_asked
        )

    @property
    def follows_video(self) -> bool:
        """Return whether the animation has as many frames as the video."""
        if self["animation_mode"] == "Video Input":
            return True
        return self.is_hybrid and not self["hybrid_use_init_image"]

    def open_video(self, key: str, folder: str) -> VideoFrames:
        """Extract the frames of a video that the settings name.

        Raises:
            InputError: it cannot be read.
        """
        return VideoFrames(
            self[key],
            key,
            None if self.is_dry else self.folder / folder,
            (self.width, self.height),
            Extraction(
                self["extract_from_frame"],
                self["extract_to_frame"],
                max(1, self["extract_nth_frame"]),
                self["overwrite_extracted_frames"],
                None if key == "video_init_path" and self.follows_video else self["max_frames"],
            ),
        )

    def init_picture(self) -> np.ndarray | None:
        """Return the first image of the animation: the init image, or the video's first frame.

        Raises:
            InputError: it cannot be opened.
        """
        takes_first = self["hybrid_use_first_frame_as_init_image"]
        if self.is_hybrid and takes_first and not self["hybrid_use_init_image"]:
            assert self.video is not None
            return np.array(self.video[0])
        if not self["use_init"]:
            return None
        return open_picture(self["init_image"], "init_image", self.width, self.height)

    @cached_property
    def keyframes(self) -> list[int]:
        """Return the frames at which prompts change."""
        names = frame_names(self["max_frames"], self["seed"], self.schedules.variables)
        found = []
        for key in self["prompts"]:
            try:
                found.append(frame_of(key, names))
            except FormulaError as error:
                raise InputError(f"prompts, frame {key!r}: {error}") from None
        return sorted(set(found))

    @cached_property
    def cadence(self) -> int:
        """Return n if every n-th frame is diffused."""
        return max(1, self["diffusion_cadence"]) if self.has_feedback else 1

    @cached_property
    def blocks(self) -> list[Block]:
        """Return the diffused frames, each with the frames that it is shown in."""
        distribution = self["keyframe_distribution"] if self.has_feedback else "Off"
        diffused = diffused_frames(self.max_frames, self.cadence, self.keyframes, distribution)
        drops_last = self.compat == "deforum-3.0"
        return blocks(diffused, self.max_frames, self.cadence, drops_last)

    @property
    def shown_frames(self) -> int:
        """Return the number of output frames."""
        return sum(len(block.frames) for block in self.blocks)

    def check_networks(self) -> None:
        """Reject strengths of unknown networks.

        Raises:
            InputError: `network_schedules` names a network that is neither an artifact nor in a
                prompt.
        """
        for name in self.schedules.networks:
            pattern = rf"<(lora|lyco|hypernet):{re.escape(name)}[:>]"
            is_called = any(re.search(pattern, text) for text in self["prompts"].values())
            if name not in self.artifact_names and not is_called:
                known = ", ".join(self.artifact_names) or "none"
                raise InputError(
                    f"network_schedules.{name}: neither an artifact of the recipe (there are: "
                    f"{known}) nor named in a prompt, <lora:{name}:1>"
                )


def one_frame_each(settings: Settings) -> Settings:
    """Return settings of mode None: one frame per prompt, in the order of their keyframes."""
    texts = [text for _, text in sorted(settings["prompts"].items(), key=by_frame)]
    prompts = {str(number): text for number, text in enumerate(texts)}
    return settings.replace(max_frames=len(texts), prompts=prompts)


def by_frame(pair: tuple[str, str]) -> tuple[float, str]:
    """Return a sort key: numeric keyframes in order, then formulas."""
    key, _ = pair
    return (float(key), "") if key.strip().isdigit() else (float("inf"), key)
