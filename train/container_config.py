"""The typed recipe of what is taken out of tables and datasets."""

from dataclasses import dataclass, field

from train.faults import Faults
from train.streaming_config import StreamingConfig


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
