"""The JSON files of a base model, by which a family is detected without reading weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from inference.config import BaseModelConfig
from inference.files import read_header, weights_file
from inference.models.names import is_single_file, resolve_path
from inference.runtime import BaseModelError

INDEX = "model_index.json"


class ModelFiles:
    """The JSON files of a diffusers folder, or of the hub.

    Args:
        config: the recipe's base model.
        is_offline: read only what is on this disk, as a plan does.
        known: names of published models whose settings are known without their files.
    """

    def __init__(
        self, config: BaseModelConfig, is_offline: bool = False, known: Sequence[str] = ()
    ) -> None:
        self.config = config
        self.path = resolve_path(config.path)
        self.is_offline = is_offline
        self.known = known

    @property
    def is_single_file(self) -> bool:
        """Return whether the path has the suffix of a single file."""
        return is_single_file(self.path)

    @property
    def is_folder(self) -> bool:
        return Path(self.path).is_dir()

    @property
    def is_hub_id(self) -> bool:
        """Return whether the path looks like org/model."""
        return self.path.count("/") == 1 and not Path(self.path).is_absolute()

    @cached_property
    def index(self) -> dict[str, Any]:
        """Return the content of model_index.json; empty if there is none.

        Raises:
            BaseModelError: the file is damaged.
        """
        if self.is_single_file:
            return {}
        file = Path(self.path) / INDEX
        if not self.is_folder and self.path.count("/") == 1 and not self.is_offline:
            file = Path(self._from_hub() or file)
        return _read_json(file) if file.is_file() else {}

    def _from_hub(self) -> str | None:
        """Return the hub's model_index.json; None if it cannot be fetched."""
        from huggingface_hub import hf_hub_download

        try:
            return hf_hub_download(self.path, INDEX, revision=self.config.revision)
        except (OSError, ValueError):  # reported, with the remedy, when the parts are read
            return None

    def file(self, part: str, name: str = "config.json") -> Path | None:
        """Return the path of a part's file; None if it is not on this disk."""
        if self.is_folder:
            file = Path(self.path) / part / name
            return file if file.is_file() else None
        if not self.is_hub_id:
            return None
        from huggingface_hub import try_to_load_from_cache

        try:
            revision = self.config.revision
            found = try_to_load_from_cache(self.path, f"{part}/{name}", revision=revision)
        except ValueError:  # not a valid name in a repository
            return None
        return Path(found) if isinstance(found, str) else None

    def has(self, part: str) -> bool:
        """Return whether a part's folder, or its config on this disk, exists."""
        return (Path(self.path) / part).is_dir() or self.file(part) is not None

    def read(
        self,
        part: str,
        name: str = "config.json",
        published: Mapping[str, dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Return the settings of a part.

        Args:
            part: its name in the diffusers layout.
            name: the file.
            published: settings by part, for a model that is known without its files.

        Raises:
            BaseModelError: they are neither on this disk nor known, or are damaged.
        """
        file = self.file(part, name)
        if file is not None:
            return _read_json(file)
        if published is not None and not self.is_folder:
            return published[part]
        if self.is_folder:
            raise BaseModelError(f"base_model.path: {self.config.path!r}: {part}/{name} is missing")
        raise BaseModelError(
            f"base_model.path: {self.config.path!r} is not on this disk, and a plan reads nothing "
            f"from the hub. Known without files are {', '.join(self.known)} (by their hub ids); of "
            f"others get the settings: hf download {self.config.path} "
            "--include '*.json' '*.txt' '*.model'"
        )

    def stored_dtype(self, part: str) -> str:
        """Return the data type of most values of a part (or single file), as headers name it.

        Empty if its weights are not on this disk, or not in safetensors.

        Raises:
            InputError: its file is damaged.
        """
        weights: Path | None = Path(self.path)
        if not self.is_single_file:
            config = self.file(part)
            weights = weights_file(config.parent) if config else None
        if weights is None or weights.suffix.lower() != ".safetensors":
            return ""
        sizes: Counter[str] = Counter()
        for name, entry in read_header(weights).items():
            if name != "__metadata__":
                sizes[entry["dtype"]] += math.prod(entry["shape"])
        return max(sizes, key=sizes.__getitem__, default="")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseModelError(f"{file}: cannot be read as JSON: {error}") from error
