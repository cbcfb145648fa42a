"""A comparison of two runs in the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from train.comparison import Comparison, different_lines


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
    for line in different_lines(found):
        console.print(line, markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _value(value: Any) -> str:
    return "" if value is None else str(value)
