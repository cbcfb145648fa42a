"""Masks of animations: files, alpha, and expressions (Deforum 3.0 `load_images.py`, `masks.py`).

A mask is (h, w), uint8: 255 where the image changes, 0 where it stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from inference.deforum.geometry import Bytes
from inference.deforum.settings import DEFORUM, FIXED, Compat
from inference.images import read_image
from inference.runtime import InputError

OPERATORS = "\\^|&"
"""Binary operators, in ascending precedence: difference, xor, or, and."""

KINDS = {"{": ("name", "}"), "[": ("file", "]"), "<": ("words", ">")}


def prepare_mask(
    mask: Image.Image,
    width: int,
    height: int,
    brightness: float = 1,
    contrast: float = 1,
    invert: bool = False,
) -> Bytes:
    """Return a mask at the frame's size: resized (Lanczos), brightness, contrast, then grey.

    Args:
        mask: of any mode; its brightness is used.
        width: of the frame.
        height: of the frame.
        brightness: `mask_brightness_adjust`; 1 changes nothing.
        contrast: `mask_contrast_adjust`; 1 changes nothing.
        invert: `invert_mask`.
    """
    picture = mask.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    if brightness != 1:
        picture = ImageEnhance.Brightness(picture).enhance(brightness)
    if contrast != 1:
        picture = ImageEnhance.Contrast(picture).enhance(contrast)
    grey = picture.convert("L")
    return np.asarray(ImageOps.invert(grey) if invert else grey)


def read_mask(path: str | Path, width: int, height: int) -> Bytes:
    """Return a mask file at the frame's size, by its brightness.

    Raises:
        InputError: there is no such file, or it is corrupt or not an image.
    """
    return prepare_mask(read_image(path, "mask"), width, height)


def alpha_mask(image: Image.Image, width: int, height: int) -> Bytes | None:
    """Return the alpha channel as a mask (`use_alpha_as_mask`); None if it is uniform."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    low, high = alpha.getextrema()
    if low == high:
        return None
    return np.asarray(alpha.resize((width, height), Image.Resampling.LANCZOS))


def is_blank(mask: Bytes) -> bool:
    """Return whether nothing is masked; Deforum then continues without a mask."""
    return not mask.any()


@dataclass(frozen=True)
class MaskTerm:
    """One part of a mask expression.

    Attributes:
        operator: "!", one of `OPERATORS`, or "name", "file", "words" for a leaf.
        text: of a leaf, the text in the brackets.
        parts: the operands.
    """

    operator: str
    text: str = ""
    parts: tuple[MaskTerm, ...] = ()

    def leaves(self) -> list[MaskTerm]:
        """Return all names, files and words of the expression, in order."""
        if not self.parts:
            return [self]
        return [leaf for part in self.parts for leaf in part.leaves()]


@dataclass(frozen=True)
class MaskSources:
    """Sources of the leaves of an expression.

    Attributes:
        width: of the frame.
        height: of the frame.
        named: (h, w) masks by name, for `{name}`; `everywhere` is predefined.
        words: (text) -> (h, w) mask for `<text>`, or None without a model.
        folder: base of relative paths in `[file]`.
    """

    width: int
    height: int
    named: Mapping[str, Bytes]
    words: Callable[[str], Bytes] | None = None
    folder: Path = Path()


def parse_mask(text: str, key: str = "mask_schedule") -> MaskTerm:
    r"""Parse an expression such as `<cat> & !({video_mask} | [edges.png])`.

    Leaves: `{name}`, `[file]`, `<words>`. Operators, in descending precedence: `!` not, `&` and,
    `|` or, `^` xor, `\` without. Parentheses group. An empty text is `{everywhere}`.

    Args:
        text: the expression.
        key: its setting, for messages.

    Raises:
        InputError: it is invalid; the message names the column, counted from 1.
    """
    if not text.strip():
        return MaskTerm("name", "everywhere")
    reader = _Reader(text, key)
    term = reader.binary(0)
    if reader.peek():
        raise reader.error("an operator (& | ^ \\) or the end")
    return term


def compose_mask(term: MaskTerm, sources: MaskSources, compat: Compat = FIXED) -> Bytes:
    """Return the mask of an expression, (h, w).

    Grey values are kept: not is 255 − a, and the minimum, or the maximum, xor the difference.
    Deforum 3.0 has only black and white, dithered.

    Raises:
        InputError: a name is unknown, a file missing, or words are used without a model.
    """
    if term.operator in {"name", "file", "words"}:
        mask = _leaf(term, sources)
        return np.asarray(_dithered(mask)) if compat == DEFORUM else mask
    masks = [compose_mask(part, sources, compat) for part in term.parts]
    if term.operator == "!":
        return 255 - masks[0]
    first, second = masks
    if term.operator == "&":
        return np.minimum(first, second)
    if term.operator == "|":
        return np.maximum(first, second)
    if term.operator == "^":
        return np.maximum(first, second) - np.minimum(first, second)
    return np.minimum(first, 255 - second)


def _dithered(mask: Bytes) -> Image.Image:
    return Image.fromarray(mask).convert("1").convert("L")


def _leaf(term: MaskTerm, sources: MaskSources) -> Bytes:
    if term.operator == "file":
        path = Path(term.text.strip())
        return read_mask(sources.folder / path, sources.width, sources.height)
    if term.operator == "words":
        if sources.words is None:
            raise InputError(
                f"mask <{term.text}>: words need a CLIPSeg model; name its folder in the recipe's "
                "`word_mask_model`"
            )
        return sources.words(term.text)
    name = term.text.strip()
    if name == "everywhere":
        return np.full((sources.height, sources.width), 255, dtype=np.uint8)
    if name not in sources.named:
        known = ", ".join(f"{{{known}}}" for known in ("everywhere", *sources.named))
        raise InputError(f"mask {{{name}}}: no such mask here; there are {known}")
    return sources.named[name]


class _Reader:
    """Parses an expression from left to right."""

    def __init__(self, text: str, key: str) -> None:
        self.text, self.key, self.place = text, key, 0

    def peek(self) -> str:
        """Return the next character that is not a space, or "" at the end."""
        found = re.compile(r"\S").search(self.text, self.place)
        self.place = found.start() if found else len(self.text)
        return self.text[self.place : self.place + 1]

    def error(self, expected: str) -> InputError:
        return InputError(
            f"{self.key}: {self.text!r}, column {self.place + 1}: expected {expected}"
        )

    def binary(self, level: int) -> MaskTerm:
        if level == len(OPERATORS):
            return self.operand()
        term = self.binary(level + 1)
        while self.peek() == OPERATORS[level]:
            self.place += 1
            term = MaskTerm(OPERATORS[level], parts=(term, self.binary(level + 1)))
        return term

    def operand(self) -> MaskTerm:
        sign = self.peek()
        if sign == "!":
            self.place += 1
            return MaskTerm("!", parts=(self.operand(),))
        if sign == "(":
            self.place += 1
            term = self.binary(0)
            if self.peek() != ")":
                raise self.error('")"')
            self.place += 1
            return term
        if sign not in KINDS or not sign:
            raise self.error("{name}, [file], <words>, ! or (")
        kind, end = KINDS[sign]
        stop = self.text.find(end, self.place)
        if stop < 0:
            raise self.error(f'"{end}" somewhere after "{sign}"')
        term = MaskTerm(kind, self.text[self.place + 1 : stop])
        self.place = stop + 1
        return term
