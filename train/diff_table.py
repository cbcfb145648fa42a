"""A comparison of two runs in the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from train.comparison import Comparison

TENSORS_SHOWN = 5
"""Tensors of a file that are told, those that differ most."""


def show(found: Comparison, first: str, second: str) -> None:
    """Prints in what two runs differ."""
    console = Console(highlight=False, soft_wrap=True)
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
    if not found.files:
        return
    table = _table("files that differ", "", "largest difference", "norm", "relative norm")
    for one in found.files:
        told = "the same tensors" if not one.tensors else f"{len(one.tensors)} tensors"
        is_tensors = one.name.endswith((".safetensors", ".pt"))
        table.add_row(one.name, told if is_tensors else "other bytes", "", "")
        for tensor in one.tensors[:TENSORS_SHOWN]:
            numbers = (tensor.largest, tensor.norm, tensor.relative)
            shown = ["" if number is None else f"{number:.3g}" for number in numbers]
            name = f"{tensor.name} ({tensor.what})" if tensor.what else tensor.name
            table.add_row(f"  {name}", *shown)
        if (more := len(one.tensors) - TENSORS_SHOWN) > 0:
            table.add_row(f"  … and {more} more", "", "", "")
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _value(value: Any) -> str:
    return "" if value is None else str(value)
