"""Settings of an animation: loaded from files of any age, and saved so that they load again.

The file is that of Deforum for A1111 3.0 (`settings.py`): a flat JSON object in UTF-8, indented by
4.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from inference.deforum.settings.coercion import coerce
from inference.deforum.settings.dialects import migrate, translate
from inference.deforum.settings.keys import ANY_TEXT, KEYS, PATHS, SAVED_IF_CHANGED
from inference.files import write_atomically
from inference.recipe import at_home
from inference.runtime import InputError, check_readable

LARGEST = 64 * 2**20
"""Maximum size of a settings file in bytes."""


@dataclass(frozen=True)
class Settings:
    """All settings of an animation, by Deforum's names."""

    values: Mapping[str, Any]
    """Every key of `KEYS`, with a value of the key's type."""
    notes: list[str] = field(default_factory=list)
    """What was read differently than written, and what was ignored."""
    source: str = ""
    """The file, for messages."""

    def __getitem__(self, key: str) -> Any:
        """Return a setting; a path with the home folder for `~`."""
        value = self.values[key]
        return at_home(value) if key in PATHS and isinstance(value, str) else value

    def replace(self, **changes: Any) -> Settings:
        """Return the settings with some of them changed.

        Raises:
            InputError: an unknown key, or an invalid value.
        """
        values = {key: coerced(key, value, self.source) for key, value in changes.items()}
        return Settings({**self.values, **values}, list(self.notes), self.source)

    def error(self, message: str) -> InputError:
        """Return an error whose message starts with the settings' file."""
        return InputError(f"{self.source}: {message}" if self.source else message)

    def text(self) -> str:
        """Return the content of the settings file."""
        saved = {
            key: value
            for key, value in self.values.items()
            if key not in SAVED_IF_CHANGED or value != DEFAULTS[key]
        }
        return json.dumps(saved, ensure_ascii=False, indent=4, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Write the settings file; loaded and saved again, it has the same bytes."""
        write_atomically(Path(path), lambda file: file.write_text(self.text(), "utf-8"))


def read_settings(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    origin: str = "",
) -> Settings:
    """Read settings from a file, or from a mapping in a recipe.

    Nothing that the settings point to is opened; `load_settings` applies a Parseq manifest.

    Args:
        source: path of a settings file in any dialect, or settings by key.
        overrides: `key=value` each; the value is JSON, otherwise a text. `prompts.30=a cat` changes
            one prompt.
        origin: name of a mapping in messages.

    Raises:
        InputError: the file cannot be read, or a value does not fit its key.
    """
    is_file = not isinstance(source, Mapping)
    name = str(source) if is_file else origin
    raw = read(Path(source)) if not isinstance(source, Mapping) else source
    notes: list[str] = []
    try:
        settings = translate(raw, notes)
    except InputError as error:
        raise InputError(f"{name}: {error}" if name else str(error)) from None
    migrate(settings, notes, is_file)
    for override in overrides:
        apply(settings, override)
    values = {
        key: coerced(key, settings[key], name) if key in settings else copy.deepcopy(default)
        for key, default in DEFAULTS.items()
    }
    notes += [
        f"{key}: {values[key]!r} is not known here, and no value of this key changes a frame"
        for key in sorted(ANY_TEXT & settings.keys())
        if values[key] not in KEYS[key].choices
    ]
    if "prompts" not in settings:
        notes.append("has no prompts: every frame has an empty prompt")
    notes += unknown(settings)
    return Settings(values, notes, name)


def read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        InputError: there is no such file, or it contains something else.
    """
    check_readable(path)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path}: is too large for a settings file")
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8, at byte {error.start}") from None
    try:
        raw = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {error.lineno}, column {error.colno}: is not JSON: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON that can be read: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f'{path}: expected settings, {{"W": 512, …}}; got a {type(raw).__name__}')
    return raw


def refuse(word: str) -> float:
    """Reject NaN and Infinity, which Python's JSON accepts and no setting can be."""
    raise ValueError(f"{word} is not a number")


def coerced(key: str, value: Any, source: str = "") -> Any:
    """Convert a value to the type of its key.

    Raises:
        InputError: an unknown key, or an invalid value.
    """
    if key not in KEYS:
        near = get_close_matches(key, KEYS, 1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise InputError(f"{key}: no such setting{hint}")
    try:
        return coerce(key, KEYS[key], value)
    except ValueError as error:
        raise InputError(f"{source}: {key}: {error}" if source else f"{key}: {error}") from None


def apply(settings: dict[str, Any], override: str) -> None:
    """Change one setting by `key=value`.

    Raises:
        InputError: there is no `=`, or no such key.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"{override}: expected key=value")
    main, dot, frame = key.strip().partition(".")
    coerced(main, None)  # rejects unknown keys
    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        value = text
    if not dot:
        settings[main] = value
        return
    if KEYS[main].kind != "prompts":
        raise InputError(f"{key}: {main} has no keys inside")
    inside = coerced(main, settings[main]) if main in settings else {}
    settings[main] = {**inside, frame: text}


def unknown(settings: Mapping[str, Any]) -> list[str]:
    """Return notes on unknown keys; they suggest similar known ones."""
    names, notes = [], []
    for start, what in OF_FORKS.items():
        found = [key for key in settings if key.startswith(start) and key not in KEYS]
        if found:
            notes.append(f"ignored, {what}: {listed(found, len(found))}")
    others = [key for key in settings if key not in KEYS and not key.startswith(tuple(OF_FORKS))]
    for key in others[:MOST_NAMED]:
        near = get_close_matches(key, KEYS, 1, 0.85)
        names.append(f"{key[:60]!r} (is {near[0]} meant?)" if near else repr(key[:60]))
    return notes + ([f"ignored, as not known: {listed(names, len(others))}"] if names else [])


MOST_NAMED = 50
"""Maximum number of unknown keys that a note lists."""


def listed(names: Sequence[str], count: int) -> str:
    """Return the first of so many names for a note."""
    more = count - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


OF_FORKS = {
    "shake_": "as the camera shake of Deforum's Forge fork is not available",
    "wan_": "as the video model Wan is not available",
}
"""Prefix of a key that only a fork has -> why it has no effect."""

DEFAULTS: dict[str, Any] = {key: coerced(key, one.default) for key, one in KEYS.items()}
"""Value of every key that a file does not set."""
