"""Parseq: every frame's values from a manifest, instead of schedules.

The manifest is that of sd-parseq, `{"options": {…}, "rendered_frames": [{"frame": 0, "zoom": 1, …},
…]}`, read like Deforum for A1111 3.0 (`parseq_adapter.py`). A field comes from the manifest if its
first frame has it. Manifests are read from the setting or from a file, never from the network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.deforum.settings.keys import INT_SCHEDULES, KEYS, SCHEDULE, TEXT_SCHEDULES
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.deforum.settings.settings import Settings

MOTION = (
    "angle", "zoom", "translation_x", "translation_y", "translation_z", "rotation_3d_x",
    "rotation_3d_y", "rotation_3d_z", "perspective_flip_theta", "perspective_flip_phi",
    "perspective_flip_gamma",
)  # fmt: skip
"""Keys whose field ends in `_delta` with `parseq_use_deltas`: Parseq's values are cumulative."""

FIELDS = {
    "cfg_scale_schedule": ("scale", "cfg_scale"),
    "kernel_schedule": ("antiblur_kernel",),
    "sigma_schedule": ("antiblur_sigma",),
    "amount_schedule": ("antiblur_amount",),
    "threshold_schedule": ("antiblur_threshold",),
    "image_strength_schedule": ("strength",),
    "blendFactorMax": ("guided_blendFactorMax",),
    "blendFactorSlope": ("guided_blendFactorSlope",),
    "tweening_frames_schedule": ("guided_tweening_frames",),
    "color_correction_factor": ("guided_color_correction_factor",),
}
"""Key -> its fields, if they are not the key without `_schedule`."""

PROMPT = "deforum_prompt"


def field_names(key: str, use_deltas: bool) -> tuple[str, ...]:
    """Return the fields of a manifest that a key can come from, in order of priority."""
    if key in MOTION:
        return (f"{key}_delta",) if use_deltas else (key,)
    return *FIELDS.get(key, ()), key.removesuffix("_schedule"), key


def with_manifest(settings: Settings) -> Settings:
    """Return the settings with those that a manifest sets: frames, fps, cadence, switches.

    Raises:
        InputError: the manifest cannot be read.
    """
    manifest = open_manifest(settings)
    if manifest is None:
        return settings
    frames, options = frames_of(manifest), manifest.get("options", {})
    changes: dict[str, Any] = {}
    if settings["parseq_non_schedule_overrides"]:
        changes["max_frames"] = max(frame["frame"] for frame in frames) + 1
        names = {"fps": "output_fps", "diffusion_cadence": "cadence"}
        if isinstance(options, Mapping):
            changes |= {k: options[n] for k, n in names.items() if options.get(n) is not None}
    if "seed" in frames[0]:
        changes |= {"seed_behavior": "schedule", "enable_subseed_scheduling": True}
    flips = (f for key in MOTION if key.startswith("persp") for f in field_names(key, True))
    if any(frame.get(name) for name in flips for frame in frames):
        changes["enable_perspective_flip"] = True
    try:
        changed = settings.replace(**changes)
    except InputError as error:
        raise InputError(f"parseq_manifest: {error}") from None
    for key in changes:
        if changed[key] != settings[key]:
            changed.notes.append(f"{key}: {changed[key]!r}, by the Parseq manifest")
    return changed


def managed_values(settings: Settings) -> dict[str, list[Any]]:
    """Return schedule key -> its value at each frame, for the fields in the manifest.

    Raises:
        InputError: the manifest cannot be read, or a value is not a number.
    """
    manifest = open_manifest(settings)
    if manifest is None:
        return {}
    frames, count = frames_of(manifest), settings["max_frames"]
    found: dict[str, list[Any]] = {}
    for key, about in KEYS.items():
        names = field_names(key, settings["parseq_use_deltas"])
        name = next((one for one in names if frames[0].get(one) is not None), None)
        if about.kind != SCHEDULE or name is None:
            continue
        kind = "text" if key in TEXT_SCHEDULES else "number"
        values = series(frames, name, count, kind)
        found[key] = [int(value) for value in values] if key in INT_SCHEDULES else values
    return found


def managed_prompts(settings: Settings) -> list[str] | None:
    """Return the prompt of each frame, including `--neg`; None if the manifest has none.

    Raises:
        InputError: the manifest cannot be read, or a prompt is not a text.
    """
    manifest = open_manifest(settings)
    if manifest is None or frames_of(manifest)[0].get(PROMPT) is None:
        return None
    return series(frames_of(manifest), PROMPT, settings["max_frames"], "text")


def series(frames: list[dict[str, Any]], name: str, count: int, kind: str) -> list[Any]:
    """Return a field at each frame; missing values repeat the previous one."""
    values: list[Any] = [None] * count
    for frame in frames:
        value = frame.get(name)
        if value is None or frame["frame"] >= count:
            continue
        if kind == "text":
            fits = isinstance(value, str)
        else:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            fits = fits and abs(value) < 1e300 and not math.isnan(value)
        if not fits:
            place = f"parseq_manifest, frame {frame['frame']}, {name}"
            raise InputError(f"{place}: expected a {kind}, got {str(value)[:60]!r}")
        values[frame["frame"]] = value if kind == "text" else float(value)
    held = next((value for value in values if value is not None), frames[0].get(name))
    for place, value in enumerate(values):
        held = held if value is None else value
        values[place] = held
    return values


def open_manifest(settings: Settings) -> dict[str, Any] | None:
    """Return the manifest; None if there is none.

    Raises:
        InputError: it is on the network, cannot be read or is not a manifest.
    """
    given = (settings["parseq_manifest"] or "").strip()
    if not given:
        return None
    if given.startswith(("http://", "https://")):
        raise InputError(
            f"parseq_manifest: {given[:80]} is not downloaded; save it and give the file's path"
        )
    text = given
    if not given.startswith("{"):
        near = Path(settings.source).parent / given if settings.source else Path(given)
        path = near if near.is_file() else Path(given)
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or error
            raise InputError(
                f"parseq_manifest: expected JSON or a file; {given[:80]!r} cannot be read: {why}"
            ) from None
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"parseq_manifest: is not JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise InputError("parseq_manifest: expected an object with rendered_frames")
    return manifest


def frames_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the manifest's frames, in order.

    Raises:
        InputError: there are none, or one has no number.
    """
    frames = manifest.get("rendered_frames")
    if not isinstance(frames, list) or not frames:
        raise InputError("parseq_manifest: expected rendered_frames with at least one frame")
    for place, frame in enumerate(frames):
        number = frame.get("frame") if isinstance(frame, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise InputError(
                f"parseq_manifest: rendered_frames[{place}] has no frame, a number from 0 on"
            )
    return sorted(frames, key=lambda frame: frame["frame"])
