"""Whether a run can be resumed by a recipe: what may have changed, and what may not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from math import gcd
from pathlib import Path
from typing import Any

import yaml

from inference.recipe import RecipeWarning, dump_recipe, load_recipe
from inference.runtime import InputError
from train.common import RunDirectoryError
from train.config import TrainRecipe, train_schema
from train.runs.checkpoint_folder import Checkpoints
from train.runs.environments import data_sizes, read_environment
from train.runs.identity import (
    ACCUMULATION,
    BASE_FINGERPRINT,
    BASE_PATH,
    CONTEXT,
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
    started = next(reversed(data_sizes(environment)), None)
    present = max(1, processes_of_run() // leaves(now).get(CONTEXT, 1))
    if started is not None and started != present:
        refuse_other_batch(run, before, now, started, present)
    changes = []
    for key, old, new in differences(before, now):
        if is_safe(key) or (is_one_of(key, DATA_PATHS) and old and new) or same_place(old, new):
            continue
        if is_one_of(key, ACCUMULATION) and started not in (None, present):
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


def refuse_other_batch(run: Path, before: Any, now: Any, started: int, present: int) -> None:
    """Check that an optimizer step takes as many examples as when the run started.

    Args:
        run: the run's folder.
        before: the values of its recipe.yaml.
        now: those of the recipe.
        started: processes with examples of their own, when the run was trained last.
        present: those that there are now.

    Raises:
        RunDirectoryError: it does not; says which accumulation on these processes does.
    """
    old, new = leaves(before), leaves(now)
    wanted = []
    for key in accumulations(old):
        total = (old[key] or 0) * started
        if total == (new.get(key) or 0) * present:
            continue
        if total % present:
            raise RunDirectoryError(cannot_take(run, old, key, started, present))
        wanted.append(f"{key}={total // present}")
    if wanted:
        size = old.get("train_batch_size", 1) * old.get(ACCUMULATION[0], 1) * started
        raise RunDirectoryError(
            f"{run} was trained on {count(started)}, {size} examples a step; on "
            f"{count(present)} {' '.join(wanted)} keeps that: give it, or resume on "
            f"{count(started)}"
        )


def accumulations(values: Mapping[str, Any]) -> list[str]:
    """Return the keys that set the accumulation of a run or of its stages, if they have effect.

    Args:
        values: of a recipe, by dotted key.
    """
    keys = [key for key in values if is_one_of(key, ACCUMULATION)]
    own = [key for key in keys if key != ACCUMULATION[0]]
    return own if own and all(values[key] for key in own) else keys


def cannot_take(run: Path, old: Mapping[str, Any], key: str, started: int, present: int) -> str:
    """Return why these processes cannot take the examples of a run's step, and which can.

    Args:
        run: the run's folder.
        old: the values of its recipe.yaml, by dotted key.
        key: the accumulation that these processes do not divide.
        started: processes with examples of their own, when the run was trained last.
        present: those that there are now.
    """
    batch = old.get(key.replace("gradient_accumulation_steps", "train_batch_size"))
    batch = batch or old.get("train_batch_size", 1)
    totals = [old[one] * started for one in accumulations(old) if old[one]]
    most, context = gcd(*totals), old.get(CONTEXT, 1)
    able = [str(n * context) for n in range(1, most + 1) if most % n == 0]
    listed = f"{', '.join(able[:-1])} or {able[-1]}" if len(able) > 1 else able[0]
    size = batch * old[key] * started
    return (
        f"{run} takes {size} examples a step (train_batch_size {batch} x {key} {old[key]} x "
        f"{count(started)}): {count(present * context)} cannot take {size} examples a step: "
        f"{listed} can"
    )


def keep_batch(recipe: TrainRecipe, run: Path) -> tuple[TrainRecipe, str | None]:
    """Return a recipe whose steps take as many examples as those of the run that it resumes.

    On another number of processes the accumulation changes, if it is that of the recipe.yaml, or of
    the run's beginning; a node that a launcher has lost changes nothing else.

    Returns:
        The recipe, and a line about what has changed.

    Raises:
        RunDirectoryError: no accumulation on these processes takes as many, or files of the run are
            damaged.
    """
    resolved, environment = run / "recipe.yaml", run / "environment.json"
    if not (recipe.resume and resolved.is_file() and environment.is_file()):
        return recipe, None
    is_restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if Checkpoints(run / "checkpoints").newest() is None and not is_restarted:
        return recipe, None
    known = data_sizes(read_environment(environment))
    if not known:  # of an early version
        return recipe, None
    old, new = leaves(stored_recipe(resolved)), leaves(asdict(recipe))
    started, present = known[-1], max(1, processes_of_run() // recipe.parallel.context)
    changed: dict[str, int] = {}
    for key in accumulations(old):
        total, value = (old[key] or 0) * started, new.get(key) or 0
        is_that_of_the_run = total and any(value * other == total for other in known)
        if value * present == total or not is_that_of_the_run:
            continue
        if total % present:
            raise RunDirectoryError(cannot_take(run, old, key, started, present))
        changed[key] = total // present
    if not changed:
        return recipe, None
    first = next(iter(changed))
    note = (
        f"{count(present)} with {' '.join(f'{key}={value}' for key, value in changed.items())} "
        f"take as many examples a step as {count(started)} with {first}={old[first]} did"
    )
    return with_accumulations(recipe, changed), note


def with_accumulations(recipe: TrainRecipe, steps: Mapping[str, int]) -> TrainRecipe:
    """Return a recipe with other accumulations, by dotted key."""
    own = {key.split(".")[1]: value for key, value in steps.items() if key != ACCUMULATION[0]}
    stages = {
        name: stage and replace(stage, gradient_accumulation_steps=own[name])
        if name in own
        else stage
        for name, stage in recipe.stages.items()
    }
    whole = steps.get(ACCUMULATION[0], recipe.gradient_accumulation_steps)
    return replace(recipe, gradient_accumulation_steps=whole, stages=stages)


def count(processes: int) -> str:
    """Format a number of processes."""
    return f"{processes} process" + ("es" if processes > 1 else "")
