"""Choice of the columns of a table that hold images and captions."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from train.common import DataError
from train.config import ColumnsConfig

IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "file")
TEXT_NAMES = ("text", "caption", "captions", "prompt", "txt", "description")
NOT_CAPTIONS = ("id", "key", "name", "file", "path", "url", "hash", "md5", "sha", "license")
"""Columns with these words in their names are not captions, unless the recipe says so."""


def chosen_image(schema: pa.Schema, columns: ColumnsConfig, path: Path) -> str:
    """Return the column of images: bytes, or {bytes, path} as `datasets` writes them.

    Raises:
        DataError: there is none, or several without a usual name.
    """
    possible = [one.name for one in schema if holds_bytes(one.type)]
    if columns.image is not None:
        return _named("image", columns.image, possible, schema, path)
    features = _features(schema)
    declared = [name for name in possible if features.get(name) == "Image"]
    if found := _best(declared or possible, IMAGE_NAMES):
        return found
    if possible:
        raise DataError(
            f"{path}: images can be in the columns {', '.join(possible)}; set data.columns.image"
        )
    raise DataError(
        f"{path}: no column of images among {_listed(schema)}: expected bytes, or bytes with "
        "their path as in Hugging Face datasets; images at web addresses must be downloaded in "
        "advance (img2dataset does so)"
    )


def chosen_text(schema: pa.Schema, columns: ColumnsConfig, path: Path) -> str | None:
    """Return the column of captions: texts, or lists of texts; None if there are no texts.

    Raises:
        DataError: the named column is not one, or there are several without a usual
            name.
    """
    possible = [one.name for one in schema if holds_texts(one.type)]
    if columns.text is not None:
        return _named("text", columns.text, possible, schema, path)
    likely = [name for name in possible if not any(part in name.lower() for part in NOT_CAPTIONS)]
    if not likely:
        return None
    if found := _best(likely, TEXT_NAMES):
        return found
    raise DataError(
        f"{path}: captions can be in the columns {', '.join(likely)}; set data.columns.text"
    )


def choice(schema: pa.Schema, columns: ColumnsConfig, path: Path) -> str | None:
    """Describe the choice of columns if the recipe does not make it and there are others."""
    image, text = chosen_image(schema, columns, path), chosen_text(schema, columns, path)
    others = [
        one.name
        for one in schema
        if (columns.image is None and one.name != image and holds_bytes(one.type))
        or (columns.text is None and text and one.name != text and holds_texts(one.type))
    ]
    if not others:
        return None
    captions = f" and captions from {text!r}" if text else ""
    return (
        f"{path}: images are taken from column {image!r}{captions}, not from {', '.join(others)} "
        "(data.columns)"
    )


def _named(key: str, name: str, possible: list[str], schema: pa.Schema, path: Path) -> str:
    """Return the column that the recipe names, if its type fits."""
    if name in possible:
        return name
    found = f"is {schema.field(name).type}" if name in schema.names else "is not there"
    what = {"image": "pictures", "text": "captions"}[key]
    raise DataError(
        f"{path}: data.columns.{key}: column {name!r} {found}; of its columns {_listed(schema)} "
        f"{what} can be in {', '.join(possible) or 'none'}"
    )


def _best(names: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the only name, or the one that is usual for such a column."""
    if len(names) == 1:
        return names[0]
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in known if name in lower), None)


def holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold images."""
    if pa.types.is_struct(kind):
        fields = {one.name: one.type for one in kind}
        return "bytes" in fields and holds_bytes(fields["bytes"])
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_texts(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold captions."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return holds_texts(kind.value_type)
    if pa.types.is_dictionary(kind):
        return holds_texts(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _features(schema: pa.Schema) -> dict[str, str]:
    """Return the feature types that `datasets` stores for columns, such as Image."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata["info"]["features"]
        return {name: one["_type"] for name, one in features.items() if "_type" in one}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{one.name} ({one.type})" for one in schema)
