"""Convert values of a settings file of any age to the types of their keys."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from inference.deforum.settings.expressions import is_number
from inference.deforum.settings.keys import (
    A_SAMPLERS,
    ANY_TEXT,
    BOOL,
    ENUM,
    FLOAT,
    INT,
    LIMITS,
    LIST,
    PROMPTS,
    RECORD,
    SCHEDULE,
    STR,
    Key,
)
from inference.sampling import SCHEDULES, samplers_of

OLD_SAMPLERS = (
    "Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ 2M", "DPM++ SDE",
    "DPM fast", "DPM adaptive", "LMS Karras", "DPM2 Karras", "DPM2 a Karras", "DPM++ 2S a Karras",
    "DPM++ 2M Karras", "DPM++ SDE Karras", "DDIM", "PLMS", "UniPC",
)  # fmt: skip
"""A1111's samplers in early 2023, when settings files stored their numbers."""

OTHER_SAMPLERS = {
    "klms": "LMS", "lms": "LMS", "heun": "Heun", "euler": "Euler", "ddim": "DDIM", "plms": "PLMS",
    "dpm2": "DPM2", "dpm_2": "DPM2", "dpm2_ancestral": "DPM2 a", "dpm_2_ancestral": "DPM2 a",
    "euler_ancestral": "Euler a", "dpm_fast": "DPM fast", "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_a": "DPM++ 2S a", "dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_2m": "DPM++ 2M",
    "dpmpp_sde": "DPM++ SDE", "dpmpp_sde_gpu": "DPM++ SDE", "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_gpu": "DPM++ 2M SDE", "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_3m_sde_gpu": "DPM++ 3M SDE", "uni_pc": "UniPC", "lcm": "LCM", "restart": "Restart",
}  # fmt: skip
"""Names of samplers in the notebook and ComfyUI."""

KNOWN_SAMPLERS = {
    name.casefold(): name
    for name in (
        *(f"{sampler} {kind}" for sampler in samplers_of("pictures") for kind in SCHEDULES),
        *samplers_of("pictures"),
        *A_SAMPLERS,
    )
} | OTHER_SAMPLERS

NOTHING = ("", "none", "null")
WHOLE = re.compile(r"[+-]?\d{1,25}(\.0*)?")
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")


def coerce(name: str, key: Key, value: Any) -> Any:
    """Convert a value to the type of its key.

    Raises:
        ValueError: that is not possible; the message says what is expected.
    """
    if value is None and key.kind not in (STR, RECORD):
        return COERCIONS[key.kind](name, key, key.default)
    coerced = COERCIONS[key.kind](name, key, value)
    low, high = LIMITS.get(name, (-math.inf, math.inf))
    if isinstance(coerced, int | float) and not low <= coerced <= high:
        raise ValueError(f"must lie between {low} and {high}, got {coerced}")
    return coerced


def whole(name: str, key: Key, value: Any) -> int:
    """Convert to an integer, also from `25.0` and `"25"`."""
    if isinstance(value, str) and WHOLE.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"expected a whole number, got {shown(value)}")


def number(name: str, key: Key, value: Any) -> float:
    """Convert to a number, also from `"0.5"`; integers stay integers."""
    if isinstance(value, str):
        try:
            value = whole(name, key, value) if WHOLE.fullmatch(value.strip()) else float(value)
        except ValueError:
            raise ValueError(f"expected a number, got {shown(value)}") from None
    if not isinstance(value, int | float) or isinstance(value, bool) or not finite(value):
        raise ValueError(f"expected a number, got {shown(value)}")
    return value


def finite(value: float) -> bool:
    """Return whether a number is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def switch(name: str, key: Key, value: Any) -> bool:
    """Convert to a bool, also from 0, 1, `"true"`, `"False"`."""
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    word = value.strip().casefold() if isinstance(value, str) else None
    if word in TRUE or word in FALSE:
        return word in TRUE
    raise ValueError(f"expected true or false, got {shown(value)}")


def text(name: str, key: Key, value: Any) -> str | None:
    """Convert to a text, also from a number; None stays None."""
    if isinstance(value, Mapping | list) and name in ("init_images", "parseq_manifest"):
        value = json.dumps(value, ensure_ascii=False)
    if value is None or (name == "init_image" and str(value).casefold() in NOTHING):
        return None if key.default is None else ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected a text, got {shown(value)}")
    return None if key.default is None and not str(value).strip() else writable(str(value))


def writable(value: str) -> str:
    """Return the text if UTF-8 can encode it.

    Raises:
        ValueError: it has a lone surrogate.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start + 1} is not valid Unicode") from None
    return value


def choice(name: str, key: Key, value: Any) -> str:
    """Return one of the key's values in any case; `fill` also by number, samplers by any name."""
    if name == "sampler":
        return sampler_name(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if name == "fill" and isinstance(value, int | str) and str(value) in ("0", "1", "2", "3"):
        return key.choices[int(value)]
    known = {one.casefold(): one for one in key.choices}
    word = value.strip().casefold() if isinstance(value, str) else shown(value)
    if word in known:
        return known[word]
    if value == "" and "none" in known:
        return known["none"]
    if name in ANY_TEXT and isinstance(value, str) and value.strip():
        return writable(value.strip())
    raise ValueError(f"expected one of {', '.join(key.choices)}; got {shown(value)}")


def sampler_name(value: Any) -> str:
    """Return a sampler's name in A1111 or Limner, given any name or its old number.

    Raises:
        ValueError: there is no such sampler.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(OLD_SAMPLERS):
        return OLD_SAMPLERS[value]
    word = " ".join(value.casefold().split()) if isinstance(value, str) else ""
    if word not in KNOWN_SAMPLERS:
        from difflib import get_close_matches

        near = get_close_matches(word, KNOWN_SAMPLERS, 1)
        hint = f"; the nearest is {KNOWN_SAMPLERS[near[0]]}" if near else ""
        raise ValueError(f"expected a sampler, for example Euler a; got {shown(value)}{hint}")
    return KNOWN_SAMPLERS[word]


def schedule(name: str, key: Key, value: Any) -> str:
    """Return a schedule; a number becomes a constant one, a mapping frame -> value its text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{frame}:({writable(str(one))})" for frame, one in value.items())
    if isinstance(value, int | float) and not isinstance(value, bool) and finite(value):
        return f"0:({plain_number(value)})"
    if not isinstance(value, str):
        raise ValueError(f"expected a schedule, for example 0:(1); got {shown(value)}")
    if is_number(value) and value.strip():
        return f"0:({value.strip()})"
    return writable(value)


def plain_number(value: float) -> str:
    """Return a number without exponent if that is short, so that schedules read it as a number."""
    written = repr(value)
    if "e" not in written:
        return written
    exact = f"{value:.20f}".rstrip("0")
    return exact if float(exact) == value and len(exact) < 40 else written


def texts(name: str, key: Key, value: Any) -> dict[str, str]:
    """Return frame -> text of a mapping, a list (one per frame from 0), a text, or JSON text."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value) if value.lstrip().startswith(("{", "[")) else value
        except (ValueError, RecursionError):
            parsed = value
        value = parsed if isinstance(parsed, Mapping | list) else {"0": value}
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        raise ValueError(f"expected frames and texts, {{'0': 'a cat'}}; got {shown(value)}")
    if name == "prompts" and not value:
        raise ValueError("has no prompt; expected frames and texts, {'0': 'a cat'}")
    found: dict[str, str] = {}
    for place, one in value.items():
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise ValueError(f"at {place!r} expected a text, got {shown(one)}")
        found[writable(str(place))] = writable(str(one))
    return found


def numbers(name: str, key: Key, value: Any) -> list[float]:
    """Return a list of numbers; also from events with `time`, and from comma-separated text."""
    if isinstance(value, str):
        value = [part for part in value.strip("[] ").split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list of numbers, got {shown(value)}")
    plain = [one.get("time") if isinstance(one, Mapping) else one for one in value]
    return [number(name, key, one) for one in plain]


def record(name: str, key: Key, value: Any) -> Any:
    """Return any value that JSON can represent."""
    try:
        writable(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise ValueError("is not JSON that can be written") from None
    return value


def shown(value: Any) -> str:
    """Return a value for a message, truncated if long."""
    try:
        written = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        written = type(value).__name__
    return written if len(written) <= 60 else f"{written[:57]}…"


COERCIONS: dict[str, Callable[[str, Key, Any], Any]] = {
    INT: whole, FLOAT: number, BOOL: switch, STR: text, ENUM: choice, SCHEDULE: schedule,
    PROMPTS: texts, LIST: numbers, RECORD: record,
}  # fmt: skip
