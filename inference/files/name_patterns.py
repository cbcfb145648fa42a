"""File names by A1111's patterns: `[date]/[number]-[seed]-[prompt_words]`.

Patterns and rules: A1111 1.10.1 `modules/images.py` (`FilenameGenerator`); `[number]`, which counts
up and can be anywhere in the name, is ours (A1111 puts its number before every name). Paths never
leave the output folder: characters that are special in any file system become `_` in every
substituted text, and no folder is named `..`.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from inference.runtime import InputError

LONGEST_PART = 128
"""Maximum characters that a pattern expands to, as in A1111."""

LONGEST_NAME = 200
"""Maximum bytes of a file or folder name; file systems allow 255, and number and suffix follow."""

MOST_WORDS = 8
"""Number of words in `[prompt_words]`."""

DEFAULT_TIME = "%Y%m%d%H%M%S"
SPECIAL = re.compile(r'[#<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')
NOT_WORDS = re.compile(rf"[\s{re.escape(string.punctuation)}]+")
TOKEN = re.compile(r"\[([^\[\]]+)\]|([^\[\]]+|[\[\]])")
ARGUMENTS = re.compile(r"<([^<>]*)>")
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Reserved names on Windows."""

NUMBER, MARK = "number", "\0"
"""The pattern that is expanded last, and its placeholder."""


@dataclass(frozen=True)
class Naming:
    """The values of an image that names can contain."""

    seed: int
    steps: int
    cfg_scale: float
    width: int
    height: int
    sampler: str
    schedule_type: str
    """The schedule type, with `Automatic` resolved if it stands for another one."""
    prompt: str
    negative_prompt: str = ""
    plain_prompt: str | None = None
    """The prompt without its styles; None if it has none."""
    styles: tuple[str, ...] = ()
    model_name: str = ""
    model_hash: str = ""
    """10 digits."""
    vae_name: str = "NoneType"
    clip_skip: int = 1
    denoising_strength: float | None = None
    user: str = ""
    batch_index: int = 0
    """Index among the images that are generated at once, from 0."""
    batch_size: int = 1
    generation_index: int = 0
    """Index among all images of the job, from 0."""
    num_generations: int = 1
    pixels: bytes = b""
    """The image's bytes, for `[image_hash]`."""
    started: datetime = field(default_factory=datetime.now)
    """Start of the job."""


@dataclass(frozen=True)
class Name:
    """A name that may still need its number."""

    folders: tuple[str, ...]
    before: str
    after: str = ""
    has_number: bool = False


def clean(text: object, replace_spaces: bool = False) -> str:
    """Return a text as part of a name: special characters become `_`, at most 128 characters."""
    words = str(text).replace(" ", "_") if replace_spaces else str(text)
    return SPECIAL.sub("_", words).lstrip(" ")[:LONGEST_PART].rstrip(" .")


def text_hash(text: str | bytes, length: str = "8") -> str:
    """Return the first digits of a text's SHA-256."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[: int(length or 8)]


def words_of(prompt: str) -> str:
    """Return the first words of a prompt, or `empty`."""
    words = [word for word in NOT_WORDS.split(prompt) if word]
    return clean(" ".join(words[:MOST_WORDS] or ["empty"]))


def has_prompt(naming: Naming, *arguments: str) -> str:
    """Return, of each `<word|otherwise>`, the word if the prompt has it, else the other text."""
    prompt, found = naming.prompt.lower(), ""
    for argument in arguments:
        word, _, otherwise = argument.partition("|")
        if word:
            found += word.lower() if word.lower() in prompt else otherwise.partition("|")[0]
    return clean(found)


def time_of(text_format: str = "", zone: str = "") -> str:
    """Return the current time, in a strftime format and a time zone such as Europe/Vienna."""
    return clean(datetime.now(zone_of(zone)).strftime(text_format or DEFAULT_TIME))


def zone_of(name: str) -> tzinfo | None:
    """Return a time zone by name; None, which is the local time zone, for an empty name.

    Raises:
        ValueError: there is no such time zone.
    """
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(f"there is no time zone {name!r}") from error


Fill = Callable[..., object]

PATTERNS: dict[str, Fill] = {
    "seed": lambda n: n.seed,
    "steps": lambda n: n.steps,
    "cfg": lambda n: f"{n.cfg_scale:g}",
    "width": lambda n: n.width,
    "height": lambda n: n.height,
    "styles": lambda n: clean(", ".join(n.styles) or "None"),
    "sampler": lambda n: clean(n.sampler),
    "scheduler": lambda n: clean(n.schedule_type),
    "model_hash": lambda n: n.model_hash,
    "model_name": lambda n: clean(n.model_name),
    "date": lambda n: datetime.now().strftime("%Y-%m-%d"),
    "datetime": lambda n, *arguments: time_of(*arguments),
    "job_timestamp": lambda n: n.started.strftime(DEFAULT_TIME),
    "prompt": lambda n: clean(n.prompt, replace_spaces=True),
    "prompt_no_styles": lambda n: clean(n.prompt if n.plain_prompt is None else n.plain_prompt),
    "prompt_spaces": lambda n: clean(n.prompt),
    "prompt_words": lambda n: words_of(n.prompt),
    "prompt_hash": lambda n, *length: text_hash(n.prompt, *length),
    "negative_prompt_hash": lambda n, *length: text_hash(n.negative_prompt, *length),
    "full_prompt_hash": lambda n, *length: text_hash(f"{n.prompt} {n.negative_prompt}", *length),
    "batch_number": lambda n: None if n.batch_size == 1 else n.batch_index + 1,
    "batch_size": lambda n: n.batch_size,
    "generation_number": lambda n: None if n.num_generations == 1 else n.generation_index + 1,
    "hasprompt": has_prompt,
    "clip_skip": lambda n: n.clip_skip,
    "denoising": lambda n: n.denoising_strength or None,
    "user": lambda n: clean(n.user),
    "vae_filename": lambda n: clean(n.vae_name),
    "none": lambda n: "",
    "image_hash": lambda n, length="64": text_hash(n.pixels, length or "64"),
}
"""Pattern -> its value; None also removes the text before it."""

MOST_ARGUMENTS = {
    "datetime": 2, "prompt_hash": 1, "negative_prompt_hash": 1, "full_prompt_hash": 1,
    "image_hash": 1, "hasprompt": 99,
}  # fmt: skip


def tokens_of(pattern: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (text, "", []) for text and ("", name, arguments) for each `[name<argument>…]`."""
    for match in TOKEN.finditer(pattern):
        if match[1] is None:
            yield match[2], "", []
            continue
        name, _, _ = match[1].partition("<")
        yield "", name.strip().lower(), ARGUMENTS.findall(match[1])


def pattern_faults(pattern: str) -> Iterator[str]:
    """Yield the errors in a pattern, one sentence each."""
    parts = [""]
    for text, name, arguments in tokens_of(pattern):
        if not name:
            before, *others = text.split("/")
            parts[-1] += before
            parts += others
            continue
        parts[-1] += f"[{name}]"
        if name != NUMBER and name not in PATTERNS:
            known = ", ".join(f"[{one}]" for one in (NUMBER, *PATTERNS))
            yield f"does not know [{name}]; known are {known}"
        elif len(arguments) > MOST_ARGUMENTS.get(name, 0):
            yield f"[{name}] takes {MOST_ARGUMENTS.get(name, 0)} arguments, got {len(arguments)}"
        else:
            yield from argument_faults(name, arguments)
    if pattern.startswith(("/", "~")) or any(part.strip() in (".", "..") for part in parts):
        yield "must stay in output_dir: neither / nor ~ at its beginning, and no .."
    if not parts[-1].strip(" ."):
        yield "must end in a file's name, for example [number]-[seed]"
    if any(f"[{NUMBER}]" in part for part in parts[:-1]) or parts[-1].count(f"[{NUMBER}]") > 1:
        yield "takes [number] once, in the file's name behind the last /"


def argument_faults(name: str, arguments: list[str]) -> Iterator[str]:
    """Yield the errors in the arguments of a pattern."""
    if name.endswith("_hash"):
        if any(a and not re.fullmatch(r"[1-9]\d?", a) for a in arguments):
            yield f"[{name}<digits>] takes a number of digits, 1 … 99; got {arguments[0]!r}"
    elif name == "datetime":
        try:
            time_of(*arguments)
        except ValueError as error:
            yield f"[datetime<format><time zone>]: {error}"


def fill_in(pattern: str, naming: Naming) -> Name:
    """Expand a pattern into folders and a name, without the file's suffix.

    Raises:
        InputError: the pattern is invalid.
    """
    for fault in pattern_faults(pattern):
        raise InputError(f"file_name: {fault}")
    filled: list[str] = []
    is_text = False
    for text, name, arguments in tokens_of(pattern):
        if not name:
            filled.append("/".join(SPECIAL.sub("_", part) for part in text.split("/")))
        elif name == NUMBER:
            filled.append(MARK)
        elif (value := PATTERNS[name](naming, *arguments)) is not None:
            filled.append(SPECIAL.sub("_", str(value)))
        elif is_text:
            filled[-1] = filled[-1][: filled[-1].rfind("/") + 1]
        is_text = not name
    *folders, file = "".join(filled).split("/")
    names = tuple(name for name in map(fitting, folders) if name)
    before, mark, after = file.partition(MARK)
    if not mark and (whole := fitting(before)):
        return Name(names, whole)
    after = shorten(after.rstrip(" ."), LONGEST_NAME // 2) if mark else ""
    room = LONGEST_NAME - len(after.encode())
    before = shorten(visible(before.lstrip(" ")), room) if mark else ""
    return Name(names, before, after, has_number=True)


def fitting(name: str) -> str:
    """Return a name that every file system accepts; empty for a name of only dots and spaces."""
    name = visible(shorten(name.strip(" ").rstrip(" ."), LONGEST_NAME).rstrip(" ."))
    return f"_{name}" if DEVICES.fullmatch(name) else name


def visible(name: str) -> str:
    """Return the name with a leading dot, which would hide the file, replaced."""
    return f"_{name[1:]}" if name.startswith(".") else name


def shorten(name: str, most_bytes: int) -> str:
    """Truncate the name to a number of bytes, between characters."""
    return name.encode()[:most_bytes].decode("utf-8", "ignore")
