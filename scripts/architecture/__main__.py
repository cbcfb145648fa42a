"""Measure the architecture: floors, doors, circles, sizes of folders and files, type switches.

    python -m scripts.architecture [--at REV]

Reads the source of `train/`, `inference/` and `scripts/` without running it. Every import counts,
those inside functions and under `TYPE_CHECKING` too. `--at` measures another revision without
touching the working tree. `tests/test_architecture.py` holds the rules; decision 14 says why.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping

from scripts.architecture.graphs import circles, feedback, longest_paths
from scripts.architecture.rules import (
    MOST_FILES,
    MOST_FLOORS,
    arrows,
    door_faults,
    file_circles,
    files_per_folder,
    inner_floor_faults,
    lines_of_code,
    small_file_faults,
    table_floors,
    wing_of,
    wings,
)
from scripts.architecture.tree import FOLDERS, Edge, Tree, is_door, read_tree
from scripts.architecture.type_switches import type_switches

Arrows = dict[tuple[str, str], list[Edge]]


def floors_and_backs(tree: Tree) -> tuple[dict[str, int], Arrows, bool]:
    """Return the floor of each wing, the arrows back, and whether FLOORS knows all wings.

    Where it does not, floors are the longest paths down, and back are the few arrows without which
    no circle is left.
    """
    found, names = arrows(tree), wings(tree)
    floors = table_floors() | {"scripts/": MOST_FLOORS + 1}
    if all(name in floors for name in names):
        backs = {key: one for key, one in found.items() if floors[key[0]] <= floors[key[1]]}
        return {name: floors[name] for name in names}, backs, True
    opened = [feedback(members, list(found)) for members in circles(found)]
    backs = {key: found[key] for key in sorted(set().union(*opened))}
    return longest_paths(names, list(found)), backs, False


def report(tree: Tree) -> Iterator[str]:
    """Return the measures, line by line."""
    floors, backs, is_known = floors_and_backs(tree)
    yield from wing_table(tree, floors)
    yield ""
    yield from graph_report(tree, floors, backs, is_known)
    yield from folder_report(tree)
    yield from line_table(tree)
    switches = sorted(type_switches(tree))
    files = len({one.path for one in switches})
    yield f"type switches          {len(switches)} in {files} files"
    yield from (f"  {one}" for one in switches)


def graph_report(
    tree: Tree, floors: Mapping[str, int], backs: Arrows, is_known: bool
) -> Iterator[str]:
    """Wings, floors, arrows and circles."""
    found, own = arrows(tree), [name for name in floors if name != "scripts/"]
    kind = "by the table FLOORS" if is_known else "by the longest path: FLOORS lacks some wings"
    yield f"wings                  {len(own)}, and scripts/"
    yield f"floors                 {len({floors[name] for name in own})} ({kind})"
    yield f"arrows between wings   {sum(start != 'scripts/' for start, _ in found)}"
    yield f"arrows back            {len(backs)}"
    for (start, end), edges in backs.items():
        yield f"  {start} -> {end}: {', '.join(f'{one.path}:{one.line}' for one in edges)}"
    for title, members in (
        ("circles between files ", file_circles(tree)),
        ("circles between wings ", circles(found)),
    ):
        yield f"{title} {len(members)}, of {sum(map(len, members))} together"
        yield from (f"  {len(one)}: {' '.join(one)}" for one in members)
    yield f"imports up in a wing   {count(inner_floor_faults(tree))}"
    yield f"faults of doors        {count(door_faults(tree))}"


def count(found: Iterator[object]) -> int:
    """How many there are."""
    return sum(1 for _ in found)


def folder_report(tree: Tree) -> Iterator[str]:
    """Sizes of folders and of files."""
    counted = files_per_folder(tree)
    crowded = {folder: files for folder, files in counted.items() if files > MOST_FILES}
    most = max(counted.values(), default=0)
    yield f"files a folder         at most {most}; {len(crowded)} folders hold over {MOST_FILES}"
    yield from (f"  {folder}/ {files}" for folder, files in crowded.items())
    yield f"files too small        {count(small_file_faults(tree))}"


def wing_table(tree: Tree, floors: Mapping[str, int]) -> Iterator[str]:
    """Each wing with its floor, files, lines and arrows, the highest first."""
    found = arrows(tree)
    out, into = Counter(start for start, _ in found), Counter(end for _, end in found)
    yield f"{'floor':>5} {'files':>5} {'lines':>6} {'out':>4} {'in':>4}  wing"
    for wing in sorted(floors, key=lambda name: (-floors[name], name)):
        paths = [path for path in tree.sources if wing_of(path) == wing]
        lines = sum(len(tree.sources[path].splitlines()) for path in paths)
        files = sum(not is_door(path) for path in paths)
        floor = "-" if wing == "scripts/" else floors[wing]
        yield f"{floor:>5} {files:>5} {lines:>6} {out[wing]:>4} {into[wing]:>4}  {wing}"


def line_table(tree: Tree) -> Iterator[str]:
    """Lines of each top folder."""
    sums = {}
    for folder in FOLDERS:
        sources = [text for path, text in tree.sources.items() if path.startswith(f"{folder}/")]
        lines = sum(len(text.splitlines()) for text in sources)
        sums[f"{folder}/"] = len(sources), lines, sum(map(lines_of_code, sources))
    sums["together"] = tuple(map(sum, zip(*sums.values(), strict=True)))
    doors = [text for path, text in tree.sources.items() if is_door(path)]
    lines = sum(len(text.splitlines()) for text in doors)
    sums["of which doors"] = len(doors), lines, sum(map(lines_of_code, doors))
    for name, (files, lines, code) in sums.items():
        yield f"{name:<22} {files} files, {lines} lines, {code} of them neither blank nor comments"


def main(arguments: list[str] | None = None) -> None:
    """Print the report of the working tree, or of a revision."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.architecture", description="Print measures of the architecture."
    )
    sys.stdout.writelines(f"{line}\n" for line in report(read_tree(parser, arguments)))


if __name__ == "__main__":
    main()
