"""The rules of the architecture, as tables and as checks (decision 14).

A *room* is a folder of `train/` or `inference/`, its *door* is its `__init__.py`. A *wing* is a
file or a folder directly under `train/` or `inference/`. An *arrow* leads from a wing to one that
it imports; it points *back* unless it leads to a lower floor.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from scripts.architecture.graphs import circles
from scripts.architecture.tree import (
    PACKAGES,
    Edge,
    Finding,
    Import,
    Tree,
    is_door,
    is_root,
    module_of,
    top_folder,
)

FLOORS = (
    ("inference/runtime/", "train/shadowing.py"),
    (
        "inference/recipe/", "inference/files/", "inference/memory/", "inference/parallel/",
        "inference/prompts/", "inference/sampling/", "inference/shadowing.py",
    ),
    ("inference/config/", "inference/media/", "train/kohya/"),
    ("inference/models/",),
    ("train/config/", "train/common/", "inference/artifacts/"),
    (
        "train/data/", "train/losses/", "train/places.py", "inference/images/",
        "inference/convert.py",
    ),
    (
        "train/families/", "train/runs/", "train/shares.py", "train/stages.py",
        "train/class_images.py", "inference/clips/", "inference/deforum/",
        "inference/inspect.py",
    ),
    (
        "train/objectives/", "train/placement.py", "train/diff.py", "inference/__main__.py",
    ),
    (
        "train/optimization/", "train/run_data.py", "train/caches.py",
    ),
    ("train/monitoring/", "train/saving/"),
    ("train/trainer.py", "train/cli.py", "train/memory/"),
    ("train/__main__.py", "train/plan/", "train/rerun.py", "train/listing.py"),
)  # fmt: skip
"""The wings, lowest floor first. `scripts/` stands above them all."""
MOST_FLOORS = 12
DOOR_HELPER = "inference/lazy.py"
"""What doors are made of; on no floor."""

OWN = "."
INNER_FLOORS = {
    "inference/models/": ((OWN,), ("cogvideox", "stable_diffusion")),
    "inference/images/": (("img2img", "infotext"), (OWN,)),
    "inference/deforum/": (
        ("settings",), ("schedules",), ("geometry",), ("pictures",), ("loop",), ("products",),
        (OWN,),
    ),
    "train/data/": (
        ("containers",), ("streaming",), ("pictures",), ("sources",), ("caching",), ("examples",),
        (OWN,),
    ),
}  # fmt: skip
"""Floors of the rooms inside a wing, lowest first; OWN are the files beside them. Wings that are
not listed need no order, only no circle."""

PUBLIC_ROOMS = {"inference/models/": ("train/families/", "scripts/")}
"""Rooms whose inner rooms may also be entered by their own doors -> by whom: a family's training
half uses its inference half."""

MOST_FILES = 14
"""Python files of a folder; `__init__.py` is not counted."""

SMALL = 60
"""Lines of code below which a file with only one importer is merged with it."""
SMALL_FILES = frozenset(
    {
        "inference/artifacts/merging.py",
        "inference/clips/guidance.py",
        "inference/clips/infotext.py",
        "inference/clips/windows.py",
        "inference/config/models.py",
        "inference/deforum/geometry/tween.py",
        "inference/deforum/loop/depths.py",
        "inference/deforum/pictures/sharpen.py",
        "inference/deforum/pictures/word_masks.py",
        "inference/deforum/products/stitching.py",
        "inference/deforum/schedules/names.py",
        "inference/deforum/settings/compat.py",
        "inference/deforum/settings/settings_recipe.py",
        "inference/deforum/stitch.py",
        "inference/files/atomic.py",
        "inference/images/infotext/reading.py",
        "inference/models/cogvideox/lora.py",
        "inference/models/families.py",
        "inference/models/parametrization.py",
        "inference/models/size_rules.py",
        "inference/prompts/composition.py",
        "inference/recipe/command.py",
        "inference/runtime/errors.py",
        "inference/runtime/signals.py",
        "inference/runtime/text.py",
        "inference/runtime/warnings.py",
        "scripts/picto/clip_turning.py",
        "train/caches.py",
        "train/common/batch.py",
        "train/common/errors.py",
        "train/common/randomness.py",
        "train/common/weights.py",
        "train/config/rules.py",
        "train/data/caching/prompt_states.py",
        "train/data/caching/threads.py",
        "train/data/containers/names.py",
        "train/data/containers/zips.py",
        "train/data/examples/build.py",
        "train/data/examples/loader.py",
        "train/data/pictures/random_masks.py",
        "train/data/sources/mask_files.py",
        "train/data/streaming/manifests.py",
        "train/diff.py",
        "train/losses/inpainting.py",
        "train/losses/prior.py",
        "train/losses/timesteps.py",
        "train/objectives/base.py",
        "train/objectives/combined.py",
        "train/objectives/hypernetwork.py",
        "train/objectives/loading.py",
        "train/objectives/lora.py",
        "train/objectives/textual_inversion.py",
        "train/optimization/accelerator.py",
        "train/optimization/offload.py",
        "train/plan/streams.py",
        "train/runs/disk.py",
    }
)
"""Files that stay although they are small and have one importer: each is a thing of its own."""


def wing_of(path: str) -> str:
    """`train/data/`, `train/trainer.py`; everything under `scripts/` is one."""
    parts = path.split("/")
    if parts[0] not in PACKAGES:
        return f"{parts[0]}/"
    return path if len(parts) == 2 else f"{parts[0]}/{parts[1]}/"


def table_floors() -> dict[str, int]:
    """Floor of each wing by FLOORS."""
    return {wing: number for number, floor in enumerate(FLOORS, 1) for wing in floor}


def arrows(tree: Tree) -> dict[tuple[str, str], list[Edge]]:
    """Return the imports behind each arrow from a wing to another."""
    found = defaultdict(list)
    for edge in tree.direct_edges:
        start, end = wing_of(edge.path), wing_of(edge.target)
        is_plumbing = DOOR_HELPER in (start, end) or is_root(edge.path) or is_root(edge.target)
        if start != end and not is_plumbing:
            found[start, end].append(edge)
    return dict(sorted(found.items()))


def wings(tree: Tree) -> list[str]:
    """Return the wings that exist, sorted."""
    names = {wing_of(path) for path in tree.sources if not is_root(path)}
    return sorted(names - {DOOR_HELPER})


def floor_faults(tree: Tree) -> Iterator[Finding]:
    """Wings without a floor, and imports that do not lead down."""
    floors = table_floors() | {"scripts/": MOST_FLOORS + 1}
    for wing in wings(tree):
        if wing not in floors:
            yield Finding(wing, 1, "on no floor: add it to FLOORS in scripts/architecture/rules.py")
    for (start, end), edges in arrows(tree).items():
        if start in floors and end in floors and floors[start] <= floors[end]:
            why = f"{start} (floor {floors[start]}) imports {end} (floor {floors[end]})"
            yield from (Finding(one.path, one.line, f"{why}: imports lead down") for one in edges)
    for one in tree.imports:
        if is_root(one.path) and one.module != "inference.runtime":  # the version
            yield Finding(one.path, one.line, f"imports {one.module}: it imports none of ours")


def inner_floor_faults(tree: Tree) -> Iterator[Finding]:
    """Find imports inside a wing that do not lead down from one of its rooms, by INNER_FLOORS."""
    for wing, table in INNER_FLOORS.items():
        floors = {room: number for number, floor in enumerate(table) for room in floor}
        for edge in tree.edges:
            ends = edge.path, edge.target
            if edge.path == f"{wing}__init__.py" or not all(one.startswith(wing) for one in ends):
                continue
            start, end = (inner_room(one.removeprefix(wing)) for one in ends)
            unknown = [one for one in (start, end) if one not in floors]
            if unknown:
                why = f"{wing}{unknown[0]}/ is on no floor: add it to INNER_FLOORS"
                yield Finding(edge.path, edge.line, why)
            elif start != end and floors[start] <= floors[end]:
                why = f"imports {edge.target}, which is not below it: imports lead down"
                yield Finding(edge.path, edge.line, why)


def inner_room(path: str) -> str:
    """Room of a file by its path in the wing, OWN for a file directly in it."""
    first, inside, _ = path.partition("/")
    return first if inside else OWN


def child(path: str) -> str:
    """First part of a path: `a.py`, or `a/` for what lies in a folder."""
    first, inside, _ = path.partition("/")
    return first + inside


def file_circles(tree: Tree) -> list[list[str]]:
    """Return the circles between files."""
    return circles((edge.path, edge.target) for edge in tree.edges)


def circle_faults(tree: Tree) -> Iterator[Finding]:
    """Files that import each other in a circle, and rooms that do."""
    for members in file_circles(tree):
        inside = [one for one in tree.edges if one.path in members and one.target in members]
        for edge in inside:
            what = f"imports {edge.target}: a circle of {len(members)} files"
            yield Finding(edge.path, edge.line, what)
    rooms = {f"{room}/" for path in tree.sources for room in rooms_of(path)}
    for folder in (*(f"{name}/" for name in PACKAGES), *sorted(rooms)):
        yield from room_circle_faults(tree, folder)


def room_circle_faults(tree: Tree, folder: str) -> Iterator[Finding]:
    """Circles between what lies in a folder, of which at least one is a room."""
    between: dict[tuple[str, str], list[Edge]] = defaultdict(list)
    for edge in tree.edges:
        if edge.path.startswith(folder) and edge.target.startswith(folder):
            start, end = (child(one.removeprefix(folder)) for one in (edge.path, edge.target))
            if start != end and "__init__.py" not in (start, end):
                between[start, end].append(edge)
    for members in circles(between):
        if all(one.endswith(".py") for one in members):
            continue  # file_circles has them
        for start, end in sorted(between):
            if start in members and end in members:
                edge = between[start, end][0]
                what = f"{folder}{start} imports {folder}{end}: a circle of {', '.join(members)}"
                yield Finding(edge.path, edge.line, what)


def folders_of(path: str) -> list[str]:
    """Folders that a file lies in, outermost first."""
    return [parent.as_posix() for parent in reversed(PurePosixPath(path).parents)][1:]


def rooms_of(path: str) -> list[str]:
    """Rooms that a file lies in, outermost first."""
    return [one for one in folders_of(path) if "/" in one and top_folder(one) in PACKAGES]


def public_names(tree: ast.Module) -> set[str] | None:
    """Return the names in a door's `__all__`, None if it has none."""
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=value)
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=value)
            ) if isinstance(value, ast.List | ast.Tuple):
                return {str(one.value) for one in value.elts if isinstance(one, ast.Constant)}
    return None


def door_faults(tree: Tree) -> Iterator[Finding]:
    """Rooms without a door, and imports that do not go through one."""
    for room in sorted({room for path in tree.sources for room in rooms_of(path)}):
        door = f"{room}/__init__.py"
        if door not in tree.sources:
            yield Finding(door, 1, "is missing: a room has a door")
        elif public_names(tree.parsed[door]) is None:
            yield Finding(door, 1, "no __all__: list the names that others may import")
        else:
            yield from hidden_names(tree, room, door)
    for one in tree.imports:
        target = tree.target(one)
        if target is not None and target != one.path:
            yield from past_the_door(tree, one, target)


def hidden_names(tree: Tree, room: str, door: str) -> Iterator[Finding]:
    """Public names that are also names of files or rooms inside, which hide them once imported."""
    inside = {
        path.removeprefix(f"{room}/").partition("/")[0]
        for path in tree.sources
        if path.startswith(f"{room}/")
    }
    for name in sorted(public_names(tree.parsed[door]) or ()):
        if name in inside or f"{name}.py" in inside:
            yield Finding(door, 1, f"{name} is also a file of the room, which hides it: rename one")


def past_the_door(tree: Tree, one: Import, target: str) -> Iterator[Finding]:
    """Whether an import enters a room otherwise than by `from room import name`.

    A door may `import room` besides, so that what it registers is there.
    """
    own = rooms_of(one.path)
    entered = [room for room in rooms_of(target) if room not in own]
    if entered and one.path.startswith(PUBLIC_ROOMS.get(f"{entered[0]}/", ())):
        entered = entered[1:] or entered
    if not entered:
        if is_door(target) and rooms_of(target):
            why = f"imports from the door of its own room {module_of(target)}: import the file"
            yield Finding(one.path, one.line, why)
        return
    room = entered[0].replace("/", ".")
    if one.module != room or (one.name is None and not is_door(one.path)):
        what = one.module if one.name is None else f"{one.module}.{one.name}"
        why = f"imports {what} past the door: from {room} import name"
        yield Finding(one.path, one.line, why)
        return
    door = tree.parsed.get(f"{entered[0]}/__init__.py")
    if door is not None and one.name is not None and one.name not in (public_names(door) or ()):
        yield Finding(one.path, one.line, f"{one.name} is not in {room}.__all__")


def files_per_folder(tree: Tree) -> dict[str, int]:
    """Python files that lie directly in each folder, without `__init__.py`."""
    counted = Counter(path.rpartition("/")[0] for path in tree.sources if not is_door(path))
    return dict(sorted(counted.items()))


def folder_faults(tree: Tree) -> Iterator[Finding]:
    """Folders with too many files."""
    for folder, count in files_per_folder(tree).items():
        if count > MOST_FILES:
            what = f"{count} Python files, at most {MOST_FILES}: make rooms by meaning"
            yield Finding(f"{folder}/", 1, what)


def lines_of_code(source: str) -> int:
    """Lines that are neither blank nor only a comment; docstrings count."""
    lines = (line.strip() for line in source.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def is_free(path: str) -> bool:
    """Whether it is a door or a command, which stay however small they are."""
    return path.endswith(("/__init__.py", "/__main__.py"))


def small_file_faults(tree: Tree, allowed: Collection[str] = SMALL_FILES) -> Iterator[Finding]:
    """Small files with a single importer, in the same package.

    Doors do not count as importers. Commands and plug-ins have none.
    """
    importers: dict[str, set[str]] = defaultdict(set)
    for edge in tree.edges:
        if not is_door(edge.path):
            importers[edge.target].add(edge.path)
    for path, known in sorted(importers.items()):
        lines = lines_of_code(tree.sources[path])
        is_splinter = len(known) == 1 and top_folder(min(known)) == top_folder(path)
        if is_splinter and lines < SMALL and path not in allowed and not is_free(path):
            why = f"{lines} lines of code that only {min(known)} imports: merge the two"
            yield Finding(path, 1, why)
