"""Remote datasets, accessed by fsspec: their shards, and downloads."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from inference.recipe import RecipeWarning
from train.common import DataError, FetchError
from train.config import ContainerConfig, is_commit
from train.data.containers import HUB, expanded
from train.data.streaming.hub import hub_urls
from train.data.streaming.shards import KINDS, Shard

Result = TypeVar("Result")

WAITS = (1.0, 5.0, 30.0, 120.0)
"""Seconds before each retry."""
AT_ONCE = 16
"""Concurrent requests for metadata of shards."""
TAGS = ("ETag", "etag", "blob_id", "LastModified", "Last-Modified", "mtime", "created")
"""Metadata of file systems that change with a file's content; the first one is used."""
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors of the local disk."""
REMEDY = "nothing is lost, and resume=true continues from the newest checkpoint"


def resolved(
    path: str, source: ContainerConfig, key: str, last: Callable[[], str | None]
) -> str | None:
    """Return the commit of a dataset on the hub; None for what has no commits.

    Args:
        path: the path in the recipe.
        source: the revision.
        key: recipe key of the path.
        last: returns the commit that was looked up last, for use without a network.

    Raises:
        FetchError: it cannot be looked up, and no commit is known.
        DataError: a revision is set, and the path has none.
    """
    if not path.startswith(HUB):
        for name in ("revision", "split"):
            if getattr(source, name) is not None:
                raise DataError(f"{key}: {path!r} has no {name}; data.{name} goes with {HUB}")
        return None
    if is_commit(source.revision):
        return source.revision
    try:
        urls = hub_urls(path.removeprefix(HUB), source, source.revision, key)
    except FetchError as error:
        if source.revision is not None or (commit := last()) is None:
            raise
        message = f"{error}; the last known commit is used, {commit[:12]}"
        warnings.warn(message, RecipeWarning, stacklevel=2)
        return commit
    commits = {found[0] for url in urls if (found := re.search(r"(?<=@)[0-9a-f]{40}(?=/)", url))}
    if len(commits) != 1:
        raise FetchError(f"{key}: {path}: the commit of its files is unknown: {urls[:3]}")
    return commits.pop()


def find_shards(
    path: str, source: ContainerConfig, commit: str | None, key: str
) -> dict[str, Shard]:
    """Return the shards of a dataset in order, by unique names.

    Raises:
        FetchError: they cannot be listed.
        DataError: they are neither tars nor parquet files.
    """
    if path.startswith(HUB):
        urls = hub_urls(path.removeprefix(HUB), source, commit, key)
    else:
        urls = list(expanded(path, key))
    if other := next((url for url in urls if not url.lower().endswith(KINDS)), None):
        raise DataError(
            f"{key}: {path} has {len(urls)} files such as {other}; streamed are "
            f"{' and '.join(KINDS)}: leave data.streaming out, or pack it as such"
        )
    start = os.path.commonpath([str(PurePosixPath(url).parent) for url in urls])
    names = [str(PurePosixPath(url).relative_to(start)) for url in urls]
    names = [re.sub(r"[^\w./-]", "_", name) for name in names]
    if len({*names}) < len(names):
        raise DataError(f"{key}: {path}: duplicate files; name each once")
    with ThreadPoolExecutor(1 if path.startswith(HUB) else AT_ONCE) as pool:
        asked = pool.map(lambda url: tried(url, lambda: _shard(url)), urls)
        return dict(zip(names, asked, strict=True))


def _shard(url: str) -> Shard:
    metadata = _metadata(url)
    if metadata.get("size") is None:
        raise FetchError(f"{url}: its size is unknown; copy it to a disk, and name it there")
    sha256 = (metadata.get("lfs") or {}).get("sha256")
    return Shard(url, int(metadata["size"]), _tag(metadata), sha256)


def _metadata(url: str) -> dict[str, Any]:
    system, place = _opened(url)
    return system.info(place)


def _tag(metadata: dict[str, Any]) -> str:
    return next((str(metadata[name]) for name in TAGS if metadata.get(name)), "")


def _opened(url: str) -> tuple[Any, str]:
    """Return the file system and the path in it."""
    import fsspec

    return fsspec.core.url_to_fs(url)


def download(shard: Shard, part: Path, is_pinned: bool) -> None:
    """Download a shard to a file, and verify that it is the expected one.

    Args:
        shard: its metadata.
        part: the file to write.
        is_pinned: whether it belongs to a commit, and cannot change.

    Raises:
        FetchError: it is missing, has changed, or cannot be downloaded after several tries.
    """
    if not is_pinned and _tag(tried(shard.url, lambda: _metadata(shard.url))) != shard.tag:
        raise FetchError(
            f"{shard.url}: has changed since it was first read; restore the old one, "
            "or delete the dataset's folder in the cache and start a new run"
        )
    tried(shard.url, lambda: _download(shard, part))


def _download(shard: Shard, part: Path) -> None:
    system, place = _opened(shard.url)
    system.get_file(place, os.fspath(part))
    if (size := part.stat().st_size) != shard.size:
        raise ValueError(f"{size} bytes came of {shard.size}")
    if shard.sha256 is not None:
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise ValueError(
                    "checksum mismatch: the downloaded bytes differ from the published hash"
                )


def tried(url: str, work: Callable[[], Result]) -> Result:
    """Return the result of `work`, which is retried a few times after temporary errors.

    Raises:
        FetchError: it fails.
    """
    for wait in (*WAITS, None):
        try:
            return work()
        except FetchError:
            raise
        except Exception as error:  # raised by any file system's library
            if isinstance(error, OSError) and error.errno in LOCAL:
                raise FetchError(
                    f"{url}: cannot be kept on this disk: {error.strerror}; make room, give a "
                    f"lower data.streaming.disk_gib, or another data.streaming.folder; {REMEDY}"
                ) from error
            reason = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
            if isinstance(error, ImportError) or "Protocol not known" in reason:
                raise FetchError(f"{url}: cannot be fetched by fsspec: {reason}") from error
            if _is_final(error):
                raise FetchError(f"{url}: cannot be fetched: {reason}; {REMEDY}") from error
            if wait is None:
                raise FetchError(
                    f"{url}: cannot be fetched, in {len(WAITS) + 1} tries: {reason}; look at the "
                    f"network; {REMEDY}"
                ) from error
            message = f"{url}: cannot be fetched: {reason}; it is tried again in {wait:g} s"
            warnings.warn(message, RecipeWarning, stacklevel=2)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _is_final(error: Exception) -> bool:
    """Return whether a retry would fail too: missing or forbidden."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    status = getattr(getattr(error, "response", error), "status_code", None)
    return getattr(error, "status", status) in (401, 403, 404, 410)
