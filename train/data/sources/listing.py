"""Resolve a recipe's path: a folder of images, one container, or several of them."""

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from inference.recipe import RecipeWarning
from train.common import DataError
from train.config import ContainerConfig, is_address
from train.data.containers import (
    BRACES,
    HIDDEN,
    HUB,
    IN_HIDDEN_FOLDERS,
    KINDS,
    METADATA_TABLE,
    SPLIT,
    SPLITS,
    TABLES,
    chosen_split,
    expanded,
    is_container,
    is_hidden,
    left_out_line,
    looks_like_data,
    open_archive,
    open_table,
    picture_extensions,
    walk,
    windows_parts,
)
from train.data.pictures import Known, picture_facts
from train.data.streaming import is_shard, streamed_shards

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
STATE = "state.json"


def containers_at(
    folder: str, key: str, source: ContainerConfig, left_out: Counter[str] | None = None
) -> list[Path]:
    """Return the containers that a path names; none for a folder with images as plain files.

    Args:
        folder: as `data.path`.
        key: its recipe key.
        source: what to read from containers.
        left_out: see `walk`.

    Raises:
        DataError: it is neither; see `containers_of`.
    """
    root = Path(folder)
    if root.is_dir() and not is_saved(root):
        endings = picture_extensions()
        for path in walk(root):
            if path.suffix.lower() in endings:
                return []
    return containers_of(folder, key, walk(root, left_out), source)


def containers_of(
    path: str, key: str, files: Iterable[Path], source: ContainerConfig
) -> list[Path]:
    """Return the containers that a path names, in order; none for a folder of images.

    Args:
        path: a container, a pattern of them such as `{000..012}.tar`, a folder, or the address of
            a dataset (`hf://owner/name`).
        key: its recipe key.
        files: the files in the folder, if it is one.
        source: split and revision.

    Raises:
        DataError: it is neither, or a file of a pattern is missing.
    """
    if is_address(path):
        return _containers_far(path, key, source)
    whole = Path(path)
    if source.revision is not None:
        raise DataError(
            f"{key}: {path!r} has no revisions; data.revision goes with {HUB}owner/name"
        )
    if is_saved(whole):
        return saved_files(whole, source.split, key)
    if whole.is_dir():
        found = [
            file
            for file in files
            if file.suffix.lower() in KINDS and file.name != METADATA_TABLE and file.is_file()
        ]
        return of_split(found, whole, source.split, key)
    if source.split is not None:
        raise DataError(f"{key}: {path!r} has no splits; leave data.split out")
    if is_container(whole):
        return [whole]
    if whole.name.lower().endswith(COMPRESSED):
        raise DataError(
            f"{key}: {path!r} is compressed as a whole, so that nothing in it can be read by "
            f"itself; unpack it to a folder, or to one of {', '.join(KINDS)}"
        )
    return _matching_shards(path, key)


def no_folder(path: str, key: str) -> DataError:
    """Return the error for a path that is no folder; one of Windows is recognized."""
    hint = ""
    if (parts := windows_parts(path)) is not None:
        hint = f"; it is a path of Windows, here perhaps {'/'.join(parts)!r}"
        if PureWindowsPath(path).drive:
            hint = "; it is a path of Windows: name the folder on this disk (WSL: C:\\ is /mnt/c)"
    return DataError(f"{key}: {path!r} is not a folder{hint}")


def _matching_shards(pattern: str, key: str) -> list[Path]:
    """Return the files that a pattern such as `{000..012}.tar` stands for.

    Raises:
        DataError: it is not a pattern, a file is missing or is not a container.
    """
    known = ", ".join(KINDS)
    if Path(pattern).is_file():
        raise DataError(f"{key}: {pattern!r} is neither a folder nor one of {known}")
    if not BRACES.search(pattern):
        raise no_folder(pattern, key)
    shards = [Path(one) for one in expanded(pattern, key)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        shown = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
        raise DataError(
            f"{key}: {len(missing)} of the {len(shards)} files of {pattern!r} are missing: {shown}"
        )
    if others := [shard for shard in shards if not is_container(shard)]:
        raise DataError(f"{key}: {str(others[0])!r} is none of {known}")
    return shards


def _containers_far(path: str, key: str, source: ContainerConfig) -> list[Path]:
    """Return the containers of a remote address."""
    if source.streaming is not None:
        return streamed_shards(path, source, key)
    if path.startswith(HUB):
        from train.data.streaming import hub_files

        return hub_files(path.removeprefix(HUB), source, key)
    raise DataError(
        f"{key}: {path!r} is not on the disk; data.streaming={{}} downloads its shards as they are "
        "needed"
    )


def warn_unused(containers: Sequence[Path], path: str, key: str, source: ContainerConfig) -> None:
    """Warn about options of tables or splits that have no effect."""
    has_tables = any(one.suffix.lower() in TABLES for one in containers)
    given = {
        "columns.image": source.columns.image and not has_tables,
        "split": source.split and not containers,
        "revision": source.revision and not containers,
    }
    for name in (name for name, is_idle in given.items() if is_idle):
        message = f"data.{name} has no effect on {key}: {path!r}, which holds pictures as files"
        warnings.warn(message, RecipeWarning, stacklevel=3)


def is_saved(path: Path) -> bool:
    """Return whether `save_to_disk` of Hugging Face's `datasets` has made this folder."""
    return (path / STATE).is_file() or (path / SPLITS).is_file()


def saved_files(folder: Path, split: str | None, key: str) -> list[Path]:
    """Return the tables of a saved dataset, in order.

    Raises:
        DataError: the split is ambiguous, or the dataset is incomplete.
    """
    if (folder / SPLITS).is_file():
        splits = _json_of(folder / SPLITS).get("splits")
        if not isinstance(splits, list) or not all(isinstance(one, str) for one in splits):
            raise DataError(f"{folder / SPLITS}: names no splits; save the dataset again")
        folder = folder / chosen_split(splits, split, folder, key)
    elif split is not None:
        raise DataError(f"{key}: {str(folder)!r} was saved as one split; leave data.split out")
    state = _json_of(folder / STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(f"{folder}: saved by an old version of datasets: flatten and save it again")
    names = [Path(str(one.get("filename"))).name for one in state.get("_data_files") or []]
    files = [folder / name for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"{key}: {missing[0]} is missing; copy or save the dataset again")
    if not files:
        raise DataError(f"{folder / STATE}: names no files; save the dataset again")
    return files


def _json_of(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
        if isinstance(content, dict):
            return content
        error: Exception = ValueError("not an object")
    except (OSError, ValueError) as problem:
        error = problem
    raise DataError(f"{file}: cannot be read ({error}); save the dataset again")


def of_split(files: list[Path], folder: Path, split: str | None, key: str) -> list[Path]:
    """Return the shards of a split, according to their names (`train-00000-of-00002.parquet`).

    Raises:
        DataError: there is no such split.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        if found := SPLIT.match(file.name):
            splits.setdefault(found[0], []).append(file)
    if not splits:
        if split is not None:
            raise DataError(
                f"{key}: no file names in {str(folder)!r} contain splits; leave data.split out"
            )
        return files
    return splits[chosen_split(list(splits), split, folder, key)]


def pictures_in(
    containers: Sequence[Path],
    endings: Sequence[str],
    source: ContainerConfig,
    left_out: Counter[str] | None = None,
) -> list[Path]:
    """Return the images in containers, one after the other, each in path or row order.

    In a tar the files of a sample share their name up to the first dot (webdataset); it has one
    image, and images with a second extension (`000123.mask.png`) belong to it. Pickled files are
    never read, since reading them may run code.

    Args:
        containers: tars, zips and tables.
        endings: extensions of images.
        source: what to read.
        left_out: gets the number of members left out, by kind; without it a warning names them.

    Raises:
        DataError: a container is damaged or lacks columns, or a sample has two images.
    """
    found: list[Path] = []
    omitted: Counter[str] = Counter()
    notes: list[str] = []
    for path in _shown(containers):
        if path.suffix.lower() in TABLES:
            table = open_table(path)
            own = table.pictures(source.columns)
            notes = notes or table.notes(source.columns)
        else:
            archive = open_archive(path)
            names = list(shown_members(archive.names(), endings, omitted))
            if path.suffix.lower() == ".tar":
                names, others = samples(names, path)
                omitted["pictures of a second ending"] += others
            own = [path / name for name in names]
            omitted += archive.left_out
        if is_shard(path):  # probed while it is here
            picture_facts(own, Known.SIZE | Known.DIGEST)
        found += own
    for note in notes:
        warnings.warn(note, RecipeWarning, stacklevel=2)
    if left_out is not None:
        left_out += omitted
    elif omitted.total():
        where = str(containers[0]) if len(containers) == 1 else f"{containers[0]} and others"
        warnings.warn(f"{where}: {left_out_line(omitted)}", RecipeWarning, stacklevel=2)
    return found


def _shown(containers: Sequence[Path]) -> Iterable[Path]:
    """Add a progress bar if shards may have to be downloaded and the terminal is interactive."""
    if not any(map(is_shard, containers)):
        return containers
    from tqdm import tqdm

    return tqdm(containers, desc="looking through shards", leave=False, disable=None)


def shown_members(
    names: Iterable[str], endings: Sequence[str], left_out: Counter[str]
) -> Iterator[str]:
    """Yield the members that are images; count those that are hidden, or of unread formats."""
    wanted = tuple(endings)
    for name in names:
        *folders, own = name.split("/")
        if any(map(is_hidden, folders)):
            left_out[IN_HIDDEN_FOLDERS] += looks_like_data(own)
        elif is_hidden(own):
            left_out[HIDDEN] += looks_like_data(own)
        elif name.lower().endswith(wanted):
            yield name
        elif looks_like_data(own):
            left_out[name[name.rfind(".") :].lower()] += 1


def samples(names: Sequence[str], path: Path) -> tuple[list[str], int]:
    """Return the images of samples, and the number of others that belong to them.

    Raises:
        DataError: a sample has two images.
    """
    own: dict[str, str] = {}
    others: list[str] = []
    for name in names:
        key, _, ending = split_key(name)
        if "." in ending:
            others.append(name)
        elif key in own:
            raise DataError(
                f"{path}: sample {key!r} has two pictures, {own[key]!r} and {name!r}; take one "
                "out, or call it by another name"
            )
        else:
            own[key] = name
    single = {name for name in others if split_key(name)[0] not in own}
    chosen = {*own.values(), *single}
    return [name for name in names if name in chosen], len(others) - len(single)


def split_key(name: str) -> tuple[str, str, str]:
    """Split a member's name into its sample and extension, at the first dot."""
    folder, slash, own = name.rpartition("/")
    key, dot, ending = own.partition(".")
    return f"{folder}{slash}{key}", dot, ending
