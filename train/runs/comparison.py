"""Differences between two runs: recipes, environments, data, files, tensors and losses."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from inference.runtime import InputError, open_console
from train.runs.data_manifest import DataChanges, changes, read_rows
from train.runs.environments import ENVIRONMENTS, environments, read_environment
from train.runs.identity import RESULT_HASH, RUN_ID
from train.runs.resume_checks import differences, stored_recipe
from train.runs.run_directory import RunDirectory
from train.runs.tensor_comparison import TENSOR_FILES, TensorDifference, different_tensors

NOT_COMPARED = ("name", "output_dir", "resume", "overwrite", "plugins")
"""Keys of recipes that may differ between equal runs."""

MACHINE = (
    "command",
    "pictures",
    "class_pictures",
    "dataset_fingerprint",
    "class_fingerprint",
    ENVIRONMENTS,
    RUN_ID,
    RESULT_HASH,
)
"""Keys of environment.json about the command or the run itself, or reported as data."""

HEAD = "final weights"

TENSORS_SHOWN = 5
"""Maximum number of tensors listed per file, those that differ most."""


@dataclass(frozen=True)
class FileDifference:
    """A file whose bytes differ between two runs."""

    name: str
    tensors: list[TensorDifference] = field(default_factory=list)
    """Tensors that differ, the largest difference first; empty if no tensor does, or it has
    none."""


@dataclass(frozen=True)
class LossDifference:
    """A curve of TensorBoard whose values differ between two runs."""

    name: str
    first_step: int
    largest: float
    last: tuple[float, float]
    """Values of the last step that both have."""


@dataclass
class Comparison:
    """The differences between two runs."""

    recipe: list[tuple[str, Any, Any]] = field(default_factory=list)
    environment: list[tuple[str, Any, Any]] = field(default_factory=list)
    data: DataChanges = field(default_factory=DataChanges)
    data_differ: bool = False
    """Also if one of the runs does not list its data in detail."""
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    """Files with the same bytes."""
    files: list[FileDifference] = field(default_factory=list)
    losses: list[LossDifference] = field(default_factory=list)
    without_curves: list[str] = field(default_factory=list)
    """Folders of logs that do not exist, so that no curves were compared."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "recipe": [{"key": key, "first": a, "second": b} for key, a, b in self.recipe],
            "environment": [{"key": k, "first": a, "second": b} for k, a, b in self.environment],
            "data": {"differ": self.data_differ, **vars(self.data)},
            "only_first": self.only_first,
            "only_second": self.only_second,
            "equal": self.equal,
            "files": [
                {"name": one.name, "tensors": [vars(tensor) for tensor in one.tensors]}
                for one in self.files
            ],
            "losses": [vars(one) for one in self.losses],
            "without_curves": self.without_curves,
        }


def open_run(path: str) -> RunDirectory:
    """Open the folder of a run.

    Raises:
        InputError: it does not exist.
    """
    run = RunDirectory(Path(path))
    if not run.recipe.is_file() or not run.environment.is_file():
        raise InputError(f"{path}: not the folder of a run: it has no recipe.yaml that one wrote")
    return run


def compare_runs(first: RunDirectory, second: RunDirectory) -> Comparison:
    """Compare everything in the folders of two runs.

    Raises:
        InputError: one of their files cannot be read.
    """
    found = Comparison()
    pairs = differences(stored_recipe(first.recipe), stored_recipe(second.recipe))
    found.recipe = [one for one in pairs if one[0] not in NOT_COMPARED]
    compare_environments(environment_of(first), environment_of(second), found)
    compare_data(first, second, found)
    compare_files(first, second, found)
    found.without_curves = [str(run.logs) for run in (first, second) if not run.logs.is_dir()]
    if not found.without_curves:
        found.losses = list(different_losses(first, second))
    return found


def environment_of(run: RunDirectory) -> dict[str, Any]:
    """Return the content of a run's environment.json.

    Raises:
        InputError: it is damaged.
    """
    return read_environment(run.environment)


def compare_environments(first: dict[str, Any], second: dict[str, Any], found: Comparison) -> None:
    """Compare versions, commit, machine."""
    pairs = differences(first, second)
    found.environment = [one for one in pairs if one[0].split(".")[0] not in MACHINE]
    ours, theirs = (
        ", ".join(str(one.get("step")) for one in environments(run)) for run in (first, second)
    )
    if ours != theirs:
        found.environment.append(("environments began at step", ours, theirs))
    prints = ("dataset_fingerprint", "class_fingerprint")
    found.data_differ = any(first.get(key) != second.get(key) for key in prints)


def compare_data(first: RunDirectory, second: RunDirectory, found: Comparison) -> None:
    """Compare the data file by file, if both runs list them."""
    if not (first.data.is_file() and second.data.is_file()):
        return
    try:
        found.data = changes(read_rows(first.data), read_rows(second.data))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"{first.data} or {second.data}: damaged: {error}") from error
    found.data_differ |= bool(found.data)


def compare_files(first: RunDirectory, second: RunDirectory, found: Comparison) -> None:
    """Compare artifacts, preview grids and the files of the last checkpoints."""
    names = {run.listing.output_name for run in (first, second)}
    as_usual = len(names) > 1
    ours, theirs = files_of(first, as_usual), files_of(second, as_usual)
    found.only_first = [name for name in ours if name not in theirs]
    found.only_second = [name for name in theirs if name not in ours]
    for name in (name for name in ours if name in theirs):
        if filecmp.cmp(ours[name], theirs[name], shallow=False):
            found.equal.append(name)
        else:
            tensors = different_tensors(ours[name], theirs[name])
            found.files.append(FileDifference(name, tensors))


def files_of(run: RunDirectory, as_usual: bool = False) -> dict[str, Path]:
    """Return the products of a run, by names that are comparable between runs.

    Args:
        run: the run.
        as_usual: name artifacts as those of a run without an output name.
    """
    found = {}
    output_name = run.listing.output_name if as_usual else None
    for folder in (run.artifacts, run.samples):
        for file in sorted(folder.rglob("*")):
            linked = any(part.is_symlink() for part in (file, *file.parents) if part != run.path)
            if file.is_file() and not linked and not file.name.startswith("."):
                place = file.relative_to(run.path)
                if output_name is not None and folder == run.artifacts:
                    place = usual_place(place, output_name)
                found[place.as_posix()] = file
    newest = run.newest_checkpoint()
    if newest is not None:
        shards = [shard.name for shard in sorted(newest.glob("shard-*.safetensors"))]
        for name in ("trained.safetensors", "ema.safetensors", *shards, "optimizer.pt"):
            if (newest / name).is_file():
                found[f"{HEAD}, {newest.name}/{name}"] = newest / name
    return found


def usual_place(place: Path, output_name: str) -> Path:
    """Return the place that an artifact's file would have without the output name."""
    folder, member, *rest = place.parts
    parts = [member, *rest]
    for number, part in enumerate(parts):
        if named := re.fullmatch(rf"{re.escape(output_name)}-(\d+)(\..+)?", part):
            parts[number] = f"step-{named[1]}{named[2] or ''}"
        elif named := re.fullmatch(rf"{re.escape(output_name)}(\..+)?", part):
            parts[number] = f"last{named[1] or ''}"
    return Path(folder, *parts)


def curves(run: RunDirectory) -> dict[str, dict[int, float]]:
    """Return the losses and learning rates of a run by step, without speeds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.logs), size_guidance={"scalars": 0})
    board.Reload()
    names = [name for name in board.Tags()["scalars"] if name != "images_per_second"]
    return {name: {one.step: one.value for one in board.Scalars(name)} for name in names}


def speeds(run: RunDirectory) -> list[float]:
    """Return what a run has logged of its images per second."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.logs), size_guidance={"scalars": 0})
    board.Reload()
    name = "images_per_second"
    return [one.value for one in board.Scalars(name)] if name in board.Tags()["scalars"] else []


def different_losses(first: RunDirectory, second: RunDirectory) -> Iterator[LossDifference]:
    """Yield curves that both have, with other values at steps that both have."""
    ours, theirs = curves(first), curves(second)
    for name in (name for name in ours if name in theirs):
        a, b = ours[name], theirs[name]
        steps = [step for step in a if step in b]
        other = [step for step in steps if a[step] != b[step] and a[step] == a[step]]
        if other:
            largest = max(abs(a[step] - b[step]) for step in other)
            yield LossDifference(name, other[0], largest, (a[steps[-1]], b[steps[-1]]))


def different_lines(found: Comparison) -> list[str]:
    """Return a line for each file that differs, and for its tensors that differ most."""
    lines = []
    for one in found.files:
        what = f"{len(one.tensors)} tensors" if one.tensors else "other bytes"
        if not one.tensors and one.name.endswith(TENSOR_FILES):
            what = "the same tensors with other metadata, such as the run's name"
        lines.append(f"{one.name}: {what}")
        for tensor in one.tensors[:TENSORS_SHOWN]:
            line = f"  {tensor.name}" + (f" ({tensor.what})" if tensor.what else "")
            if tensor.largest is not None:
                line += f" by up to {tensor.largest:.3g}, norm of the difference {tensor.norm:.3g}"
            if tensor.relative is not None:
                line += f", {tensor.relative:.3g} of its own"
            lines.append(line)
        if (more := len(one.tensors) - TENSORS_SHOWN) > 0:
            lines.append(f"  … and {more} more")
    return lines


def show(found: Comparison, first: str, second: str) -> None:
    """Print the differences between two runs."""
    console = open_console(highlight=False, soft_wrap=True)
    for title, rows in (("recipe", found.recipe), ("environment", found.environment)):
        if rows:
            table = _table(title, "", first, second)
            for key, one, two in rows:
                table.add_row(key, _value(one), _value(two))
            console.print(table)
        else:
            console.print(f"{title}: the same")
    _show_data(console, found)
    _show_files(console, found, first, second)
    if found.losses:
        table = _table("curves", "", "first at step", "largest difference", first, second)
        for one in found.losses:
            last = (f"{value:.6g}" for value in one.last)
            table.add_row(one.name, str(one.first_step), f"{one.largest:.3g}", *last)
        console.print(table)
    elif found.without_curves:
        missing = ", ".join(found.without_curves)
        console.print(f"curves: not compared, without {missing}", markup=False)
    else:
        console.print("curves: the same")


def _show_data(console: Console, found: Comparison) -> None:
    if not found.data_differ:
        console.print("data: the same")
        return
    console.print("data:")
    for line in found.data.lines() or ["they differ; how is not kept by these runs"]:
        console.print(f"  {line}", markup=False)


def _show_files(console: Console, found: Comparison, first: str, second: str) -> None:
    for name, files in ((first, found.only_first), (second, found.only_second)):
        if files:
            console.print(f"only in {name}: {', '.join(files)}", markup=False)
    console.print(f"files with the same bytes: {len(found.equal)}")
    for line in different_lines(found):
        console.print(line, markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _value(value: Any) -> str:
    return "" if value is None else str(value)
