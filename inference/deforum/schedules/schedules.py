"""Schedules: values over the frames, written `0:(1), 30:(1+sin(t/5)), "max_f-1":(0)`.

Their meaning is that of Deforum for A1111 3.0 (`animation_key_frames.py`): numbers are interpolated
linearly; a formula is computed at every frame from its own to the next one; before the first and
after the last value the schedule is constant. Ours also accepts what Deforum fails on: commas
inside formulas, a trailing comma, no frame 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inference.deforum.settings import FormulaError, compute, is_number, number_of
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.deforum.settings import Values

PARTNERS = {")": "(", "]": "[", "}": "{"}
QUOTES = "\"'"
EXAMPLE = "for example 0:(1), 30:(1.5)"


class Keyframe(NamedTuple):
    """One `frame:(value)`; columns are the numbers of characters before it."""

    frame: str
    frame_column: int
    value: str
    value_column: int


def evaluate(
    key: str,
    text: str,
    num_frames: int,
    seed: int = -1,
    variables: Mapping[str, np.ndarray] | None = None,
) -> list[float]:
    """Return the values of a numeric schedule, one per frame.

    Args:
        key: the schedule's name, for messages.
        text: the schedule.
        num_frames: number of frames.
        seed: the run's first seed, `s` in formulas.
        variables: further names -> one value per frame.

    Raises:
        InputError: the schedule is invalid or has no number at a frame; the message names key,
            frame and column (from 1).
    """
    names = frame_names(num_frames, seed, variables)
    series = np.full(num_frames, np.nan)
    for frame, end, value in segments(key, text, num_frames, names):
        if is_number(value.value):
            series[frame] = number_of(value.value)
            continue
        formula, column = unwrapped(value.value, value.value_column)
        part = {
            name: one[frame:end] if isinstance(one, np.ndarray) else one
            for name, one in names.items()
        }
        try:
            series[frame:end] = compute(formula, part)
        except FormulaError as error:
            at = frame + (error.place or 0)
            if (colon := formula.find(":")) >= 0:
                message = f"a second ':' in one keyframe; expected frame:(value), {EXAMPLE}"
                raise mistake(key, message, column + colon, at) from None
            raise mistake(key, str(error), column + error.column, at) from None
    known = np.flatnonzero(~np.isnan(series))
    return np.interp(np.arange(num_frames), known, series[known]).tolist()


def evaluate_text(
    key: str,
    text: str,
    num_frames: int,
    seed: int = -1,
    variables: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
    """Return the values of a schedule of texts (samplers, checkpoints, masks), one per frame.

    Each holds until the next; the first also holds before it. Quotes and parentheses around a whole
    value are removed, and those inside are kept (Deforum removes all, and with them the order of a
    composed mask).

    Raises:
        InputError: as `evaluate`.
    """
    names = frame_names(num_frames, seed, variables)
    values: list[str] = []
    for frame, end, keyframe in segments(key, text, num_frames, names):
        value, _ = unwrapped(keyframe.value, 0)
        values += [value] * (end - (frame if values else 0))
    return values


def frame_names(
    num_frames: int, seed: int, variables: Mapping[str, np.ndarray] | None = None
) -> Values:
    """Return the names in formulas: frame `t`, seed `s`, last frame `max_f`, and others."""
    names: dict[str, np.ndarray | float | int] = {"t": np.arange(num_frames, dtype=np.int64)}
    return names | {"s": seed, "max_f": num_frames - 1} | dict(variables or {})


def segments(
    key: str, text: str, num_frames: int, names: Values
) -> Iterator[tuple[int, int, Keyframe]]:
    """Yield the keyframes within the animation in order: frame, next keyframe's frame, keyframe.

    Raises:
        InputError: the text is not a schedule, or none of its keyframes is within the animation.
    """
    points = placed(key, text, num_frames, names)
    inside = sorted(frame for frame in points if 0 <= frame < num_frames)
    if not inside:
        raise mistake(key, f"has no keyframe among 0 … {num_frames - 1}; write 0:(value)", 0)
    for frame, end in pairwise([*inside, num_frames]):
        yield frame, end, points[frame]


def placed(key: str, text: str, num_frames: int, names: Values) -> dict[int, Keyframe]:
    """Return the keyframes of a schedule by frame; of two at one frame, the later one.

    Raises:
        InputError: the text is not a schedule.
    """
    points: dict[int, Keyframe] = {}
    for keyframe in keyframes(key, text):
        try:
            points[frame_of(keyframe.frame, names)] = keyframe
        except FormulaError as error:
            column = keyframe.frame_column + error.column
            raise mistake(key, f"the frame {keyframe.frame.strip()!r} {error}", column) from None
    return points


def frame_of(text: str, names: Values) -> int:
    """Return the frame of a keyframe, truncated to an integer.

    Raises:
        FormulaError: it is neither a number nor a formula that is constant over the frames.
    """
    if is_number(text):
        return int(number_of(text))
    formula, column = unwrapped(text, 0)
    same = {name: one for name, one in names.items() if not isinstance(one, np.ndarray)}
    try:
        return int(compute(formula, same))
    except FormulaError as error:
        raise FormulaError(str(error), error.column + column) from None


def keyframes(key: str, text: str) -> Iterator[Keyframe]:
    """Yield the parts of a schedule in order.

    Raises:
        InputError: unbalanced brackets or quotes, or a part without its frame or value.
    """
    found = False
    parts = list(split(key, text))
    for start, end, colon in parts:
        part = text[start:end]
        if not part.strip() and found and end == len(text):
            return  # a trailing comma
        column = start + len(part) - len(part.lstrip())
        if not part.strip():
            raise mistake(key, f"expected frame:(value), {EXAMPLE}; got nothing", column)
        if colon is None:
            message = f"expected frame:(value), {EXAMPLE}; got {part.strip()!r} without a frame"
            raise mistake(key, message, column)
        if not text[start:colon].strip():
            raise mistake(key, f"expected a frame before ':', {EXAMPLE}", colon)
        if not text[colon + 1 : end].strip():
            raise mistake(key, f"expected a value after ':', {EXAMPLE}", colon)
        found = True
        yield Keyframe(text[start:colon], start, text[colon + 1 : end], colon + 1)


def split(key: str, text: str) -> Iterator[tuple[int, int, int | None]]:
    """Yield (start, end, first colon) of the parts between commas outside brackets and quotes.

    Raises:
        InputError: brackets or quotes are unbalanced.
    """
    start, colon, before = 0, None, ","
    open_brackets: list[int] = []
    quote: int | None = None
    for place, letter in enumerate(text):
        if quote is not None:
            quote = None if letter == text[quote] else quote
        elif letter in QUOTES and before in ",:([{":
            quote = place
        elif letter in "([{":
            open_brackets.append(place)
        elif letter in PARTNERS:
            if not open_brackets or text[open_brackets.pop()] != PARTNERS[letter]:
                raise mistake(key, f"{letter!r} has no matching bracket", place)
        elif not open_brackets and letter == ":" and colon is None:
            colon = place
        elif not open_brackets and letter == ",":
            yield start, place, colon
            start, colon = place + 1, None
        before = before if letter.isspace() else letter
    for place in [quote] if quote is not None else open_brackets[-1:]:
        raise mistake(key, f"{text[place]!r} is not closed", place)
    yield start, len(text), colon


def unwrapped(text: str, column: int) -> tuple[str, int]:
    """Return a value without quotes and parentheses around all of it, and its column."""
    while True:
        column += len(text) - len(text.lstrip())
        text = text.strip()
        quoted = len(text) > 1 and text[0] in QUOTES and text.find(text[0], 1) == len(text) - 1
        if not quoted and not encloses(text):
            return text, column
        text, column = text[1:-1], column + 1


def encloses(text: str) -> bool:
    """Return whether a text's first parenthesis is closed by its last character."""
    if len(text) < 2 or text[0] != "(" or text[-1] != ")":
        return False
    depth, quote = 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter == '"':
            quote = letter
        else:
            depth += {"(": 1, ")": -1}.get(letter, 0)
            if not depth:
                return place == len(text) - 1
    return False


def mistake(key: str, message: str, column: int, frame: int | None = None) -> InputError:
    """Return the error for a mistake in a schedule; `column` counts the characters before it."""
    place = (
        f"{key}, column {column + 1}"
        if frame is None
        else (f"{key}, frame {frame}, column {column + 1}")
    )
    return InputError(f"{place}: {message}")
