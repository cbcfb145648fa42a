"""A1111's rules for pasting infotext: defaults, old names, and differences of versions.

Sources: A1111 1.10.1 `modules/infotext_utils.py` (`parse_generation_parameters`),
`modules/infotext_versions.py`, `modules/sd_samplers.py` and `modules/sd_schedulers.py`.
"""

from __future__ import annotations

import math
import re

from inference.images.infotext.text import Infotext

DEFAULTS = {
    "Clip skip": "1",
    "Hires resize-1": "0",
    "Hires resize-2": "0",
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": "32",
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": "0",
    "Schedule min sigma": "0",
    "Schedule rho": "0",
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": "False",
}
"""The default of a parameter that infotext omits."""

SCHEDULES = {
    "Automatic": ("automatic",),
    "Uniform": ("uniform",),
    "Karras": ("karras",),
    "Exponential": ("exponential",),
    "Polyexponential": ("polyexponential",),
    "SGM Uniform": ("sgm_uniform", "SGMUniform"),
    "KL Optimal": ("kl_optimal",),
    "Align Your Steps": ("align_your_steps", "ays"),
    "Simple": ("simple",),
    "Normal": ("normal",),
    "DDIM": ("ddim", "ddim_uniform"),
    "Beta": ("beta",),
}
"""Label of a schedule type -> its other names: suffixes in sampler names from before 1.9, and those
of ComfyUI."""

SAMPLERS = {
    "DPM++ 2M": ("k_dpmpp_2m",),
    "DPM++ SDE": ("k_dpmpp_sde",),
    "DPM++ 2M SDE": ("k_dpmpp_2m_sde",),
    "DPM++ 2M SDE Heun": ("k_dpmpp_2m_sde_heun",),
    "DPM++ 2S a": ("k_dpmpp_2s_a", "k_dpmpp_2s_ancestral"),
    "DPM++ 3M SDE": ("k_dpmpp_3m_sde",),
    "Euler a": ("k_euler_a", "k_euler_ancestral"),
    "Euler": ("k_euler",),
    "LMS": ("k_lms",),
    "Heun": ("k_heun",),
    "DPM2": ("k_dpm_2",),
    "DPM2 a": ("k_dpm_2_a", "k_dpm_2_ancestral"),
    "DPM fast": ("k_dpm_fast",),
    "DPM adaptive": ("k_dpm_ad", "k_dpm_adaptive"),
    "Restart": (),
    "DDIM": ("ddim_v3",),
    "DDIM CFG++": ("ddim_cfgpp",),
    "PLMS": (),
    "UniPC": (),
    "LCM": ("k_lcm",),
}
"""A1111's samplers and their other names, also those of NovelAI. Case is ignored."""

FOREIGN_SAMPLERS = {
    "euler_ancestral": "Euler a", "euler_a": "Euler a", "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a", "dpm2_a": "DPM2 a", "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive", "dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_2s_a": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M", "dpmpp_sde": "DPM++ SDE", "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun", "dpmpp_3m_sde": "DPM++ 3M SDE", "uni_pc": "UniPC",
    "uni_pc_bh2": "UniPC", "unipc_snr": "UniPC", "unipc_tu": "UniPC", "unipc_tq": "UniPC",
    "unipc_snr_2": "UniPC",
}  # fmt: skip
"""Names in ComfyUI and its relatives, and in Easy Diffusion -> A1111's. Those that differ only by
capitals are not listed."""

KNOWN_SAMPLERS = {
    other.lower(): name for name, others in SAMPLERS.items() for other in (name, *others)
} | FOREIGN_SAMPLERS

OLD_HIRES_PIXELS = 512 * 512
"""The first pass's default before its size became an option."""

VERSION = re.compile(
    r"v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:-(\d{1,6})(?=-|$)|-?(rc)[^.]*)?", re.IGNORECASE
)

Version = tuple[int, int, int, int]


def as_pasted(infotext: Infotext) -> dict[str, str]:
    """Return all parameters as A1111 reads them, with `Prompt` and `Negative prompt`.

    Sizes are split, schedule types separated from old sampler names, defaults filled in, and
    changes since older versions added. `Emphasis` counts as used if a prompt has brackets.
    """
    found = infotext.split_sizes()
    found |= {"Prompt": infotext.prompt, "Negative prompt": infotext.negative_prompt}
    if "Hypernet" in found:  # until December 2022
        strength = found.get("Hypernet strength", "1.0")
        found["Prompt"] += f"<hypernet:{found['Hypernet']}:{strength}>"
    restore_first_pass(found)
    if "Sampler" in found:
        names = sampler_and_schedule(found["Sampler"], found.get("Schedule type"))
        found["Sampler"], found["Schedule type"] = names
    if re.search(r"(?<!\\)[(\[]", infotext.prompt + infotext.negative_prompt):
        found.setdefault("Emphasis", "Original")
    found = DEFAULTS | found
    return found | meant_by_version(found)


def sampler_and_schedule(sampler: str, schedule_type: str | None = None) -> tuple[str, str]:
    """Return sampler and schedule type of a name of any version: `DPM++ 2M Karras` is both.

    So are ComfyUI's names (`dpmpp_2m_sde_gpu`, and `dpmpp_2m_karras` of its extensions that write
    infotext). An unknown sampler keeps its name.
    """
    sampler, label = divided_name(sampler)
    schedules = {n.lower(): label for label, others in SCHEDULES.items() for n in (label, *others)}
    named = label or schedule_type or "Automatic"
    return sampler, schedules.get(named.lower(), named)


def divided_name(name: str) -> tuple[str, str | None]:
    """Return a sampler's name in A1111, and the schedule type at its end, if there is one."""
    plain = name.lower().removeprefix("sample_").removesuffix("_gpu")
    if plain in KNOWN_SAMPLERS:
        return KNOWN_SAMPLERS[plain], None
    for label, others in SCHEDULES.items():
        for ending in (label, *others):
            for sign in " _":
                rest = plain.removesuffix(sign + ending.lower().replace(" ", sign))
                known = KNOWN_SAMPLERS.get(rest.removesuffix("_gpu"))
                if rest != plain and (known or sign == " "):
                    return known or name[: len(rest) - len(plain)], label
    if plain.removesuffix("_ka") in KNOWN_SAMPLERS:
        return KNOWN_SAMPLERS[plain.removesuffix("_ka")], "Karras"
    return name, None


def restore_first_pass(found: dict[str, str]) -> None:
    """Restore the sizes from before 1.0: `First pass size`, and `Size` after upscaling."""
    words = [found.get(f"First pass size-{i}", "") for i in (1, 2)]
    words += [found.get(f"Size-{i}", "512") for i in (1, 2)]
    if not all(re.fullmatch(r"\d{1,9}", word) for word in words):
        return
    first, whole = [int(word) for word in words[:2]], [int(word) for word in words[2:]]
    if 0 in first and 0 not in whole:
        scale = math.sqrt(OLD_HIRES_PIXELS / (whole[0] * whole[1]))
        first = [math.ceil(scale * side / 64) * 64 for side in whole]
    for i in (1, 2):
        found |= {f"Size-{i}": str(first[i - 1]), f"Hires resize-{i}": str(whole[i - 1])}


def parse_version(text: str | None) -> Version | None:
    """Parse `v1.7.0-225-gabc` as (1, 7, 0, 225); a release candidate precedes its release."""
    match = VERSION.match(text or "")
    if not match:
        return None
    major, minor, patch = (int(match[i]) for i in (1, 2, 3))
    return major, minor, patch, -1 if match[5] else int(match[4] or 0)


def meant_by_version(found: dict[str, str]) -> dict[str, str]:
    """Return the settings that an old version implied and that have changed since."""
    version = parse_version(found.get("Version"))
    if version is None:
        return {}
    meant = {}
    if version < (1, 6, 0, 0) and "[" in found["Prompt"]:
        meant["Old prompt editing timelines"] = "True"
    if version < (1, 6, 0, 0) and found.get("Sampler") in ("DDIM", "PLMS"):
        meant["Pad conds v0"] = "True"
    if version < (1, 7, 0, 225):
        meant["Downcast alphas_cumprod"] = "True"
    if version < (1, 8, 0, 0) and found.get("Refiner"):
        meant["Refiner switch by sampling steps"] = "True"
    return meant
