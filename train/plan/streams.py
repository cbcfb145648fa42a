"""The remote data of a run."""

from __future__ import annotations

from dataclasses import dataclass

from train.config import TrainRecipe
from train.data import Sources, folders_of


@dataclass(frozen=True)
class StreamPlan:
    """A remote dataset whose shards are downloaded on demand."""

    source: str
    commit: str | None
    shards: int
    bytes: int
    shards_here: int
    bytes_here: int
    disk_bytes: int
    """Size of the cache, shared by all streamed datasets."""
    window: int
    """Number of shards that are shuffled together."""


def plan_streams(recipe: TrainRecipe, sources: Sources) -> list[StreamPlan]:
    """Return what is streamed, and how much is on the disk after all shards have been probed."""
    streaming = recipe.data.streaming
    if streaming is None:
        return []
    from train.data import kept_bytes  # not on Windows

    pictures = (*sources.pictures, *sources.held_back.pictures)
    return [
        StreamPlan(
            manifest.source,
            manifest.commit,
            len(manifest.shards),
            sum(shard.size for shard in manifest.shards.values()),
            *kept_bytes(folder),
            manifest.disk_bytes,
            streaming.window,
        )
        for folder, manifest in folders_of(one.path for one in pictures).items()
    ]
