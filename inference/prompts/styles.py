"""Styles: pieces of prompts kept by name in a `styles.csv`.

As in A1111 1.10.1 (`modules/styles.py`): columns name, prompt, negative_prompt (in old files text
for prompt); UTF-8 with or without a byte order mark; quoted fields may hold commas and line ends;
rows whose name is empty or begins with "#" are passed over.
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
    """What a style adds to a prompt and to a negative prompt."""

    prompt: str
    negative_prompt: str


def read_styles(path: str | Path) -> dict[str, Style]:
    """The styles of a file by their names; of two with one name the later one.

    Raises:
        InputError: the file cannot be read, is no UTF-8 or no CSV, or has not the columns.
    """
    styles: dict[str, Style] = {}
    rows: csv.DictReader[str] | None = None
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
        raise InputError(f"{path}: line {line}: no CSV: {error}") from error
    return styles


def apply_styles(
    prompt: str, negative_prompt: str, names: Sequence[str], styles: Mapping[str, Style]
) -> tuple[str, str]:
    """Prompt and negative prompt with the styles, in their order.

    A style's text takes the prompt in where it says `{prompt}`; another one stands behind it after
    a comma.

    Raises:
        InputError: there is no style of a name; names the nearest ones.
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
    """One text of a style with one prompt."""
    if PLACEHOLDER in style:
        return style.replace(PLACEHOLDER, prompt)
    return ", ".join(text for text in (prompt.strip(), style.strip()) if text)
