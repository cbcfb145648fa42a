"""Translate what other programs write as JSON, or as one text per setting, into infotext.

NovelAI's (A1111 1.10.1 `modules/images.py`), SwarmUI's (`docs/Image Metadata Format.md`), Fooocus's
(`modules/meta_parser.py`) and Easy Diffusion's (`easydiffusion/utils/save_utils.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

from inference.images.infotext.redraw_keys import KNOWN_SAMPLERS, sampler_and_schedule
from inference.images.infotext.text import write_infotext
from inference.runtime import InputError

Size = tuple[int, int]

OF_NOVEL_AI = {"native": "Uniform"}
"""NovelAI's names of schedule types that A1111 calls otherwise."""

EASY_DIFFUSION = {
    "Prompt": "prompt",
    "Negative Prompt": "negative_prompt",
    "Seed": "seed",
    "Stable Diffusion model": "use_stable_diffusion_model",
    "Clip Skip": "clip_skip",
    "VAE model": "use_vae_model",
    "Sampler": "sampler_name",
    "Width": "width",
    "Height": "height",
    "Steps": "num_inference_steps",
    "Guidance Scale": "guidance_scale",
    "Prompt Strength": "prompt_strength",
    "LoRA model": "use_lora_model",
    "LoRA Strength": "lora_alpha",
    "Seamless Tiling": "tiling",
}
"""Easy Diffusion's labels -> its keys; files have either."""

NOTHING = ("", "none", "null", "false")


def is_novel_ai(info: Mapping[Any, Any]) -> bool:
    """Return whether a PNG's texts are NovelAI's."""
    return info.get("Software") == "NovelAI" and isinstance(info.get("Comment"), str)


def is_easy_diffusion(info: Mapping[Any, Any]) -> bool:
    """Return whether the keys are Easy Diffusion's, whose `prompt` is a text and no graph."""
    keys = {EASY_DIFFUSION.get(key, key) for key in info}
    return {"prompt", "num_inference_steps", "guidance_scale"} <= keys


def looks_like_json(text: str) -> bool:
    """Return whether a text is meant as a JSON object; `{a|b}` of a prompt is not."""
    return re.match(r'\s*\{\s*"', text) is not None


def is_json(text: str) -> bool:
    """Return whether a text is JSON from beginning to end."""
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def translate_json(text: str, size: Size) -> str:
    """Return the infotext of SwarmUI's, Fooocus's or Easy Diffusion's JSON.

    Raises:
        InputError: it is not JSON, or another program's; the message says where.
    """
    try:
        found = json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"its text is damaged JSON, at {where}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"its text is JSON that cannot be read: {error}") from error
    assert isinstance(found, dict)
    if "sui_image_params" in found:
        return translate_swarm(found["sui_image_params"])
    if is_easy_diffusion(found):
        return translate_easy_diffusion(found, size)
    if "guidance_scale" in found and "prompt" in found:
        return translate_fooocus(found, size)
    keys = ", ".join(list(found)[:5])[:200]
    raise InputError(
        f"its text is JSON of a program that is not known here (with the keys {keys}); expected "
        "infotext, or that of SwarmUI, Fooocus or Easy Diffusion"
    )


def translate_novel_ai(info: Mapping[Any, Any], size: Size) -> str:
    """Return the infotext of NovelAI's texts, with its Clip skip and ENSD.

    Raises:
        InputError: they are damaged.
    """
    try:
        recorded = json.loads(info["Comment"])
        schedule = recorded.get("noise_schedule")
        parameters = {
            "Steps": recorded["steps"],
            "Sampler": KNOWN_SAMPLERS.get(str(recorded["sampler"]).lower(), "Euler a"),
            "CFG scale": recorded["scale"],
            "Seed": recorded["seed"],
            "Size": f"{size[0]}x{size[1]}",
            "Clip skip": 2,
            "ENSD": 31337,
        }
        if schedule:
            schedule = OF_NOVEL_AI.get(schedule, schedule)
            parameters["Schedule type"] = sampler_and_schedule("", schedule)[1]
        return write_infotext(str(info["Description"]), str(recorded["uc"]), parameters)
    except KeyError as error:
        raise InputError(f"NovelAI's texts lack {error.args[0]!r}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"NovelAI's Comment is not JSON that can be read: {error}") from error


def translate_swarm(recorded: Any) -> str:
    """Return the infotext of SwarmUI's `sui_image_params`.

    Raises:
        InputError: it has no prompt.
    """
    if not isinstance(recorded, Mapping) or not isinstance(recorded.get("prompt"), str):
        raise InputError("sui_image_params: expected SwarmUI's settings, with a prompt")
    loras = listed(recorded.get("loras"))
    weights = [*listed(recorded.get("loraweights")), *["1"] * len(loras)]  # 1 where it says none
    tags = [f"<lora:{stem(one)}:{weight}>" for one, weight in zip(loras, weights, strict=False)]
    sides = recorded.get("width"), recorded.get("height")
    skip = recorded.get("clipstopatlayer")
    parameters = {
        "Steps": recorded.get("steps"),
        **named_sampler(
            recorded.get("sampler", recorded.get("comfyuisampler", "euler")),
            recorded.get("scheduler", recorded.get("comfyuischeduler", "normal")),
        ),
        "CFG scale": recorded.get("cfgscale"),
        "Seed": recorded.get("seed"),
        "Size": f"{sides[0]}x{sides[1]}" if None not in sides else None,
        "Model": stem(recorded.get("model")),
        "VAE": stem(recorded.get("vae")),
        "Variation seed": recorded.get("variationseed"),
        "Variation seed strength": recorded.get("variationseedstrength"),
        "Denoising strength": recorded.get("initimagecreativity"),
        "Clip skip": -skip if isinstance(skip, int) and skip < 0 else None,
        "RNG": "CPU",
        "Version": f"SwarmUI {recorded.get('swarm_version', '')}".strip(),
    }
    negative = str(recorded.get("negativeprompt") or "")
    return write_infotext(" ".join([recorded["prompt"], *tags]), negative, parameters)


def translate_fooocus(recorded: Mapping[str, Any], size: Size) -> str:
    """Return the infotext of Fooocus's JSON; the prompts as written, without its styles."""
    tags = []
    for lora in recorded.get("loras") or []:
        if isinstance(lora, list | tuple) and len(lora) > 1:
            tags.append(f"<lora:{stem(lora[0])}:{lora[1]}>")
    sides = re.findall(r"\d+", str(recorded.get("resolution", ""))) or [*map(str, size)]
    skip = recorded.get("clip_skip")
    vae = recorded.get("vae")
    parameters = {
        "Steps": recorded.get("steps"),
        **named_sampler(recorded.get("sampler"), recorded.get("scheduler")),
        "CFG scale": recorded.get("guidance_scale"),
        "Seed": recorded.get("seed"),
        "Size": "x".join(sides[:2]),
        "Model hash": recorded.get("base_model_hash"),
        "Model": stem(recorded.get("base_model")),
        "VAE": vae if vae and "default" not in str(vae).lower() else None,
        "Clip skip": skip if isinstance(skip, int) and skip > 1 else None,
        "RNG": "CPU",
        "Fooocus styles": ", ".join(map(str, listed(recorded.get("styles")))) or None,
        "Version": str(recorded.get("version") or "Fooocus"),
    }
    negative = str(recorded.get("negative_prompt") or "")
    return write_infotext(" ".join([str(recorded["prompt"]), *tags]), negative, parameters)


def translate_easy_diffusion(info: Mapping[Any, Any], size: Size) -> str:
    """Return the infotext of Easy Diffusion's texts."""
    recorded = {EASY_DIFFUSION.get(key, key): value for key, value in info.items()}
    loras = zip(
        listed(recorded.get("use_lora_model")), listed(recorded.get("lora_alpha")), strict=False
    )
    tags = [f"<lora:{stem(name)}:{weight}>" for name, weight in loras]
    is_skipped = str(recorded.get("clip_skip")).lower() == "true"
    sides = recorded.get("width", size[0]), recorded.get("height", size[1])
    parameters = {
        "Steps": recorded["num_inference_steps"],
        **named_sampler(recorded.get("sampler_name"), None),
        "CFG scale": recorded["guidance_scale"],
        "Seed": recorded.get("seed"),
        "Size": f"{sides[0]}x{sides[1]}",
        "Model": stem(recorded.get("use_stable_diffusion_model")),
        "VAE": stem(recorded.get("use_vae_model")),
        "Denoising strength": recorded.get("prompt_strength"),
        "Clip skip": 2 if is_skipped else None,
        "Tiling": "True" if str(recorded.get("tiling")).lower() not in (*NOTHING,) else None,
        "RNG": "CPU",
        "Version": "Easy Diffusion",
    }
    negative = str(recorded.get("negative_prompt") or "")
    return write_infotext(" ".join([str(recorded["prompt"]), *tags]), negative, parameters)


def named_sampler(sampler: Any, schedule: Any) -> dict[str, str | None]:
    """Return a sampler and a schedule type in A1111's words; none that is not named."""
    if not sampler:
        return {"Sampler": None, "Schedule type": None}
    name, kind = sampler_and_schedule(str(sampler), str(schedule) if schedule else None)
    return {"Sampler": name, "Schedule type": kind if schedule or kind != "Automatic" else None}


def listed(value: Any) -> list[Any]:
    """Return a value as a list: a list, its JSON or Python text, or one value; none for nothing."""
    if isinstance(value, str) and value.startswith("["):
        value = re.findall(r"[^\[\]'\",\s][^\[\]'\",]*", value)
    if isinstance(value, list):
        return value
    return [] if str(value).lower() in NOTHING else [value]


def stem(name: Any) -> str | None:
    """Return the name of a model's file without folder and suffix; none for nothing."""
    if not isinstance(name, str) or name.lower() in NOTHING:
        return None
    file = PureWindowsPath(name).name
    for suffix in (".safetensors", ".ckpt", ".pt", ".sft"):
        file = file.removesuffix(suffix)
    return file
