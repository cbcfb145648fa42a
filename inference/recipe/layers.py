"""What a recipe is read from: its file, the files it is based on, and the command line.

Everything is kept as YAML nodes, so that the text as it was written is still known when a value
turns out not to fit.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from inference.recipe.yaml_nodes import (
    DEEPEST,
    MAPPING_TAG,
    NULL_TAG,
    TEXT_TAG,
    cut,
    explain,
    fault,
    parse,
    plain,
    read,
    readable,
    scalar_value,
    unusable,
)
from inference.runtime import InputError

MOST_FILES = 100
"""Files that a recipe is made of at most: its own, and all that they are based on."""


MOST_FAULTS = 100
"""Lines of a message at most."""


class RecipeError(InputError):
    """What the user wrote is wrong. Its text is the complete message, one line per fault."""

    @classmethod
    def of(cls, faults: Iterable[str]) -> "RecipeError":
        """One line for each fault, whatever the recipe holds; of very many, the first ones."""
        lines = [readable(line) for line in faults]
        if len(lines) > MOST_FAULTS:
            lines[MOST_FAULTS - 1 :] = [f"... and {len(lines) - MOST_FAULTS + 1} more"]
        return cls("\n".join(lines))


class RecipeWarning(UserWarning):
    """Something that the user wrote has no effect."""


@dataclass(frozen=True)
class Layer:
    """One source of values. Of an override also its key, its text, and why that is not YAML."""

    source: str
    node: yaml.MappingNode
    key: tuple[str, ...] = ()
    text: str = ""
    problem: str | None = None

    def value_node(self, node: yaml.Node, is_text: bool, is_optional: bool) -> yaml.Node:
        """The node of an override's value: for a text field as typed, unless it is in quotes.

        Raises:
            ValueError: the text is not YAML, and the field is no text.
        """
        if self.problem is not None and not is_text:
            raise ValueError(self.problem)
        quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')
        null = self.text in ("null", "~") or (is_optional and not self.text)
        return node if quoted or null or not is_text else yaml.ScalarNode(TEXT_TAG, self.text)


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    """What all layers say together, later ones winning, before any of it is checked."""

    def merge(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
        both = dict(lower)
        for key, value in upper.items():
            old = both.get(key)
            both[key] = (
                merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
            )
        return both

    result: dict[str, Any] = {}
    for layer in layers:
        result = merge(result, plain(layer.node))
    return result


def begun_anew(layers: Sequence[Layer], key: str) -> list[Layer]:
    """The layers without what they say of a mapping that a later one gives another `type`.

    Each type has keys of its own, so that a recipe based on one of another type takes none of them.
    The command line counts as one layer.
    """
    kept: list[Layer] = []
    kind: Any = None
    for layer in layers:
        told = plain(layer.node).get(key)
        new = told.get("type") if isinstance(told, dict) else None
        if new is not None and kind not in (None, new):
            kept = [other if other.key else _without(other, key) for other in kept]
        kind = kind if new is None else new
        kept.append(layer)
    return kept


def _without(layer: Layer, key: str) -> Layer:
    entries = [(name, value) for name, value in layer.node.value if name.value != key]
    return replace(layer, node=yaml.MappingNode(MAPPING_TAG, entries))


def key_sources(layers: Sequence[Layer], file: str) -> dict[str, str]:
    """For every key that is set, dotted, the layer that set it last; the file for the whole ("").

    A `null` unsets what was set below its key.
    """
    sources: dict[str, str] = {}
    mappings: set[str] = set()

    def note(node: yaml.Node, key: str, source: str) -> None:
        is_scalar = isinstance(node, yaml.ScalarNode)
        if is_scalar and key in mappings and scalar_value(node) is None:
            for below in [other for other in sources if other.startswith(f"{key}.")]:
                del sources[below]
        sources[key] = source
        if isinstance(node, yaml.MappingNode):
            mappings.add(key)
            for name, value in node.value:
                note(value, dotted(key, name.value), source)

    for layer in layers:
        note(layer.node, "", layer.source)
    return sources | {"": file}


def source_of(key: str, sources: dict[str, str]) -> str:
    """The layer that set a key last, or else the nearest key above it."""
    while key not in sources:
        key = key.rpartition(".")[0]
    return sources[key]


def dotted(*names: str) -> str:
    """Names on the way to a key, as one word."""
    return ".".join(name for name in names if name)


def shown(path: Path) -> str:
    """The path as it is told: relative to the working folder if it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def file_layers(
    path: Path, faults: list[str], asking: tuple[Path, ...] = (), files: list[Path] | None = None
) -> list[Layer]:
    """The layers of a recipe file: those of its bases in their order, then its own.

    `path` is absolute; `asking` are the files that led to it, `files` all that were read before.
    What is wrong is added to `faults`.

    Raises:
        RecipeError: there are too many files.
    """
    files = [] if files is None else files
    source = shown(path)
    who = f"{shown(asking[-1])}: base: {source}" if asking else source
    if path in asking:
        circle = [shown(one) for one in (*asking[asking.index(path) :], path)]
        chain = f" ({' -> '.join(circle)})" if len(circle) > 3 else ""
        faults.append(f"{who} is based on this file{chain}")
        return []
    files.append(path)
    if len(files) > MOST_FILES:
        raise RecipeError.of([f"{who}: more than {MOST_FILES} files are based on each other"])
    try:
        node = parse(read(path, bool(asking)))
        node = yaml.MappingNode(MAPPING_TAG, []) if node is None else node
        if not isinstance(node, yaml.MappingNode):
            raise fault("a recipe is a mapping of keys", node)
        bases = take_bases(node)
    except yaml.YAMLError as error:
        faults.append(f"{source}: {explain(error)}")
        return []
    except OSError as error:
        faults.append(f"{who}: {explain_absence(path, error)}")
        return []
    except ValueError as error:
        faults.append(f"{who}: {error}")
        return []
    layers: list[Layer] = []
    for base in bases:
        layers += file_layers(absolute(path.parent / base), faults, (*asking, path), files)
    return [*layers, Layer(source, node)]


def absolute(path: str | Path) -> Path:
    """The path from the root, without `..`."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would also follow links)


def take_bases(node: yaml.MappingNode) -> list[str]:
    """Takes the key `base` out of a recipe and returns the file names it gives."""
    found = [value for key, value in node.value if key.value == "base"]
    node.value = [(key, value) for key, value in node.value if key.value != "base"]
    bases = plain(found[0]) if found else []
    bases = [bases] if isinstance(bases, str) else bases or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        problem = f"base: expected a file name or a list of them, got {cut(repr(bases))}"
        raise fault(problem, found[0])
    return bases


def explain_absence(path: Path, error: OSError) -> str:
    """Why a file cannot be read, and which recipes beside it have a similar name."""
    if os.path.isdir(path):  # noqa: PTH112 (is_dir() fails for names that are too long)
        return "is a folder, not a recipe"
    if not isinstance(error, FileNotFoundError):
        return f"cannot be read: {error.strerror}"
    if not os.path.isdir(path.parent):  # noqa: PTH112
        return f"no such file: there is no folder {shown(path.parent)}"
    beside = {one.stem: one for one in sorted(path.parent.glob("*.y*ml"))}
    near = difflib.get_close_matches(path.stem, beside, n=3)
    names = ", ".join(shown(beside[stem]) for stem in near)
    return f"no such file. Did you mean: {names}?" if near else "no such file"


def override_layers(overrides: Sequence[str], faults: list[str]) -> list[Layer]:
    """A layer for each `key=value` of the command line, in their order."""
    layers: list[Layer] = []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        key = tuple(dotted.split("."))
        if not equals or not all(key) or dotted.startswith("-") or dotted != dotted.strip():
            faults.append(f"{cut(override)!r}: an override is written key=value")
            continue
        if unusable(override) or len(key) > DEEPEST:
            problem = f"holds the character {unusable(override)}, which no text has"
            problem = problem if unusable(override) else f"has more than {DEEPEST} levels"
            faults.append(f"command line: {cut(dotted)}: {problem}")
            continue
        if dotted == "base":
            faults.append("command line: base: is a key of files; write a recipe with this line")
            continue
        problem = None
        try:
            node = parse(text) or yaml.ScalarNode(NULL_TAG, "")
        except yaml.YAMLError as error:
            problem = f"{cut(text)!r} is not YAML: {explain(error)}"
            node = yaml.ScalarNode(TEXT_TAG, text)
        for name in reversed(key[1:]):
            node = yaml.MappingNode(MAPPING_TAG, [(yaml.ScalarNode(TEXT_TAG, name), node)])
        top = yaml.MappingNode(MAPPING_TAG, [(yaml.ScalarNode(TEXT_TAG, key[0]), node)])
        layers.append(Layer("command line", top, key, text, problem))
    return layers
