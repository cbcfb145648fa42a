"""The table of `scripts.bench.gpu`, written again after every row."""

from __future__ import annotations

import json
from pathlib import Path

from inference.runtime import output

Row = dict[str, object]


class Results:
    """The table: rows on the disk, from which both files are written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows_file = folder / "rows.jsonl"

    def start(self) -> None:
        """Begin a table without rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows_file.write_text("", encoding="utf-8")

    def add(self, part: str, what: str, **figures: object) -> None:
        """Add a row, and write the table."""
        row = {"part": part, "what": what, **figures}
        with self.rows_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        output(f"{part}: {what}: {in_words(figures)}")
        self.write()

    def rows(self) -> list[Row]:
        """Return the rows so far."""
        lines = self.rows_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def write(self) -> None:
        """Write the table, each file as a whole."""
        rows = self.rows()
        table = ["| part | what | result |", "|---|---|---|"]
        for row in rows:
            figures = {key: value for key, value in row.items() if key not in ("part", "what")}
            table.append(f"| {row['part']} | {row['what']} | {in_words(figures)} |")
        self._replace("results.md", "\n".join(table) + "\n")
        self._replace("results.json", json.dumps(rows, indent=2) + "\n")

    def _replace(self, name: str, text: str) -> None:
        new = self.folder / f"{name}.new"
        new.write_text(text, encoding="utf-8")
        new.replace(self.folder / name)


def in_words(figures: Row) -> str:
    """Return figures for people: `step_ms 12.3, peak_gib 3.1`."""
    pairs = ((key, value) for key, value in figures.items() if value is not None)
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in pairs
    )
