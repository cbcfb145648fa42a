"""Check and measure Limner on a GPU: one command, under 8 minutes, without network or weights.

    make bench-gpu
    python -m scripts.bench.gpu --output runs/gpu --only sd15 sdxl

Runs the tests for a first GPU, then builds models of the published sizes with random weights on the
device and measures steps of training (time, peak memory, error of `train.plan`, waits of the host)
and drawing against diffusers' own pipeline with the same weights, steps, sampler and precision.
Each part is a process with a time limit of its own; a part that fails is a line of the table, and
the others go on. `results.md` and `results.json` in the output folder are written again after every
measurement, so that a run which is cut short leaves what it has measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from inference.runtime import output

NEEDED = (
    "torch", "diffusers", "transformers", "accelerate", "peft", "omegaconf", "safetensors", "numpy",
    "PIL", "yaml", "rich", "tqdm", "scipy", "torchsde", "tensorboard", "pytest",
)  # fmt: skip
OLDEST_TORCH = (2, 6)
SECONDS = 460.0
"""Limit of the whole run."""

PARTS = {"tests": 130.0, "sd15": 110.0, "sdxl": 110.0, "cogvideox-2b": 110.0}
"""Part -> its limit in seconds."""

TESTS = "bf16 and (test_objectives or test_networks or plain) or test_exact_runs or quantized_base"
"""Choice of the tests for a first GPU, in pytest's syntax."""

Row = dict[str, object]


def main(arguments: Sequence[str], module: str = "scripts.bench.gpu") -> int:
    """Run what the command line names; return the exit status.

    Args:
        arguments: of the command line.
        module: starts a part as `python -m MODULE --part …`.
    """
    if faults := missing():
        output("\n".join(faults), is_error=True)
        return 2
    options = read_arguments(arguments)
    if options.part:
        from scripts.bench.gpu_parts import measure

        return measure(options.part, Results(options.output), options)
    return run_parts(options, module)


def missing() -> list[str]:
    """Return a line for each package that is missing or too old, without importing any."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    lines = [f"{name}: is not installed" for name in absent]
    if "torch" not in absent:
        found = version("torch")
        if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TORCH:
            lines.append(f"torch: {found} is too old; expected 2.6 or newer")
    remedy = f"Remedy: {sys.executable} -m pip install -e '.[dev]'"
    return [*lines, remedy] if lines else []


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Checks and measures Limner on a GPU.")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of the table")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of the whole run")
    parser.add_argument("--tests", default=TESTS, help="choice of tests, in pytest's syntax")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PART=PATH",
        help="measure a part on another model: a hub id whose sizes are known, or a folder",
    )
    parser.add_argument("--tiny", action="store_true", help="small pictures and few steps")
    parser.add_argument("--without-times", action="store_true", help="for a mock device")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


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


def run_parts(options: argparse.Namespace, module: str) -> int:
    """Run each part as a process within its limit; return 1 if one failed."""
    results, start, failed = Results(options.output), time.monotonic(), False
    results.start()
    for part in options.only:
        left = options.seconds - (time.monotonic() - start)
        if left < 10:
            results.add(part, "not run", reason="the time of the whole run is used up")
            failed = True
            continue
        command = [sys.executable, "-m", module, *passed_on(options), "--part", part]
        log = options.output / f"{part}.log"
        began = time.monotonic()
        with log.open("wb") as file:
            status = finished(command, min(left, PARTS[part]), file)
        if status != 0:
            failed = True
            reason = "its time was used up" if status is None else f"status {status}"
            results.add(part, "failed", reason=reason, last_line=last_line(log), log=str(log))
        output(f"{part}: {time.monotonic() - began:.0f} s")
    output((options.output / "results.md").read_text(encoding="utf-8"))
    return int(failed)


def passed_on(options: argparse.Namespace) -> list[str]:
    """Return the options that a part's process gets."""
    flags = ["--tiny"] if options.tiny else []
    flags += ["--without-times"] if options.without_times else []
    models = [word for model in options.model for word in ("--model", model)]
    return ["--output", str(options.output), "--tests", options.tests, *models, *flags]


def finished(command: Sequence[str], seconds: float, log: BinaryIO) -> int | None:
    """Run a command; return its status, or None if it was ended after its time."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return None


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
