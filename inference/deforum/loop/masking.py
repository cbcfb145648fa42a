"""Which parts of a frame change: masks from files, alpha, videos, expressions, and tracking."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from inference.deforum.geometry import Pixels, box_mask, composite, to_bytes, track_mask
from inference.deforum.pictures import (
    MaskSources,
    alpha_mask,
    compose_mask,
    is_blank,
    parse_mask,
    prepare_mask,
)
from inference.deforum.schedules import VideoFrames, open_alpha_picture
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.deforum.pictures import WordMasks
    from inference.deforum.schedules import Script

Mask = np.ndarray
"""uint8 (h, w): 255 changes, 0 stays."""


class FrameMasks:
    """The masks of an animation's frames.

    Args:
        script: the animation.
        video: the frames of the input video, if there is one.
        words: finds what words name, if there is a model for it.

    Raises:
        InputError: a mask cannot be opened, or an expression is invalid.
    """

    def __init__(
        self, script: Script, video: VideoFrames | None, words: WordMasks | None = None
    ) -> None:
        self.script = script
        self.video = video
        self.words = words
        self.size = script.width, script.height
        self.is_on = bool(script["use_mask"] or script["use_mask_video"])
        self.file = self.open_file() if self.is_on and not script["use_mask_video"] else None
        self.mask_video: VideoFrames | None = None
        if script["use_mask_video"]:
            self.mask_video = script.open_video("video_mask_path", "maskframes")
        self.tracked = self.track() if self.uses("tracked") else []
        self.check()
        self.init = script.init_picture()

    def uses(self, name: str) -> bool:
        """Return whether an expression that is switched on refers to a named mask."""
        return any(
            leaf.operator == "name" and leaf.text.strip() == name
            for key in self.switched_on
            for text in dict.fromkeys(self.script.texts(key))
            for leaf in parse_mask(text, key).leaves()
        )

    def check(self) -> None:
        """Reject missing files and names in expressions, before frame 0."""
        blank = np.zeros(self.size[::-1], np.uint8)
        names = ["video_mask"] if self.file is not None or self.mask_video is not None else []
        names += ["tracked"] if self.tracked else []
        named = dict.fromkeys(names, blank)
        find = None if self.words is None else lambda words: blank
        for key in self.switched_on:
            texts = self.script.texts(key)
            for text in dict.fromkeys(texts):
                term = parse_mask(text, key)
                try:
                    compose_mask(term, MaskSources(*self.size, named, find))
                except InputError as error:
                    raise InputError(f"{key}, frame {texts.index(text)}: {error}") from None

    @property
    def switched_on(self) -> list[str]:
        """Return the mask schedules that are used."""
        keys = ["mask_schedule"] if self.is_on else []
        return keys + (["noise_mask_schedule"] if self.script["use_noise_mask"] else [])

    def open_file(self) -> Mask:
        """Return the mask of `mask_file`, or of the init image's transparency."""
        script = self.script
        if script["use_alpha_as_mask"]:
            image = open_alpha_picture(script["init_image"], "init_image")
            found = alpha_mask(image, *self.size)
            if found is None:
                raise InputError(
                    "use_alpha_as_mask: the init image has no transparency; give mask_file"
                )
            return self.prepared(Image.fromarray(found))
        return self.prepared(open_alpha_picture(script["mask_file"], "mask_file"))

    def prepared(self, image: Image.Image) -> Mask:
        """Return a mask with the brightness, contrast and inversion of the settings."""
        script = self.script
        return prepare_mask(
            image,
            *self.size,
            script["mask_brightness_adjust"],
            script["mask_contrast_adjust"],
            script["invert_mask"],
        )

    def track(self) -> list[Mask]:
        """Return the masks of `tracked_box` or `tracked_mask`, tracked through the input video."""
        script = self.script
        if self.video is None:
            raise InputError(
                "mask {tracked}: follows something through the input video; there is none: it needs"
                " Video Input, hybrid video or a video mask, and video_init_path"
            )
        if script["tracked_mask"]:
            image = open_alpha_picture(script["tracked_mask"], "tracked_mask")
            mask = prepare_mask(image, *self.size)
        elif script["tracked_box"]:
            left, top, width, height = (*script["tracked_box"], 0, 0, 0, 0)[:4]
            mask = box_mask([left, top, left + width, top + height], *self.size)
        else:
            raise InputError("mask {tracked}: needs tracked_box or tracked_mask")
        frames = [self.video[number] for number in range(self.script.max_frames)]
        return track_mask(frames, mask, script["tracked_frame"])

    def base(self, frame: int) -> Mask | None:
        """Return the mask that `{video_mask}` stands for."""
        if self.mask_video is not None:
            return self.prepared(Image.fromarray(self.mask_video[frame]))
        return self.file

    def at(self, frame: int, picture: Pixels | None) -> Mask | None:
        """Return the mask of a frame; None means all of it.

        `picture` is the image that words are searched in.
        """
        return self.composed("mask_schedule", frame, picture) if self.is_on else None

    def noise(self, frame: int, picture: Pixels | None) -> Mask | None:
        """Return where noise is added; None means everywhere."""
        if not self.script["use_noise_mask"]:
            return None
        return self.composed("noise_mask_schedule", frame, picture)

    def composed(self, key: str, frame: int, picture: Pixels | None) -> Mask | None:
        """Return the mask of an expression; None if it is empty, as in Deforum."""
        named: dict[str, Mask] = {}
        base = self.base(frame)
        if base is not None:
            named["video_mask"] = base
        if self.tracked:
            named["tracked"] = self.tracked[min(frame, len(self.tracked) - 1)]
        words = self.words
        find: Callable[[str], Mask] | None = None
        if words is not None and picture is not None:
            find = partial(words.mask, to_bytes(picture))
        sources = MaskSources(*self.size, named, find)
        text = self.script.text(key, frame)
        mask = compose_mask(parse_mask(text, key), sources, self.script.compat)
        return None if is_blank(mask) else mask

    def original(self, frame: int) -> np.ndarray | None:
        """Return what is shown outside the mask: the video's frame, or the init image."""
        if self.video is not None and (
            self.mask_video is not None or self.script["animation_mode"] == "Video Input"
        ):
            return self.video[frame]
        return self.init

    def overlay(self, picture: Pixels, frame: int, mask: Mask | None) -> Pixels:
        """Return the image with the original's pixels outside the mask (`overlay_mask`)."""
        original = self.original(frame)
        if mask is None or original is None or not self.script["overlay_mask"]:
            return picture
        if radius := self.script["mask_overlay_blur"]:
            blurred = Image.fromarray(mask).filter(ImageFilter.GaussianBlur(radius))
            mask = np.array(blurred)
        below = original if picture.dtype == np.uint8 else original.astype(np.float32)
        return composite(picture, below, mask)
