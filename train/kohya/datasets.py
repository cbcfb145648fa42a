"""Combine several datasets of kohya's dataset_config.toml in one run.

It follows sd-scripts 0.10.1: `library/config_util.py`, `library/train_util.py` (`DatasetGroup`).
There each dataset has its own batches; here all subsets are trained together.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.kohya.keys import BUCKET_KEYS


@dataclass(frozen=True)
class Dataset:
    """A dataset of the file."""

    where: str
    """Its name in messages."""
    values: Mapping[str, tuple[str, Any]]
    """(location, value) of each key of the dataset as a whole."""
    subsets: dict[str, dict[str, Any]]
    """Its subsets, as keys of the recipe, by their names in messages."""


WHOLE = {
    "batch_size": "every micro-batch of a run has train_batch_size examples, so that all steps "
    "count the same",
    "validation_split": "validation.split is one share of all subsets",
    "validation_seed": "validation.seed is one for all subsets",
}
"""Keys that a run has once, and why."""


def together(datasets: Sequence[Dataset], notes: list[str]) -> dict[str, Any]:
    """Return the recipe keys besides subsets, which get their own sizes if these differ.

    Args:
        datasets: the datasets of the file; their subsets are changed.
        notes: gets what cannot be kept.
    """
    values = _of_the_run(datasets, notes)
    recipe: dict[str, Any] = {"data": {}}
    if "batch_size" in values:
        recipe["train_batch_size"] = values["batch_size"]
    if values.get("validation_split"):
        seed = {"seed": values["validation_seed"]} if "validation_seed" in values else {}
        recipe["validation"] = {"split": values["validation_split"], **seed}
    sizes = [_sizes(dataset.values) for dataset in datasets]
    for key in ("resolution", "buckets"):
        said = [one.get(key) for one in sizes]
        # A key that a dataset omits is the recipe's, like that of the command line in kohya.
        of_all = said[0] if None not in said or said.count(None) == len(said) else None
        if of_all is not None:
            recipe["data"][key] = of_all
        for dataset, own in zip(datasets, said, strict=True):
            if own is not None and own != of_all:
                for subset in dataset.subsets.values():
                    if not subset.get("is_reg"):
                        subset[key] = own
    if len(datasets) > 1:
        notes += _notes_on_classes(datasets)
    return recipe


def _of_the_run(datasets: Sequence[Dataset], notes: list[str]) -> dict[str, Any]:
    """Return the values of keys that a run has once: those of the first dataset that has them."""
    found: dict[str, Any] = {}
    for key, why in WHOLE.items():
        said = [(one.where, one.values[key][1]) for one in datasets if key in one.values]
        if not said:
            continue
        first, found[key] = said[0]
        for one in datasets:
            own = one.values[key][1] if key in one.values else None
            if own != found[key]:
                is_not = "is not said" if own is None else f"{json.dumps(own)} has no effect"
                notes.append(
                    f"{one.where}: {key}: {is_not}: {why}; taken is {json.dumps(found[key])} of "
                    f"{first}, unless the recipe sets another"
                )
    return found


def _sizes(values: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return `resolution` and `buckets` of the recipe, as far as a dataset sets them."""
    plain = {key: value for key, (_, value) in values.items()}
    size = plain.get("resolution", 0)
    width, height = [size, size] if isinstance(size, int) else size
    found: dict[str, Any] = {}
    buckets = {BUCKET_KEYS[key]: plain[key] for key in BUCKET_KEYS if key in plain}
    if width == height:
        found |= {"resolution": width} if width else {}
    elif plain.get("enable_bucket"):
        buckets["area"] = width * height
    else:
        found["buckets"] = {"sizes": [f"{height}x{width}"]}
    if plain.get("enable_bucket"):
        found["buckets"] = buckets
    return found


def _notes_on_classes(datasets: Sequence[Dataset]) -> list[str]:
    """Return a note if regularisation images belong to one dataset in kohya."""
    return [
        f"{where}: is_reg: its images are paired with the examples of all datasets, each at the "
        "size of those that it is paired with"
        for dataset in datasets
        for where, subset in dataset.subsets.items()
        if subset.get("is_reg")
    ]
