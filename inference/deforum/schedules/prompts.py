"""The prompt of each frame.

Deforum for A1111 3.0 (`prompt.py`, `render_modes.py`): prompts are set at keyframes and hold until
the next, `` `formula` `` inside is computed for the frame, and text after `--neg` is negative. In
mode Interpolation there are two prompts with weights that sum to 1 between keyframes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inference.deforum.schedules.schedules import frame_names, frame_of
from inference.deforum.schedules.variables import frame_variables
from inference.deforum.settings import FormulaError, evaluated, managed_prompts
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.deforum.settings import Settings, Values

FORMULA = re.compile(r"`([^`]*)`")


class Part(NamedTuple):
    """One of the prompts around a frame; weights sum to 1."""

    prompt: str
    negative: str
    weight: float


class PromptAt(NamedTuple):
    """The prompt of a frame."""

    prompt: str
    negative: str
    parts: tuple[Part, ...] = ()
    """In mode Interpolation, the prompts on both sides, for blending embeddings; one on a keyframe.
    `prompt` is the composable form, `(a):0.7 AND (b):0.3`."""


def frame_prompts(
    settings: Settings, variables: Mapping[str, np.ndarray] | None = None
) -> list[PromptAt]:
    """Return the prompts of all frames.

    Args:
        settings: with the run's seed drawn, if formulas use `s`.
        variables: names in formulas besides `t`, `s`, `max_f` -> one value per frame; None uses
            those of the settings.

    Raises:
        InputError: a keyframe or a formula cannot be computed; the message names both.
    """
    try:
        return prompts_of(settings, variables)
    except InputError as error:
        raise settings.error(str(error)) from None


def prompts_of(settings: Settings, variables: Mapping[str, np.ndarray] | None) -> list[PromptAt]:
    """Return the prompts of all frames; error messages do not name the file."""
    num_frames = settings["max_frames"]
    variables = frame_variables(settings) if variables is None else variables
    names = frame_names(num_frames, settings["seed"], variables)
    managed = managed_prompts(settings)
    if managed is not None:
        return [
            PromptAt(*filled(text, frame, frame + 1, names)[0])
            for frame, text in enumerate(managed)
        ]
    texts = at_frames(settings["prompts"], names)
    frames = sorted(texts)
    composed = settings["animation_mode"] == "Interpolation"
    prompts: list[PromptAt] = []
    for frame, following in zip(
        frames, [*frames[1:], max(num_frames, frames[-1] + 1)], strict=True
    ):
        start, end = len(prompts), min(following, num_frames)
        if end <= start:
            continue
        here = filled(texts[frame], start, end, names)
        if not composed or following not in texts:
            prompts += [PromptAt(*one, (Part(*one, 1.0),) if composed else ()) for one in here]
            continue
        there = filled(texts[following], start, end, names)
        for place, (one, other) in enumerate(zip(here, there, strict=True), start):
            weight = 1 / (following - frame) * (place - frame)
            prompts.append(between(one, other, weight) if place > frame else alone(one))
    return prompts


def at_frames(prompts: Mapping[str, str], names: Values) -> dict[int, str]:
    """Return the prompts by the frame of their key.

    Raises:
        InputError: a key is neither a number nor a formula.
    """
    texts: dict[int, str] = {}
    for key, text in prompts.items():
        try:
            texts[frame_of(key, names)] = text
        except FormulaError as error:
            raise InputError(
                f"prompts, frame {key!r}, column {error.column + 1}: {error}; expected a frame, "
                'for example "30" or "max_f/2"'
            ) from None
    return texts


def filled(text: str, start: int, end: int, names: Values) -> list[tuple[str, str]]:
    """Return (prompt, negative prompt) of a keyframe's text at each frame from start to end."""
    values: list[list[str]] = []
    for match in FORMULA.finditer(text):
        part = {k: v[start:end] if isinstance(v, np.ndarray) else v for k, v in names.items()}
        try:
            result = np.broadcast_to(np.asarray(evaluated(match[1], part)), end - start)
            if result.dtype.kind not in "biuf" or not np.all(np.isfinite(result)):
                raise FormulaError("does not come to a number at every frame")
        except FormulaError as error:
            column = match.start(1) + error.column + 1
            raise InputError(
                f"prompts, frame {start}, column {column}: `{match[1]}` {error}"
            ) from None
        kept = result.astype(float) if result.dtype.kind == "b" else result
        values.append([str(one) for one in kept.tolist()])
    if not values:
        return [divided(text)] * (end - start)
    between_formulas = FORMULA.split(text)[::2]
    rows = []
    for row in zip(*values, strict=True):
        pieces = [piece + value for piece, value in zip(between_formulas, row, strict=False)]
        rows.append(divided("".join(pieces) + between_formulas[-1]))
    return rows


def divided(text: str) -> tuple[str, str]:
    """Return the prompt before the first `--neg`, and the text after all of them."""
    prompt, *negatives = text.split("--neg")
    return prompt.strip(), " ".join(part.strip() for part in negatives if part.strip())


def alone(one: tuple[str, str]) -> PromptAt:
    """Return the prompt on a keyframe of mode Interpolation."""
    return PromptAt(*one, (Part(*one, 1.0),))


def between(one: tuple[str, str], other: tuple[str, str], weight: float) -> PromptAt:
    """Return the prompt between two keyframes, `weight` of the way to the second one."""
    weights = 1 - weight, weight
    prompt, negative = (
        " AND ".join(f"({text}):{share}" for text, share in zip(pair, weights, strict=True) if text)
        for pair in zip(one, other, strict=True)
    )
    return PromptAt(prompt, negative, (Part(*one, weights[0]), Part(*other, weights[1])))
