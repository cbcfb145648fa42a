"""Shards that are downloaded while a run needs them.

Importing this package registers it with `train.data.containers`, which reads its shards like
others.
"""

import os
from pathlib import Path

from train.data.containers import Container, Streaming, register_streaming
from train.data.streaming.cache import kept_bytes
from train.data.streaming.hub import hub_files
from train.data.streaming.manifests import streamed_shards
from train.data.streaming.shards import (
    commits_of,
    find_shard,
    folders_of,
    is_shard,
    name_of,
    shard_status,
)

__all__ = [
    "commits_of",
    "find_shard",
    "folders_of",
    "hub_files",
    "is_shard",
    "kept_bytes",
    "name_of",
    "streamed_shards",
]


def _shard_of(path: Path) -> Path | None:
    return None if (place := find_shard(path)) is None else place.path


def _status(path: Path) -> os.stat_result | None:
    return None if (place := find_shard(path)) is None else shard_status(place.shard)


def _open(path: Path) -> Container:
    from train.data.streaming.cache import open_shard  # imports pyarrow, which few runs need

    return open_shard(path)


register_streaming(Streaming(_shard_of, _status, _open))
