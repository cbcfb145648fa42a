"""Whether this tree trains, plans and draws the same bytes as another revision of it.

    python -m scripts.compare_with REV
    python -m scripts.compare_with REV --only 'plan/*' train/circling_lora --keep /tmp/compared

The revision is checked out as a temporary git worktree. Every item runs the same public command in
both trees, each with its own packages, on one CPU thread and offline, in a temporary folder of its
own that has a copy of the tree's datasets/. So relative paths are the same on both sides, and
neither tree is written to. What comes out is compared exactly; `scripts/compare_files.py` and
`compare_readers.py` list what is left out. Prints a row for each item; the exit status is 1 if
anything differs or fails. All items took 13 minutes of CPU time, and 3 GB of disk with --keep.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from rich.table import Table

from inference.runtime import open_console, output
from scripts.compare_files import compare_folders, compare_plans
from scripts.compare_items import Item, all_items

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
LORA = ROOT / "tests" / "golden" / "run_2c1390f" / "at_step_6" / "artifact.safetensors"
"""What the animation demos are drawn with in place of the LoRA that `make demo` trains."""

TIMEOUT = 1200
"""Seconds for a command."""

KINDS = {True: "keys", False: "files"}


@dataclass(frozen=True)
class Side:
    """One of the two trees, and the folder in which its commands run."""

    name: str
    tree: Path
    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        """Start `python -m module` of this tree."""
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=os.environ | ENVIRONMENT | self.own_environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    @property
    def own_environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.tree), "XDG_CACHE_HOME": str(self.folder / "cache")}


ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True)
class Outcome:
    """What became of an item."""

    verdict: str
    """same, differs or failed."""
    details: list[str]


def main() -> int:
    """Compare; return 0 if all is the same, 1 if anything differs or fails, 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m scripts.compare_with", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("rev", help="revision of this repository to compare with")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="shell patterns")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep both trees' results here")
    parser.add_argument("--jobs", type=int, default=2, help="commands at the same time")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # worktree removed
    items = [item for item in all_items() if any(fnmatch(item.name, o) for o in arguments.only)]
    if not items:
        names = " ".join(item.name for item in all_items())
        parser.error(f"--only {' '.join(arguments.only)}: no such item; there are {names}")
    try:
        commit = git("rev-parse", "--verify", "--quiet", f"{arguments.rev}^{{commit}}")
    except subprocess.CalledProcessError:
        parser.error(f"{arguments.rev}: no revision of {ROOT}")
    if arguments.keep and arguments.keep.exists() and any(arguments.keep.iterdir()):
        parser.error(f"--keep {arguments.keep}: expected a new or an empty folder")
    with work_folder(arguments.keep) as folder, checked_out(commit) as tree:
        sides = [make_side("old", tree, folder), make_side("new", ROOT, folder)]
        for side in sides:
            check_packages(side)
        outcomes = compare(items, sides, max(1, arguments.jobs), arguments.keep is None)
    show(outcomes, f"{arguments.rev} ({commit[:9]}) and {ROOT}")
    return int(any(outcome.verdict != "same" for outcome in outcomes.values()))


def git(*arguments: str) -> str:
    """Return what git prints about this repository."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def work_folder(keep: Path | None) -> Iterator[Path]:
    """Yield the folder of both sides; it is removed afterwards unless it is to be kept."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="limner-compare-") as folder:
        yield Path(folder)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield a temporary worktree of a commit."""
    with tempfile.TemporaryDirectory(prefix="limner-worktree-") as folder:
        tree = Path(folder) / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def make_side(name: str, tree: Path, folder: Path) -> Side:
    """Return a side whose folder has what recipes name by relative paths."""
    own = folder / name
    own.mkdir()
    unneeded = shutil.ignore_patterns("picto", "*.limner-index*")
    shutil.copytree(tree / "datasets", own / "datasets", ignore=unneeded)
    shutil.copyfile(LORA, own / "icons.safetensors")
    return Side(name, tree, own)


def check_packages(side: Side) -> None:
    """Refuse to compare if the commands would import packages of another tree."""
    code = "import train, inference; print(train.__file__); print(inference.__file__)"
    environment = os.environ | ENVIRONMENT | side.own_environment
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=side.folder, env=environment, check=True, capture_output=True, text=True
    )
    for line in done.stdout.splitlines():
        if not Path(line).is_relative_to(side.tree):
            sys.exit(f"compare_with: the {side.name} tree {side.tree} would import {line}")


def compare(
    items: Sequence[Item], sides: Sequence[Side], jobs: int, clean: bool
) -> dict[str, Outcome]:
    """Run every item on both sides, so many commands at once; print a line for each.

    Args:
        items: what to run.
        sides: the old and the new one.
        jobs: commands at the same time.
        clean: whether to remove results as soon as they are compared.
    """
    begun = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    waiting = {item.name: len(sides) for item in items}
    faults: dict[str, list[str]] = {item.name: [] for item in items}
    with ThreadPoolExecutor(jobs) as pool:
        futures: dict[Future[str], Item] = {
            pool.submit(run, side, item): item for item in items for side in sides
        }
        try:
            for future in as_completed(futures):
                item = futures[future]
                waiting[item.name] -= 1
                faults[item.name] += [fault] if (fault := future.result()) else []
                if waiting[item.name]:
                    continue
                outcome = judge(item, sides, faults[item.name])
                outcomes[item.name] = outcome
                seconds = time.monotonic() - begun
                place = f"[{len(outcomes)}/{len(items)}] {seconds:5.0f} s"
                output(f"{place}  {item.name}: {outcome.verdict}, {outcome.details[0]}")
                if clean:
                    remove_results(item, sides)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in (process for side in sides for process in side.started):
                process.kill()
            raise
    return {item.name: outcomes[item.name] for item in items}


def run(side: Side, item: Item) -> str:
    """Run an item's command on one side; return why it failed, or nothing."""
    started = side.start(item.module, str(side.tree / item.recipe), *item.options)
    try:
        out, err = started.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        started.kill()
        started.communicate()
        return f"{side.name}: not done after {TIMEOUT} s"
    log = side.folder / "logs" / f"{item.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"{out}\n{err}", encoding="utf-8")
    if started.returncode:
        last = (err.strip().splitlines() or ["nothing on standard error"])[-1]
        return f"{side.name}: exit status {started.returncode}: {last}"
    if item.module == "train.plan":
        plan = side.folder / item.result
        plan.parent.mkdir(exist_ok=True)
        plan.write_text(out, encoding="utf-8")
    return ""


def judge(item: Item, sides: Sequence[Side], faults: list[str]) -> Outcome:
    """Compare what an item left on both sides."""
    if faults:
        return Outcome("failed", sorted(faults))
    old, new = (side.folder / item.result for side in sides)
    is_plan = item.module == "train.plan"
    try:
        count, lines = (compare_plans if is_plan else compare_folders)(old, new)
    except Exception as error:  # whatever a library makes of a file that it cannot read
        return Outcome("failed", [f"results cannot be read: {type(error).__name__}: {error}"])
    if not count:
        return Outcome("failed", [f"old: nothing in {old}"])
    return Outcome("differs" if lines else "same", lines or [f"{count} {KINDS[is_plan]}"])


def remove_results(item: Item, sides: Sequence[Side]) -> None:
    """Remove what an item left on both sides."""
    for side in sides:
        result = side.folder / item.result
        if result.is_dir():
            shutil.rmtree(result)
        else:
            result.unlink(missing_ok=True)


def show(outcomes: dict[str, Outcome], title: str) -> None:
    """Print the table."""
    table = Table("item", "verdict", "what", title=title)
    for name, outcome in outcomes.items():
        more = len(outcome.details) - 4
        details = outcome.details[:4] + ([f"and {more} more"] if more > 0 else [])
        table.add_row(name, outcome.verdict, "\n".join(details))
    console = open_console(width=None if sys.stdout.isatty() else 160)
    console.print(table, markup=False)


if __name__ == "__main__":
    sys.exit(main())
