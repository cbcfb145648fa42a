"""Which shards a dataset far away has, and where in the cache folder each has its place.

A streamed dataset is a folder `NAME.streamed` with a manifest: the address, bytes and identity of
every shard. A shard's path within it counts as that of a file, there or not: all that is asked of
the path but its content is answered out of the manifest. Any process finds it by itself.
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
"""What is streamed: their members are known without them, and each is read by itself."""
MANIFEST = "manifest.json"
ENDING = ".streamed"
_WITHIN = re.compile(r"(.*?\.streamed)/(.+?(?:\.tar|\.parquet))(?:/|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """What is known of a shard beforehand."""

    url: str
    size: int
    """Bytes."""
    tag: str
    """It is another one if the shard has changed."""
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The shards of a dataset, in order, by their paths in its folder."""

    source: str
    """As the recipe names it."""
    commit: str | None
    """Of a dataset with revisions; its shards cannot change."""
    disk_bytes: int
    """Of the shards that are kept at most, those of all datasets in the cache together."""
    shards: dict[str, Shard]


def cache_root(config: StreamingConfig) -> Path:
    """The folder of all streamed datasets."""
    return Path(config.folder) if config.folder else cache_file().parent / "shards"


def _folder(path: str, source: ContainerConfig, commit: str | None) -> Path:
    """That of a dataset: another one for each commit, split and configuration."""
    assert source.streaming is not None
    said = json.dumps([path, source.split, commit]).encode()
    digest = hashlib.blake2b(said, digest_size=4).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", path.partition("://")[2])[:80].strip("-.")
    at = f"@{commit[:12]}" if commit else ""
    return cache_root(source.streaming) / f"{name}{at}-{digest}{ENDING}"


def _last_commit(path: str, source: ContainerConfig) -> str | None:
    """The commit of a dataset that was looked up last; None where none was."""
    assert source.streaming is not None
    found = sorted(
        cache_root(source.streaming).glob(f"*{ENDING}/{MANIFEST}"),
        key=lambda file: file.stat().st_mtime,
    )
    for file in reversed(found):
        told = manifest_of(os.fspath(file.parent))
        if told and told.source == path and file.parent == _folder(path, source, told.commit):
            return told.commit
    return None


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / GIB:.3g} GiB"


@lru_cache(maxsize=256)
def manifest_of(folder: str) -> Manifest | None:
    """What the folder of a streamed dataset says; None where it is none.

    Raises:
        FetchError: it is damaged.
    """
    file = Path(folder, MANIFEST)
    try:
        told: dict[str, Any] = json.loads(file.read_text("utf-8"))
        shards = {name: Shard(**one) for name, one in told.pop("shards").items()}
        return Manifest(**told, shards=shards)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FetchError(f"{file}: cannot be read ({error}); delete it: it is made anew") from None


class Place(NamedTuple):
    """Where a path leads."""

    folder: Path
    """Of the dataset."""
    path: Path
    """Of the shard."""
    manifest: Manifest
    shard: Shard


def find_shard(path: Path | str) -> Place | None:
    """The shard that a path is or leads into; None for other paths."""
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
    """Has manifests read anew."""
    manifest_of.cache_clear()
    _place.cache_clear()


def is_shard(path: Path | str) -> bool:
    """Whether a path is that of a streamed shard, here or not."""
    return (place := find_shard(path)) is not None and os.fspath(path) == os.fspath(place.path)


@lru_cache(maxsize=2**16)
def shard_status(shard: Shard) -> os.stat_result:
    """What a file system would say; as the times of change a number that follows from its tag."""
    number = int.from_bytes(hashlib.blake2b(shard.tag.encode(), digest_size=7).digest())
    ns = {f"st_{kind}_ns": number for kind in ("atime", "mtime", "ctime")}
    fields = (0o100444, 0, 0, 1, 0, 0, shard.size, *[number // 10**9] * 3)
    return os.stat_result(fields, ns)


def name_of(path: Path) -> str:
    """What a run calls a picture: of one in a streamed shard the address, wherever it is kept."""
    if (place := find_shard(path)) is None:
        return str(path)
    return place.shard.url + os.fspath(path)[len(os.fspath(place.path)) :]


def folders_of(paths: Iterable[Path]) -> dict[Path, Manifest]:
    """The folders of the streamed datasets that paths lead into."""
    places = (find_shard(folder) for folder in {path.parent: None for path in paths})
    return {place.folder: place.manifest for place in places if place is not None}


def commits_of(paths: Iterable[Path]) -> dict[str, str]:
    """The commit of each streamed dataset that has some, by its name in the recipe."""
    told = folders_of(paths).values()
    return {one.source: one.commit for one in told if one.commit is not None}
