"""`python -m train.rerun RUN [--name FOLDER]`: repeat a run, and compare byte by byte."""

from __future__ import annotations

import itertools
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from train.shadowing import refuse_foreign_inference

if TYPE_CHECKING:
    from train.runs import RunDirectory

USAGE = "usage: python -m train.rerun RUN [--name FOLDER] [plugins=[MODULE]]"
HELP = """\
RUN is the folder of a run, as runs/mine. It is trained once more in FOLDER/mine beside it (if not
given, mine.rerun), by its recipe.yaml: the same bytes come of it if all else is the same. Plug-ins
that recipe.yaml names are loaded only if plugins=[...] or LIMNER_PLUGINS names them too."""


@refuse_foreign_inference("rerun")
def main(arguments: list[str] | None = None) -> int:
    """Repeat a run and return the exit status.

    0 the same bytes, 1 they differ or training failed, 2 the input is wrong, 128 + signal stopped.
    """
    from inference.runtime import run_command

    return run_command("rerun", command, arguments, prints_result=True)


def command(arguments: list[str]) -> int:
    """Print the usage, or repeat a run; return the exit status."""
    from inference.runtime import output

    folder = None
    if "--name" in arguments[:-1]:
        place = arguments.index("--name")
        folder = arguments[place + 1]
        del arguments[place : place + 2]
    plugins = [argument for argument in arguments if argument.startswith("plugins=")]
    arguments = [argument for argument in arguments if argument not in plugins]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        asked = arguments[:1] in (["-h"], ["--help"])
        output(f"{USAGE}\n{HELP}", is_error=not asked)
        return 0 if asked else 2
    from inference.runtime import is_first_process, quiet_libraries

    quiet_libraries()
    from train.cli import COMMANDS, run
    from train.runs import RunDirectory, open_run

    first = open_run(arguments[0])
    second = RunDirectory(place_of(first.path, folder) / first.path.name)
    if is_first_process():
        first.lock.refuse_if_held()
        report_changes(first, plugins)
    parent = f"output_dir={second.path.parent}"
    overrides = [f"name={first.path.name}", parent, "resume=false", "overwrite=false"]
    status = run(COMMANDS["train"], [str(first.recipe), *overrides, *plugins])
    if status or not is_first_process():
        return status
    return verdict(first, second)


def place_of(run: Path, folder: str | None) -> Path:
    """Return the parent folder of the new run; by default the first free one.

    Raises:
        InputError: it contains a run of this name.
    """
    from inference.runtime import InputError

    beside = run.absolute().parent
    if folder is not None:
        place = beside / folder
        if (place / run.name).exists():
            raise InputError(f"--name: {place / run.name} is there already; give another name")
        return place
    names = (f"{run.name}.rerun" + (f".{n}" if n else "") for n in itertools.count())
    return next(place for name in names if not (place := beside / name).exists())


def report_changes(run: RunDirectory, plugins: list[str]) -> None:
    """Report what has changed since the run was made: versions, commit, machine, data."""
    from inference.runtime import report
    from train.runs import Comparison, compare_environments, describe_environment, environment_of

    found = Comparison()
    now = describe_environment()
    before = {key: value for key, value in environment_of(run).items() if key in now}
    compare_environments(before, now, found)
    for key, old, new in found.environment:
        if key in before or key.split(".")[0] in ("gpu", "packages"):
            report("rerun", f"{key}: {old!r} became {new!r}")
    if "gpu" in now and not recipe_is_exact(run):
        report(
            "rerun",
            "on a GPU only runs with deterministic: true repeat byte by byte, which this one is "
            "not: its files may differ though nothing has changed",
        )
    for line in data_beforehand(run, plugins):
        report("rerun", f"data: {line}")


def recipe_is_exact(run: RunDirectory) -> bool:
    """Return whether a run was trained with `deterministic: true`."""
    from train.runs import stored_recipe

    return bool(stored_recipe(run.recipe).get("deterministic"))


def data_beforehand(run: RunDirectory, plugins: list[str]) -> list[str]:
    """Return the changes of the data; nothing if there are none, or if the run lists no data.

    Warnings about recipe and data are left to the training that follows.
    """
    from inference.recipe import load_recipe, warnings_reported
    from train.config import train_schema
    from train.data import find_sources
    from train.runs import HELD_BACK, PICTURE, data_changes, first, rows_of

    with warnings_reported("rerun", is_silent=True):
        recipe = load_recipe(str(run.recipe), train_schema, plugins)
        if not run.data.is_file():
            return [f"{run.path} does not list its data in detail (an older run)"]
        sources = find_sources(recipe)
        rows = rows_of(sources.pictures, recipe.data)
        held = rows_of(sources.held_back.pictures, recipe.data, HELD_BACK)
        found = data_changes(run.data, [PICTURE, HELD_BACK], chain(rows, held))
    touched = f"{len(found.touched)} written to since, of the same size: {first(found.touched)}"
    return found.lines() + ([touched] if found.touched else [])


def verdict(first: RunDirectory, second: RunDirectory) -> int:
    """Print what is the same and what is not; return the exit status."""
    from inference.runtime import output
    from train.runs import Comparison, compare_files, different_lines

    found = Comparison()
    compare_files(first, second, found)
    for run, names in ((first, found.only_first), (second, found.only_second)):
        if names:
            output(f"only in {run.path}: {', '.join(names)}")
    for line in different_lines(found):
        output(line)
    if found.files or not found.equal:
        output(f"differs: {len(found.files)} of {len(found.files) + len(found.equal)} files")
        return 1
    output(f"equal: all {len(found.equal)} files that both have, byte by byte")
    return 0


if __name__ == "__main__":
    sys.exit(main())
