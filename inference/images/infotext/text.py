"""The text format of infotext: prompt, negative prompt and a line of parameters, both ways.

Format: A1111 1.10.1 `modules/processing.py` (`create_infotext`) and `modules/infotext_utils.py`
(`parse_generation_parameters`). Ours reads a little more: keys of one letter, empty values, values
in quotes of their own, sizes as `512×512`, fewer than three parameters if Steps is the first, and
prompts whose lines begin or end with spaces. What this format cannot represent (a prompt that ends
in an empty line, or looks like parameters) is repeated in a parameter of ours, `Exact prompt`, so
that reading returns exactly what was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from inference.runtime import number

NEGATIVE = "Negative prompt:"
EXACT = "Exact prompt", "Exact negative prompt"
"""Our own parameters, written only if the text alone would be misread."""

KEY, VALUE = r"\w[\w \-/]*+", r'"(?:\\.|[^\\"])*+"|[^,]*+'
ENTRY = re.compile(
    rf"\s*+(?:(?P<key>{KEY}):\s*(?P<value>{VALUE})(?:,|$)|(?P<word>{KEY})(?:,|$)"
    r"|[ \-/]++|\w[\w \-/]*+|.)",
    re.DOTALL,
)
"""A parameter, a key alone (A1111 writes it if its value is the same word), or neither.
The last is skipped at once, which keeps the time linear."""

SIZE = re.compile(r"(\d{1,9})\s?[x×]\s?(\d{1,9})")

FEWEST_PARAMETERS = 3
"""With fewer of them A1111 treats the last line as part of the prompt."""


@dataclass(frozen=True)
class Infotext:
    """Prompt, negative prompt, and the parameters in their order, all as text."""

    prompt: str
    negative_prompt: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    def split_sizes(self) -> dict[str, str]:
        """Return the parameters, with sizes split as in A1111: Size-1, Size-2."""
        split: dict[str, str] = {}
        for key, value in self.parameters.items():
            if size := SIZE.fullmatch(value):
                split |= {f"{key}-1": size[1], f"{key}-2": size[2]}
            else:
                split[key] = value
        return split


def write_infotext(
    prompt: str, negative_prompt: str, parameters: Mapping[str, object | None]
) -> str:
    """Return the infotext of an image. Parameters that are None are left out.

    Raises:
        ValueError: a key has other characters than letters, digits, space, - and /.
    """
    entries = {key: number(value) for key, value in parameters.items() if value is not None}
    for key in entries:
        if not re.fullmatch(KEY, key):
            raise ValueError(f"{key!r} cannot be a key of infotext")
    words = [key if key == text else f"{key}: {quote(text)}" for key, text in entries.items()]
    lines = [prompt, *([f"{NEGATIVE} {negative_prompt}"] if negative_prompt else [])]
    text = "\n".join([*lines, ", ".join(words)]).strip()
    if parse_infotext(text) == Infotext(prompt, negative_prompt, entries):
        return text
    quoted_values = zip(EXACT, (prompt, negative_prompt), strict=True)
    words += [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in quoted_values]
    return "\n".join([*lines, ", ".join(words)]).strip()


def parse_infotext(text: str) -> Infotext:
    """Parse infotext. A text without parameters is a prompt."""
    lines = text.replace("\r\n", "\n").strip().split("\n")
    parameters: dict[str, str] = {}
    if is_parameters(lines[-1]):
        parameters = dict(entries_of(lines.pop()))
    exact, exact_negative = (parameters.pop(key, None) for key in EXACT)
    if exact is not None and exact_negative is not None:
        return Infotext(exact, exact_negative, parameters)
    for position, line in enumerate(lines):
        if line.lstrip().startswith(NEGATIVE):
            first = line.lstrip().removeprefix(NEGATIVE).removeprefix(" ")
            negative = "\n".join([first, *lines[position + 1 :]])
            return Infotext("\n".join(lines[:position]), negative, parameters)
    return Infotext("\n".join(lines), "", parameters)


def entries_of(line: str) -> Iterator[tuple[str, str]]:
    """Return keys and values of a line of parameters; for a key alone the key twice."""
    for match in ENTRY.finditer(line):
        if match["key"]:
            yield match["key"], unquote(match["value"])
        elif match["word"] and (match.start() == 0 or line[match.start() - 1] == ","):
            yield match["word"], match["word"]


def is_parameters(line: str) -> bool:
    """Return whether a text's last line has parameters, and is not the end of a prompt."""
    keys = [match["key"] for match in ENTRY.finditer(line) if match["key"]]
    return len(keys) >= FEWEST_PARAMETERS or line.startswith("Steps: ") or keys[-2:] == list(EXACT)


def quote(text: str) -> str:
    """Return a value as written in infotext: in JSON's quotes if it could be misread."""
    is_clear = text and text == text.strip() and text[0] != '"'
    if is_clear and not any(sign in text for sign in ",:\n"):
        return text
    return json.dumps(text, ensure_ascii=False)


def unquote(text: str) -> str:
    """Return a value as before `quote`; text that only looks quoted is unchanged."""
    if len(text) < 2 or not text[0] == text[-1] == '"':
        return text
    try:
        found = str(json.loads(text))
    except ValueError:
        return text
    return text if re.search("[\0\ud800-\udfff]", found) else found
