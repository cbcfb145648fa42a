"""Results of runs as plain values, without what names a moment, a version or a commit."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageSequence
from safetensors import safe_open

VOLATILE_KEYS = {
    "_diffusers_version",
    "transformers_version",
    "limner_version",
    "modelspec.date",
    "ss_sd_scripts_commit_hash",
    "ss_session_id",
    "ss_training_finished_at",
    "ss_training_started_at",
    "timestring",
}
"""Keys of metadata and JSON files that name a time, a version or a commit."""

VOLATILE_TEXT = (
    (re.compile(r"\b20\d{12}(?=_|\b)"), "TIMESTRING"),
    (re.compile(r"\b1[789]\d{17}\b"), "NANOSECONDS"),
    (re.compile(r"Version: limner [^,\n]*"), "Version: limner"),
)
"""What is replaced in texts and file names: Deforum's timestring, times of change in a run's list
of data, the version in infotexts."""

PHOTOGRAPH = 0x8769
"""EXIF entry that says where the sub-directory of photographs begins."""

Reader = Callable[[Path], Any]


@dataclass(frozen=True)
class LossyFrame:
    """A decoded frame, uint8 (h, w, 3)."""

    pixels: np.ndarray


def without_volatile(text: str) -> str:
    """Return a text with placeholders for what `VOLATILE_TEXT` finds."""
    for pattern, placeholder in VOLATILE_TEXT:
        text = pattern.sub(placeholder, text)
    return text


def read(path: Path) -> Any:
    """Return a file's content as plain values and arrays; of a link, where it points."""
    if path.is_symlink():
        return {"link to": without_volatile(str(path.readlink()))}
    return READERS.get(path.suffix.lower(), read_bytes)(path)


def read_safetensors(path: Path) -> Any:
    """Return the tensors and the metadata."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {"metadata": stable(file.metadata() or {}), "tensors": tensors}


def read_pickled(path: Path) -> Any:
    """Return what `torch.save` wrote."""
    return stable(torch.load(path, map_location="cpu", weights_only=True))


def read_picture(path: Path) -> Any:
    """Return frames and texts; what Pillow says of the encoding is left out."""
    with Image.open(path) as image:
        texts = {k: v for k, v in image.info.items() if isinstance(v, str)}
        exif = {f"exif {key}": value for key, value in all_exif(image).items()}
        durations: list[Any] = []
        frames = []
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame))
            durations.append(frame.info.get("duration"))
        content = {"mode": image.mode, "frames": frames, "durations": durations}
    return {**content, "texts": stable(texts | exif)}


def all_exif(image: Image.Image) -> dict[int, Any]:
    """Return the EXIF entries of a picture, with those of the sub-directory of photographs."""
    exif = image.getexif()
    entries = {**exif, **exif.get_ifd(PHOTOGRAPH)}
    return {key: plain(value) for key, value in entries.items() if key != PHOTOGRAPH}


def plain(value: Any) -> Any:
    """Return bytes of EXIF as text where they are one: UserComment is UTF-16 behind a mark."""
    if isinstance(value, bytes):
        mark, text = value[:8], value[8:]
        coding = "utf-16-be" if mark.startswith(b"UNICODE") else "utf-8"
        return text.decode(coding, "replace") if len(value) > 8 else repr(value)
    return value


def read_video(path: Path) -> Any:
    """Return decoded frames, subtitles and metadata of an MP4; its bytes where PyAV is missing."""
    try:
        import av
    except ImportError:
        return read_bytes(path)
    with av.open(str(path)) as container:
        metadata = stable(dict(container.metadata))
        frames = [
            LossyFrame(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
        ]
        kinds = [stream.type for stream in container.streams]
        rate = str(container.streams.video[0].average_rate)
    content: dict[str, Any] = {"rate": rate, "streams": kinds, "metadata": metadata}
    if "subtitle" in kinds:
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(subtitles=0) if packet.size]
            texts = [bytes(packet).decode("utf-8", "replace") for packet in packets]
            content["subtitles"] = [without_volatile(text) for text in texts]
    return content | {"frames": frames}


def read_arrays(path: Path) -> Any:
    """Return the arrays of an .npz file."""
    with np.load(path, allow_pickle=False) as file:
        return stable({name: file[name] for name in file.files})


def read_json(path: Path) -> Any:
    """Return the values of a JSON file."""
    return stable(json.loads(path.read_text(encoding="utf-8")))


def read_yaml(path: Path) -> Any:
    """Return the values of a YAML file."""
    return stable(yaml.safe_load(path.read_text(encoding="utf-8")))


def read_text(path: Path) -> Any:
    """Return the lines."""
    return without_volatile(path.read_text(encoding="utf-8")).splitlines()


def read_packed(path: Path) -> Any:
    """Return the lines of a gzip file."""
    return without_volatile(gzip.decompress(path.read_bytes()).decode()).splitlines()


def read_bytes(path: Path) -> Any:
    """Return the bytes as an array."""
    return np.frombuffer(path.read_bytes(), np.uint8)


READERS: Mapping[str, Reader] = {
    ".safetensors": read_safetensors,
    ".pt": read_pickled,
    ".png": read_picture,
    ".jpg": read_picture,
    ".webp": read_picture,
    ".gif": read_picture,
    ".mp4": read_video,
    ".npz": read_arrays,
    ".json": read_json,
    ".yaml": read_yaml,
    ".txt": read_text,
    ".srt": read_text,
    ".gz": read_packed,
}


def stable(value: Any) -> Any:
    """Return nested values without volatile keys, with placeholders in their texts."""
    if isinstance(value, Mapping):
        return {k: stable(v) for k, v in value.items() if k not in VOLATILE_KEYS}
    if isinstance(value, list | tuple):
        return [stable(one) for one in value]
    return without_volatile(value) if isinstance(value, str) else value
