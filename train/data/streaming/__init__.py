"""Shards that are downloaded while a run needs them.

Importing this package registers it with `train.data.containers`, which reads its shards like
others.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from inference.lazy import lazy
from train.data.containers import Container, Streaming, register_streaming

if TYPE_CHECKING:
    from train.data.streaming.cache import kept_bytes
    from train.data.streaming.hub import hub_files
    from train.data.streaming.manifests import streamed_shards
    from train.data.streaming.shards import (
        commits_of,
        find_shard,
        folders_of,
        is_shard,
        name_of,
    )

__all__ = [
    "commits_of", "find_shard", "folders_of", "hub_files", "is_shard", "kept_bytes", "name_of",
    "streamed_shards",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)


def _shard_of(path: Path) -> Path | None:
    from train.data.streaming.shards import find_shard

    return None if (place := find_shard(path)) is None else place.path


def _status(path: Path) -> os.stat_result | None:
    from train.data.streaming.shards import find_shard, shard_status

    return None if (place := find_shard(path)) is None else shard_status(place.shard)


def _open(path: Path) -> Container:
    from train.data.streaming.cache import open_shard  # imports pyarrow, which few runs need

    return open_shard(path)


register_streaming(Streaming(_shard_of, _status, _open))
