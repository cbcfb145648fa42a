"""The shards of a remote dataset, and the place of each in the cache folder.

A streamed dataset is a folder `NAME.streamed` with a manifest: the address, bytes and identity of
every shard. A shard's path in it is used like that of a file, whether or not it exists: all
properties of the path but its content come from the manifest. Any process finds it by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from inference.files import cache_file
from train.common import FetchError
from train.config import ContainerConfig, StreamingConfig

GIB = 2**30
KINDS = (".tar", ".parquet")
"""Formats that can be streamed: their members are known without them, and each is read by
itself."""
MANIFEST = "manifest.json"
ENDING = ".streamed"
_WITHIN = re.compile(r"(.*?\.streamed)/(.+?(?:\.tar|\.parquet))(?:/|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """Metadata of a shard before its download."""

    url: str
    size: int
    """Bytes."""
    tag: str
    """Changes if the shard changes."""
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The shards of a dataset, in order, by their paths in its folder."""

    source: str
    """The path in the recipe."""
    commit: str | None
    """Commit of a dataset with revisions, whose shards cannot change."""
    disk_bytes: int
    """Size of the cache of shards, shared by all datasets in it."""
    shards: dict[str, Shard]


def cache_root(config: StreamingConfig) -> Path:
    """Return the folder of all streamed datasets."""
    return Path(config.folder) if config.folder else cache_file().parent / "shards"


def _folder(path: str, source: ContainerConfig, commit: str | None) -> Path:
    """Return the folder of a dataset, which depends on commit, split and configuration."""
    assert source.streaming is not None
    said = json.dumps([path, source.split, commit]).encode()
    digest = hashlib.blake2b(said, digest_size=4).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", path.partition("://")[2])[:80].strip("-.")
    at = f"@{commit[:12]}" if commit else ""
    return cache_root(source.streaming) / f"{name}{at}-{digest}{ENDING}"


def _last_commit(path: str, source: ContainerConfig) -> str | None:
    """Return the commit of a dataset that was looked up last; None if none was."""
    assert source.streaming is not None
    found = sorted(
        cache_root(source.streaming).glob(f"*{ENDING}/{MANIFEST}"),
        key=lambda file: file.stat().st_mtime,
    )
    for file in reversed(found):
        manifest = manifest_of(os.fspath(file.parent))
        if (
            manifest
            and manifest.source == path
            and file.parent == _folder(path, source, manifest.commit)
        ):
            return manifest.commit
    return None


def gib(size: int) -> str:
    """Format bytes as GiB."""
    return f"{size / GIB:.3g} GiB"


@lru_cache(maxsize=256)
def manifest_of(folder: str) -> Manifest | None:
    """Return the manifest in the folder of a streamed dataset; None if it is none.

    Raises:
        FetchError: it is damaged.
    """
    file = Path(folder, MANIFEST)
    try:
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        shards = {name: Shard(**one) for name, one in content.pop("shards").items()}
        return Manifest(**content, shards=shards)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FetchError(f"{file}: cannot be read ({error}); delete it: it is rebuilt") from None


class Place(NamedTuple):
    """A path's shard."""

    folder: Path
    """Folder of the dataset."""
    path: Path
    """Path of the shard."""
    manifest: Manifest
    shard: Shard


def find_shard(path: Path | str) -> Place | None:
    """Return the shard that a path is or leads into; None for other paths."""
    text = os.fspath(path)
    if ENDING not in text or (found := _WITHIN.match(text)) is None:
        return None
    return _place(found[1], found[2])


@lru_cache(maxsize=2**16)
def _place(folder: str, name: str) -> Place | None:
    manifest = manifest_of(folder)
    if manifest is None or (shard := manifest.shards.get(name)) is None:
        return None
    return Place(Path(folder), Path(folder, name), manifest, shard)


def forget() -> None:
    """Make manifests be read again."""
    manifest_of.cache_clear()
    _place.cache_clear()


def is_shard(path: Path | str) -> bool:
    """Return whether a path is that of a streamed shard, downloaded or not."""
    return (place := find_shard(path)) is not None and os.fspath(path) == os.fspath(place.path)


@lru_cache(maxsize=2**16)
def shard_status(shard: Shard) -> os.stat_result:
    """Return a file status whose times of change are a number derived from the shard's tag."""
    number = int.from_bytes(hashlib.blake2b(shard.tag.encode(), digest_size=7).digest())
    ns = {f"st_{kind}_ns": number for kind in ("atime", "mtime", "ctime")}
    fields = (0o100444, 0, 0, 1, 0, 0, shard.size, *[number // 10**9] * 3)
    return os.stat_result(fields, ns)


def name_of(path: Path) -> str:
    """Return an image's name in a run: in a streamed shard its address, wherever it is cached."""
    if (place := find_shard(path)) is None:
        return str(path)
    return place.shard.url + os.fspath(path)[len(os.fspath(place.path)) :]


def folders_of(paths: Iterable[Path]) -> dict[Path, Manifest]:
    """Return the folders of the streamed datasets that paths lead into."""
    places = (find_shard(folder) for folder in {path.parent: None for path in paths})
    return {place.folder: place.manifest for place in places if place is not None}


def commits_of(paths: Iterable[Path]) -> dict[str, str]:
    """Return the commit of each streamed dataset that has one, by its path in the recipe."""
    manifests = folders_of(paths).values()
    return {one.source: one.commit for one in manifests if one.commit is not None}
