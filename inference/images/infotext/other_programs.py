"""Translate what ComfyUI and InvokeAI write into images into infotext.

It is read by the library sd-parsers, if it is installed (`pip install 'limner[metadata]'`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.images.infotext.json_programs import looks_like_json, named_sampler, stem
from inference.images.infotext.text import write_infotext
from inference.runtime import InputError, require

MARKS = {
    "invokeai_metadata": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "Dream": "InvokeAI",
}
"""Keyword in a PNG -> the program that writes it."""

GRAPHS = "workflow", "prompt"
"""ComfyUI's keywords; other programs call plain texts `prompt`."""


def other_program(info: Mapping[Any, Any]) -> str | None:
    """Return the program that wrote an image's texts, if sd-parsers supports it."""
    graphs = [info[key] for key in GRAPHS if isinstance(info.get(key), str)]
    if any(looks_like_json(text) for text in graphs):
        return "ComfyUI"
    return next((program for key, program in MARKS.items() if key in info), None)


def read_other_programs(path: Path) -> str | None:
    """Return the infotext of an image by ComfyUI or InvokeAI; None for other images.

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
        **named_sampler(recorded["sampler"], recorded.get("scheduler")),
        "CFG scale": recorded.get("cfg_scale"),
        "Seed": recorded.get("seed", recorded.get("noise_seed")),
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model.hash if model else None,
        "Model": stem(model.name) if model else None,
        "RNG": "CPU",  # both
        "Denoising strength": partial_denoising(recorded),
        "Further samplers": len(found.samplers) - 1 or None,
        "Version": str(found.generator.value),
    }
    return write_infotext(found.full_prompt, found.full_negative_prompt, parameters)


def partial_denoising(recorded: Mapping[str, Any]) -> object | None:
    """Return ComfyUI's `denoise`; it is 1 without an init image."""
    value = recorded.get("denoise")
    return value if value not in (None, 1, 1.0) else None
