"""Datasets on the Hugging Face hub, read by the `datasets` library."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from train.common import DataError, FetchError
from train.config import ContainerConfig
from train.data.containers import HUB, chosen_split, open_table


def hub_files(name: str, source: ContainerConfig, key: str) -> list[Path]:
    """Return the Arrow files in which `datasets` stores a dataset's split.

    Args:
        name: `owner/name`, and `owner/name/CONFIG` if a dataset has several configurations.
        source: split and revision.
        key: its recipe key.

    Raises:
        DataError: it cannot be downloaded and is not in the cache, or has no such split.
    """
    return list(_fetched(name, source.split, source.revision, key))


@lru_cache(maxsize=64)
def _fetched(name: str, split: str | None, revision: str | None, key: str) -> tuple[Path, ...]:
    dataset, configuration = _parts(name, key)
    import datasets

    try:
        found: Any = datasets.load_dataset(dataset, configuration, revision=revision)
    except Exception as error:  # a dozen libraries raise; all mean that there is no dataset
        raise _unreachable(name, key, error) from error
    chosen = found[chosen_split(list(found), split, Path(name), key)]
    return tuple(table_files(chosen, name, key))


def hub_urls(name: str, source: ContainerConfig, revision: str | None, key: str) -> tuple[str, ...]:
    """Return the addresses of a split's files in order, each with its commit, without downloads.

    Raises:
        FetchError: the hub cannot be reached, or there is no such dataset.
        DataError: there is no such split.
    """
    return _addresses(name, source.split, revision, key)


@lru_cache(maxsize=64)
def _addresses(name: str, split: str | None, revision: str | None, key: str) -> tuple[str, ...]:
    dataset, configuration = _parts(name, key)
    import datasets

    try:
        builder = datasets.load_dataset_builder(dataset, configuration, revision=revision)
    except Exception as error:  # as above
        raise _unreachable(name, key, error) from error
    data_files: Any = builder.config.data_files or {}
    files = {str(name): urls for name, urls in data_files.items()}
    if not files:
        raise FetchError(
            f"{key}: {HUB}{name}: the hub does not list its files (data.streaming); without a "
            "network only what was looked up before is known"
        )
    return tuple(files[chosen_split(list(files), split, Path(name), key)])


def _parts(name: str, key: str) -> tuple[str, str | None]:
    """Split the name into `owner/name` and the configuration."""
    owner, _, rest = name.partition("/")
    own, _, configuration = rest.partition("/")
    if not owner or not own:
        raise DataError(f"{key}: {HUB}{name}: expected {HUB}owner/name, or {HUB}owner/name/CONFIG")
    return f"{owner}/{own}", configuration or None


def _unreachable(name: str, key: str, error: Exception) -> FetchError:
    reason = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
    return FetchError(
        f"{key}: {HUB}{name} cannot be fetched from the Hugging Face hub: {reason}; check the "
        "name, data.revision, the network and (of private ones) hf auth login; a copy on this "
        "disk can be named by its folder"
    )


def table_files(dataset: Any, name: str, key: str) -> list[Path]:
    """Return the files that a dataset is a view of.

    Raises:
        DataError: it does not use all of them in order.
    """
    files = [Path(one["filename"]) for one in dataset.cache_files]
    rows = sum(open_table(file).rows for file in files)
    if not files or rows != len(dataset):
        raise DataError(
            f"{key}: {HUB}{name} is kept otherwise than in files with all its rows; save it with "
            "save_to_disk and name the folder"
        )
    return files
