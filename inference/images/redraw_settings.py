"""Convert infotext's parameters to settings of a recipe, in A1111's words on both sides."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from inference.images.infotext import (
    Infotext,
    as_pasted,
    entries_of,
    parse_version,
    sampler_and_schedule,
)
from inference.recipe import set_key
from inference.sampling import samplers_of, schedule_types

NUMBERS: dict[str, tuple[str, type]] = {
    "Steps": ("steps", int),
    "CFG scale": ("cfg_scale", float),
    "Seed": ("seed", int),
    "Size-1": ("width", int),
    "Size-2": ("height", int),
    "Variation seed": ("variation_seed", int),
    "Variation seed strength": ("variation_strength", float),
    "Seed resize from-1": ("seed_resize_from_width", int),
    "Seed resize from-2": ("seed_resize_from_height", int),
    "ENSD": ("ensd", int),
    "Eta": ("eta", float),
    "Eta DDIM": ("eta", float),
    "Sigma churn": ("s_churn", float),
    "Sigma tmin": ("s_tmin", float),
    "Sigma tmax": ("s_tmax", float),
    "Sigma noise": ("s_noise", float),
    "Schedule min sigma": ("schedule.sigma_min", float),
    "Schedule max sigma": ("schedule.sigma_max", float),
    "Schedule rho": ("schedule.rho", float),
    "Beta schedule alpha": ("schedule.beta_alpha", float),
    "Beta schedule beta": ("schedule.beta_beta", float),
    "NGMS": ("s_min_uncond", float),
    "Skip Early CFG": ("skip_early_cond", float),
    "Comma backtrack": ("comma_padding_backtrack", int),
    "Hires upscale": ("hires.upscale", float),
    "Hires resize-1": ("hires.resize_x", int),
    "Hires resize-2": ("hires.resize_y", int),
    "Hires steps": ("hires.steps", int),
    "Mask blur": ("img2img.inpaint.mask_blur", int),
    "Masked area padding": ("img2img.inpaint.padding", int),
    "Conditional mask weight": ("img2img.inpaint.conditioning_mask_strength", float),
    "Mask transparency": ("img2img.inpaint.mask_transparency", float),
    "Noise multiplier": ("img2img.noise_multiplier", float),
    "Extra noise": ("img2img.extra_noise", float),
}
"""Parameter of infotext -> setting, and its type of number."""

TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Emphasis": ("emphasis", ("Original", "No norm", "Ignore", "None")),
    "Hires prompt": ("hires.prompt", ()),
    "Hires negative prompt": ("hires.negative_prompt", ()),
    "Mask mode": ("img2img.inpaint.mask_mode", ("Inpaint masked", "Inpaint not masked")),
    "Masked content": (
        "img2img.inpaint.masked_content",
        ("fill", "original", "latent noise", "latent nothing"),
    ),
    "Inpaint area": ("img2img.inpaint.area", ("Whole picture", "Only masked")),
    "Resize mode": ("img2img.resize_mode", ()),
    "Background color": ("img2img.background_color", ()),
}
"""Parameter of infotext -> setting, and its possible values; none if any text is allowed."""

SWITCHES = {
    "Tiling": "tiling",
    "Pad conds": "pad_conds",
    "Old prompt editing timelines": "old_prompt_editing",
    "Discard penultimate sigma": "schedule.discard_next_to_last_sigma",
    "Old Karras sigmas": "schedule.use_old_karras",
    "SGM noise multiplier": "sgm_noise_multiplier",
    "Exact steps": "img2img.exact_steps",
    "Color correction": "img2img.color_correction",
    "Soft edges": "img2img.inpaint.soft_edges",
}
"""Parameter of infotext -> setting that is true or false."""

SCHEDULES_APART = (1, 9, 0, 0)
"""The version of A1111 that separated schedule types from the samplers' names, and writes them."""

ONCE_UNIFORM = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE",
    "DPM2", "DPM2 a",
)  # fmt: skip
"""Samplers that earlier used Uniform unless their name said otherwise. A1111 itself treats these
names as today's, which use another schedule."""

WITHOUT_INIT = "settings.img2img=null, which draws without one"
"""The way out where an init image is missing."""

FALSE = ("false", "0", "no")

ELSEWHERE = {
    "Sampler", "Schedule type", "Hires sampler", "Hires schedule type", "Model", "Model hash",
    "VAE", "VAE hash", "RNG", "Clip skip", "Denoising strength", "Face restoration",
    "Lora hashes", "TI hashes", "Hypernet", "Hypernet strength", "First pass size-1",
    "First pass size-2", "Version", "User", "Hires upscaler", "Hashes",
    "Civitai resources", "Civitai metadata", "Template",
    "Negative Template", "App", "Backend", "Pipeline", "Operations", "Parser", "Batch",
    "Script", "Index", "Created Date", "Diffusion in Low Bits",
}  # fmt: skip
"""Parameters that other functions handle, or that do not affect the image."""

OTHER_NAMES = {
    "Scheduler": "Schedule type",
    "Variation strength": "Variation seed strength",
    "Hires scale": "Hires upscale",
    "Hires fixed": "Hires resize",
    "Hires strength": "Denoising strength",
}
"""Parameters of SD.Next and of ComfyUI's image savers -> A1111's, unless these are there, too."""

COMFY_VERSION = "ComfyUI"
"""`Version` in the infotext of ComfyUI's image savers, whose noise is the CPU's."""

EXTENSIONS = ("ADetailer", "ControlNet", "Postprocess", "Wildcard", "Tiled", "FreeU", "Regional")
"""Extensions of A1111, the first word of their parameters: one note each."""

LEAK = (
    "Denoising strength", "Mask blur", "Inpaint area", "Masked area padding", "Masked content",
    "Mask mode", "Noise multiplier",
)  # fmt: skip
"""Parameters of its own inpainting that ADetailer before 24.4 adds to those of the picture."""

LAST_LEAKING = (24, 3)

DETAILER_DEFAULTS = {
    "Denoising strength": "0.4", "Mask blur": "4", "Inpaint area": "Only masked",
    "Masked area padding": "32",
}  # fmt: skip
"""ADetailer's own defaults; all of them together are its leak, even if its keys were removed."""

POSTPROCESSING = ("Postprocess ", "CodeFormer ", "GFPGAN ")
"""Beginnings of the parameters of A1111's Extras tab."""

REMARKS = {
    "Further samplers": "the first sampler of the graph draws",
    "Hires checkpoint": "the second pass is drawn with the same model",
    "Refiner": "there is no refiner; the model draws to the end",
    "Refiner switch at": "",
    "Refiner switch by sampling steps": "",
    "Downcast alphas_cumprod": "A1111 before 1.7 kept the noise schedule in half precision: the "
    "picture can differ a little",
    "Pad conds v0": "A1111 before 1.6 padded prompts otherwise; this is not done here",
    "Init image hash": "",
}
"""Parameters that are not supported, and the note on them; empty if another has it."""


def in_known_words(infotext: Infotext) -> Infotext:
    """Return infotext with A1111's names of parameters, which other programs vary."""
    known = {key.removesuffix("-1").removesuffix("-2") for key in (*NUMBERS, *TEXTS, *SWITCHES)}
    known |= ELSEWHERE | REMARKS.keys()
    folded = {key.casefold(): key for key in known}
    given = {folded.get(key.casefold(), key): text for key, text in infotext.parameters.items()}
    for other, name in OTHER_NAMES.items():
        if other in given and name not in given:
            given = {name if key == other else key: text for key, text in given.items()}
    if given.get("Version") == COMFY_VERSION:
        given.setdefault("RNG", "CPU")
    return Infotext(infotext.prompt, infotext.negative_prompt, given)


def is_only_postprocessed(infotext: Infotext) -> bool:
    """Return whether infotext has nothing but the parameters of A1111's Extras tab."""
    keys = list(infotext.parameters)
    if not keys and "\n" not in infotext.prompt:
        keys = [key for key, _ in entries_of(infotext.prompt)]
        return bool(keys) and infotext.prompt.startswith(POSTPROCESSING)
    is_named = all(key.startswith(POSTPROCESSING) for key in keys)
    return bool(keys) and is_named and not infotext.prompt


def settings_from(
    infotext: Infotext, restorers: Sequence[str], has_init: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Return a recipe's `settings`, as nested mappings, and notes on what cannot be reproduced.

    Args:
        infotext: with A1111's names of parameters.
        restorers: the available face restorers.
        has_init: whether the user gives an init image, so that there was one.
    """
    image: dict[str, Any] = {}
    notes: list[str] = []
    if not infotext.parameters:
        notes.append(
            "infotext has no settings, that is no line that begins with `Steps: `: all of it is "
            "taken as the prompt, and the usual settings draw"
        )
    infotext = infotext if has_init else without_leak(infotext, notes)
    pasted, recorded = as_pasted(infotext), infotext.split_sizes()
    if infotext.negative_prompt:
        image["negative_prompt"] = infotext.negative_prompt
    put_samplers(image, pasted, recorded, notes)
    put_values(image, recorded | meant(pasted, recorded), notes)
    put_passes(image, pasted, recorded, notes)
    put_noise(image, pasted["RNG"], notes)
    restorer = recorded.get("Face restoration")
    if restorer in restorers:
        image["restore_faces"] = restorer
    elif restorer:
        notes.append(f"Face restoration: {restorer} is not available here; faces are not restored")
    return image, notes


def without_leak(infotext: Infotext, notes: list[str]) -> Infotext:
    """Return infotext without what ADetailer adds to it of its own inpainting.

    An init image's hash and a later ADetailer show that the parameters are the picture's; the
    denoising strength of Hires. fix is its own.
    """
    given = infotext.parameters
    version = re.match(r"(\d{1,4})\.(\d{1,4})", given.get("ADetailer version", ""))
    is_later = version is not None and (int(version[1]), int(version[2])) > LAST_LEAKING
    is_used = any(key.startswith("ADetailer ") for key in given)
    is_ours = given.get("Version", "").startswith("limner ")
    is_used = is_used or (not is_ours and DETAILER_DEFAULTS.items() <= given.items())
    if not is_used or is_later or "Init image hash" in given:
        return infotext
    has_hires = any(key.startswith("Hires ") for key in given) or "First pass size" in given
    leaked = [key for key in LEAK if key in given and (key != LEAK[0] or not has_hires)]
    if leaked:
        notes.append(
            f"{', '.join(leaked)}: taken as ADetailer's own; drawn without an init image. If "
            f"there was one, give settings.img2img.init_image=…"
        )
    kept = {key: text for key, text in given.items() if key not in leaked}
    return Infotext(infotext.prompt, infotext.negative_prompt, kept)


def meant(pasted: Mapping[str, str], recorded: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters with the meaning that A1111 gives to old versions and formats."""
    keys = ("Old prompt editing timelines", "Pad conds v0", "Downcast alphas_cumprod")
    found = {key: pasted[key] for key in keys if key in pasted}
    if "First pass size-1" in recorded:
        found |= {key: pasted[key] for key in pasted if key.startswith(("Size-", "Hires resize-"))}
    return found


def put_samplers(
    image: dict[str, Any], pasted: Mapping[str, str], recorded: Mapping[str, str], notes: list[str]
) -> None:
    """Set samplers and schedule types of both passes, as far as they are known."""

    def put_known(key: str, name: str, value: str | None, known: Container[str]) -> None:
        if value is not None and value in known:
            set_key(image, name, value)
        elif value is not None and not value.startswith("Use same "):
            notes.append(f"{key}: {value} is not known here; the usual one draws")

    version = parse_version(recorded.get("Version"))
    is_old = "Schedule type" not in recorded or (version is not None and version < SCHEDULES_APART)
    schedule = earlier(pasted.get("Sampler"), pasted["Schedule type"], is_old)
    samplers, types = samplers_of("pictures"), schedule_types()
    put_known("Sampler", "sampler", pasted.get("Sampler"), samplers)
    put_known("Schedule type", "schedule_type", schedule, types)
    if sampler := recorded.get("Hires sampler"):
        is_named = "Hires schedule type" in recorded
        sampler, schedule = sampler_and_schedule(sampler, recorded.get("Hires schedule type"))
        is_own = is_old and sampler in samplers and not is_named
        schedule = earlier(sampler, schedule, is_own)
        put_known("Hires sampler", "hires.sampler", sampler, samplers)
        if is_named or schedule != "Automatic" or is_own:
            put_known("Hires schedule type", "hires.schedule_type", schedule, types)
    elif schedule := recorded.get("Hires schedule type"):
        put_known("Hires schedule type", "hires.schedule_type", schedule, types)


def earlier(sampler: str | None, schedule: str, is_old: bool) -> str:
    """Return the schedule type that an old name of a sampler meant."""
    return "Uniform" if is_old and schedule == "Automatic" and sampler in ONCE_UNIFORM else schedule


def put_values(image: dict[str, Any], recorded: Mapping[str, str], notes: list[str]) -> None:
    """Set the options that are one number, text or switch; note what is left."""
    unknown: dict[str, list[str]] = {}
    for key, value in recorded.items():
        if key in NUMBERS:
            put_number(image, key, value, *NUMBERS[key], notes)
        elif key == "Hires upscaler":
            put_upscaler(image, value, notes)
        elif key in TEXTS:
            name, known = TEXTS[key]
            if not known or value in known:
                set_key(image, name, value)
            else:
                notes.append(f"{key}: {value} is not known here; left out")
        elif key in SWITCHES:
            set_key(image, SWITCHES[key], value.lower() not in FALSE)
        elif key in REMARKS and not value.startswith("Use same "):
            notes += [f"{key}: {value}: {REMARKS[key]}"] if REMARKS[key] else []
        elif key not in ELSEWHERE and key not in REMARKS:
            first, space, _ = key.partition(" ")
            extension = first if space and first in EXTENSIONS else key
            unknown.setdefault(extension, []).append(f"{key}: {value}")
    notes += left_out(unknown)


def left_out(unknown: Mapping[str, Sequence[str]]) -> Iterable[str]:
    """Yield one note on each unknown parameter, or on all those of an extension."""
    for name, entries in unknown.items():
        if name in EXTENSIONS:
            yield f"{name}: there is no such extension here; left out: {', '.join(entries)}"
        else:
            yield f"{entries[0]}: not known here; left out"


def put_upscaler(image: dict[str, Any], name: str, notes: list[str]) -> None:
    """Set the upscaler of the second pass, if it is one that works here."""
    from inference.images.img2img import upscaler_names

    known = upscaler_names()
    if name in known:
        set_key(image, "hires.upscaler", name)
    else:
        notes.append(
            f"Hires upscaler: {name} is not available here; Latent is used instead. Choose "
            f"with settings.hires.upscaler=… from {', '.join(known)}"
        )


def put_number(
    image: dict[str, Any], key: str, value: str, name: str, kind: type, notes: list[str]
) -> None:
    """Set a number; note an invalid one. 0 stands for the schedule's own sigmas."""
    try:
        number = kind(value)
    except ValueError:
        number = math.nan
    if isinstance(number, float) and not math.isfinite(number):
        notes.append(f"{key}: {value!r} is no number; left out")
    elif number or not name.startswith("schedule."):
        set_key(image, name, number)


def put_passes(
    image: dict[str, Any], pasted: Mapping[str, str], recorded: Mapping[str, str], notes: list[str]
) -> None:
    """Set the options of a second pass or an init image, and the denoising strength."""
    strength = recorded.get("Denoising strength")
    has_hires = (
        "Hires upscale" in recorded
        or "Hires upscaler" in recorded
        or "First pass size-1" in recorded
    )
    has_hires = has_hires or pasted["Hires resize-1"] != "0" or pasted["Hires resize-2"] != "0"
    if has_hires and (left_out := image.pop("img2img", None)):
        names = ", ".join(left_out)
        notes.append(f"Hires. fix begins with no picture here: img2img's {names} left out")
    if has_hires:
        image.setdefault("hires", {})  # with the usual upscaler, if its own is not available
    elif "hires" in image:
        del image["hires"]
        notes.append("Hires: there was no second pass; its parameters are left out")
    group = "hires" if has_hires else "img2img"
    if strength is not None:
        put_number(
            image, "Denoising strength", strength, f"{group}.denoising_strength", float, notes
        )
    if "img2img" in image:
        known_by = (
            f" (its hash is {recorded['Init image hash']})" if "Init image hash" in recorded else ""
        )
        wanted = "settings.img2img.init_image=…"
        if "inpaint" in image["img2img"]:
            wanted += " and settings.img2img.inpaint.mask=…"
        notes.append(
            f"drawn over a picture that infotext does not hold{known_by}: give {wanted}; or "
            f"{WITHOUT_INIT}"
        )


def put_noise(image: dict[str, Any], source: str, notes: list[str]) -> None:
    """Set the noise source: that of an NVIDIA GPU is available everywhere."""
    if source in ("CPU", "NV"):
        image["rng"] = source
        return
    image["rng"] = "NV"
    if source != "GPU":
        notes.append(f"RNG: {source} is not known here; NV draws")
    else:
        notes.append(
            "RNG: drawn with a GPU's own noise; NV gives that of NVIDIA GPUs, on every device. On "
            "another GPU it was other noise, and the picture cannot be drawn again here"
        )
