"""Manifests of streamed shards: which shards a source has, and the disk space they need."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from inference.files import write_atomically
from train.common import FetchError
from train.config import ContainerConfig, StreamingConfig
from train.data.streaming.shards import (
    GIB,
    MANIFEST,
    Manifest,
    _folder,
    _last_commit,
    forget,
    gib,
    manifest_of,
)


def streamed_shards(path: str, source: ContainerConfig, key: str) -> list[Path]:
    """Return the shards of a remote dataset in order; they are downloaded when they are read.

    Args:
        path: `hf://owner/name[/CONFIG]`, or a pattern of addresses that fsspec supports.
        source: split, revision, and options of the cache.
        key: recipe key of the path.

    Raises:
        FetchError: the shards cannot be listed, or one is larger than the
            cache.
        DataError: they have another format.
    """
    assert source.streaming is not None
    folder, manifest = _manifest(path, source, key)
    check_room(manifest, source.streaming, key)
    manifest = replace(manifest, disk_bytes=int(source.streaming.disk_gib * GIB))
    if manifest_of(os.fspath(folder)) != manifest:
        text = json.dumps(asdict(manifest), indent=1)
        try:
            write_atomically(folder / MANIFEST, lambda new: new.write_text(text, "utf-8"))
        except OSError as error:
            raise FetchError(
                f"data.streaming.folder: {str(folder.parent)!r} cannot be written: "
                f"{error.strerror}; give another folder"
            ) from error
        forget()
    return [folder / name for name in manifest.shards]


def _manifest(path: str, source: ContainerConfig, key: str) -> tuple[Path, Manifest]:
    """Return the folder of a dataset and its manifest, which need not be written yet."""
    from train.data.streaming.remote import find_shards, resolved

    commit = resolved(path, source, key, lambda: _last_commit(path, source))
    folder = _folder(path, source, commit)
    known = manifest_of(os.fspath(folder))
    return folder, known or Manifest(path, commit, 0, find_shards(path, source, commit, key))


def check_room(manifest: Manifest, config: StreamingConfig, key: str) -> None:
    """Reject shards of which a window does not fit in the cache: every image would download one.

    Raises:
        FetchError: they do not fit.
    """
    sizes = sorted((shard.size for shard in manifest.shards.values()), reverse=True)
    needed = sum(sizes[: config.window + 1])
    if needed > config.disk_gib * GIB:
        raise FetchError(
            f"{key}: {manifest.source} has shards of up to {gib(sizes[0])}; those of a window "
            f"(data.streaming.window: {config.window}) and one more have {gib(needed)}, more than "
            f"data.streaming.disk_gib: {config.disk_gib:g}; raise that, or lower the window"
        )
