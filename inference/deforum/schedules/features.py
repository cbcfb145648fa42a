"""Features that the settings switch on, and unsupported ones; known before the first frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.deforum.settings import KEYS, KOHYA
from inference.recipe import at_home
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.deforum.schedules.schedule_table import Schedules
    from inference.deforum.settings import Settings

Faults = Iterator[tuple[str, str]]

MOVING = ("2D", "3D")
"""Modes in which each frame starts from the previous one."""

FEATURES: dict[str, Callable[[Settings], bool]] = {
    "init image": lambda s: s["use_init"],
    "mask": lambda s: s["use_mask"] or s["use_mask_video"],
    "noise mask": lambda s: s["use_noise_mask"] and s["animation_mode"] in MOVING,
    "perspective flip": lambda s: s["enable_perspective_flip"] and s["animation_mode"] in MOVING,
    "cadence": lambda s: s["diffusion_cadence"] > 1 and s["animation_mode"] in MOVING,
    "optical flow cadence": lambda s: uses_flow_cadence(s),
    "optical flow redo": lambda s: (
        s["optical_flow_redo_generation"] != "None" and s["animation_mode"] in MOVING
    ),
    "diffusion redo": lambda s: s["diffusion_redo"] > 0 and s["animation_mode"] in MOVING,
    "colour coherence": lambda s: s["color_coherence"] != "None" and s["animation_mode"] in MOVING,
    "grayscale": lambda s: s["color_force_grayscale"],
    "depth warping": lambda s: s["use_depth_warping"] and s["animation_mode"] == "3D",
    "hybrid composite": lambda s: s["hybrid_composite"] != "None",
    "hybrid motion": lambda s: s["hybrid_motion"] != "None",
    "guided images": lambda s: is_guided(s),
    "Parseq": lambda s: bool(s["parseq_manifest"]),
    "subseeds": lambda s: s["enable_subseed_scheduling"],
    "steps schedule": lambda s: s["enable_steps_scheduling"],
    "sampler schedule": lambda s: s["enable_sampler_scheduling"],
    "checkpoint schedule": lambda s: s["enable_checkpoint_scheduling"],
    "clip skip schedule": lambda s: s["enable_clipskip_scheduling"],
    "noise multiplier schedule": lambda s: s["enable_noise_multiplier_scheduling"],
    "DDIM eta schedule": lambda s: s["enable_ddim_eta_scheduling"],
    "ancestral eta schedule": lambda s: s["enable_ancestral_eta_scheduling"],
    "network strength schedules": lambda s: bool(s["network_schedules"]),
    "FreeU": lambda s: s["freeu_enabled"],
    "tracked mask": lambda s: follows_something(s),
    "tiling": lambda s: s["tiling"],
    "face restoration": lambda s: s["restore_faces"],
    "motion preview": lambda s: s["motion_preview_mode"],
    "keyframe distribution": lambda s: s["keyframe_distribution"] != "Off",
    "sound in schedules": lambda s: bool(s["audio_path"]),
    "soundtrack": lambda s: s["add_soundtrack"] != "None" and not s["skip_video_creation"],
    "GIF": lambda s: s["make_gif"],
    "video": lambda s: not s["skip_video_creation"],
}
"""Feature -> whether it is switched on and has an effect."""

POSITIVE = "must be above 0"
ANGLE = "must lie between 0 and 180"
BOUNDS: dict[str, tuple[Callable[[Settings], bool], Callable[[float], bool], str]] = {
    "steps_schedule": (lambda s: s["enable_steps_scheduling"], lambda v: v >= 1, "must be from 1"),
    "clipskip_schedule": (
        lambda s: s["enable_clipskip_scheduling"], lambda v: v >= 1, "must be from 1",
    ),
    "zoom": (lambda s: s["animation_mode"] == "2D", lambda v: v > 0, POSITIVE),
    "fov_schedule": (lambda s: s["animation_mode"] == "3D", lambda v: 0 < v < 180, ANGLE),
    "aspect_ratio_schedule": (
        lambda s: s["animation_mode"] == "3D" and not s["aspect_ratio_use_old_formula"],
        lambda v: v > 0, POSITIVE,
    ),
    "perspective_flip_fv": (
        lambda s: s["enable_perspective_flip"] and s["animation_mode"] in MOVING,
        lambda v: 0 < v < 180, ANGLE,
    ),
    "tweening_frames_schedule": (lambda s: is_guided(s), lambda v: v > 0, POSITIVE),
    "seed_schedule": (
        lambda s: s["seed_behavior"] == "schedule" or is_guided(s),
        lambda v: v < 2**63, "must be below 2^63",
    ),
    "subseed_schedule": (
        lambda s: s["enable_subseed_scheduling"], lambda v: v < 2**63, "must be below 2^63",
    ),
    "noise_multiplier_schedule": (
        lambda s: s["enable_noise_multiplier_scheduling"], lambda v: v >= 0, "must be from 0",
    ),
}  # fmt: skip
"""Schedule -> when it is read, the condition on its values, and how to describe it."""

FILES: dict[str, Callable[[Settings], bool]] = {
    "init_image": lambda s: s["use_init"] and not is_guided(s),
    "mask_file": lambda s: s["use_mask"] and not (s["use_alpha_as_mask"] or s["use_mask_video"]),
    "video_init_path": lambda s: reads_video(s),
    "video_mask_path": lambda s: s["use_mask_video"],
    "soundtrack_path": lambda s: s["add_soundtrack"] == "File" and not s["skip_video_creation"],
    "color_coherence_image_path": lambda s: (
        s["color_coherence"] == "Image" and s["animation_mode"] in MOVING
    ),
    "audio_path": lambda s: bool(s["audio_path"]),
    "tracked_mask": lambda s: follows_something(s) and not s["tracked_box"],
}
"""Path -> whether its file is read."""


def check(settings: Settings, schedules: Schedules) -> None:
    """Reject settings that cannot be generated, with all errors at once.

    Raises:
        InputError: a feature that is on is not supported, a file is missing, or a schedule's value
            is out of range.
    """
    found = [f"{key}: {message}" for key, message in faults(settings, schedules)]
    if found:
        where = f"{settings.source}: " if settings.source else ""
        raise InputError("\n".join(f"{where}{line}" for line in found))


def faults(settings: Settings, schedules: Schedules) -> Faults:
    """Yield (key, message) for everything that is switched on and not possible."""
    yield from unsupported(settings)
    for key, is_read in FILES.items():
        if is_read(settings):
            yield from file_faults(key, settings[key])
    if follows_something(settings) and len(settings["tracked_box"]) not in (0, 4):
        yield "tracked_box", f"expected [left, top, width, height], got {settings['tracked_box']}"
    if is_guided(settings):
        yield from looper_faults(settings["init_images"])
    for key, (is_read, fits, message) in BOUNDS.items():
        if not is_read(settings):
            continue
        values = schedules[key]
        bad = next((frame for frame, value in enumerate(values) if not fits(value)), None)
        if bad is not None:
            yield f"{key}, frame {bad}", f"{message}, got {values[bad]:g}"
    if settings["animation_mode"] in MOVING:
        yield from anti_blur_faults(schedules)


def anti_blur_faults(schedules: Schedules) -> Faults:
    """Yield the frames at which the anti-blur is on and its kernel has no size."""
    sizes = zip(schedules["kernel_schedule"], schedules["amount_schedule"], strict=True)
    bad = next((frame for frame, (size, on) in enumerate(sizes) if on and size < 1), None)
    if bad is not None:
        size = schedules["kernel_schedule"][bad]
        yield (
            f"kernel_schedule, frame {bad}",
            f"{size} is not a valid blur size; take 1, 3, 5 … pixels",
        )


def unsupported(settings: Settings) -> Faults:
    """Yield what Limner does not support."""
    for unit in range(1, 6):
        if settings[f"cn_{unit}_enabled"]:
            yield f"cn_{unit}_enabled", "ControlNet units are not supported yet; set it to false"
    flows = {
        "optical_flow_cadence": uses_flow_cadence(settings),
        "optical_flow_redo_generation": settings["animation_mode"] in MOVING,
        "hybrid_flow_method": settings["hybrid_motion"] == "Optical Flow",
    }
    for key, is_used in flows.items():
        if is_used and settings[key] == "RAFT":
            yield key, "RAFT needs torchvision, which Limner does not use; take DIS Fine"
    if settings["hybrid_generate_human_masks"] != "None" and reads_video(settings):
        yield (
            "hybrid_generate_human_masks",
            "is not supported; give a mask video, or set it to None",
        )
    if settings["kohya_hrfix_enabled"]:
        named = ", ".join(KOHYA)
        yield "kohya_hrfix_enabled", f"is not supported; set it to false (with it go {named})"


def file_faults(key: str, path: str) -> Faults:
    """Yield the error in the path of a file that is read."""
    if not path:
        yield key, "is empty; give the path of a file"
    elif path.startswith(("http://", "https://")):
        yield key, f"{path} is not downloaded; save it and give the file's path"
    elif "\0" in path or not Path(at_home(path)).exists():
        yield key, f"there is no file {path!r}"


def looper_faults(text: str) -> Faults:
    """Yield the errors in the images of guided images."""
    try:
        pictures = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield "init_images", f"is not JSON: {error}"
        return
    if not isinstance(pictures, Mapping) or not pictures:
        yield "init_images", 'expected frames and files, {"0": "a.png", "max_f": "b.png"}'
        return
    for frame, path in pictures.items():
        yield from file_faults(f"init_images, frame {frame!r}", path if is_text(path) else "")


def is_text(value: Any) -> bool:
    """Return whether a value is a text."""
    return isinstance(value, str)


def uses_flow_cadence(settings: Settings) -> bool:
    """Return whether frames between diffused ones follow an optical flow."""
    return (
        settings["optical_flow_cadence"] != "None"
        and settings["diffusion_cadence"] > 1
        and settings["animation_mode"] in MOVING
    )


def is_guided(settings: Settings) -> bool:
    """Return whether guided images are on."""
    return settings["use_looper"] and settings["animation_mode"] in MOVING


def follows_something(settings: Settings) -> bool:
    """Return whether a mask that is on contains `{tracked}`."""
    masks = {"use_mask": "mask_schedule", "use_noise_mask": "noise_mask_schedule"}
    return any(settings[on] and "{tracked}" in settings[key] for on, key in masks.items())


def reads_video(settings: Settings) -> bool:
    """Return whether the frames of `video_init_path` are needed."""
    moving = settings["animation_mode"] in MOVING
    is_hybrid = settings["hybrid_composite"] != "None" or settings["hybrid_motion"] != "None"
    takes_sound = settings["add_soundtrack"] == "Init Video" and not settings["skip_video_creation"]
    return (
        settings["animation_mode"] == "Video Input"
        or follows_something(settings)
        or (moving and is_hybrid)
        or takes_sound
    )


def switched_on(settings: Settings) -> list[str]:
    """Return the features that are on."""
    return [name for name, is_on in FEATURES.items() if is_on(settings)]


def only_moving(settings: Settings) -> list[str]:
    """Return the keys that are set, but used only if frames start from the previous one."""
    methods = "hybrid_composite", "hybrid_motion", "optical_flow_redo_generation"
    switches = "enable_perspective_flip", "diffusion_redo", "use_looper"
    named = [key for key in methods if settings[key] != "None"]
    return named + [key for key in switches if settings[key]]


def without_effect(settings: Settings) -> list[str]:
    """Return a line for each setting that has no effect, with the reason."""
    found = [*_mode_notes(settings), *_output_notes(settings), *_motion_notes(settings)]
    for key in ("near_schedule", "far_schedule"):
        if settings[key] != KEYS[key].default:
            found.append(f"{key}: has no effect, as in Deforum")
    for key in ("W", "H"):
        if settings[key] % 8:
            found.append(f"{key}: {settings[key]} is drawn as {settings[key] // 8 * 8}")
    return found


def _mode_notes(settings: Settings) -> Iterator[str]:
    """Yield the settings without effect in the animation mode."""
    mode = settings["animation_mode"]
    if mode in MOVING:
        return
    for key in only_moving(settings):
        yield f"{key}: has no effect in mode {mode}"
    if settings["diffusion_cadence"] > 1 and mode == "Video Input":
        yield "diffusion_cadence: is 1 in mode Video Input"


def _output_notes(settings: Settings) -> Iterator[str]:
    """Yield the output settings without effect."""
    if settings["r_upscale_video"] and not settings["skip_video_creation"]:
        yield (
            f"r_upscale_model: {settings['r_upscale_model']} is not available; the recipe's "
            "upscaler is used instead"
        )
    is_hybrid = settings["hybrid_composite"] != "None" or settings["hybrid_motion"] != "None"
    if settings["hybrid_generate_inputframes"] and not is_hybrid:
        yield "hybrid_generate_inputframes: has no effect without hybrid_composite or hybrid_motion"
    if settings["hybrid_comp_save_extra_frames"]:
        yield "hybrid_comp_save_extra_frames: the composites' parts are not saved"
    if settings["store_frames_in_ram"]:
        yield "store_frames_in_ram: every frame is saved as it is drawn"


def _motion_notes(settings: Settings) -> Iterator[str]:
    """Yield the settings of motion and colour without effect."""
    mode = settings["animation_mode"]
    if settings["optical_flow_cadence"] != "None" and not uses_flow_cadence(settings):
        yield "optical_flow_cadence: has no effect without cadence"
    if (
        settings["color_coherence"] == "Video Input"
        and mode in MOVING
        and not reads_video(settings)
    ):
        yield "color_coherence: Video Input has no effect without hybrid video"
    if mode == "3D" and settings["use_depth_warping"] and not settings["depth_model"]:
        yield "use_depth_warping: has no effect without a depth_model"
