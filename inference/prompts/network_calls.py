"""Networks that a prompt names: `<lora:name:0.8>`.

As in A1111 1.10.1 (`modules/extra_networks.py`, `extensions-builtin/Lora/extra_networks_lora.py`,
`modules/extra_networks_hypernet.py`). What A1111 ignores silently or skips with a line on the
console (unknown kinds and arguments) is an error here, since it would have no effect.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches

from inference.prompts.attention import fault

TAG = re.compile(r"<(\w+):([^>]+)>")
KINDS = {"lora": "lora", "lyco": "lora", "hypernet": "hypernet"}
"""Tag names, and the kind of network that each of them is."""

ARGUMENTS = {"lora": ("te", "unet", "dyn"), "hypernet": ("strength",)}
"""Arguments after the name, in this order; those of a LoRA also as `te=0.5`."""


@dataclass(frozen=True)
class ExtraNetwork:
    """A network that a tag names, with its strengths."""

    kind: str
    """`lora` or `hypernet`."""
    name: str
    te: float
    """Strength in the text encoders."""
    unet: float
    """Strength in the UNet; for a hypernetwork the only one, equal to `te`."""
    dyn: int | None
    """A LoRA's "dyn" dimension: how much of its rank is used."""
    position: int
    """Position of its tag in the prompt, from 0."""

    def __str__(self) -> str:
        return f"<{self.kind}:{self.name}>"


def extract_extra_networks(prompt: str) -> tuple[str, list[ExtraNetwork]]:
    """Return the prompt without its tags, and the networks they name, in order.

    `<lora:NAME>`, `<lora:NAME:te>` (UNet as text encoder), `<lora:NAME:te:unet>`,
    `<lora:NAME:te:unet:dyn>`; the named forms `te=`, `unet=` and `dyn=` win; `lyco` is an alias of
    `lora`. `<hypernet:NAME:strength>`. Strengths default to 1.

    Raises:
        InputError: an unknown kind of tag or argument, no name, or a malformed number; with its
            position.
    """
    networks, texts, position = [], [], 0
    for match in TAG.finditer(prompt, 0, prompt.rfind(">") + 1):
        networks.append(read_tag(prompt, match))
        texts.append(prompt[position : match.start()])
        position = match.end()
    return "".join([*texts, prompt[position:]]), networks


def read_tag(prompt: str, match: re.Match[str]) -> ExtraNetwork:
    """Parse one tag."""
    word = match[1]
    if word not in KINDS:
        near = get_close_matches(word, KINDS, 1)
        problem = f"<{word}:…> is not a kind of network; known: {', '.join(KINDS)}"
        raise fault(prompt, match.start(), problem + (f"; did you mean {near[0]}?" if near else ""))
    kind = KINDS[word]
    name, said = read_arguments(prompt, match, kind)
    if kind == "hypernet":
        te = unet = said.get("strength", 1.0)
    else:
        te = said.get("te", 1.0)
        unet = said.get("unet", te)
    dyn = int(said["dyn"]) if "dyn" in said else None
    return ExtraNetwork(kind, name, te, unet, dyn, match.start())


def read_arguments(prompt: str, match: re.Match[str], kind: str) -> tuple[str, dict[str, float]]:
    """Return the name and the other arguments; named arguments win."""
    known = ARGUMENTS[kind]
    positional: list[tuple[str, int]] = []
    named: dict[str, float] = {}
    position = match.start(2)
    for item in match[2].split(":"):
        key, equals, value = item.partition("=")
        if equals and "=" not in value:
            if kind != "lora" or key not in known:
                names = ", ".join(f"{name}=" for name in known) if kind == "lora" else "none"
                raise fault(prompt, position, f"unknown argument {key}=; known by name: {names}")
            named[key] = read_number(prompt, position + len(key) + 1, key, value)
        else:
            positional.append((item, position))
        position += len(item) + 1
    if not positional or not positional[0][0].strip():
        raise fault(prompt, match.start(), f"<{match[1]}:…> names no file; write <{match[1]}:name>")
    if len(positional) > 1 + len(known):
        problem = f"too many arguments; after the name come at most {', '.join(known)}"
        raise fault(prompt, positional[1 + len(known)][1], problem)
    said = {
        key: read_number(prompt, at, key, text)
        for key, (text, at) in zip(known, positional[1:], strict=False)
    }
    return positional[0][0], said | named


def read_number(prompt: str, position: int, name: str, text: str) -> float:
    """Parse a strength, or the integer `dyn`."""
    try:
        value = float(int(text)) if name == "dyn" else float(text)
    except (ValueError, OverflowError):
        value = math.nan
    if math.isfinite(value) and (name != "dyn" or value >= 1):
        return value
    expected = "a whole number from 1 on" if name == "dyn" else "a number such as 0.8"
    raise fault(prompt, position, f"{name} must be {expected}, got {text!r}")
