"""Subtitles that tell of each frame how it was drawn (SubRip).

Times, fields and words are Deforum for A1111 3.0's (`subtitle_handler.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from difflib import get_close_matches
from typing import Any

from inference.runtime import InputError

DIGITS = Context(prec=20)
"""Times are counted in decimals of 20 digits, and milliseconds cut off."""

FIELDS: dict[str, tuple[str, str]] = {
    "angle": ("Angle", "Angle"),
    "transform_center_x": ("Trans Center X", "Tr.C.X"),
    "transform_center_y": ("Trans Center Y", "Tr.C.Y"),
    "zoom": ("Zoom", "Zoom"),
    "translation_x": ("Trans X", "TrX"),
    "translation_y": ("Trans Y", "TrY"),
    "translation_z": ("Trans Z", "TrZ"),
    "rotation_3d_x": ("Rot 3D X", "RotX"),
    "rotation_3d_y": ("Rot 3D Y", "RotY"),
    "rotation_3d_z": ("Rot 3D Z", "RotZ"),
    "perspective_flip_theta": ("Per Fl Theta", "PerFlT"),
    "perspective_flip_phi": ("Per Fl Phi", "PerFlP"),
    "perspective_flip_gamma": ("Per Fl Gamma", "PerFlG"),
    "perspective_flip_fv": ("Per Fl FV", "PerFlFV"),
    "noise_schedule": ("Noise Sch", "Noise"),
    "strength_schedule": ("Str Sch", "StrSch"),
    "contrast_schedule": ("Contrast Sch", "CtrstSch"),
    "cfg_scale_schedule": ("CFG Sch", "CFGSch"),
    "pix2pix_img_cfg_scale_schedule": ("P2P Img CFG Sch", "P2PCfgSch"),
    "subseed_schedule": ("Subseed Sch", "SubSSch"),
    "subseed_strength_schedule": ("Subseed Str Sch", "SubSStrSch"),
    "checkpoint_schedule": ("Ckpt Sch", "CkptSch"),
    "steps_schedule": ("Steps Sch", "StepsSch"),
    "seed_schedule": ("Seed Sch", "SeedSch"),
    "sampler_schedule": ("Sampler Sch", "SamplerSchedule"),
    "clipskip_schedule": ("Clipskip Sch", "ClipskipSchedule"),
    "noise_multiplier_schedule": ("Noise Multp Sch", "NoiseMultiplierSchedule"),
    "mask_schedule": ("Mask Sch", "MaskSchedule"),
    "noise_mask_schedule": ("Noise Mask Sch", "NoiseMaskSchedule"),
    "amount_schedule": ("Ant.Blr Amount Sch", "AmountSchedule"),
    "kernel_schedule": ("Ant.Blr Kernel Sch", "KernelSchedule"),
    "sigma_schedule": ("Ant.Blr Sigma Sch", "SigmaSchedule"),
    "threshold_schedule": ("Ant.Blr Threshold Sch", "ThresholdSchedule"),
    "aspect_ratio_schedule": ("Aspect Ratio Sch", "AspectRatioSchedule"),
    "fov_schedule": ("FOV Sch", "FieldOfViewSchedule"),
    "near_schedule": ("Near Sch", "NearSchedule"),
    "cadence_flow_factor_schedule": ("Cadence Flow Factor Sch", "CadenceFlowFactorSchedule"),
    "redo_flow_factor_schedule": ("Redo Flow Factor Sch", "RedoFlowFactorSchedule"),
    "far_schedule": ("Far Sch", "FarSchedule"),
    "hybrid_comp_alpha_schedule": ("Hyb Comp Alpha Sch", "HybridCompAlphaSchedule"),
    "hybrid_comp_mask_blend_alpha_schedule": (
        "Hyb Comp Mask Blend Alpha Sch",
        "HybridCompMaskBlendAlphaSchedule",
    ),
    "hybrid_comp_mask_contrast_schedule": (
        "Hyb Comp Mask Ctrst Sch",
        "HybridCompMaskContrastSchedule",
    ),
    "hybrid_comp_mask_auto_contrast_cutoff_high_schedule": (
        "Hyb Comp Mask Auto Contrast Cutoff High Sch",
        "HybridCompMaskAutoContrastCutoffHighSchedule",
    ),
    "hybrid_comp_mask_auto_contrast_cutoff_low_schedule": (
        "Hyb Comp Mask Auto Ctrst Cut Low Sch",
        "HybridCompMaskAutoContrastCutoffLowSchedule",
    ),
    "hybrid_flow_factor_schedule": ("Hybrid Flow Factor Sch", "HybridFlowFactorSchedule"),
}
"""Schedule -> what chooses it in Deforum's options, and what stands before its value."""

PROMPT = "Prompt"


def chosen_fields(names: Sequence[str]) -> list[str]:
    """Keys of `FIELDS`, and `Prompt`, of names as Deforum's options or settings files have them.

    Raises:
        InputError: there is no such field.
    """
    known = {one.casefold(): key for key, (label, _) in FIELDS.items() for one in (key, label)}
    known[PROMPT.casefold()] = PROMPT
    chosen = set()
    for name in names:
        if name.casefold() not in known:
            near = get_close_matches(name.casefold(), known, 1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise InputError(f"subtitle fields: there is no {name!r}{hint}")
        chosen.add(known[name.casefold()])
    return [key for key in (*FIELDS, PROMPT) if key in chosen]


def subtitle_text(
    frame: int,
    seed: int,
    values: Mapping[str, Any],
    prompt: str = "",
    is_tween: bool = False,
    fields: Sequence[str] = (),
) -> str:
    """What stands under a frame: `F#: 0; Cadence: false; Seed: 1; Zoom: 1.002; Prompt: a cat`.

    Args:
        frame: from 0.
        seed: what it was drawn with.
        values: the schedules at the frame, by key (`Schedules.at`).
        prompt: the frame's prompt.
        is_tween: the frame was moved and blended, and not drawn by the model.
        fields: of `chosen_fields`.
    """
    parts = [f"F#: {frame}", f"Cadence: {str(is_tween).lower()}", f"Seed: {seed}"]
    parts += [f"{FIELDS[key][1]}: {shown(values[key])}" for key in fields if key != PROMPT]
    if PROMPT in fields:
        parts.append(f"{PROMPT}: {' '.join(prompt.split())}")
    return "; ".join(parts).rstrip("; ")


def shown(value: Any) -> str:
    """A value with three digits behind the point, or none if it is whole."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.3f}"
    return str(value)


def subtitle(frame: int, fps: float, text: str) -> str:
    """One block of a SubRip file, with the empty line behind it."""
    start, end = time_of(frame, fps), time_of(frame + 1, fps)
    return f"{frame + 1}\n{start} --> {end}\n{text}\n\n"


def subtitles(texts: Sequence[str], fps: float) -> str:
    """A whole SubRip file of one text a frame."""
    return "".join(subtitle(frame, fps, text) for frame, text in enumerate(texts))


def time_of(frame: int, fps: float) -> str:
    """When a frame begins, `00:00:00,066`; milliseconds are cut off."""
    seconds = DIGITS.multiply(Decimal(frame), DIGITS.divide(Decimal(1), Decimal(str(fps))))
    whole = int(seconds)
    thousandths = int((seconds - whole) * 1000)
    hours, rest = divmod(whole, 3600)
    return f"{hours:02}:{rest // 60:02}:{rest % 60:02},{thousandths:03}"
