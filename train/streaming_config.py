"""The typed recipe of shards that are fetched as they are needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.faults import Faults, at_least

if TYPE_CHECKING:
    from train.config import TrainRecipe
    from train.data_config import DataConfig


@dataclass
class StreamingConfig:
    """Shards far away: each is fetched when something in it is first read, and makes room later."""

    disk_gib: float = 20.0
    """GiB of shards that are kept at most; those that were not read for longest go first. It may be
    changed when a run is resumed."""
    window: int = 4
    """An epoch goes through so many shards at a time, and shuffles within them."""
    folder: str | None = None
    """Where they are kept, for all runs; without it `limner/shards` in the user's cache folder."""

    def faults(self) -> Faults:
        yield from at_least(1, window=self.window)
        if self.disk_gib <= 0:
            yield "disk_gib", f"must be above 0, got {self.disk_gib:g}"


def is_address(path: str | None) -> bool:
    """Whether a path is that of something which is not on this disk, such as hf://owner/name."""
    return "://" in (path or "")


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit's whole hash, so that nothing need be looked up."""
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None


def has_streamed(data: DataConfig) -> bool:
    """Whether any shards are fetched as they are needed."""
    return any(
        one.streaming is not None and is_address(one.path)
        for one in (data, *data.named_subsets.values())
    )


def streaming_faults(recipe: TrainRecipe) -> Faults:
    """What does not go with streaming."""
    data, validation = recipe.data, recipe.validation
    for name, one in data.named_subsets.items():
        if one.streaming not in (None, data.streaming):
            yield (
                f"data.subsets.{name}.streaming",
                "is one for the run: say it in data.streaming; null fetches a subset as a whole",
            )
    if not has_streamed(data):
        return
    if data.cache == "auto":
        yield (
            "data.cache",
            "auto would keep the latents of all streamed pictures in memory; say disk, which "
            "encodes each once and then fetches nothing any more, or off",
        )
    for name in (name for name, one in data.named_subsets.items() if one.is_reg):
        yield (
            f"data.subsets.{name}.is_reg",
            "class pictures come in an order of their own, in which streamed pictures cannot: "
            "leave data.streaming out, or take them from another run",
        )
    if validation is not None and is_address(validation.path):
        yield "validation.path", "is not streamed: name a folder or container on this disk"
    is_cached = data.cache != "off" and recipe.objective.learns_from_captions
    if validation is not None and validation.split is not None and not is_cached:
        yield (
            "validation.split",
            "would fetch all shards at each validation, as nothing is cached (data.cache: disk "
            "does so, but not of objective.type: autoencoder); say validation.path",
        )
