"""Shards that lie far away: behind `file://`, with every fetch counted."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from train.config.containers import StreamingConfig
from train.config.data import DataConfig
from train.config.examples import CaptionConfig, PictureBucketsConfig
from train.data.containers import containers
from train.data.containers import tables as table_reading
from train.data.streaming import cache as shard_cache
from train.data.streaming import hub, shards

SHARDS, EACH = 6, 5


def picture(number: int) -> bytes:
    """Noise, so that all shards are about as large; wide or tall."""
    shape = (24, 16, 3) if number % 3 else (16, 24, 3)
    pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tars(folder: Path) -> str:
    """Six of five pictures each; the pattern of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as file:
            for number in range(shard * EACH, (shard + 1) * EACH):
                caption = "ein Bär" if number % 2 else f"picture {number}"
                for ending, data in (("png", picture(number)), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{number:04}.{ending}")
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))
    return f"{folder}/{{000..{SHARDS - 1:03}}}.tar"


def tables(folder: Path) -> str:
    """The same as parquet files, of several row groups each."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        numbers = range(shard * EACH, (shard + 1) * EACH)
        rows = {
            "image": [{"bytes": picture(number), "path": None} for number in numbers],
            "text": ["ein Bär" if number % 2 else f"picture {number}" for number in numbers],
            "id": list(numbers),
        }
        pq.write_table(pa.table(rows), folder / f"{shard:03}.parquet", row_group_size=2)
    return f"{folder}/{{000..{SHARDS - 1:03}}}.parquet"


def largest(pattern: str) -> int:
    return max(file.stat().st_size for file in Path(pattern).parent.iterdir())


def streaming(folder: Path, pattern: str, count: int = 3, window: int = 2) -> StreamingConfig:
    """A cache with room for so many shards."""
    return StreamingConfig((largest(pattern) * count + 1) / 2**30, window, str(folder))


def config(path: str, kept: StreamingConfig | None, workers: int = 0) -> DataConfig:
    return DataConfig(
        path=path,
        streaming=kept,
        flip=0.5,
        cache="off",
        num_workers=workers,
        captions=CaptionConfig(),
        buckets=PictureBucketsConfig(min_side=8, max_side=32, step=8, area=24 * 16),
    )


def kept(folder: Path) -> list[Path]:
    """The shards that are here."""
    return sorted(one for kind in ("tar", "parquet") for one in folder.rglob(f"[!.]*.{kind}"))


def forget() -> None:
    """As in a new process."""
    containers._opened.clear()
    shard_cache._failed.clear()
    table_reading._groups.clear()
    shards.forget()
    hub._addresses.cache_clear()


def take_away(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink()
