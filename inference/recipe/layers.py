"""The sources of a recipe: its file, the files it is based on, and the command line.

Values stay YAML nodes, so that error messages can quote the text as the user wrote it.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from inference.recipe.foreign import foreign_file, foreign_keys
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
    unusable,
)
from inference.runtime import InputError

MOST_FILES = 100
"""Maximum number of files of a recipe: its own and all its bases."""


MOST_FAULTS = 100
"""Maximum number of lines of an error message."""


class RecipeError(InputError):
    """An error in what the user wrote. Its text is the complete message, one line per error."""

    @classmethod
    def of(cls, faults: Iterable[str]) -> "RecipeError":
        """Return an error with one printable line per fault; if there are many, the first ones."""
        lines = list(faults)
        if len(lines) > MOST_FAULTS:
            lines[MOST_FAULTS - 1 :] = [f"... and {len(lines) - MOST_FAULTS + 1} more"]
        return cls("\n".join(map(readable, lines)))


COMMAND_LINE = "command line"
"""The source of overrides, in messages."""


class RecipeWarning(UserWarning):
    """Something that the user wrote has no effect."""


@dataclass(frozen=True)
class Layer:
    """One source of values; an override also has its key, its text, and its YAML error, if any."""

    source: str
    node: yaml.MappingNode
    key: tuple[str, ...] = ()
    text: str = ""
    problem: str | None = None

    def value_node(self, node: yaml.Node, is_text: bool, is_optional: bool) -> yaml.Node:
        """Return the node of an override's value; a text field gets the unquoted text as typed.

        Raises:
            ValueError: the text is not YAML, and the field is not a text field.
        """
        if self.problem is not None and not is_text:
            raise ValueError(self.problem)
        quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')
        null = self.text in ("null", "~") or (is_optional and not self.text)
        return node if quoted or null or not is_text else yaml.ScalarNode(TEXT_TAG, self.text)


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the values of all layers, unchecked; later layers win."""

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
    """Return the layers without their values for a mapping that a later one gives another `type`.

    Each type has its own keys, so a recipe based on one of another type inherits none of them. The
    command line counts as one layer.
    """
    kept: list[Layer] = []
    kind: Any = None
    for layer in layers:
        value = next((value for name, value in layer.node.value if name.value == key), None)
        members = plain(value) if isinstance(value, yaml.MappingNode) else {}
        new = members.get("type")
        if new is not None and kind not in (None, new):
            kept = [other if other.key else _without(other, key) for other in kept]
        kind = kind if new is None else new
        kept.append(layer)
    return kept


def _without(layer: Layer, key: str) -> Layer:
    entries = [(name, value) for name, value in layer.node.value if name.value != key]
    return replace(layer, node=yaml.MappingNode(MAPPING_TAG, entries))


def key_sources(layers: Sequence[Layer], file: str) -> dict[str, str]:
    """Return the layer that last set each (dotted) key; the key "" maps to the file.

    A `null` unsets everything set below its key.
    """
    sources: dict[str, str] = {}
    mappings: set[str] = set()

    def note(node: yaml.Node, key: str, source: str) -> None:
        is_scalar = isinstance(node, yaml.ScalarNode)
        if is_scalar and key in mappings and plain(node) is None:
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
    """Return the layer that last set a key, or its nearest parent that was set."""
    while key not in sources:
        key = key.rpartition(".")[0]
    return sources[key]


def dotted(*names: str) -> str:
    """Join the non-empty names of a key with dots."""
    return ".".join(filter(None, names))


def set_key(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key in nested mappings."""
    *above, last = key.split(".")
    for name in above:
        mapping = mapping.setdefault(name, {})
    mapping[last] = value


def shown(path: Path) -> str:
    """Return the path for messages: relative to the working directory if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def file_layers(
    path: Path, faults: list[str], asking: tuple[Path, ...] = (), files: list[Path] | None = None
) -> list[Layer]:
    """Return the layers of a recipe file: those of its bases in order, then its own.

    `path` is absolute; `asking` are the files that led to it, `files` all that were read before.
    Errors are appended to `faults`.

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
        text = read(path, bool(asking))
        if told := foreign_file(path, text):
            raise ValueError(told)
        node = parse(text)
        node = yaml.MappingNode(MAPPING_TAG, []) if node is None else node
        if not isinstance(node, yaml.MappingNode):
            raise fault("a recipe is a mapping of keys", node)
        if told := foreign_keys(plain(node)):
            raise ValueError(told)
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
        layers += file_layers(absolute(path.parent / at_home(base)), faults, (*asking, path), files)
    return [*layers, Layer(source, node)]


def at_home(path: str) -> str:
    """Return a path with the home folder for a leading `~` or `~user`, as shells do.

    Raises:
        InputError: there is no such user.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        user = path.partition("/")[0]
        raise InputError(
            f"{cut(path)!r}: there is no home folder for {user}; a file of this name is written "
            f"./{cut(path)}"
        ) from None


def absolute(path: str | Path) -> Path:
    """Return the absolute path without `..` and `~`; symbolic links are kept."""
    return Path(os.path.abspath(at_home(str(path))))  # noqa: PTH100 (resolve() follows links)


def take_bases(node: yaml.MappingNode) -> list[str]:
    """Remove the key `base` from a recipe and return the file names it lists."""
    found = [value for key, value in node.value if key.value == "base"]
    node.value = [(key, value) for key, value in node.value if key.value != "base"]
    bases = plain(found[0]) if found else []
    bases = [bases] if isinstance(bases, str) else bases or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        problem = f"base: expected a file name or a list of them, got {cut(repr(bases))}"
        raise fault(problem, found[0])
    return bases


def explain_absence(path: Path, error: OSError) -> str:
    """Explain why a file cannot be read, and name recipes beside it with similar names."""
    if os.path.isdir(path):  # noqa: PTH112 (is_dir() fails for names that are too long)
        return "is a folder, not a recipe"
    if not isinstance(error, FileNotFoundError):
        return f"cannot be read: {error.strerror}"
    if not os.path.isdir(path.parent):  # noqa: PTH112
        return f"no such file: there is no folder {shown(path.parent)}"
    beside = {one.stem: one for one in sorted(path.parent.glob("*.y*ml")) if one != path}
    near = difflib.get_close_matches(path.stem, beside, n=3)
    names = ", ".join(shown(beside[stem]) for stem in near)
    return f"no such file. Did you mean: {names}?" if near else "no such file"


def override_layers(overrides: Sequence[str], faults: list[str]) -> list[Layer]:
    """Return one layer per `key=value` of the command line, in order."""
    layers: list[Layer] = []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        key = tuple(dotted.split("."))
        if not equals or not all(key) or dotted.startswith("-") or dotted != dotted.strip():
            faults.append(f"{cut(override)!r}: an override is written key=value")
            continue
        if unusable(override) or len(key) > DEEPEST:
            problem = f"contains the character {unusable(override)}, which text cannot contain"
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
        layers.append(Layer(COMMAND_LINE, top, key, text, problem))
    return layers
