"""The typed recipe of shards that are fetched as they are needed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from train.config.rules import Faults, at_least

if TYPE_CHECKING:
    pass


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


@dataclass
class ColumnsConfig:
    """Which columns of a table (parquet, a dataset) are learned from."""

    image: str | None = None
    """Column of pictures; without it the only one that holds any, or that is called `image`."""
    text: str | None = None
    """Column of captions, each text or a list of texts; without it the only one of texts, or that
    is called `text`, `caption` or `prompt`."""


@dataclass
class ContainerConfig:
    """What is taken out of containers that hold more than pictures with captions."""

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    split: str | None = None
    """Part of a Hugging Face dataset; without it `train`, or the only one that there is."""
    revision: str | None = None
    """Commit, tag or branch of a dataset on the Hugging Face hub (`path: hf://owner/name`)."""
    streaming: StreamingConfig | None = None
    """Given, shards that are not on this disk are fetched as they are needed (`streaming: {}`): of
    `hf://owner/name`, or of an address that fsspec knows (`s3://bucket/{000..099}.tar`). Without
    it datasets of the hub are fetched as a whole."""

    def container_idle(self, why: str) -> Faults:
        """What has no effect where nothing is taken out of containers."""
        given = {
            "columns.image": self.columns.image,
            "columns.text": self.columns.text,
            "split": self.split,
            "revision": self.revision,
            "streaming": self.streaming,
        }
        for name in (name for name, value in given.items() if value is not None):
            yield name, f"has no effect: {why}"
