"""The text format of infotext: prompt, negative prompt and a line of parameters, both ways.

Format: A1111 1.10.1 `modules/processing.py` (`create_infotext`) and `modules/infotext_utils.py`
(`parse_generation_parameters`). Ours reads a little more: keys of one letter, empty values, values
in quotes of their own, sizes as `512×512`, fewer than three parameters if Steps is the first, and
prompts whose lines begin or end with spaces. It also reads what extensions and other programs make
of the format: parameters that are not on the last line, values with line breaks in their quotes,
JSON without quotes (`Hashes: {"model": "…"}`), the templates that Dynamic Prompts writes below, and
SD.Next's `|` between parameters. What this format cannot represent (a prompt that ends in an empty
line, or looks like parameters) is repeated in a parameter of ours, `Exact prompt`, so that reading
returns exactly what was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from inference.runtime import number

NEGATIVE = "Negative prompt:"
EXACT = "Exact prompt", "Exact negative prompt"
"""Our own parameters, written only if the text alone would be misread."""

KEY = r"\w[\w \-/]*+"


def entry_pattern(separator: str) -> re.Pattern[str]:
    """Return the pattern of a parameter, a key alone, or neither.

    A1111 writes a key alone if its value is the same word. What is neither is skipped at once,
    which keeps the time linear.
    """
    value = rf'"(?:\\.|[^\\"])*+"|[^{separator}\n]*+'
    end = rf"(?:[^\S\n]*+[{separator}\n]|$)"
    return re.compile(
        rf"\s*+(?:(?P<key>{KEY}):[^\S\n]*+(?P<value>{value}){end}|(?P<word>{KEY}){end}"
        r"|\w[\w \-/]*+|[^\w\s]++)",
        re.DOTALL,
    )


ENTRIES = {separator: entry_pattern(separator) for separator in ",|"}
ENDS = {separator: re.compile(rf"[^\S\n]*+(?:[{separator}\n]|$)") for separator in ",|"}
PIPES = re.compile(r'\s*Steps: ?"?\d+"? ?\|')
"""The start of SD.Next's parameters, which stand between `|`."""

TEMPLATES = "Template", "Negative Template"
"""Dynamic Prompts' parameters: texts of any number of lines, below the others."""

SIZE = re.compile(r"(\d{1,9})\s?[x×]\s?(\d{1,9})")

FEWEST_PARAMETERS = 3
"""With fewer of them A1111 treats the last line as part of the prompt."""

MOST_TRIED = 20
"""Maximum number of lines that begin with Steps and are tried, from the last one."""


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
    lines = lines_of(text)
    start = parameters_line(lines)
    parameters = read_parameters("\n".join(lines[start:]))
    del lines[start:]
    exact, exact_negative = (parameters.pop(key, None) for key in EXACT)
    if exact is not None and exact_negative is not None:
        return Infotext(exact, exact_negative, parameters)
    for position, line in enumerate(lines):
        if line.lstrip().startswith(NEGATIVE):
            first = line.lstrip().removeprefix(NEGATIVE).removeprefix(" ")
            negative = "\n".join([first, *lines[position + 1 :]])
            return Infotext("\n".join(lines[:position]), negative, parameters)
    return Infotext("\n".join(lines), "", parameters)


def lines_of(text: str) -> list[str]:
    """Return the lines of infotext."""
    return text.replace("\r\n", "\n").strip().split("\n")


def has_parameters(text: str) -> bool:
    """Return whether a text has parameters, and is not only a prompt."""
    lines = lines_of(text)
    return parameters_line(lines) < len(lines)


def parameters_line(lines: list[str]) -> int:
    """Return the line at which the parameters begin; the number of lines if there are none.

    That is A1111's last line if it contains Steps; otherwise the last one that begins with Steps
    and has three parameters, since extensions write below it; otherwise any last line with three.
    """
    last = len(lines) - 1
    keys = [key for key, _ in entries_of(lines[last])]
    is_ours = keys[-2:] == list(EXACT)
    if is_ours or (len(keys) >= FEWEST_PARAMETERS and "Steps" in keys):
        return last
    begin_so = (n for n in range(last, -1, -1) if lines[n].lstrip().startswith("Steps: "))
    for place in islice(begin_so, MOST_TRIED):
        entries, _ = first_line("\n".join(lines[place:]))
        if sum(not is_word for _, _, is_word in entries) >= FEWEST_PARAMETERS:
            return place
    is_parameters = len(keys) >= FEWEST_PARAMETERS or lines[last].startswith("Steps: ")
    return last if is_parameters else len(lines)


def read_parameters(text: str) -> dict[str, str]:
    """Return the parameters of a text that begins with them; the first of each key below them."""
    entries, end = first_line(text)
    parameters = {key: value for key, value, _ in entries}
    below = text[end:].strip("\n")
    if below.startswith(tuple(f"{name}:" for name in TEMPLATES)):
        further = templates_of(below)
    else:
        further = dict(entries_of(below))
    return parameters | {key: text for key, text in further.items() if key not in parameters}


def templates_of(text: str) -> dict[str, str]:
    """Return Dynamic Prompts' templates of the prompts."""
    positive, _, negative = f"\n{text}".partition(f"\n{TEMPLATES[1]}:")
    positive = positive.removeprefix(f"\n{TEMPLATES[0]}:")
    found = zip(TEMPLATES, (positive, negative), strict=True)
    return {key: unquote(value.strip()) for key, value in found if value.strip()}


def first_line(text: str) -> tuple[list[tuple[str, str, bool]], int]:
    """Return key, value and whether it is a word alone of the parameters on the first line.

    Also return where that line ends: line breaks in quotes and in JSON are part of it.
    """
    entries: list[tuple[str, str, bool]] = []
    for match, value, end in matches_of(text):
        found = match[0]
        if "\n" in found and match.start() > 0:
            space = len(found) - len(found.lstrip())
            if "\n" in found[:space]:
                return entries, match.start()
        if match["key"]:
            entries.append((match["key"].rstrip(), unquote(value), False))
        elif match["word"] and (match.start() == 0 or text[match.start() - 1] in ",|"):
            entries.append((match["word"].rstrip(), match["word"].rstrip(), True))
        if end < len(text) and text[end - 1] == "\n":
            return entries, end - 1
    return entries, len(text)


def entries_of(text: str) -> Iterator[tuple[str, str]]:
    """Return keys and values of parameters, on any number of lines."""
    for match, value, _ in matches_of(text):
        if match["key"]:
            yield match["key"].rstrip(), unquote(value)


def matches_of(text: str) -> Iterator[tuple[re.Match[str], str, int]]:
    """Return the matches of parameters and of what is between, with value and end."""
    separator = "|" if PIPES.match(text) else ","
    position = 0
    while match := ENTRIES[separator].match(text, position):
        position, value = match.end(), (match["value"] or "").strip()
        if value[:1] in ("{", "["):
            start = match.start("value")
            end = json_end(text, start)
            after = ENDS[separator].match(text, end)
            if end > start and after:
                position, value = after.end(), text[start:end]
        yield match, value, position


def json_end(text: str, start: int) -> int:
    """Return where the JSON ends that begins at a position; the position if it is none."""
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return start


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
        found = str(json.loads(text, strict=False))
    except ValueError:
        return text
    return text if re.search("[\0\ud800-\udfff]", found) else found
