"""The keys of Deforum's settings files: type, default, possible values.

Names, defaults and ranges are those of Deforum for A1111 3.0 (`args.py`,
`deforum_controlnet_gradio.py`); FreeU and Kohya's HR-fix come from sd-forge-deforum.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from inference.sampling import schedule_types

INT, FLOAT, BOOL, STR, ENUM, SCHEDULE = "int", "float", "bool", "str", "enum", "schedule"
PROMPTS, LIST, RECORD = "prompts", "list", "record"
"""`prompts`: frame -> text; `list`: of numbers or mappings; `record`: kept, never used."""


@dataclass(frozen=True)
class Key:
    """Type, default and range of a key."""

    kind: str
    default: Any
    choices: tuple[str, ...] = ()
    low: float | None = None
    """Lowest value in Deforum's user interface; files may go below."""
    high: float | None = None


SAMPLES = "https://deforum.github.io/a1/"
"""Target of Deforum's defaults. Nothing is ever downloaded from there."""

PATHS = (
    "init_image", "mask_file", "video_init_path", "video_mask_path", "soundtrack_path",
    "color_coherence_image_path", "audio_path", "parseq_manifest",
)  # fmt: skip
"""Keys of files and folders that are read."""

INIT_IMAGES = json.dumps(
    {
        "0": f"{SAMPLES}Gi1.png",
        "max_f/4-5": f"{SAMPLES}Gi2.png",
        "max_f/2-10": f"{SAMPLES}Gi3.png",
        "3*max_f/4-15": f"{SAMPLES}Gi4.jpg",
        "max_f-20": f"{SAMPLES}Gi1.png",
    },
    indent=4,
)

FLOWS = ("RAFT", "DIS Medium", "DIS Fine", "Farneback")
RESIZING = ("bicubic", "nearest-exact", "bilinear", "area", "bislerp")

A_SAMPLERS = (
    "Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ 2M", "DPM++ SDE",
    "DPM++ 2M SDE Karras", "DPM fast", "DPM adaptive", "LMS Karras", "DPM2 Karras",
    "DPM2 a Karras", "DPM++ 2S a Karras", "DPM++ 2M Karras", "DPM++ SDE Karras",
    "DPM++ 2M SDE Exponential", "DPM++ 2M SDE Heun", "DPM++ 2M SDE Heun Karras",
    "DPM++ 2M SDE Heun Exponential", "DPM++ 3M SDE", "DPM++ 3M SDE Karras",
    "DPM++ 3M SDE Exponential", "DDIM", "PLMS", "UniPC", "Restart",
)  # fmt: skip
"""Deforum's samplers, which are those of A1111 1.6: names with their schedule type."""

RUN: dict[str, Key] = {
    "W": Key(INT, 512, low=64, high=2048),
    "H": Key(INT, 512, low=64, high=2048),
    "show_info_on_ui": Key(BOOL, True),
    "tiling": Key(BOOL, False),
    "restore_faces": Key(BOOL, False),
    "seed_resize_from_w": Key(INT, 0, low=0, high=2048),
    "seed_resize_from_h": Key(INT, 0, low=0, high=2048),
    "seed": Key(INT, -1),
    "sampler": Key(ENUM, "Euler a", A_SAMPLERS),
    "steps": Key(INT, 25, low=1, high=200),
    "batch_name": Key(STR, "Deforum_{timestring}"),
    "seed_behavior": Key(
        ENUM, "iter", ("iter", "fixed", "random", "ladder", "alternate", "schedule")
    ),
    "seed_iter_N": Key(INT, 1),
    "use_init": Key(BOOL, False),
    "strength": Key(FLOAT, 0.8, low=0, high=1),
    "strength_0_no_init": Key(BOOL, True),
    "init_image": Key(STR, "https://deforum.github.io/a1/I1.png"),
    "init_image_box": Key(STR, None),
    "use_mask": Key(BOOL, False),
    "use_alpha_as_mask": Key(BOOL, False),
    "mask_file": Key(STR, "https://deforum.github.io/a1/M1.jpg"),
    "invert_mask": Key(BOOL, False),
    "mask_contrast_adjust": Key(FLOAT, 1.0),
    "mask_brightness_adjust": Key(FLOAT, 1.0),
    "overlay_mask": Key(BOOL, True),
    "mask_overlay_blur": Key(INT, 4, low=0, high=64),
    "fill": Key(ENUM, "original", ("fill", "original", "latent noise", "latent nothing")),
    "full_res_mask": Key(BOOL, True),
    "full_res_mask_padding": Key(INT, 4, low=0, high=512),
    "reroll_blank_frames": Key(ENUM, "ignore", ("reroll", "interrupt", "ignore")),
    "reroll_patience": Key(FLOAT, 10),
    "motion_preview_mode": Key(BOOL, False),
}

ANIMATION: dict[str, Key] = {
    "animation_mode": Key(ENUM, "2D", ("2D", "3D", "Video Input", "Interpolation", "None")),
    "max_frames": Key(INT, 120),
    "border": Key(ENUM, "replicate", ("replicate", "wrap")),
    "angle": Key(SCHEDULE, "0: (0)"),
    "zoom": Key(SCHEDULE, "0: (1.0025+0.002*sin(1.25*3.14*t/30))"),
    "translation_x": Key(SCHEDULE, "0: (0)"),
    "translation_y": Key(SCHEDULE, "0: (0)"),
    "translation_z": Key(SCHEDULE, "0: (1.75)"),
    "transform_center_x": Key(SCHEDULE, "0: (0.5)"),
    "transform_center_y": Key(SCHEDULE, "0: (0.5)"),
    "rotation_3d_x": Key(SCHEDULE, "0: (0)"),
    "rotation_3d_y": Key(SCHEDULE, "0: (0)"),
    "rotation_3d_z": Key(SCHEDULE, "0: (0)"),
    "enable_perspective_flip": Key(BOOL, False),
    "perspective_flip_theta": Key(SCHEDULE, "0: (0)"),
    "perspective_flip_phi": Key(SCHEDULE, "0: (0)"),
    "perspective_flip_gamma": Key(SCHEDULE, "0: (0)"),
    "perspective_flip_fv": Key(SCHEDULE, "0: (53)"),
    "noise_schedule": Key(SCHEDULE, "0: (0.065)"),
    "strength_schedule": Key(SCHEDULE, "0: (0.65)"),
    "contrast_schedule": Key(SCHEDULE, "0: (1.0)"),
    "cfg_scale_schedule": Key(SCHEDULE, "0: (7)"),
    "enable_steps_scheduling": Key(BOOL, False),
    "steps_schedule": Key(SCHEDULE, "0: (25)"),
    "fov_schedule": Key(SCHEDULE, "0: (70)"),
    "aspect_ratio_schedule": Key(SCHEDULE, "0: (1)"),
    "aspect_ratio_use_old_formula": Key(BOOL, False),
    "near_schedule": Key(SCHEDULE, "0: (200)"),
    "far_schedule": Key(SCHEDULE, "0: (10000)"),
    "seed_schedule": Key(SCHEDULE, '0:(s), 1:(-1), "max_f-2":(-1), "max_f-1":(s)'),
    "pix2pix_img_cfg_scale_schedule": Key(SCHEDULE, "0:(1.5)"),
    "enable_subseed_scheduling": Key(BOOL, False),
    "subseed_schedule": Key(SCHEDULE, "0: (1)"),
    "subseed_strength_schedule": Key(SCHEDULE, "0: (0)"),
    "enable_sampler_scheduling": Key(BOOL, False),
    "sampler_schedule": Key(SCHEDULE, '0: ("Euler a")'),
    "use_noise_mask": Key(BOOL, False),
    "mask_schedule": Key(SCHEDULE, '0: ("{video_mask}")'),
    "noise_mask_schedule": Key(SCHEDULE, '0: ("{video_mask}")'),
    "enable_checkpoint_scheduling": Key(BOOL, False),
    "checkpoint_schedule": Key(SCHEDULE, '0: ("model1.ckpt"), 100: ("model2.safetensors")'),
    "enable_clipskip_scheduling": Key(BOOL, False),
    "clipskip_schedule": Key(SCHEDULE, "0: (2)"),
    "enable_noise_multiplier_scheduling": Key(BOOL, True),
    "noise_multiplier_schedule": Key(SCHEDULE, "0: (1.05)"),
    "resume_from_timestring": Key(BOOL, False),
    "resume_timestring": Key(STR, "20230129210106"),
    "enable_ddim_eta_scheduling": Key(BOOL, False),
    "ddim_eta_schedule": Key(SCHEDULE, "0: (0)"),
    "enable_ancestral_eta_scheduling": Key(BOOL, False),
    "ancestral_eta_schedule": Key(SCHEDULE, "0: (1)"),
    "amount_schedule": Key(SCHEDULE, "0: (0.1)"),
    "kernel_schedule": Key(SCHEDULE, "0: (5)"),
    "sigma_schedule": Key(SCHEDULE, "0: (1)"),
    "threshold_schedule": Key(SCHEDULE, "0: (0)"),
    "color_coherence": Key(ENUM, "LAB", ("None", "HSV", "LAB", "RGB", "Video Input", "Image")),
    "color_coherence_image_path": Key(STR, ""),
    "color_coherence_video_every_N_frames": Key(INT, 1),
    "color_force_grayscale": Key(BOOL, False),
    "legacy_colormatch": Key(BOOL, False),
    "diffusion_cadence": Key(INT, 2, low=1, high=50),
    "optical_flow_cadence": Key(ENUM, "None", ("None", *FLOWS)),
    "cadence_flow_factor_schedule": Key(SCHEDULE, "0: (1)"),
    "optical_flow_redo_generation": Key(ENUM, "None", ("None", *FLOWS)),
    "redo_flow_factor_schedule": Key(SCHEDULE, "0: (1)"),
    "diffusion_redo": Key(INT, 0),
    "noise_type": Key(ENUM, "perlin", ("uniform", "perlin")),
    "perlin_w": Key(FLOAT, 8, low=0.1, high=16),
    "perlin_h": Key(FLOAT, 8, low=0.1, high=16),
    "perlin_octaves": Key(INT, 4, low=1, high=7),
    "perlin_persistence": Key(FLOAT, 0.5, low=0, high=1),
    "use_depth_warping": Key(BOOL, True),
    "depth_algorithm": Key(
        ENUM,
        "Midas-3-Hybrid",
        ("Midas+AdaBins (old)", "Zoe+AdaBins (old)", "Midas-3-Hybrid", "AdaBins", "Zoe", "Leres"),
    ),
    "midas_weight": Key(FLOAT, 0.2),
    "padding_mode": Key(ENUM, "border", ("border", "reflection", "zeros")),
    "sampling_mode": Key(ENUM, "bicubic", ("bicubic", "bilinear", "nearest")),
    "save_depth_maps": Key(BOOL, False),
    "video_init_path": Key(STR, "https://deforum.github.io/a1/V1.mp4"),
    "extract_nth_frame": Key(INT, 1),
    "extract_from_frame": Key(INT, 0),
    "extract_to_frame": Key(INT, -1),
    "overwrite_extracted_frames": Key(BOOL, False),
    "use_mask_video": Key(BOOL, False),
    "video_mask_path": Key(STR, "https://deforum.github.io/a1/VM1.mp4"),
    "hybrid_comp_alpha_schedule": Key(SCHEDULE, "0:(0.5)"),
    "hybrid_comp_mask_blend_alpha_schedule": Key(SCHEDULE, "0:(0.5)"),
    "hybrid_comp_mask_contrast_schedule": Key(SCHEDULE, "0:(1)"),
    "hybrid_comp_mask_auto_contrast_cutoff_high_schedule": Key(SCHEDULE, "0:(100)"),
    "hybrid_comp_mask_auto_contrast_cutoff_low_schedule": Key(SCHEDULE, "0:(0)"),
    "hybrid_flow_factor_schedule": Key(SCHEDULE, "0:(1)"),
    "hybrid_generate_inputframes": Key(BOOL, False),
    "hybrid_generate_human_masks": Key(ENUM, "None", ("None", "PNGs", "Video", "Both")),
    "hybrid_use_first_frame_as_init_image": Key(BOOL, True),
    "hybrid_motion": Key(ENUM, "None", ("None", "Optical Flow", "Perspective", "Affine")),
    "hybrid_motion_use_prev_img": Key(BOOL, False),
    "hybrid_flow_consistency": Key(BOOL, False),
    "hybrid_consistency_blur": Key(INT, 2, low=0, high=16),
    "hybrid_flow_method": Key(ENUM, "RAFT", FLOWS),
    "hybrid_composite": Key(ENUM, "None", ("None", "Normal", "Before Motion", "After Generation")),
    "hybrid_use_init_image": Key(BOOL, False),
    "hybrid_comp_mask_type": Key(
        ENUM, "None", ("None", "Depth", "Video Depth", "Blend", "Difference")
    ),
    "hybrid_comp_mask_inverse": Key(BOOL, False),
    "hybrid_comp_mask_equalize": Key(ENUM, "None", ("None", "Before", "After", "Both")),
    "hybrid_comp_mask_auto_contrast": Key(BOOL, False),
    "hybrid_comp_save_extra_frames": Key(BOOL, False),
}

LOOPER: dict[str, Key] = {
    "use_looper": Key(BOOL, False),
    "init_images": Key(STR, INIT_IMAGES),
    "image_strength_schedule": Key(SCHEDULE, "0:(0.75)"),
    "blendFactorMax": Key(SCHEDULE, "0:(0.35)"),
    "blendFactorSlope": Key(SCHEDULE, "0:(0.25)"),
    "tweening_frames_schedule": Key(SCHEDULE, "0:(20)"),
    "color_correction_factor": Key(SCHEDULE, "0:(0.075)"),
}

PARSEQ: dict[str, Key] = {
    "parseq_manifest": Key(STR, None),
    "parseq_use_deltas": Key(BOOL, True),
    "parseq_non_schedule_overrides": Key(BOOL, True),
}

OUTPUT: dict[str, Key] = {
    "skip_video_creation": Key(BOOL, False),
    "fps": Key(FLOAT, 15, low=1, high=240),
    "make_gif": Key(BOOL, False),
    "delete_imgs": Key(BOOL, False),
    "delete_input_frames": Key(BOOL, False),
    "image_path": Key(STR, "C:/SD/20230124234916_%09d.png"),
    "add_soundtrack": Key(ENUM, "None", ("None", "File", "Init Video")),
    "soundtrack_path": Key(STR, "https://deforum.github.io/a1/A1.mp3"),
    "r_upscale_video": Key(BOOL, False),
    "r_upscale_factor": Key(ENUM, "x2", ("x2", "x3", "x4")),
    "r_upscale_model": Key(
        ENUM,
        "realesr-animevideov3",
        ("realesr-animevideov3", "realesrgan-x4plus", "realesrgan-x4plus-anime"),
    ),
    "r_upscale_keep_imgs": Key(BOOL, True),
    "store_frames_in_ram": Key(BOOL, False),
    "frame_interpolation_engine": Key(ENUM, "None", ("None", "RIFE v4.6", "FILM")),
    "frame_interpolation_x_amount": Key(INT, 2, low=2, high=10),
    "frame_interpolation_slow_mo_enabled": Key(BOOL, False),
    "frame_interpolation_slow_mo_amount": Key(INT, 2, low=2, high=10),
    "frame_interpolation_keep_imgs": Key(BOOL, False),
    "frame_interpolation_use_upscaled": Key(BOOL, False),
}

FREEU: dict[str, Key] = {
    "freeu_enabled": Key(BOOL, False),
    "freeu_b1": Key(SCHEDULE, "0:(1.3)"),
    "freeu_b2": Key(SCHEDULE, "0:(1.4)"),
    "freeu_s1": Key(SCHEDULE, "0:(0.9)"),
    "freeu_s2": Key(SCHEDULE, "0:(0.2)"),
}

KOHYA: dict[str, Key] = {
    "kohya_hrfix_enabled": Key(BOOL, False),
    "kohya_hrfix_block_number": Key(SCHEDULE, "0:(1)"),
    "kohya_hrfix_downscale_factor": Key(SCHEDULE, "0:(2.0)"),
    "kohya_hrfix_start_percent": Key(SCHEDULE, "0:(0.0)"),
    "kohya_hrfix_end_percent": Key(SCHEDULE, "0:(0.35)"),
    "kohya_hrfix_downscale_after_skip": Key(BOOL, True),
    "kohya_hrfix_downscale_method": Key(ENUM, "bicubic", RESIZING),
    "kohya_hrfix_upscale_method": Key(ENUM, "bicubic", RESIZING),
}
CONTROLNET_UNIT: dict[str, Key] = {
    "overwrite_frames": Key(BOOL, True),
    "vid_path": Key(STR, ""),
    "mask_vid_path": Key(STR, ""),
    "enabled": Key(BOOL, False),
    "low_vram": Key(BOOL, False),
    "pixel_perfect": Key(BOOL, False),
    "module": Key(STR, "none"),
    "model": Key(STR, "None"),
    "weight": Key(SCHEDULE, "0:(1)"),
    "guidance_start": Key(SCHEDULE, "0:(0.0)"),
    "guidance_end": Key(SCHEDULE, "0:(1.0)"),
    "processor_res": Key(FLOAT, 64),
    "threshold_a": Key(FLOAT, 64),
    "threshold_b": Key(FLOAT, 64),
    "resize_mode": Key(
        ENUM,
        "Inner Fit (Scale to Fit)",
        ("Outer Fit (Shrink to Fit)", "Inner Fit (Scale to Fit)", "Just Resize"),
    ),
    "control_mode": Key(
        ENUM,
        "Balanced",
        ("Balanced", "My prompt is more important", "ControlNet is more important"),
    ),
    "loopback_mode": Key(BOOL, False),
}


CONTROLNET: dict[str, Key] = {
    f"cn_{unit}_{name}": key for unit in range(1, 6) for name, key in CONTROLNET_UNIT.items()
}

PROMPT_KEYS: dict[str, Key] = {
    "prompts": Key(PROMPTS, {"0": ""}),
    "positive_prompts": Key(RECORD, ""),
    "negative_prompts": Key(RECORD, ""),
}
"""The two records are already joined into every prompt."""

RECORDS: dict[str, Key] = {
    name: Key(RECORD, None)
    for name in (
        "sd_model_name", "sd_model_hash", "deforum_git_commit_id",
        "fetched_parseq_manifest_summary",
    )
}  # fmt: skip

OURS: dict[str, Key] = {
    "schedule_type": Key(ENUM, "Automatic", schedule_types()),
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
"""Keys of Limner, saved if they differ from their defaults.

- `network_schedules`: name of a network in the prompt, or of a recipe's artifact -> schedule of
  its strength.
- `bpm`, `beat_offset`, `schedule_events` (seconds): the basis of `beat`, `events_passed` and so on
  in schedules (as in deforum-studio).
- `audio_path`: a file whose loudness schedules can use: `rms`, `bass`, `mid`, `treble`.
- `depth_model`, `word_mask_model`: folders of a depth and a CLIPSeg model in transformers' format.
- `tracked_*`: the object that `{tracked}` in masks follows: a box [left, top, width, height] or a
  mask file, on a frame of the video."""

KEYS: dict[str, Key] = {
    **RUN, **ANIMATION, **PROMPT_KEYS, **LOOPER, **PARSEQ, **CONTROLNET, **OUTPUT,
    **FREEU, **KOHYA, **OURS, **RECORDS,
}  # fmt: skip
"""All keys, in the order in which they are written."""

SAVED_IF_CHANGED = frozenset(
    (*OURS, *RECORDS, *FREEU, *KOHYA, "perlin_w", "perlin_h", "image_path", "init_image_box",
     "positive_prompts", "negative_prompts")
)  # fmt: skip
"""Keys that Deforum 3.0 does not write; ours are omitted from files that do not use them."""

ANY_TEXT = frozenset(
    ("depth_algorithm", "r_upscale_model", "frame_interpolation_engine",
     "kohya_hrfix_downscale_method", "kohya_hrfix_upscale_method",
     *(f"cn_{unit}_{name}" for unit in range(1, 6) for name in ("resize_mode", "control_mode")))
)  # fmt: skip
"""Keys with a choice of values none of which changes a frame here (of an engine only whether it is
None): newer programs have further ones."""

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
"""Limits outside of which nothing works. The ranges of Deforum's page (`low`, `high`) are advice.
"""

TEXT_SCHEDULES = ("sampler_schedule", "checkpoint_schedule", "mask_schedule", "noise_mask_schedule")
"""Schedules of texts, each of which holds until the next."""

INT_SCHEDULES = (
    "steps_schedule", "clipskip_schedule", "seed_schedule", "subseed_schedule", "kernel_schedule",
    "hybrid_comp_mask_auto_contrast_cutoff_high_schedule",
    "hybrid_comp_mask_auto_contrast_cutoff_low_schedule",
)  # fmt: skip
"""Schedules whose values are truncated to integers where they are used."""

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
"""Schedule -> the switch that must be on for it to be read."""
