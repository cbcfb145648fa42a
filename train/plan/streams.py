"""What a run fetches from far away."""

from __future__ import annotations

from dataclasses import dataclass

from train.config import TrainRecipe
from train.data import Sources, folders_of


@dataclass(frozen=True)
class StreamPlan:
    """A dataset far away whose shards are fetched as they are needed."""

    source: str
    commit: str | None
    shards: int
    bytes: int
    shards_here: int
    bytes_here: int
    disk_bytes: int
    """At most so many are kept, of all streamed datasets together."""
    window: int
    """Shards that are shuffled with one another."""


def plan_streams(recipe: TrainRecipe, sources: Sources) -> list[StreamPlan]:
    """What is streamed, and what of it is here now that all shards have been looked through."""
    streaming = recipe.data.streaming
    if streaming is None:
        return []
    from train.data import kept_bytes  # not on Windows

    pictures = (*sources.pictures, *sources.held_back.pictures)
    return [
        StreamPlan(
            told.source,
            told.commit,
            len(told.shards),
            sum(shard.size for shard in told.shards.values()),
            *kept_bytes(folder),
            told.disk_bytes,
            streaming.window,
        )
        for folder, told in folders_of(one.path for one in pictures).items()
    ]
