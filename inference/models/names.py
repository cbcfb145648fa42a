"""Names and paths of base models."""

from __future__ import annotations

import os
import re
from pathlib import Path, PureWindowsPath

from inference.files import weights_file
from inference.runtime import BaseModelError

ASSETS = Path(__file__).parents[1] / "assets"
"""The embedded models."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""`owner/name`."""


def resolve_path(path: str) -> str:
    """Return the folder of an embedded model's name; other paths unchanged."""
    index = ASSETS / path / "model_index.json"
    return str(ASSETS / path) if os.path.isfile(index) else path  # noqa: PTH113 (may be long)


def is_single_file(path: str | Path) -> bool:
    """Return whether a path has the suffix of a single file (`.safetensors`, `.ckpt`)."""
    return str(path).lower().endswith((".safetensors", ".ckpt"))


def check_place(path: str) -> None:
    """Check that a base model is on this disk, or may be on the hub; reads nothing of it.

    Raises:
        BaseModelError: it is not.
    """
    place = Path(resolve_path(path)).expanduser()
    try:
        if is_single_file(path):
            if not place.is_file():
                raise BaseModelError(f"base_model.path: no such file: {path!r}")
            return
        is_on_hub = path.count("/") == 1 and not place.is_absolute()
        if not is_on_hub and not place.is_dir():
            raise no_model(path)
    except OSError as error:
        raise BaseModelError(f"base_model.path: {path!r}: {error.strerror}") from error


def check_vae(path: str | None) -> None:
    """Check that the VAE of a recipe is on this disk; reads nothing of it.

    Raises:
        BaseModelError: it is not.
    """
    if path is not None and not os.path.exists(Path(path).expanduser()):  # noqa: PTH110 (may be long)
        raise BaseModelError(f"base_model.vae: no such file or folder: {path!r}")


def vae_folder(path: Path) -> Path:
    """Return the folder of a VAE in diffusers' layout: the folder, or `vae` in that of a model."""
    return path / "vae" if (path / "vae" / "config.json").is_file() else path


def vae_file(path: str | Path) -> Path | None:
    """Return the file with a VAE's weights; None if there is none."""
    place = Path(path).expanduser()
    if place.is_dir():
        return weights_file(vae_folder(place))
    return place if place.is_file() else None


def vae_name(path: str | Path) -> str:
    """Return a VAE's name in infotext: its file's as in A1111, with the suffix, or its folder's."""
    place = Path(path).expanduser()
    is_part = place.is_dir() and place.name == "vae"
    return base_name(str(place.parent if is_part else place))


def no_model(path: str) -> BaseModelError:
    """Return the error of a path at which there is nothing."""
    embedded = sorted(p.parent.name for p in ASSETS.glob("*/model_index.json"))
    return BaseModelError(
        f"base_model.path: {path!r} is neither an embedded model ({', '.join(embedded)}) nor a "
        "folder, and does not look like a hub id (org/model)"
    )


def base_name(path: str) -> str:
    """Return the last name of a path, also of one of Windows: files that are shared hold no more.

    They would reveal folders, and with them users, clients and projects.
    """
    name = PureWindowsPath(path).name
    return name if name not in ("", "..") else Path(path).absolute().resolve().name


def published_name(path: str) -> str:
    """Return a base model's name for kohya's metadata: the id of one on the hub, else a name."""
    is_on_hub = HUB_ID.fullmatch(path) is not None and not Path(path).exists()
    return path if is_on_hub and not is_single_file(path) else base_name(path)


def path_of(model: Path) -> str:
    """Return a model's name in recipes: that of an embedded one, else its path."""
    return model.name if model.parent == ASSETS else str(model)


def file_model_name(model: Path) -> str:
    """Return the name for infotext: a folder's name, a file's without suffix."""
    return model.name if model.is_dir() else model.stem
