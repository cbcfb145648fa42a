"""Read and write the YAML of recipes; reject YAML features that recipes do not need.

Values keep the text as it was written (they stay nodes), since YAML 1.1 often reads it as something
else than was meant. Recipes are small: large files, and aliases that expand to large ones, are
rejected before they take time or memory.
"""

import math
import re
import stat
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

TEXT_TAG, NULL_TAG = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
MAPPING_TAG, LIST_TAG = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
MERGE_TAG = "tag:yaml.org,2002:merge"
INTEGER_TAG, FLOAT_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
QUOTING_HINT = (
    "text that begins with or contains one of : # [ ] { } , & * ! | > % @ ` needs quotes, "
    'as in prompt: "a cat: asleep"'
)

LARGEST = 2**20
"""Maximum size of a recipe in bytes."""
DEEPEST = 32
"""Maximum nesting depth of mappings and lists."""
MOST_VALUES = 100_000
"""Maximum number of keys and values of a recipe, with aliases expanded."""
LARGEST_NUMBER = 2**64
QUICK_FROM = 2**16
"""Number of characters of a text from which libyaml scans it."""


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1, but `1e-4` is a number and a date is text, as OmegaConf reads them."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node as PyYAML does, up to a maximum depth."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise fault(f"more than {DEEPEST} nested levels", self.peek_event())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge the mappings that `<<` names; the mapping's own keys win."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.tag.startswith("tag:yaml.org,"):
                raise fault("a key is plain text", key)
            if key.value in seen:
                raise fault(f"key {cut(key.value)!r} is given twice", key)
            if not key.value:
                raise fault("a key is empty", key)
            check_text(key)
            seen.add(key.value)
        super().flatten_mapping(node)
        node.value = list({key.value: (key, value) for key, value in node.value}.values())


class QuickLoader(RecipeLoader):
    """A RecipeLoader that scans by libyaml, which is some ten times faster."""

    def __init__(self, text: str) -> None:
        super().__init__("")
        events: Any = import_module("yaml.cyaml").CParser(text)  # only where libyaml is there
        self.check_event, self.peek_event = events.check_event, events.peek_event
        self.get_event = events.get_event


class RecipeDumper(yaml.SafeDumper):
    """Writes YAML that RecipeLoader reads, with lists on one line."""

    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        """Represent a list as `[a, b]`."""
        return self.represent_sequence(LIST_TAG, data, flow_style=True)

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: every value is written out in full."""
        return True


RecipeDumper.add_representer(list, RecipeDumper.represent_list)
for _kind in (RecipeLoader, RecipeDumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if not tag.endswith((":timestamp", ":value"))]
        for first, forms in _kind.yaml_implicit_resolvers.items()
    }
    _number = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
    _kind.add_implicit_resolver(FLOAT_TAG, _number, list("-+0123456789"))

_reader = RecipeLoader("")


@lru_cache(maxsize=1 << 14)
def _value(tag: str, text: str) -> Any:
    return _reader.construct_document(yaml.ScalarNode(tag, text))


@lru_cache(maxsize=1 << 14)
def _written(text: str) -> str:
    """Return the tag of an unquoted text."""
    return str(_reader.resolve(yaml.ScalarNode, text, (True, False)))


def scalar_value(node: yaml.Node) -> Any:
    """Return the text, number, truth value or None of a scalar."""
    return _value(node.tag, node.value)


def fault(problem: str, place: Any) -> yaml.MarkedYAMLError:
    """Return an error about a node, with its position."""
    return yaml.MarkedYAMLError(None, None, problem, place.start_mark)


def cut(text: str, length: int = 100) -> str:
    """Return the text, truncated to a length."""
    return text if len(text) <= length else f"{text[:length]}…"


def readable(line: str) -> str:
    """Return a line of a message with unprintable characters escaped, truncated if very long."""
    if not line.isprintable():
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line[:3000])
    return cut(line, 3000)


def plain(node: yaml.Node) -> Any:
    """Return the dicts, lists and scalars of a node. Keys are the text as it was written."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(value) for value in node.value]
    return node.value if node.tag == TEXT_TAG else scalar_value(node)


def parse(text: str) -> yaml.Node | None:
    """Return the root node of a YAML document; None if it is empty.

    Raises:
        yaml.YAMLError: a syntax error, a duplicate key, a tag, an invalid number, a recursive
            alias, or a size over one of the limits.
    """
    try:
        loader = RecipeLoader(text)
    except yaml.reader.ReaderError as error:
        place = yaml.Mark("", error.position, *_line_and_column(text, error.position), None, 0)
        problem = f"contains the character U+{error.character:04X}, which text cannot contain"
        raise yaml.MarkedYAMLError(None, None, problem, place) from error
    node = _quick_node(text) if len(text) > QUICK_FROM and yaml.__with_libyaml__ else None
    node = loader.get_single_node() if node is None else node
    if node is not None:
        _check(loader, node, (), [0])
    return node


def _quick_node(text: str) -> yaml.Node | None:
    """Return the root node of a large document; None if RecipeLoader has to say what is wrong."""
    try:
        return QuickLoader(text).get_single_node()
    except yaml.YAMLError:
        return None


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n"), position - before.rfind("\n") - 1


def _check(loader: RecipeLoader, node: yaml.Node, above: tuple[int, ...], count: list[int]) -> None:
    """Reject content that recipes cannot have in a node and below it; resolve merges."""
    count[0] += 1
    if count[0] > MOST_VALUES:
        raise fault(f"more than {MOST_VALUES} values, with aliases expanded", node)
    if id(node) in above:
        raise fault("an alias within itself", node)
    if len(above) >= DEEPEST:
        raise fault(f"more than {DEEPEST} nested levels", node)
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode) and node.tag == MAPPING_TAG:
        loader.flatten_mapping(node)
        for _, value in node.value:
            _check(loader, value, above, count)
    elif isinstance(node, yaml.SequenceNode) and node.tag == LIST_TAG:
        for value in node.value:
            _check(loader, value, above, count)
    else:
        check_scalar(node)


def check_scalar(node: yaml.Node) -> None:
    """Reject tags, invalid numbers, and text that no file can contain.

    Raises:
        yaml.MarkedYAMLError: the scalar is one of these.
    """
    if node.tag == MERGE_TAG:  # has a meaning only as a key
        node.tag = TEXT_TAG
    is_scalar = isinstance(node, yaml.ScalarNode)
    if not is_scalar or (node.tag != TEXT_TAG and node.tag != _written(node.value)):
        name = cut(node.tag.replace("tag:yaml.org,2002:", "!!"))
        raise fault(f"the tag {name} cannot be used here; {QUOTING_HINT}", node)
    if node.tag == TEXT_TAG:
        return check_text(node)
    if node.tag not in (INTEGER_TAG, FLOAT_TAG):
        return None
    number, remedy = cut(node.value, 30), "; text needs quotes"
    if node.tag == INTEGER_TAG and len(node.value) > 100:
        raise fault(f"{number} is too large for a number{remedy}", node)
    value = scalar_value(node)
    if math.isnan(value) or ".inf" in node.value.lower():
        raise fault(f"{number} is not a finite number{remedy}", node)
    if math.isinf(value) or (node.tag == INTEGER_TAG and abs(value) > LARGEST_NUMBER):
        raise fault(f"{number} is too large for a number{remedy}", node)
    if value == 0 and re.search("[1-9]", re.split("[eE]", node.value)[0]):
        raise fault(f"{number} is too small for a number{remedy}", node)
    return None


def check_text(node: yaml.ScalarNode) -> None:
    """Reject text that cannot be written to a file or be a file name.

    Raises:
        yaml.MarkedYAMLError: the text is one of these.
    """
    if unusable(node.value):
        raise fault(
            f"contains the character {unusable(node.value)}, which text cannot contain", node
        )


def unusable(text: str) -> str:
    """Return the code point of the first invalid character (NUL, lone surrogate), or ""."""
    found = re.search("[\0\ud800-\udfff]", text)
    return f"U+{ord(found[0]):04X}" if found else ""


def explain(error: yaml.YAMLError) -> str:
    """Return a YAML error as one line: where, what, and the most likely remedy."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).partition("\n")[0]
    mark, begin = error.problem_mark, error.context_mark
    text = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if begin is not None and begin.line != mark.line:
        text += f" ({error.context} that begins at line {begin.line + 1})"
    if "\\t" in str(error.problem):
        return f"{text}; indent with spaces, not tabs"
    return text if type(error) is yaml.MarkedYAMLError else f"{text}; {QUOTING_HINT}"


def read(path: Path, is_base: bool) -> str:
    """Read the text of a recipe. A base must be a regular file; the recipe itself may be a pipe.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8 text, not a file, or too large.
    """
    kind = path.stat().st_mode
    if is_base and not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise ValueError("is no file")
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"is larger than {LARGEST >> 20} MiB; a recipe is a small YAML file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        is_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        remedy = "save this UTF-16 as UTF-8" if is_utf16 else "a recipe is a YAML file"
        raise ValueError(f"is not UTF-8 text (byte {error.start}); {remedy}") from error
