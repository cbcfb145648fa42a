"""Files that infotext names with their hashes: A1111's `Lora hashes`, and Civitai's JSON.

Formats: `Lora hashes: "name: 12 digits, …"` and `TI hashes` (A1111 1.10.1); `Hashes: {"model": "…",
"vae": "…", "lora:name": "…", "embed:name": "…"}` (Civitai's extension for A1111, ComfyUI's image
savers); `Civitai resources: [{"type": "lora", "weight": 0.8, "modelName": "…"}, …]` (Civitai's
generator).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from inference.runtime import number

HASH = re.compile(r"[0-9a-fA-F]{8,64}")
UNWRITABLE = re.compile(r"[<>:]")
"""Characters that a name in a tag cannot have."""

OF_LORAS = ("lora", "locon", "lycoris", "dora", "lyco")


@dataclass
class Resources:
    """The files that a drawing used, as far as infotext names them."""

    model_name: str | None = None
    model_hash: str | None = None
    vae_name: str | None = None
    vae_hash: str | None = None
    """Of the VAE that replaced the model's own."""
    loras: dict[str, str] = field(default_factory=dict)
    """Name -> hash. Names in tags lack commas here, as in A1111."""
    embeddings: dict[str, str] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)
    """LoRA that no tag calls -> its tag."""
    remarks: list[str] = field(default_factory=list)
    """What could not be read."""


def resources_of(recorded: Mapping[str, str]) -> Resources:
    """Return the files that infotext's parameters name. A1111's own parameters win."""
    found = Resources()
    read_hashes(found, recorded.get("Hashes"))
    read_civitai(found, recorded.get("Civitai resources"))
    found.model_name = recorded.get("Model", found.model_name)
    found.model_hash = recorded.get("Model hash", found.model_hash)
    found.vae_name = recorded.get("VAE")
    found.vae_hash = recorded.get("VAE hash", found.vae_hash)
    found.loras |= dict(hash_pairs(recorded.get("Lora hashes", "")))
    found.embeddings |= dict(hash_pairs(recorded.get("TI hashes", "")))
    return found


def hash_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Return names and hashes of `name: hash, …`."""
    for pair in text.split(","):
        name, colon, hash_ = pair.strip().rpartition(":")
        if colon and HASH.fullmatch(hash_.strip()):
            yield name.strip(), hash_.strip().lower()


def json_of(found: Resources, key: str, text: str | None, kind: type) -> Any:
    """Return the value of a parameter in JSON; an empty one, with a remark, if it is damaged."""
    if text is None:
        return kind()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        found.remarks.append(f"{key}: is not JSON that can be read: {error}")
        return kind()
    if not isinstance(value, kind):
        expected = "a list" if kind is list else "a mapping"
        found.remarks.append(f"{key}: expected {expected}, got {text[:60]}")
        return kind()
    return value


def read_hashes(found: Resources, text: str | None) -> None:
    """Read `Hashes`."""
    for key, value in json_of(found, "Hashes", text, dict).items():
        kind, _, name = key.partition(":")
        if not isinstance(value, str) or not HASH.fullmatch(value):
            found.remarks.append(f"Hashes: {key}: {value!r} is no hash; left out")
        elif key == "model":
            found.model_hash = value.lower()
        elif key == "vae":
            found.vae_hash = value.lower()
        elif kind.lower() in OF_LORAS:
            found.loras[name.replace(",", "")] = value.lower()
        elif kind == "embed":
            found.embeddings[name] = value.lower()


def read_civitai(found: Resources, text: str | None) -> None:
    """Read `Civitai resources`."""
    for entry in json_of(found, "Civitai resources", text, list):
        if not isinstance(entry, Mapping):
            found.remarks.append(f"Civitai resources: expected mappings, got {entry!r}")
            continue
        name, hash_ = entry.get("modelName"), entry.get("hash")
        kind, weight = kind_of(entry), entry.get("weight", 1)
        digits = hash_.lower() if isinstance(hash_, str) and HASH.fullmatch(hash_) else None
        if kind == "checkpoint":
            found.model_name, found.model_hash = name, digits or found.model_hash
        elif kind in OF_LORAS:
            label = str(name or f"version {entry.get('modelVersionId')} on Civitai")
            plain = UNWRITABLE.sub(" ", label)
            strength = number(weight) if is_finite(weight) else "1"
            if not is_finite(weight):
                found.remarks.append(
                    f"Civitai resources: {plain}: {weight!r} is no strength; 1 is taken"
                )
            found.called[plain] = f"<lora:{plain}:{strength}>"
            if digits:
                found.loras[plain.replace(",", "")] = digits


def is_finite(value: Any) -> bool:
    """Return whether a value is a number that can be a strength."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e6  # NaN is not below


def kind_of(entry: Mapping[str, Any]) -> str:
    """Return the kind of a resource in lower case, also from its URN `urn:air:sd1:lora:…`."""
    kind, urn = entry.get("type"), str(entry.get("air", "")).split(":")
    if isinstance(kind, str):
        return kind.lower()
    return urn[3].lower() if len(urn) > 3 else ""
