"""The request to the model for each frame, from the schedules and switches of the settings."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.deforum.loop.generator import FrameRequest
from inference.deforum.schedules import derived_seed

if TYPE_CHECKING:
    from inference.deforum.schedules import Script


def frame_request(
    script: Script,
    frame: int,
    seed: int,
    init: np.ndarray | None = None,
    strength: float = 0.0,
    mask: np.ndarray | None = None,
) -> FrameRequest:
    """Return the request of a frame.

    Args:
        script: the animation.
        frame: its number.
        seed: of this image.
        init: init image, uint8 RGB; without it there is only noise, and strength and mask are
            ignored.
        strength: how much of it stays; clipped to 0 … 1.
        mask: uint8 (h, w), 255 is generated.
    """
    prompt = script.prompt(frame)
    request = FrameRequest(
        frame=frame,
        prompt=prompt.prompt,
        mixes_embeddings=script.mixes_embeddings and len(prompt.parts) > 1,
        negative_prompt=prompt.negative,
        width=script.width,
        height=script.height,
        seed=seed,
        steps=max(1, script.steps(frame)),
        cfg_scale=script.number("cfg_scale_schedule", frame),
        sampler=script.sampler(frame),
        tiling=script["tiling"],
        restore_faces=script["restore_faces"],
        seed_resize_from=(script["seed_resize_from_w"], script["seed_resize_from_h"]),
        **switched(script, frame),
    )
    if init is not None:
        request = dataclasses.replace(
            request, init=init, strength=min(max(strength, 0.0), 1.0), **masked(script, mask)
        )
    strengths = script.network_strengths(frame)
    prompt_text = request.prompt
    for name in set(strengths) - set(script.artifact_names):
        prompt_text = with_strength(prompt_text, name, strengths[name])
    ours = {name: value for name, value in strengths.items() if name in script.artifact_names}
    return dataclasses.replace(request, prompt=prompt_text, artifact_strengths=ours)


def switched(script: Script, frame: int) -> dict[str, Any]:
    """Return the values of the schedules that have their own switch, if it is on."""
    number = script.number
    given: dict[str, Any] = {}
    if script["enable_subseed_scheduling"]:
        subseed = int(number("subseed_schedule", frame))
        if subseed < 0:
            subseed = derived_seed(script.seed, frame, "subseed")
        strength = min(max(number("subseed_strength_schedule", frame), 0.0), 1.0)
        given |= {"subseed": subseed, "subseed_strength": strength}
    if script["enable_noise_multiplier_scheduling"]:
        given["noise_multiplier"] = max(0.0, number("noise_multiplier_schedule", frame))
    if script["enable_ancestral_eta_scheduling"]:
        given["eta"] = number("ancestral_eta_schedule", frame)
    if script["enable_ddim_eta_scheduling"]:
        given["ddim_eta"] = number("ddim_eta_schedule", frame)
    if script["enable_clipskip_scheduling"]:
        given["clip_skip"] = max(1, int(number("clipskip_schedule", frame)))
    if script["enable_checkpoint_scheduling"]:
        given["checkpoint"] = script.text("checkpoint_schedule", frame)
    if script["freeu_enabled"]:
        names = "b1", "b2", "s1", "s2"
        given["freeu"] = tuple(number(f"freeu_{name}", frame) for name in names)
    return given


def masked(script: Script, mask: np.ndarray | None) -> dict[str, Any]:
    """Return the settings of inpainting."""
    if mask is None:
        return {}
    return {
        "mask": mask,
        "masked_content": script["fill"],
        "mask_blur": min(script["mask_overlay_blur"], 64),
        "full_res_mask": script["full_res_mask"],
        "full_res_mask_padding": script["full_res_mask_padding"],
    }


def with_strength(prompt: str, name: str, strength: float) -> str:
    """Return the prompt with another strength in the tag of a network."""
    pattern = rf"<(lora|lyco|hypernet):{re.escape(name)}(:[^>]*)?>"
    return re.sub(pattern, lambda tag: f"<{tag[1]}:{name}:{strength:g}>", prompt)
