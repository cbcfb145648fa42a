"""Styles: named parts of prompts in a `styles.csv`.

As in A1111 1.10.1 (`modules/styles.py`): columns name, prompt, negative_prompt (in old files text
instead of prompt); UTF-8 with or without a byte order mark; quoted fields may contain commas and
line breaks; rows whose name is empty or begins with "#" are skipped.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from inference.runtime import InputError

PLACEHOLDER = "{prompt}"


class Style(NamedTuple):
    """The text that a style adds to a prompt and to a negative prompt."""

    prompt: str
    negative_prompt: str


def read_styles(path: str | Path) -> dict[str, Style]:
    """Return the styles of a file by name; of two with the same name, the later one.

    Raises:
        InputError: the file cannot be read, is not UTF-8 or not CSV, or lacks a column.
    """
    styles: dict[str, Style] = {}
    rows: csv.DictReader[str] | None = None
    if Path(path).exists() and not Path(path).is_file():
        raise InputError(f"{path}: is a folder, pipe or device; expected A1111's styles.csv")
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            columns = rows.fieldnames or []
            prompt = "prompt" if "prompt" in columns else "text"
            if "name" not in columns or prompt not in columns:
                found = ", ".join(columns) or "nothing"
                raise InputError(
                    f"{path}: line 1: expected the columns name,prompt,negative_prompt; got {found}"
                )
            for row in rows:
                name = row["name"] or ""
                if name and not name.startswith("#"):
                    styles[name] = Style(row[prompt] or "", row.get("negative_prompt") or "")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: not UTF-8; save it as UTF-8") from error
    except csv.Error as error:
        line = rows.line_num + 1 if rows else 1
        raise InputError(f"{path}: line {line}: not CSV: {error}") from error
    return styles


def apply_styles(
    prompt: str, negative_prompt: str, names: Sequence[str], styles: Mapping[str, Style]
) -> tuple[str, str]:
    """Return prompt and negative prompt with the styles applied, in order.

    A style's `{prompt}` is replaced by the prompt; a style without it is appended after a comma.

    Raises:
        InputError: there is no style of a name; the message suggests similar names.
    """
    for name in names:
        if name not in styles:
            near = get_close_matches(name, styles, 3, 0.5)
            known = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(styles) or '-'}"
            raise InputError(f"styles: there is no style {name!r}; {known}")
        prompt = merged(styles[name].prompt, prompt)
        negative_prompt = merged(styles[name].negative_prompt, negative_prompt)
    return prompt, negative_prompt


def merged(style: str, prompt: str) -> str:
    """Combine one text of a style with one prompt."""
    if PLACEHOLDER in style:
        return style.replace(PLACEHOLDER, prompt)
    return ", ".join(text for text in (prompt.strip(), style.strip()) if text)
