"""Settings files by other programs: the notebook's, hosted ones', deforum-studio's, wrapped ones.

The result always has Deforum 3.0's keys, with prompts joined. Sources: Deforum for A1111 3.0
(`settings.py`), the notebook 0.7.1 (`helpers/prompts.py`, `helpers/settings.py`), deforum-studio's
settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from inference.deforum.settings.keys import KEYS
from inference.runtime import InputError

RENAMED = {
    "width": "W",
    "height": "H",
    "enable_schedule_samplers": "enable_sampler_scheduling",
    "sampler_name": "sampler",
    "scale": "cfg_scale_schedule",
    "cfg_scale": "cfg_scale_schedule",
    "guidance_scale": "cfg_scale_schedule",
    "num_inference_steps": "steps",
    "fov": "fov_schedule",
    "near_plane": "near_schedule",
    "far_plane": "far_schedule",
    "animation_prompts": "prompts",
}
"""Key of another dialect -> Deforum 3.0's."""

SCHEDULERS = {
    "normal": "Normal", "sgm_uniform": "SGM Uniform", "ddim_uniform": "DDIM",
    "kl_optimal": "KL Optimal", "ays": "Align Your Steps",
}  # fmt: skip
"""ComfyUI's names of schedule types that differ by more than capitals."""

NOTEBOOK = ("animation_prompts", "scale", "interpolate_key_frames", "n_batch", "clip_name")
"""Keys that only files of the notebook, and of the hosted programs built on it, have."""

NOTEBOOKS_OWN = {
    "noise_type": "uniform",
    "enable_noise_multiplier_scheduling": False,
    "amount_schedule": "0: (0.2)",
}
"""What the notebook does where its files cannot say, or do not say, anything else."""

OLD_UNIT = re.compile(r"controlnet_(?:(\d)_)?(\w+)")
OLD_UNIT_KEYS = {"lowvram": "low_vram"}
"""Keys of the one ControlNet unit that Deforum had in the beginning."""

KEYED = re.compile(r"\s*0+\s*:")
NEXT_KEY = re.compile(r"\|(?=\s*\d+\s*:)")
"""`0: a cat | 50: a dog`, the prompts of hosted programs, begin at frame 0."""

WRAPPERS = ("input", "settings", "deforum_settings")
BORDERS = {"warp": "wrap"}
"""A typo that was copied from file to file."""

TEXT_FRAMES = 20
"""Default of the notebook's `interpolate_x_frames`."""


def translate(raw: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the settings of any dialect in Deforum 3.0's keys; add the changes to `notes`.

    Raises:
        InputError: several settings in one file; invalid prompts.
    """
    settings = unwrap(raw)
    notebooks_own(settings, notes)
    rename(settings, notes)
    for name in ("prompts", "neg_prompts"):
        keyed_text(settings, name, notes)
    if isinstance(border := settings.get("border"), str) and border in BORDERS:
        settings["border"] = BORDERS[border]
        notes.append(f"border: {border!r} is read as {BORDERS[border]!r}")
    if "scheduler" in settings:
        kind = settings.pop("scheduler")
        settings.setdefault("schedule_type", SCHEDULERS.get(str(kind).casefold(), kind))
        notes.append(f"scheduler is read as schedule_type {settings['schedule_type']!r}")
    interpolation(settings, notes)
    join_prompts(settings, notes)
    return settings


def unwrap(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings inside `{"input": {"settings": …}}` and the API's `deforum_settings`.

    Raises:
        InputError: there are several.
    """
    settings: Any = raw
    for _ in range(len(WRAPPERS) + 1):
        inner = [name for name in WRAPPERS if isinstance(settings.get(name), Mapping | list)]
        if not inner or any(name in KEYS for name in settings):
            break
        settings = settings[inner[0]]
        if isinstance(settings, list):
            if len(settings) != 1 or not isinstance(settings[0], Mapping):
                raise InputError(
                    f"{inner[0]}: holds {len(settings)} settings; expected one in a file"
                )
            settings = settings[0]
    return {str(name): value for name, value in settings.items()}


def notebooks_own(settings: dict[str, Any], notes: list[str]) -> None:
    """Set what the notebook does and its files do not say."""
    if not any(key in settings for key in NOTEBOOK):
        return
    added = {key: value for key, value in NOTEBOOKS_OWN.items() if key not in settings}
    settings |= added
    if added:
        shown = ", ".join(f"{key} {json.dumps(value)}" for key, value in added.items())
        notes.append(f"a file of the notebook: as there, {shown}")


def keyed_text(settings: dict[str, Any], name: str, notes: list[str]) -> None:
    """Divide a text of prompts with frames, `0: a cat | 50: a dog`."""
    text = settings.get(name)
    if not isinstance(text, str) or not KEYED.match(text):
        return
    parts = [part.partition(":") for part in NEXT_KEY.split(text)]
    settings[name] = {frame.strip(): words.strip() for frame, _, words in parts}
    notes.append(f"{name}: read as {len(parts)} prompts, `frame: text | frame: text`")


def rename(settings: dict[str, Any], notes: list[str]) -> None:
    """Rename keys of other dialects; if both exist, Deforum 3.0's wins."""
    if isinstance(settings.get("prompts"), list) and "animation_prompts" in settings:
        # In the notebook, `prompts` are those of still images.
        unused = "animation_prompts" if settings.get("animation_mode") == "None" else "prompts"
        del settings[unused]
    names = dict(RENAMED)
    for name in settings:
        short = name.replace("hybrid_video_", "hybrid_", 1)
        if name not in KEYS and short != name and short in KEYS:
            names[name] = short
        if unit := OLD_UNIT.fullmatch(name):
            key = f"cn_{unit[1] or 1}_{OLD_UNIT_KEYS.get(unit[2], unit[2])}"
            if key in KEYS:
                names[name] = key
    for old, new in names.items():
        if old not in settings:
            continue
        value = settings.pop(old)
        if new in settings:
            notes.append(f"{old}: ignored, as {new} is also set")
            continue
        settings[new] = value
        notes.append(f"{old} is read as {new}")


def interpolation(settings: dict[str, Any], notes: list[str]) -> None:
    """Convert the notebook's interpolation: of embeddings, between keyframes or evenly spaced."""
    by_keys = settings.pop("interpolate_key_frames", None)
    distance = settings.pop("interpolate_x_frames", TEXT_FRAMES)
    if by_keys is None or settings.get("animation_mode") != "Interpolation":
        return
    settings.setdefault("interpolation_blend", "embedding")
    notes.append("interpolate_key_frames: embeddings are blended, as in the notebook")
    prompts = settings.get("prompts")
    if by_keys or not isinstance(prompts, Mapping) or isinstance(distance, bool):
        return
    if not isinstance(distance, int | float) or distance < 1:
        raise InputError(f"interpolate_x_frames: expected a number from 1 on, got {distance!r}")
    steps = int(distance)
    settings["prompts"] = {str(n * steps): text for n, text in enumerate(prompts.values())}
    settings["max_frames"] = max(1, (len(prompts) - 1) * steps + 1)
    notes.append(f"interpolate_x_frames: a prompt every {steps} frames")


def join_prompts(settings: dict[str, Any], notes: list[str]) -> None:
    """Join the texts for all prompts, and separate negative prompts, to each prompt.

    Files saved by a run contain prompts that are already joined; they lack the key
    `animation_prompts_positive`.

    Raises:
        InputError: a value is not a text.
    """
    names = ("animation_prompts_positive", "animation_prompts_negative")
    if any(name in settings for name in names):
        positive, negative = (in_all(name, settings.pop(name, "")) for name in names)
        settings["prompts"] = {
            frame: joined(positive, text, negative)
            for frame, text in as_texts("prompts", settings.get("prompts", {"0": ""})).items()
        }
        settings["positive_prompts"], settings["negative_prompts"] = positive, negative
        notes.append("animation_prompts_positive and _negative are joined to every prompt")
    if settings.get("neg_prompts"):
        prompts = as_texts("prompts", settings.get("prompts", {"0": ""}))
        settings["prompts"] = with_negatives(
            prompts, as_texts("neg_prompts", settings["neg_prompts"])
        )
        notes.append("neg_prompts are joined to the prompts")
    settings.pop("neg_prompts", None)


def in_all(name: str, value: Any) -> str:
    """Return the text for all prompts; null is an empty text.

    Raises:
        InputError: it is not a text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{name}: expected a text, got {json.dumps(value, default=str)[:60]}")
    return value


def joined(positive: str, text: str, negative: str) -> str:
    """Return a prompt between the texts for all prompts, as Deforum joins them."""
    mark = "" if "--neg" in text else "--neg"
    return f"{positive} {text} {mark} {negative.replace('--neg', '')}"


def as_texts(name: str, value: Any) -> dict[str, str]:
    """Return prompts in any form by frame.

    Raises:
        InputError: they are not prompts.
    """
    from inference.deforum.settings.coercion import coerce

    try:
        return coerce("prompts", KEYS["prompts"], value)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def with_negatives(prompts: dict[str, str], negatives: dict[str, str]) -> dict[str, str]:
    """Append the negative prompts of the same frame; each holds until the next.

    Frames of either are keyframes of both; a frame that is not a number matches only itself.
    """
    frames = [*prompts, *(frame for frame in negatives if frame not in prompts)]
    numbered = all(frame.strip().isdecimal() for frame in frames)
    if numbered:
        frames.sort(key=int)
    result: dict[str, str] = {}
    held, held_negative = next(iter(prompts.values())), next(iter(negatives.values()))
    for frame in frames:
        if not numbered and frame not in prompts:
            continue
        held, held_negative = prompts.get(frame, held), negatives.get(frame, held_negative)
        mark = " " if "--neg" in held else " --neg "
        result[frame] = f"{held}{mark}{held_negative}" if held_negative.strip() else held
    return result


RENAMED_TODAY = {
    "flip_2d_perspective": "enable_perspective_flip",
    "skip_video_for_run_all": "skip_video_creation",
}
DROPPED = ("histogram_matching",)

COLORS = {f"match frame 0 {space}": space.upper() for space in ("hsv", "lab", "rgb")}
FLOWS = {"false": "None", "true": "DIS Fine"}
FITS = {
    "envelope (outer fit)": "Outer Fit (Shrink to Fit)",
    "scale to fit (inner fit)": "Inner Fit (Scale to Fit)",
}

VALUES: dict[str, dict[str, str]] = {
    "color_coherence": COLORS,
    "hybrid_composite": {"false": "None", "true": "Normal"},
    "optical_flow_cadence": FLOWS,
    "optical_flow_redo_generation": FLOWS,
    "add_soundtrack": {"false": "None", "true": "File"},
    **{f"cn_{unit}_resize_mode": FITS for unit in range(1, 6)},
}
"""Key -> old value in lower case -> current value."""

DEPTHS = {True: "Zoe+AdaBins (old)", False: "Midas+AdaBins (old)"}


def migrate(settings: dict[str, Any], notes: list[str], is_file: bool) -> None:
    """Rename old keys and values in place; add the changes to `notes`.

    Args:
        settings: the settings, in Deforum's dialect.
        notes: list that the changes are added to.
        is_file: a file that Deforum wrote; without `legacy_colormatch` it dates from a time when
            that was the only method.
    """
    for old, new in RENAMED_TODAY.items():
        if old in settings:
            value = settings.pop(old)
            settings.setdefault(new, value)
            notes.append(f"{old} is now called {new}")
    for old in DROPPED:
        if old in settings:
            del settings[old]
            notes.append(f"{old} has no meaning any more")
    for key, values in VALUES.items():
        value = settings.get(key)
        if not isinstance(value, bool | str):
            continue
        today = values.get(str(value).strip().casefold())
        if today is not None:
            settings[key] = today
            notes.append(f"{key}: {value!r} is now called {today!r}")
    if "use_zoe_depth" in settings:
        value = settings.pop("use_zoe_depth")
        algorithm = DEPTHS[str(value).casefold() in ("true", "1")]
        settings.setdefault("depth_algorithm", algorithm)
        notes.append(f"use_zoe_depth: {value!r} is now called depth_algorithm {algorithm!r}")
    if is_file and "legacy_colormatch" not in settings:
        settings["legacy_colormatch"] = True
        notes.append("legacy_colormatch: on, as in all files older than this setting")
