"""What a recipe is read from: its file, the files it is based on, and the command line.

Everything is kept as YAML nodes, so that the text as it was written is still known when a value
turns out not to fit.
"""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from inference.errors import InputError

TEXT_TAG, NULL_TAG = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
MAPPING_TAG = "tag:yaml.org,2002:map"
QUOTING_HINT = (
    "text that begins with or contains one of : # [ ] { } , & * ! | > % @ ` needs quotes, "
    'as in prompt: "a cat: asleep"'
)


class RecipeError(InputError):
    """What the user wrote is wrong. Its text is the complete message, one line per fault."""


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


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1, but `1e-4` is a number and a date is text, as OmegaConf reads them."""


class RecipeDumper(yaml.SafeDumper):
    """Writes what RecipeLoader reads, lists on one line."""

    def represent_list(self, data: list[Any]) -> yaml.SequenceNode:
        """A list as `[a, b]`."""
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


RecipeDumper.add_representer(list, RecipeDumper.represent_list)
for _kind in (RecipeLoader, RecipeDumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
        for first, forms in _kind.yaml_implicit_resolvers.items()
    }
    _number = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _number, list("-+0123456789"))

scalar_value = RecipeLoader("").construct_document


def plain(node: yaml.Node) -> Any:
    """The dicts, lists and scalars that a node stands for. Keys are the text as it was written."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(value) for value in node.value]
    return scalar_value(node)


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

    def note(node: yaml.Node, key: str, source: str) -> None:
        if isinstance(node, yaml.ScalarNode) and scalar_value(node) is None:
            for below in [other for other in sources if other.startswith(f"{key}.")]:
                del sources[below]
        sources[key] = source
        if isinstance(node, yaml.MappingNode):
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


def parse(text: str) -> yaml.Node | None:
    """The node of a YAML document, None if it is empty.

    Raises:
        yaml.YAMLError: a syntax error, a key given twice, an unknown tag, an alias within itself.
    """
    loader = RecipeLoader(text)
    node = loader.get_single_node()

    def check(node: yaml.Node, above: tuple[int, ...] = ()) -> None:
        if id(node) in above:
            raise yaml.MarkedYAMLError(None, None, "an alias within itself", node.start_mark)
        above = (*above, id(node))
        if isinstance(node, yaml.ScalarNode):
            scalar_value(node)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                check(value, above)
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(None, None, "a key is plain text", key.start_mark)
                if key.value in seen:
                    problem = f"key {key.value!r} is given twice"
                    raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
                seen.add(key.value)
            loader.flatten_mapping(node)
            node.value = list({key.value: (key, value) for key, value in node.value}.values())
            for _, value in node.value:
                check(value, above)

    if node is not None:
        check(node)
    return node


def explain(error: yaml.YAMLError) -> str:
    """A YAML error on one line: where, what, and what helps in most cases."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).partition("\n")[0]
    mark, begin = error.problem_mark, error.context_mark
    text = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if begin is not None and begin.line != mark.line:
        text += f" ({error.context} that begins at line {begin.line + 1})"
    if "\\t" in str(error.problem):
        return f"{text}; indent by spaces, not tabs"
    return text if type(error) is yaml.MarkedYAMLError else f"{text}; {QUOTING_HINT}"


def shown(path: Path) -> str:
    """The path as it is told: relative to the working folder if it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def file_layers(path: Path, faults: list[str], asking: tuple[Path, ...] = ()) -> list[Layer]:
    """The layers of a recipe file: those of its bases in their order, then its own.

    `path` is absolute; `asking` are the files that led to it. What is wrong is added to `faults`.
    """
    source = shown(path)
    who = f"{shown(asking[-1])}: base: {source}" if asking else source
    if path in asking:
        circle = [shown(one) for one in (*asking[asking.index(path) :], path)]
        chain = f" ({' -> '.join(circle)})" if len(circle) > 3 else ""
        faults.append(f"{who} is based on this file{chain}")
        return []
    try:
        node = parse(path.read_text(encoding="utf-8"))
        node = yaml.MappingNode(MAPPING_TAG, []) if node is None else node
        if not isinstance(node, yaml.MappingNode):
            raise yaml.MarkedYAMLError(None, None, "a recipe is a mapping of keys", node.start_mark)
        bases = take_bases(node)
    except yaml.YAMLError as error:
        faults.append(f"{source}: {explain(error)}")
        return []
    except UnicodeDecodeError as error:
        faults.append(f"{who}: is no text in UTF-8 (byte {error.start}); a recipe is a YAML file")
        return []
    except OSError as error:
        faults.append(f"{who}: {explain_absence(path, error)}")
        return []
    layers: list[Layer] = []
    for base in bases:
        layers += file_layers(absolute(path.parent / base), faults, (*asking, path))
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
        problem = f"base: expected a file name or a list of them, got {bases!r}"
        raise yaml.MarkedYAMLError(None, None, problem, found[0].start_mark)
    return bases


def explain_absence(path: Path, error: OSError) -> str:
    """Why a file cannot be read, and which recipes beside it have a similar name."""
    if path.is_dir():
        return "is a folder, not a recipe"
    if not isinstance(error, FileNotFoundError):
        return f"cannot be read: {error.strerror}"
    if not path.parent.is_dir():
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
            faults.append(f"{override!r}: an override is written key=value")
            continue
        if dotted == "base":
            faults.append("command line: base: is a key of files; write a recipe with this line")
            continue
        problem = None
        try:
            node = parse(text) or yaml.ScalarNode(NULL_TAG, "")
        except yaml.YAMLError as error:
            problem = f"{text!r} is not YAML: {explain(error)}"
            node = yaml.ScalarNode(TEXT_TAG, text)
        for name in reversed(key[1:]):
            node = yaml.MappingNode(MAPPING_TAG, [(yaml.ScalarNode(TEXT_TAG, name), node)])
        top = yaml.MappingNode(MAPPING_TAG, [(yaml.ScalarNode(TEXT_TAG, key[0]), node)])
        layers.append(Layer("command line", top, key, text, problem))
    return layers
