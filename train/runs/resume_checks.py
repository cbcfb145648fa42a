"""Whether a run can be resumed by a recipe: what may have changed, and what may not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from inference.recipe import RecipeWarning, dump_recipe, load_recipe
from inference.runtime import InputError
from train.common import RunDirectoryError
from train.config import train_schema
from train.runs.identity import (
    ACCUMULATION,
    BASE_FINGERPRINT,
    BASE_PATH,
    DATA_PATHS,
    SAFE_TO_CHANGE,
    VAE_PATH,
    is_one_of,
    is_safe,
    leaves,
    same_place,
)
from train.runs.manifests import processes_of_run


def stored_recipe(path: Path) -> Any:
    """Return the values of a run's recipe.yaml, with defaults for keys that are newer than it.

    If Limner no longer accepts it, return it as it was written.

    Raises:
        RunDirectoryError: it does not exist, or is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecipeWarning)
            with suppress(InputError):
                text = dump_recipe(load_recipe(str(path), train_schema, []))
        found = yaml.safe_load(text)
        if not isinstance(found, dict) or not found:
            raise ValueError("expected a mapping that is not empty")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise RunDirectoryError(
            f"{path}: damaged or lost ({why}): what the run was trained with is unknown. Restore "
            "it from a copy; or overwrite=true starts over and renames this run"
        ) from error
    return found


def differences(before: Any, after: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Return (key, old, new) of every leaf in which two nested mappings differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = {**before, **after}
        found = []
        for name in names:
            inner = f"{key}.{name}" if key else str(name)
            found += differences(before.get(name), after.get(name), inner)
        return found
    return [] if before == after else [(key, before, after)]


def refuse_changes(
    run: Path,
    before: Any,
    now: Any,
    environment: Mapping[str, Any],
    base_print: Callable[[], str | None],
) -> None:
    """Check that a recipe continues a run, on the number of processes that there are now.

    Folders of data may have moved, as their contents are compared elsewhere; so may the base model,
    if its weights are the same.

    Args:
        run: the run's folder.
        before: the values of its recipe.yaml.
        now: those of the recipe.
        environment: the content of its environment.json.
        base_print: computes the fingerprint of the recipe's base model.

    Raises:
        RunDirectoryError: other keys have changed, or the batch would.
    """
    started, processes = environment.get("processes"), data_size(now, processes_of_run())
    if isinstance(started, int):
        started = data_size(before, started)
    if isinstance(started, int) and started != processes:
        refuse_other_batch(run, before, now, started, processes)
    changes = []
    for key, old, new in differences(before, now):
        if is_safe(key) or (is_one_of(key, DATA_PATHS) and old and new) or same_place(old, new):
            continue
        if is_one_of(key, ACCUMULATION) and isinstance(started, int) and started != processes:
            continue
        if key in (BASE_PATH, VAE_PATH) and (known := environment.get(BASE_FINGERPRINT)):
            if base_print() == known:
                continue
            changes.append(f"{key}: {old!r} became {new!r}, which holds other weights")
            continue
        changes.append(f"{key}: {old!r} became {new!r}")
    if changes:
        raise RunDirectoryError(
            f"{run} cannot be resumed with another recipe: {'; '.join(changes)}. "
            f"Give it another name=… or the old values; only {', '.join(SAFE_TO_CHANGE)} "
            "may change"
        )


def data_size(recipe: Any, processes: int) -> int:
    """Return how many processes have examples of their own; a recipe's values may be older."""
    return processes // leaves(recipe).get("parallel.context", 1)


def refuse_other_batch(run: Path, before: Any, now: Any, started: int, processes: int) -> None:
    """Check that an optimizer step takes as many examples as when the run started.

    Raises:
        RunDirectoryError: it does not; says which accumulation on these processes does.
    """
    old, new = leaves(before), leaves(now)
    wanted = []
    for key in (one for one in old if is_one_of(one, ACCUMULATION)):
        total = (old[key] or 0) * started
        if total == (new.get(key) or 0) * processes:
            continue
        if total % processes:
            raise RunDirectoryError(
                f"{run} was trained on {count(started)} with {key}={old[key]}: on "
                f"{count(processes)} no {key} keeps the examples of a step. Resume it on "
                f"{count(started)}"
            )
        wanted.append(f"{key}={total // processes}")
    if wanted:
        size = old.get("train_batch_size", 1) * old.get(ACCUMULATION[0], 1) * started
        raise RunDirectoryError(
            f"{run} was trained on {count(started)}, {size} examples a step; on "
            f"{count(processes)} {' '.join(wanted)} keeps that: give it, or resume on "
            f"{count(started)}"
        )


def count(processes: int) -> str:
    """Format a number of processes."""
    return f"{processes} process" + ("es" if processes > 1 else "")
