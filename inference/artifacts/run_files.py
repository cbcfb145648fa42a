"""Names of artifacts in a run's folder, and the files that belong to an artifact beside it."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

from inference.artifacts.adapters import twin_of
from inference.models import config_path

MANIFEST = "artifacts.json"
"""The list of a run's artifacts, in its folder; `output_name` is in it if the recipe has one."""
USUAL = re.compile(r"step-\d+|last")
"""Names without suffix of the artifacts of a run without an output name."""


def companions_of(path: Path) -> list[Path]:
    """Return the files that belong to an artifact, as far as they exist.

    The twin of a video model's LoRA for ComfyUI, and the config of a model for A1111.
    """
    if path.suffix.lower() != ".safetensors":
        return []
    return [one for one in (twin_of(path), config_path(path)) if one.is_file()]


def is_named_by_run(path: Path) -> bool:
    """Return whether a file has the name that its run gave it, and none of its own.

    By the name itself, or by the manifest of the run in whose folder it is.
    """
    if USUAL.fullmatch(path.stem):
        return True
    runs = path.absolute().parents[1:3]  # a member's artifacts have a folder of their own
    names = {name for run in runs if (name := output_name_in(run / MANIFEST)) is not None}
    return any(re.fullmatch(rf"{re.escape(name)}(-\d+)?", path.stem) for name in names)


def output_name_in(manifest: Path) -> str | None:
    """Return the output name in a run's manifest; None if it has none or cannot be read."""
    try:
        status = manifest.stat()
    except OSError:
        return None
    return _output_name(manifest, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _output_name(manifest: Path, changed: int) -> str | None:
    """Return it, cached while the file is unchanged."""
    try:
        content = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):  # another program's, or damaged
        return None
    name = content.get("output_name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None
