"""What keys and values of older settings files are called today.

The rows are those of Deforum for A1111 3.0 (`deprecation_utils.py`), and plain numbers where
schedules stand now (its issue 898) are read in `coercion.py`.
"""

from __future__ import annotations

from typing import Any

RENAMED = {
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
"""Key -> value of old, in small letters -> value of today."""

DEPTHS = {True: "Zoe+AdaBins (old)", False: "Midas+AdaBins (old)"}


def migrate(settings: dict[str, Any], notes: list[str], is_file: bool) -> None:
    """Gives old keys and values their new names, in place; what was changed is added to `notes`.

    Args:
        settings: the settings, in Deforum's dialect.
        notes: is added to.
        is_file: a file that Deforum wrote; without `legacy_colormatch` it comes from a time when
            that was the only way.
    """
    for old, new in RENAMED.items():
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
        notes.append("legacy_colormatch: on, as in all files from before it could be chosen")
