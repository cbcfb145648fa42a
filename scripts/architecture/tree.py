"""The source of `train/`, `inference/` and `scripts/` with its imports, read without running it."""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("train", "inference")
FOLDERS = (*PACKAGES, "scripts")


class Finding(NamedTuple):
    """What is wrong where, and what to do about it."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


class Import(NamedTuple):
    """One imported name, or one imported module (`import a.b`: no name)."""

    path: str
    line: int
    module: str
    name: str | None


class Edge(NamedTuple):
    """An import of the tree's own: from a file to a file."""

    path: str
    target: str
    line: int


@dataclass(frozen=True)
class Tree:
    """The source of `train/`, `inference/` and `scripts/`, by posix path."""

    sources: Mapping[str, str]

    @classmethod
    def of_folder(cls, root: Path) -> Tree:
        files = (path for name in FOLDERS for path in sorted((root / name).rglob("*.py")))
        return cls({p.relative_to(root).as_posix(): p.read_text("utf-8") for p in files})

    @classmethod
    def of_revision(cls, revision: str, root: Path) -> Tree:
        """Read a commit by `git archive`; raises CalledProcessError where git refuses."""
        git = ["git", "-C", str(root)]
        listed = subprocess.run(
            [*git, "ls-tree", "--name-only", revision], check=True, capture_output=True, text=True
        )
        folders = [name for name in FOLDERS if name in listed.stdout.splitlines()]
        packed = subprocess.run(
            [*git, "archive", "--format=tar", revision, "--", *folders],
            check=True,
            capture_output=True,
        )
        sources = {}
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            for member in sorted(archive.getmembers(), key=lambda one: one.name):
                file = archive.extractfile(member) if member.name.endswith(".py") else None
                if file is not None:
                    sources[member.name] = file.read().decode("utf-8")
        return cls(sources)

    @cached_property
    def parsed(self) -> dict[str, ast.Module]:
        return {path: ast.parse(source, path) for path, source in self.sources.items()}

    @cached_property
    def modules(self) -> dict[str, str]:
        """Dotted name -> path."""
        return {module_of(path): path for path in self.sources}

    @cached_property
    def imports(self) -> list[Import]:
        """Every import of the tree's own modules."""
        found = (one for path, tree in self.parsed.items() for one in imports_of(path, tree))
        return [one for one in found if one.module.partition(".")[0] in FOLDERS]

    def target(self, one: Import) -> str | None:
        """Return the file that is imported: that of a module, or the door of a room."""
        if one.name is not None and f"{one.module}.{one.name}" in self.modules:
            return self.modules[f"{one.module}.{one.name}"]
        return self.modules.get(one.module)

    @cached_property
    def exports(self) -> dict[str, dict[str, Import]]:
        """Re-exports of doors: path of the door -> name -> where it comes from.

        A door re-exports what it imports by `from room.file import name`, wherever that stands,
        and the names of a table of name -> module, as a lazy `__getattr__` uses one.
        """
        found: dict[str, dict[str, Import]] = defaultdict(dict)
        for path, tree in self.parsed.items():
            if is_door(path):
                found[path] = lazy_exports(path, tree) | re_exports(path, tree)
        return found

    def definer(self, one: Import) -> str | None:
        """Return the file that defines what is imported, also if a door re-exports it."""
        seen = set()
        while (target := self.target(one)) is not None and one.name is not None:
            onward = self.exports.get(target, {}).get(one.name)
            if onward is None or onward in seen or self.target(onward) is None:
                return target
            seen.add(onward)
            one = onward
        return target

    @cached_property
    def edges(self) -> list[Edge]:
        """Imports between files; one through a door ends at the file that defines the name."""
        return self._edges(self.definer)

    @cached_property
    def direct_edges(self) -> list[Edge]:
        """Imports between files; one through a door ends at the door."""
        return self._edges(self.target)

    def _edges(self, find: Callable[[Import], str | None]) -> list[Edge]:
        found = ((one.path, find(one), one.line) for one in self.imports)
        return sorted({Edge(a, b, line) for a, b, line in found if b is not None and a != b})


def read_tree(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> Tree:
    """Return the tree that a command is asked about: the working tree, or that of `--at REV`."""
    parser.add_argument("--at", metavar="REV", help="measure this git revision, not the work tree")
    options = parser.parse_args(arguments)
    root = Path(__file__).parents[2]
    if options.at is None:
        return Tree.of_folder(root)
    try:
        return Tree.of_revision(options.at, root)
    except OSError as error:
        parser.error(f"--at {options.at}: git cannot be run: {error}")
    except subprocess.CalledProcessError as error:
        said = error.stderr if isinstance(error.stderr, str) else error.stderr.decode()
        parser.error(f"--at {options.at}: git cannot read this revision: {said.strip()}")


def top_folder(path: str) -> str:
    """`train` of `train/data/a.py`."""
    return path.partition("/")[0]


def is_door(path: str) -> bool:
    """Whether it is the `__init__.py` of a folder."""
    return path.endswith("/__init__.py")


def is_root(path: str) -> bool:
    """Whether it is `train/__init__.py` or the like, which belongs to no wing."""
    return is_door(path) and path.count("/") == 1


def module_of(path: str) -> str:
    """`train.data` of `train/data/__init__.py`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(path: str, tree: ast.Module) -> Iterator[Import]:
    """Every import of a file, with absolute module names.

    Strings that name modules, as in a registry, are no imports unless `import_module` takes them.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(path, node.lineno, one.name, None) for one in names)
            case ast.ImportFrom(names=names):
                module = absolute(path, node)
                yield from (Import(path, node.lineno, module, one.name) for one in names)
            case ast.Call(func=called, args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(called).rpartition(".")[2] in ("import_module", "__import__"):
                    yield Import(path, node.lineno, name, None)


def absolute(path: str, node: ast.ImportFrom) -> str:
    """Return the absolute name of the module that an import is from."""
    if not node.level:
        return node.module or ""
    parts = path.split("/")[: -node.level]
    return ".".join([*parts, *([node.module] if node.module else [])])


def re_exports(path: str, tree: ast.Module) -> dict[str, Import]:
    """Names that a door imports from modules."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = absolute(path, node)
            for one in node.names:
                found[one.asname or one.name] = Import(path, node.lineno, module, one.name)
    return found


def lazy_exports(path: str, tree: ast.Module) -> dict[str, Import]:
    """Names in a door's tables of name -> module (`"room.file"`, `".file"` or `"file"`)."""
    room, found = module_of(path), {}
    for table in (node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)):
        if not isinstance(table.value, ast.Dict):
            continue
        for key, value in zip(table.value.keys, table.value.values, strict=True):
            match key, value:
                case ast.Constant(value=str(name)), ast.Constant(value=str(module)):
                    is_whole = module.startswith(f"{room}.")
                    module = module if is_whole else f"{room}.{module.removeprefix('.')}"
                    found[name] = Import(path, key.lineno, module, name)
    return found
