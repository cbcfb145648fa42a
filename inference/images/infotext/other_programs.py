"""Translate the metadata of other programs' images into infotext.

NovelAI's here, as A1111 1.10.1 does (`modules/images.py`); ComfyUI's, InvokeAI's and Fooocus's by
the library sd-parsers, if it is installed (`pip install 'limner[metadata]'`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from inference.images.infotext.redraw_keys import KNOWN_SAMPLERS, sampler_and_schedule
from inference.images.infotext.text import write_infotext
from inference.runtime import InputError, require

MARKS = {
    "workflow": "ComfyUI",
    "prompt": "ComfyUI",
    "invokeai_metadata": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "Dream": "InvokeAI",
    "fooocus_scheme": "Fooocus",
}
"""Keyword in a PNG -> the program that writes it."""


def is_novel_ai(info: Mapping[Any, Any]) -> bool:
    """Return whether a PNG's texts are NovelAI's."""
    return info.get("Software") == "NovelAI" and isinstance(info.get("Comment"), str)


def is_fooocus(info: Mapping[Any, Any]) -> bool:
    """Return whether `parameters` has Fooocus's JSON, and no infotext."""
    return info.get("fooocus_scheme") == "fooocus" and "parameters" in info


def translate_novel_ai(info: Mapping[Any, Any], size: tuple[int, int]) -> str | None:
    """Return the infotext of NovelAI's texts, with its Clip skip and ENSD; None if damaged."""
    try:
        recorded = json.loads(info["Comment"])
        sampler = KNOWN_SAMPLERS.get(str(recorded["sampler"]).lower(), "Euler a")
        parameters = {
            "Steps": recorded["steps"],
            "Sampler": sampler,
            "CFG scale": recorded["scale"],
            "Seed": recorded["seed"],
            "Size": f"{size[0]}x{size[1]}",
            "Clip skip": 2,
            "ENSD": 31337,
        }
        return write_infotext(str(info["Description"]), str(recorded["uc"]), parameters)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def other_program(info: Mapping[Any, Any]) -> str | None:
    """Return the program that wrote an image's texts, if sd-parsers supports it."""
    return next((program for key, program in MARKS.items() if key in info), None)


def read_other_programs(path: Path) -> str | None:
    """Return the infotext of an image by ComfyUI, InvokeAI or Fooocus; None for other images.

    Raises:
        InputError: it is one, but sd-parsers is not installed or cannot read it.
        OSError: the image does not exist, or cannot be read.
    """
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        program, size = other_program(image.info), image.size
    if program is None:
        return None
    feature = f"{path} was drawn by {program}, whose metadata"
    sd_parsers = require("sd_parsers", feature, "sd-parsers", "metadata")
    found = sd_parsers.ParserManager().parse(path)
    if found is None or not found.samplers:
        raise InputError(f"{path}: what {program} wrote into it is not understood")
    return translate(found, size)


def translate(found: Any, size: tuple[int, int]) -> str:
    """Return the infotext of sd-parsers' result; of several samplers, of the first."""
    sampler = found.samplers[0]
    recorded = {"sampler": sampler.name, **sampler.parameters}
    model = sampler.model
    parameters = {
        "Steps": recorded.get("steps"),
        "Sampler": recorded["sampler"],
        "Schedule type": None,
        "CFG scale": recorded.get("cfg_scale"),
        "Seed": recorded.get("seed"),
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model.hash if model else None,
        "Model": PureWindowsPath(model.name).stem if model and model.name else None,
        "RNG": "CPU",  # all three
        "Denoising strength": partial_denoising(recorded),
        "Version": str(found.generator.value),
    }
    name = str(parameters["Sampler"])
    name = KNOWN_SAMPLERS.get(f"k_{name.lower()}", name)  # ComfyUI: euler_ancestral
    schedule = recorded.get("scheduler")
    names = sampler_and_schedule(name, str(schedule) if schedule else None)
    parameters |= {"Sampler": names[0], "Schedule type": names[1]}
    return write_infotext(found.full_prompt, found.full_negative_prompt, parameters)


def partial_denoising(recorded: Mapping[str, Any]) -> object | None:
    """Return ComfyUI's `denoise`; it is 1 without an init image."""
    value = recorded.get("denoise")
    return value if value not in (None, 1, 1.0) else None
