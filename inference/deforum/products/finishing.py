"""What is made of an animation's frames: video, GIF, subtitles, contact sheet, figures."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from inference.deforum.geometry import (
    Camera,
    Temporal,
    TemporalMeter,
    expected_by_flow,
    smooth_frames,
    visible_2d,
    visible_3d,
    warp_matrix,
)
from inference.deforum.products.run_folder import RunFolder, save_png
from inference.deforum.products.stitching import contact_sheet
from inference.deforum.products.subtitles import (
    FIELDS,
    PROMPT,
    chosen_fields,
    subtitle_text,
    subtitles,
)
from inference.deforum.settings import FIXED
from inference.files import write_atomically
from inference.images import image_upscaler, scale_to
from inference.media import has_sound, read_pictures, write_gif, write_mp4
from inference.runtime import DrawWarning, InputError

if TYPE_CHECKING:
    from inference.config import AnimationRecipe
    from inference.deforum.loop import Depths, State
    from inference.deforum.schedules import Script

Say = Callable[[str], None]


def finish(
    script: Script,
    run: RunFolder,
    recipe: AnimationRecipe,
    state: State,
    say: Say,
    depths: Depths | None = None,
) -> None:
    """Makes what the settings ask for of the frames in a folder, and tells the paths.

    Raises:
        InputError: sound cannot be read.
    """
    Products(script, run, recipe, say, state).make()
    if script["animation_mode"] != "None" and len(run.frames()) > 1:
        say(figures(script, run, depths).summary())
    clean_up(script, run)


@dataclass
class Products:
    """The files made of a run's frames."""

    script: Script
    run: RunFolder
    recipe: AnimationRecipe
    say: Say
    state: State

    def make(self) -> None:
        """Makes all of them."""
        frames = self.run.frames()[: self.script.max_frames]
        self.say(f"frames: {len(frames)} in {self.run.path}")
        texts = self.texts(len(frames)) if self.recipe.subtitles else []
        if texts:
            path = self.run.file(".srt")
            told = subtitles(texts, self.script["fps"])
            write_atomically(path, lambda file: file.write_text(told, encoding="utf-8"))
        if self.recipe.contact_sheet and frames:
            path = self.run.file("_sheet.png")
            save_png(path, np.asarray(contact_sheet(frames)))
            self.say(f"sheet:  {path}")
        if self.script["make_gif"]:
            path = self.run.file(".gif")
            write_gif(path, read_pictures(frames), self.script["fps"])
            self.say(f"gif:    {path}")
        if self.script["skip_video_creation"] or self.script["animation_mode"] == "None":
            return
        embedded = texts if self.recipe.embed_subtitles else []
        self.video(self.run.file(".mp4"), read_pictures(frames), embedded)
        self.further(frames)

    def video(
        self,
        path: Path,
        pictures: Iterator[np.ndarray],
        texts: list[str],
        fps: float | None = None,
        is_heard: bool = True,
    ) -> None:
        """Writes a video, with sound where that is asked for."""
        write_mp4(
            path,
            pictures,
            fps or self.script["fps"],
            crf=self.recipe.crf,
            preset=self.recipe.preset,
            sound=self.sound() if is_heard else None,
            subtitles=texts,
        )
        self.say(f"video:  {path}")

    def sound(self) -> str | None:
        """The file whose sound goes along."""
        choice = self.script["add_soundtrack"]
        if choice == "None":
            return None
        path = self.script["soundtrack_path" if choice == "File" else "video_init_path"]
        if choice == "Init Video" and not has_sound(path):
            warnings.warn(
                f"add_soundtrack: {path} has no sound; the video has none",
                DrawWarning,
                stacklevel=2,
            )
            return None
        return path

    def texts(self, count: int) -> list[str]:
        """What stands under each frame."""
        script = self.script
        names = self.recipe.subtitle_fields or [*moving_fields(script), PROMPT]
        fields, seed, told = chosen_fields([*names, PROMPT]), script.seed, []
        for frame in range(count):
            drawn = str(frame) in self.state.drawn
            seed = self.state.drawn.get(str(frame), seed)
            prompt = script.prompt(frame).prompt
            values = script.schedules.at(frame)
            told.append(subtitle_text(frame, seed, values, prompt, not drawn, fields))  # type: ignore[arg-type]
        return told

    def further(self, frames: list[Path]) -> None:
        """Larger ones, and ones with frames between the frames."""
        script, larger = self.script, frames
        if script["r_upscale_video"]:
            larger = self.upscaled(frames)
        if script["frame_interpolation_engine"] == "None":
            return
        chosen = larger if script["frame_interpolation_use_upscaled"] else frames
        times = script["frame_interpolation_x_amount"]
        slow = (
            script["frame_interpolation_slow_mo_amount"]
            if script["frame_interpolation_slow_mo_enabled"]
            else 1
        )
        warnings.warn(
            f"frame_interpolation_engine: {script['frame_interpolation_engine']} needs weights; the"
            " frames between are made by optical flow",
            DrawWarning,
            stacklevel=2,
        )
        name = f"_flow_x{times}{f'_slomo_x{slow}' if slow > 1 else ''}"
        pictures = smooth_frames(read_pictures(chosen), times)
        if script["frame_interpolation_keep_imgs"]:
            pictures = kept(pictures, self.run.file(name))
        fps = script["fps"] * times / slow
        self.video(self.run.file(f"{name}.mp4"), pictures, [], fps, slow == 1)

    def upscaled(self, frames: list[Path]) -> list[Path]:
        """The frames enlarged, in a folder of their own, and the video of them."""
        script = self.script
        factor = int(str(script["r_upscale_factor"]).lstrip("x"))
        enlarge = image_upscaler(self.recipe.upscaler, "upscaler")
        size = script.width * factor, script.height * factor
        folder = self.run.file("_upscaled")
        files = [folder / path.name for path in frames]
        for path, picture in zip(files, read_pictures(frames), strict=True):
            image = scale_to(Image.fromarray(picture), *size, enlarge)
            save_png(path, np.asarray(image))
        self.video(self.run.file(f"_Upscaled_x{factor}.mp4"), read_pictures(files), [])
        used = (
            script["frame_interpolation_engine"] != "None"
            and script["frame_interpolation_use_upscaled"]
        )
        if not script["r_upscale_keep_imgs"] and not used:
            shutil.rmtree(folder)
        return files


def check_products(script: Script, recipe: AnimationRecipe) -> None:
    """Refuses before frame 0 what could not be made after the last one.

    Raises:
        InputError: an upscaler or a field of subtitles is not known, or there is no sound.
    """
    chosen_fields(recipe.subtitle_fields)
    if script["r_upscale_video"] and not script["skip_video_creation"]:
        image_upscaler(recipe.upscaler, "upscaler")
    path = script["soundtrack_path"]
    is_asked = script["add_soundtrack"] == "File" and not script["skip_video_creation"]
    if is_asked and not has_sound(path):
        raise InputError(f"soundtrack_path: {path!r} cannot be read, or has no sound in it")


def moving_fields(script: Script) -> list[str]:
    """The schedules that change, of those that subtitles can tell, and are read."""
    unread = {"near_schedule", "far_schedule", "seed_schedule", "pix2pix_img_cfg_scale_schedule"}
    names = [name for name in script.schedules.computed if name in FIELDS and name not in unread]
    return [name for name in names if len(set(script.schedules[name])) > 1]


def kept(pictures: Iterator[np.ndarray], folder: Path) -> Iterator[np.ndarray]:
    """The pictures, each saved as it goes by."""
    for number, picture in enumerate(pictures):
        save_png(folder / f"{number:09}.png", picture)
        yield picture


def figures(script: Script, run: RunFolder, depths: Depths | None = None) -> Temporal:
    """How steady the frames are (see `metrics`).

    They are held against the camera's exact way, also where Deforum 3.0 strays from it, sampled as
    the run samples; where a video moves them too, against the optical flow.
    """
    meter, camera, before = TemporalMeter(), Camera(script, FIXED), None
    is_known = script.has_feedback and (not script.is_hybrid or script["hybrid_motion"] == "None")
    for frame, picture in enumerate(read_pictures(run.frames()[: script.max_frames])):
        expected = visible = None
        if before is not None and is_known:
            size = script.width, script.height
            flip = camera.flip(frame)
            z = None
            if camera.is_3d:
                if depths is not None and depths.warps and depths.estimator is not None:
                    z = depths.estimator.distances(before)
                visible = visible_3d(camera.motion_3d(frame), *size, z)
            else:
                matrix = warp_matrix(camera.motion_2d(frame), *size, flip, FIXED)
                visible = visible_2d(matrix, *size)
            expected = camera.move(before, frame, z)
        elif before is not None and (
            script.has_feedback or script["animation_mode"] == "Video Input"
        ):
            expected, visible = expected_by_flow(before, picture)
        meter.add(picture, expected, visible)
        before = picture
    return meter.figures()


def clean_up(script: Script, run: RunFolder) -> None:
    """Takes away what the settings do not want to keep."""
    if script["delete_imgs"] and not script["skip_video_creation"]:
        for path in run.frames():
            path.unlink()
        run.state.unlink(missing_ok=True)
    if script["delete_input_frames"] and script.video is not None:
        script.video.remove()
