"""The report of `--check`: what an animation will contain, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inference.deforum.products import chosen_fields
from inference.deforum.schedules import (
    FORMULA,
    MOVING,
    SCHEDULES,
    Schedules,
    Script,
    at_frames,
    diffused_frames,
    faults,
    folder_name,
    frame_names,
    frame_prompts,
    reads_video,
    switched_on,
    without_effect,
)
from inference.deforum.settings import GATES, TEXT_SCHEDULES, managed_prompts
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.config import AnimationRecipe
    from inference.deforum.settings import Settings

POINTS = 5
"""Number of frames at which schedules are shown."""

MODES = {
    "2D": ("angle", "zoom", "translation_x", "translation_y", "transform_center"),
    "3D": (
        "translation", "rotation_3d", "fov_schedule", "aspect_ratio_schedule",
    ),
}  # fmt: skip
"""Mode -> prefixes of the schedules that only it reads (some are shared)."""

FEEDBACK = (
    "noise_schedule", "strength_schedule", "contrast_schedule", "amount_schedule",
    "kernel_schedule", "sigma_schedule", "threshold_schedule",
)  # fmt: skip
"""Schedules that are read only if frames start from the previous one."""

UNUSED = ("pix2pix_img_cfg_scale_schedule", "near_schedule", "far_schedule")
"""Schedules that have no effect, or none without a model of their own."""

PICTURED = ("use_mask", "use_mask_video", "use_noise_mask", "use_init")
"""Switches of images that are read before frame 0."""

LONGEST = 70
"""Maximum number of characters shown of a prompt."""


def settings_report(settings: Settings, recipe: AnimationRecipe | None = None) -> str:
    """Describe what the settings will generate: frames, features, schedules, prompts, notes.

    A seed of -1 is reported as such, and stands for 0 in schedules here. With a recipe its problems
    are all that drawing would reject before the first frame.

    Raises:
        InputError: a schedule or a prompt is invalid; other problems are part of the report.
    """
    drawn = settings if settings["seed"] >= 0 else settings.replace(seed=0)
    schedules = Schedules.of(drawn)
    frame_prompts(drawn, schedules.variables)
    sections = [
        ("", outline(settings, schedules)),
        ("On", [", ".join(switched_on(drawn)) or "nothing beyond plain frames"]),
        (f"Schedules at frames {', '.join(map(str, points(drawn)))}", schedule_lines(schedules)),
        ("Prompts", prompt_lines(drawn, schedules)),
        ("Without effect", without_effect(drawn)),
        ("Read differently than written", list(settings.notes)),
        ("Problems", problems(drawn, schedules, recipe)),
    ]
    lines: list[str] = []
    for title, content in sections:
        if content:
            lines += [f"{title}:"] if title else []
            lines += [f"  {line}" if title else line for line in content]
    return "\n".join(lines)


def problems(
    settings: Settings, schedules: Schedules, recipe: AnimationRecipe | None = None
) -> list[str]:
    """Return everything that prevents the settings from being generated."""
    found = [f"{key}: {message}" for key, message in faults(settings, schedules)]
    if found or recipe is None:
        return found
    return preflight(recipe, settings)


def preflight(recipe: AnimationRecipe, settings: Settings) -> list[str]:
    """Return what drawing would reject after the settings' own check, without a model.

    Videos are read to their end, since the settings say which frames are taken; nothing is written.
    torch is imported only for what the settings use.
    """
    names = [name for name, one in recipe.artifacts.items() if one is not None]
    for key in ("depth_model", "word_mask_model"):
        name = settings[key]
        is_known = not name or name.lower() in ("none", "cues") or Path(name).exists()
        if not is_known and name.count("/") != 1:  # else it may be an id on the hub
            return [f"{key}: there is no folder {name!r}"]
    try:
        script = Script(
            settings,
            recipe.compat,
            artifact_names=names,
            cadence_blend=recipe.cadence_blend,
            is_dry=True,
        )
        check_files(script, recipe)
        if not script["motion_preview_mode"]:
            from inference.deforum.loop import check_words

            check_words(script, [Path(folder) for folder in recipe.artifact_dirs])
    except InputError as error:
        return str(error).splitlines()
    return []


def check_files(script: Script, recipe: AnimationRecipe) -> None:
    """Check what is read beside frames, and what is made of them.

    Raises:
        InputError: a mask, an init image, a sound, an upscaler or a subtitle field cannot be used.
    """
    chosen_fields(recipe.subtitle_fields)
    if script["r_upscale_video"] or script["add_soundtrack"] != "None":
        from inference.deforum.products import check_products

        check_products(script, recipe)
    reads_pictures = script.is_hybrid or any(script[key] for key in PICTURED)
    if reads_pictures and not script["word_mask_model"]:
        from inference.deforum.loop import FrameMasks

        FrameMasks(script, script.video)


def outline(settings: Settings, schedules: Schedules) -> list[str]:
    """Return lines with mode, size, frames, sampler and folder."""
    frames, fps, mode = settings["max_frames"], settings["fps"], settings["animation_mode"]
    seed = "by chance" if settings["seed"] < 0 else settings["seed"]
    from_video = " (or as many as the video has)" if reads_video(settings) else ""
    sides = " × ".join(str(settings[key] // 8 * 8) for key in ("W", "H"))
    return [
        f"{settings.source or 'settings'}: {mode}, {sides}",
        f"{frames} frames{from_video}, {frames / fps:.1f} s at {fps:g} fps",
        f"{len(diffused(settings, schedules))} of them generated by the model, the others moved",
        f"{settings['sampler']}, {settings['steps']} steps",
        f"seed {seed}, {settings['seed_behavior']}",
        f"folder {folder_name(settings, '{timestring}')}",
    ]


def diffused(settings: Settings, schedules: Schedules) -> list[int]:
    """Return the frames that the model generates."""
    count = settings["max_frames"]
    if settings["animation_mode"] not in MOVING:
        return list(range(count))
    names = frame_names(count, schedules.settings["seed"], schedules.variables)
    keyframes = sorted(at_frames(settings["prompts"], names))
    distribution = settings["keyframe_distribution"]
    return diffused_frames(count, settings["diffusion_cadence"], keyframes, distribution)


def points(settings: Settings) -> list[int]:
    """Return the frames at which schedules are shown: first, last, and evenly between."""
    last = settings["max_frames"] - 1
    return sorted({round(last * point / (POINTS - 1)) for point in range(POINTS)})


def is_read(key: str, settings: Settings) -> bool:
    """Return whether the settings' mode and switches use a schedule."""
    mode = settings["animation_mode"]
    if key in GATES and not settings[GATES[key]]:
        return False
    if key in FEEDBACK or key in ("cadence_flow_factor_schedule", "redo_flow_factor_schedule"):
        return mode in MODES and (not key.endswith("flow_factor_schedule") or flows(key, settings))
    if key.startswith("hybrid_"):
        return settings["hybrid_composite" if "comp" in key else "hybrid_motion"] != "None"
    if key == "seed_schedule":
        return settings["seed_behavior"] == "schedule"
    if key == "keyframe_strength_schedule":
        return settings["keyframe_distribution"] != "Off"
    if any(key.startswith(one) for starts in MODES.values() for one in starts):
        flat = mode == "2D" and key == "translation_z"
        return not flat and any(key.startswith(one) for one in MODES.get(mode, ()))
    return key not in UNUSED


def flows(key: str, settings: Settings) -> bool:
    """Return whether the flow that a factor belongs to is on."""
    owner = "optical_flow_cadence" if key.startswith("cad") else "optical_flow_redo_generation"
    return settings[owner] != "None"


def schedule_lines(schedules: Schedules) -> list[str]:
    """Return the schedules that are read, at some frames; constant ones as a single value."""
    settings, lines = schedules.settings, []
    chosen = points(settings)
    rows = [(key, schedules[key]) for key in SCHEDULES if is_read(key, settings)]
    rows += [(f"network {name}", values) for name, values in schedules.networks.items()]
    for key, values in rows:
        shown_values = [values[frame] for frame in chosen]
        if len(set(values)) == 1:
            shown_values = shown_values[:1]
        is_text = key in TEXT_SCHEDULES
        shown = (str(value) if is_text else f"{value:.6g}" for value in shown_values)
        lines.append(f"{key}: {', '.join(shown)}")
    return lines


def prompt_lines(settings: Settings, schedules: Schedules) -> list[str]:
    """Return the prompts with the frame at which each starts."""
    names = frame_names(settings["max_frames"], settings["seed"], schedules.variables)
    managed = managed_prompts(settings)
    if managed is None:
        texts = at_frames(settings["prompts"], names)
    else:  # Parseq's are drawn
        changed = [n for n, text in enumerate(managed) if n == 0 or text != managed[n - 1]]
        texts = {frame: managed[frame] for frame in changed}
    lines = ["by the Parseq manifest"] if managed is not None else []
    for frame in sorted(texts):
        text = " ".join(texts[frame].split())
        cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
        late = " (after the end)" if frame >= settings["max_frames"] else ""
        formula = " (with formulas)" if FORMULA.search(text) else ""
        lines.append(f"{frame}{late}: {cut or 'no words'}{formula}")
    return lines
