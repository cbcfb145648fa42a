"""Images that contain an embedding, as A1111 1.10.1 writes and reads them.

(`modules/textual_inversion/image_embedding.py`.) The file has the embedding's dict twice: as
JSON in base64 under the PNG keyword `sd-ti-embedding`, and in the pixels of two stripes beside the
image, which also survive programs that drop keywords (but not JPEG).
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from inference.runtime import ArtifactError

KEYWORD = "sd-ti-embedding"
TENSOR = "TORCHTENSOR"
"""In the JSON a tensor is a mapping of this key to nested lists."""
LOW = 0x0F
"""The bits of a stripe that contain data; those above are decoration."""
SHADE = 0x80

Pixels = np.ndarray[Any, np.dtype[Any]]
"""Bytes (height, width, 3)."""


def picture_with(image: Image.Image, content: dict[str, Any]) -> tuple[Image.Image, dict[str, str]]:
    """Return the image between its two stripes, and the texts for the PNG."""
    text = json.dumps(content, default=_listed).encode()
    data = np.frombuffer(zlib.compress(text, 9), dtype=np.uint8)
    pixels = np.asarray(image.convert("RGB"))
    height = len(pixels)
    length = -(-len(data) // (3 * height)) * 3 * height
    low, high = (
        _masked(np.resize(half, length).reshape(height, -1, 3)) | SHADE
        for half in (data & LOW, data >> 4)
    )
    border = np.zeros((height, 1, 3), dtype=np.uint8)
    canvas = np.concatenate([low, border, pixels, border, high], axis=1)
    return Image.fromarray(canvas), {KEYWORD: base64.b64encode(text).decode()}


def read_embedding_picture(path: Path) -> dict[str, Any] | None:
    """Return the dict in an image's keyword or stripes; None if it has none.

    Raises:
        ArtifactError: the image cannot be read, or its embedding is damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            text = image.info.get(KEYWORD)
            pixels = np.asarray(image.convert("RGB"))
    except (
        OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise ArtifactError(f"{path}: cannot be read as a picture: {error}") from error
    try:
        data = base64.b64decode(text) if isinstance(text, str) else _from_stripes(pixels)
        return None if data is None else json.loads(data, object_hook=_as_tensor)
    except (
        ValueError, TypeError, RuntimeError, OverflowError, RecursionError, zlib.error,
    ) as error:  # fmt: skip
        raise ArtifactError(f"{path}: carries an embedding that is damaged: {error}") from error


LARGEST_CONTENT = 2**26
"""Maximum size of an embedding's text in bytes; 75 vectors of SDXL take 4 MB."""
LARGEST_STRIPES = 2**22
"""Maximum number of values in a stripe at the side of an image."""


def _from_stripes(pixels: Pixels) -> bytes | None:
    """Return the decompressed content; None without two black lines and stripes."""
    bright: Any = (pixels > 0).all(axis=2)
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    if not len(rows) or not len(columns):
        return None
    bits = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & LOW
    dark = np.flatnonzero(bits.sum(axis=(0, 2)) == 0)
    if len(dark) < 2:
        return None
    low, high = _masked(bits[:, : dark[0]]), _masked(bits[:, dark[-1] + 1 :])
    if low.shape != high.shape or not low.size or low.size > LARGEST_STRIPES:
        return None
    data = (high << 4 | low).tobytes()
    if data[0] != 0x78:  # zlib's first byte: else the image only looks alike
        return None
    decompressor = zlib.decompressobj()
    text = decompressor.decompress(data, LARGEST_CONTENT)
    if decompressor.unconsumed_tail:
        raise ValueError(f"its text is larger than {LARGEST_CONTENT >> 20} MiB")
    return text


def _masked(block: Pixels) -> Pixels:
    """Return the data masked by noise, or unmasked again: low bits of A1111's generator, seed 0."""
    state, values = 0, np.empty(block.size, dtype=np.uint8)
    for index in range(block.size):
        state = (1664525 * state + 1013904223) % 2**32
        values[index] = state % 255
    return block ^ (values.reshape(block.shape) & LOW)


def _listed(value: object) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        raise TypeError(f"cannot be written: {type(value).__name__}")
    return {TENSOR: value.float().cpu().tolist()}


def _as_tensor(value: dict[str, Any]) -> Any:
    return torch.tensor(value[TENSOR]) if TENSOR in value else value
