"""Convert kohya's dataset_config.toml and folders to keys of a recipe.

It follows sd-scripts 0.10.1: `library/config_util.py` (`ConfigSanitizer`, `BlueprintGenerator`) and
`docs/config_README-en.md`. A value is looked up in the subset, its dataset, [general], and then in
the recipe, which corresponds to kohya's command line.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from inference.recipe import Imported, Reader, set_key
from inference.runtime import InputError
from train.kohya.datasets import Dataset, together
from train.kohya.keys import (
    BUCKET_KEYS,
    DATASET_KEYS,
    IGNORED,
    PATHS,
    REFUSED,
    SUBSET_KEYS,
    SUBSET_ONLY,
    TYPES,
)

NUMBERED = re.compile(r"([0-9]{1,6})_(.*)")
Where = tuple[str, Mapping[str, Any]]
"""A table of the file, and its name in messages."""


def _is(kind: Callable[[Path], bool], path: str) -> bool:
    """Return whether a path is of a kind; a text that cannot be a path is not."""
    try:
        return kind(Path(path))
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def read_kohya_config(path: str) -> Imported:
    """Return the recipe keys that correspond to a dataset_config.toml.

    Raises:
        InputError: it cannot be read, has unknown keys, values of a wrong type, or unsupported
            options; one line each.
    """
    if not _is(Path.is_file, path):
        raise InputError(f"{path!r} is not a file")
    try:
        with Path(path).open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise InputError(f"{path!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path!r} is not TOML: {error}") from error
    faults: list[str] = []
    notes: list[str] = []
    datasets = list(_tables(content, faults))
    if faults:
        raise InputError("\n".join(f"{path}: {line}" for line in faults))
    subsets: dict[str, dict[str, Any]] = {}
    found: list[Dataset] = []
    for dataset, general, inner in datasets:
        values = _dataset([dataset, general], faults, notes)
        found.append(Dataset(dataset[0], values, {}))
        for subset in inner:
            name = _free_name(_name(subset[1]), subsets)
            subsets[name] = _subset([subset, dataset, general], faults, notes)
            found[-1].subsets[subset[0]] = subsets[name]
    if not subsets:
        faults.append("has no [[datasets.subsets]]: nothing to learn from")
    if faults:
        raise InputError("\n".join(dict.fromkeys(f"{path}: {line}" for line in faults)))
    recipe = together(found, notes)
    recipe["data"]["subsets"] = subsets
    return Imported(recipe, list(dict.fromkeys(notes)))


def _tables(
    content: Mapping[str, Any], faults: list[str]
) -> Iterator[tuple[Where, Where, list[Where]]]:
    """Yield each dataset, the general table, and its subsets; errors are added to `faults`."""
    for key in content:
        if key not in ("general", "datasets"):
            faults.append(f"{key}: unknown table; a dataset config has [general] and [[datasets]]")
    general, datasets = content.get("general", {}), content.get("datasets", [])
    if not isinstance(general, dict) or not _is_tables(datasets):
        faults.append("expected the tables [general] and [[datasets]]")
        return
    ascending = [key for key in TYPES if key not in SUBSET_ONLY]
    _check("general", general, ascending, faults)
    for number, dataset in enumerate(datasets, 1):
        where = f"datasets {number}"
        subsets = dataset.get("subsets", [])
        if not _is_tables(subsets):
            faults.append(f"{where}: expected the tables [[datasets.subsets]]")
            continue
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        _check(where, own, ascending, faults)
        inner = [(f"{where}, subset {n}", subset) for n, subset in enumerate(subsets, 1)]
        for name, subset in inner:
            _check(name, subset, [key for key in TYPES if key not in DATASET_KEYS], faults)
            if not (subset.get("image_dir") or subset.get("metadata_file")):
                faults.append(f"{name}: image_dir must be given (or metadata_file)")
        yield (where, own), ("general", general), inner


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _check(where: str, table: Mapping[str, Any], known: list[str], faults: list[str]) -> None:
    """Add unknown keys, keys in the wrong table, and wrong types to `faults`."""
    for key, value in table.items():
        if key in TYPES and key not in known:
            right = "[[datasets.subsets]]" if key in SUBSET_ONLY else "[[datasets]] or [general]"
            faults.append(f"{where}: {key}: belongs into {right}")
        elif key not in TYPES:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            faults.append(f"{where}: {key}: unknown key{hint}")
        elif not TYPES[key].fits(value):
            faults.append(
                f"{where}: {key}: expected {TYPES[key].words}, got {json.dumps(value, default=str)}"
            )


def _subset(tables: list[Where], faults: list[str], notes: list[str]) -> dict[str, Any]:
    """Return a subset of a recipe; its values are looked up in `tables`, in order."""
    found: dict[str, Any] = {}
    for key in TYPES:
        given = _given(key, tables)
        if given is None or key in DATASET_KEYS:
            continue
        where, value = given
        if key in SUBSET_KEYS:
            if key == "num_repeats" and value == 0:
                faults.append(f"{where}: num_repeats: 0 leaves the subset out; take it out")
            value = _on_this_disk(str(value)) if key in PATHS else value
            for dotted, said in SUBSET_KEYS[key](value).items():
                set_key(found, dotted, said)
            if key == "color_aug" and value:
                notes.append(
                    f"{where}: color_aug: becomes color_jitter, near to kohya's but not the same"
                )
        else:
            _refuse(where, key, value, faults, notes)
    return found


def _on_this_disk(path: str) -> str:
    r"""Return a relative path that Windows wrote (`data\dog`) with slashes, if it is none here."""
    if "\\" not in path or PureWindowsPath(path).drive or _is(Path.exists, path):
        return path
    return PureWindowsPath(path).as_posix()


def _dataset(
    tables: list[Where], faults: list[str], notes: list[str]
) -> dict[str, tuple[str, Any]]:
    """Return (location, value) of each key of a dataset as a whole."""
    found: dict[str, tuple[str, Any]] = {}
    for key in DATASET_KEYS:
        if (given := _given(key, tables)) is None:
            continue
        if key in REFUSED or key in IGNORED:
            _refuse(given[0], key, given[1], faults, notes)
        else:
            found[key] = given
    if not found.get("enable_bucket", ("", False))[1]:
        for key in [key for key in found if key in BUCKET_KEYS]:
            notes.append(f"{found.pop(key)[0]}: {key}: has no effect without enable_bucket = true")
    if "validation_seed" in found and not found.get("validation_split", ("", 0))[1]:
        notes.append(
            f"{found['validation_seed'][0]}: validation_seed: has no effect without a split"
        )
    return found


def _given(key: str, tables: list[Where]) -> tuple[str, Any] | None:
    """Return the first of the tables that has a key, and its value."""
    return next(((name, table[key]) for name, table in tables if key in table), None)


def _refuse(where: str, key: str, value: Any, faults: list[str], notes: list[str]) -> None:
    """Add a fault for an unsupported key, unless its value changes nothing."""
    if key in IGNORED:
        notes.append(f"{where}: {key}: has no effect: {IGNORED[key]}")
        return
    unset, why = REFUSED[key]
    if value not in unset:
        faults.append(f"{where}: {key}: {why}")


def _name(subset: Mapping[str, Any]) -> str:
    if "metadata_file" in subset:
        return PureWindowsPath(subset["metadata_file"]).stem.replace(".", "_")
    return PureWindowsPath(subset["image_dir"]).name.replace(".", "_") or "subset"


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    number = 1
    while (free := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return free


def read_kohya_folders(path: str, is_reg: bool = False) -> Imported:
    """Return subsets for the folders `REPEATS_class tokens` in a folder (kohya's train_data_dir).

    Raises:
        InputError: it is not a folder, or none in it has such a name.
    """
    root = Path(path)
    if not _is(Path.is_dir, path):
        raise InputError(f"{path!r} is not a folder")
    subsets: dict[str, Any] = {}
    notes: list[str] = []
    try:
        folders = sorted(one for one in root.iterdir() if one.is_dir())
    except OSError as error:
        raise InputError(f"{path!r} cannot be listed: {error.strerror}") from error
    for folder in folders:
        match = NUMBERED.fullmatch(folder.name)
        if match is None or not int(match[1]):
            notes.append(f"{folder.name}: has no effect: not named REPEATS_class tokens")
            continue
        subset = {"path": str(folder), "repeats": int(match[1]), "is_reg": is_reg}
        if match[2].strip():
            subset["captions"] = {"fallback": match[2].strip()}
        name = folder.name.replace(".", "_")
        subsets[f"reg {name}" if is_reg else name] = subset
    if not subsets:
        raise InputError(
            f"no folder in {path!r} is named REPEATS_class tokens, as 10_sks dog; pictures without "
            "such folders go with data.path"
        )
    return Imported({"data": {"subsets": subsets}}, notes)


def read_kohya_reg_folders(path: str) -> Imported:
    """Return the same for regularisation images (kohya's reg_data_dir)."""
    return read_kohya_folders(path, is_reg=True)


KOHYA_SOURCES: dict[str, Reader] = {
    "data.kohya_config": read_kohya_config,
    "data.kohya_folders": read_kohya_folders,
    "data.kohya_reg_folders": read_kohya_reg_folders,
}
"""Keys of a recipe that name files and folders of kohya's trainers."""
