"""Every key of a settings file, with those that only Limner has, and what holds between them.

A settings file with our keys still loads in Deforum, where unknown keys are passed over.
"""

from __future__ import annotations

from inference.deforum.key_tables import (
    ANIMATION,
    CONTROLNET_UNIT,
    ENUM,
    FLOAT,
    FREEU,
    INT,
    KOHYA,
    LIST,
    LOOPER,
    OUTPUT,
    PARSEQ,
    PROMPTS,
    RECORD,
    RUN,
    SCHEDULE,
    STR,
    Key,
)
from inference.draw_config import SCHEDULE_TYPES

CONTROLNET: dict[str, Key] = {
    f"cn_{unit}_{name}": key for unit in range(1, 6) for name, key in CONTROLNET_UNIT.items()
}

PROMPT_KEYS: dict[str, Key] = {
    "prompts": Key(PROMPTS, {"0": ""}),
    "positive_prompts": Key(RECORD, ""),
    "negative_prompts": Key(RECORD, ""),
}
"""The two records were joined into every prompt already."""

RECORDS: dict[str, Key] = {
    name: Key(RECORD, None)
    for name in (
        "sd_model_name", "sd_model_hash", "deforum_git_commit_id",
        "fetched_parseq_manifest_summary",
    )
}  # fmt: skip

OURS: dict[str, Key] = {
    "schedule_type": Key(ENUM, "Automatic", SCHEDULE_TYPES),
    "interpolation_blend": Key(ENUM, "composable", ("composable", "embedding")),
    "keyframe_distribution": Key(
        ENUM, "Off", ("Off", "Keyframes Only", "Additive", "Redistributed")
    ),
    "keyframe_strength_schedule": Key(SCHEDULE, "0: (0.50)"),
    "network_schedules": Key(PROMPTS, {}),
    "bpm": Key(FLOAT, 120.0),
    "beat_offset": Key(FLOAT, 0.0),
    "schedule_events": Key(LIST, []),
    "audio_path": Key(STR, ""),
    "depth_model": Key(STR, ""),
    "word_mask_model": Key(STR, ""),
    "tracked_frame": Key(INT, 0),
    "tracked_box": Key(LIST, []),
    "tracked_mask": Key(STR, ""),
}
"""Saved where they differ from their defaults.

- `network_schedules`: name of a network in the prompt, or of a recipe's artifact -> schedule of
  its strength.
- `bpm`, `beat_offset`, `schedule_events` (seconds): what `beat`, `events_passed` and the like
  count in schedules (as deforum-studio has them).
- `audio_path`: a file whose loudness schedules can use: `rms`, `bass`, `mid`, `treble`.
- `depth_model`, `word_mask_model`: folders of a depth and a CLIPSeg model in transformers' form.
- `tracked_*`: what `{tracked}` in masks follows: a box [left, top, width, height] or a mask file,
  on a frame of the video.
"""

KEYS: dict[str, Key] = {
    **RUN, **ANIMATION, **PROMPT_KEYS, **LOOPER, **PARSEQ, **CONTROLNET, **OUTPUT,
    **FREEU, **KOHYA, **OURS, **RECORDS,
}  # fmt: skip
"""All keys, in the order in which they are written."""

SAVED_IF_CHANGED = frozenset(
    (*OURS, *RECORDS, *FREEU, *KOHYA, "perlin_w", "perlin_h", "image_path", "init_image_box",
     "positive_prompts", "negative_prompts")
)  # fmt: skip
"""Keys that Deforum 3.0 does not write, so that ours stay out of files that do without."""

LIMITS: dict[str, tuple[float, float]] = {
    "W": (8, 16384), "H": (8, 16384), "max_frames": (1, 100_000), "steps": (1, 10_000),
    "seed": (-1, 2**63 - 1), "seed_iter_N": (1, 10**9), "fps": (0.01, 1000),
    "diffusion_cadence": (1, 100_000), "diffusion_redo": (0, 1000), "perlin_octaves": (1, 8),
    "perlin_w": (0.1, 16), "perlin_h": (0.1, 16), "perlin_persistence": (0, 100),
    "strength": (0, 1), "mask_overlay_blur": (0, 1024), "full_res_mask_padding": (0, 16384),
    "mask_contrast_adjust": (0, 1000), "mask_brightness_adjust": (0, 1000),
    "seed_resize_from_w": (0, 16384), "seed_resize_from_h": (0, 16384),
    "reroll_patience": (0, 10_000), "extract_nth_frame": (1, 10**9),
    "extract_from_frame": (0, 10**9), "extract_to_frame": (-1, 10**9),
    "color_coherence_video_every_N_frames": (1, 10**9), "hybrid_consistency_blur": (0, 1024),
    "frame_interpolation_x_amount": (2, 100), "frame_interpolation_slow_mo_amount": (2, 100),
    "bpm": (0.01, 10_000), "beat_offset": (-1e6, 1e6), "tracked_frame": (0, 10**9),
}  # fmt: skip
"""What cannot work outside of these bounds. The page's own ranges (`low`, `high`) are advice."""

TEXT_SCHEDULES = ("sampler_schedule", "checkpoint_schedule", "mask_schedule", "noise_mask_schedule")
"""Schedules of texts, each of which holds until the next."""

INT_SCHEDULES = (
    "steps_schedule", "clipskip_schedule", "seed_schedule", "subseed_schedule", "kernel_schedule",
    "hybrid_comp_mask_auto_contrast_cutoff_high_schedule",
    "hybrid_comp_mask_auto_contrast_cutoff_low_schedule",
)  # fmt: skip
"""Schedules whose values are cut to whole numbers where they are used."""

GATES: dict[str, str] = {
    "steps_schedule": "enable_steps_scheduling",
    "sampler_schedule": "enable_sampler_scheduling",
    "checkpoint_schedule": "enable_checkpoint_scheduling",
    "clipskip_schedule": "enable_clipskip_scheduling",
    "noise_multiplier_schedule": "enable_noise_multiplier_scheduling",
    "ddim_eta_schedule": "enable_ddim_eta_scheduling",
    "ancestral_eta_schedule": "enable_ancestral_eta_scheduling",
    "subseed_schedule": "enable_subseed_scheduling",
    "subseed_strength_schedule": "enable_subseed_scheduling",
    "noise_mask_schedule": "use_noise_mask",
    "mask_schedule": "use_mask",
    **{name: "enable_perspective_flip" for name in ANIMATION if name.startswith("perspective_")},
    **{name: "use_looper" for name, key in LOOPER.items() if key.kind == SCHEDULE},
    **{name: "freeu_enabled" for name, key in FREEU.items() if key.kind == SCHEDULE},
    **{name: "kohya_hrfix_enabled" for name, key in KOHYA.items() if key.kind == SCHEDULE},
    **{name: f"{name[:4]}_enabled" for name, key in CONTROLNET.items() if key.kind == SCHEDULE},
}
"""Schedule -> the switch without which it is not read."""
