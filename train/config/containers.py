"""Typed options of containers, and of shards that are downloaded on demand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from train.config.rules import Faults, at_least

if TYPE_CHECKING:
    pass


@dataclass
class StreamingConfig:
    """Remote shards: each is downloaded when it is first read, and deleted to make room."""

    paths: ClassVar[tuple[str, ...]] = ("folder",)

    disk_gib: float = 20.0
    """Maximum GiB of shards on the disk; the least recently used are deleted first. It may be
    changed when a run is resumed."""
    window: int = 4
    """Number of shards that are shuffled together; an epoch goes through the shards in such
    windows."""
    folder: str | None = None
    """Folder of the downloaded shards, shared by all runs; default: `limner/shards` in the user's
    cache folder."""

    def faults(self) -> Faults:
        yield from at_least(1, window=self.window)
        if self.disk_gib <= 0:
            yield "disk_gib", f"must be above 0, got {self.disk_gib:g}"


def is_address(path: str | None) -> bool:
    """Return whether a path is a remote address, such as hf://owner/name."""
    return "://" in (path or "")


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a full commit hash, which needs no look-up."""
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None


@dataclass
class ColumnsConfig:
    """Which columns of a table (parquet, a dataset) to use."""

    image: str | None = None
    """Column of images; default: the only one that holds any, or the one called `image`."""
    text: str | None = None
    """Column of captions, each a text or a list of texts; default: the only one with text, or the
    one called `text`, `caption` or `prompt`."""


@dataclass
class ContainerConfig:
    """What to read from containers that hold more than images with captions."""

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    split: str | None = None
    """Split of a Hugging Face dataset; default: `train`, or the only one."""
    revision: str | None = None
    """Commit, tag or branch of a dataset on the Hugging Face hub (`path: hf://owner/name`)."""
    streaming: StreamingConfig | None = None
    """If set, shards that are not on the disk are downloaded on demand (`streaming: {}`): of
    `hf://owner/name`, or of an address that fsspec supports (`s3://bucket/{000..099}.tar`). Without
    it datasets of the hub are downloaded completely."""

    def container_idle(self, why: str) -> Faults:
        """Yield options of containers, for data that are not read from any."""
        given = {
            "columns.image": self.columns.image,
            "columns.text": self.columns.text,
            "split": self.split,
            "revision": self.revision,
            "streaming": self.streaming,
        }
        for name in (name for name, value in given.items() if value is not None):
            yield name, f"has no effect: {why}"
