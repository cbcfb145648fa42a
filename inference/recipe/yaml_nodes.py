"""The YAML of recipes: how it is read, and what is refused of all that YAML allows.

Values keep the text in which they were written (they stay nodes), since what YAML 1.1 makes of it
is often not what was meant. A recipe is small: a file, or aliases, that make a large one of it are
refused before they take time or memory.
"""

import math
import re
import stat
from collections.abc import Iterable
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
"""Bytes of a recipe at most."""
DEEPEST = 32
"""Mappings and lists within each other at most."""
MOST_VALUES = 100_000
"""Keys and values of a recipe at most, with all that aliases stand for."""
LARGEST_NUMBER = 2**64


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1, but `1e-4` is a number and a date is text, as OmegaConf reads them."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As in yaml, to a certain depth."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise fault(f"more than {DEEPEST} levels within each other", self.peek_event())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Takes in what `<<` names; of each key what the mapping itself says is left."""
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


class RecipeDumper(yaml.SafeDumper):
    """Writes what RecipeLoader reads, lists on one line."""

    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        """A list as `[a, b]`."""
        return self.represent_sequence(LIST_TAG, data, flow_style=True)

    def ignore_aliases(self, data: Any) -> bool:
        """Always: every value is spelled out where it stands."""
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
scalar_value = _reader.construct_document


def fault(problem: str, place: Any) -> yaml.MarkedYAMLError:
    """What is wrong with a node, at its place."""
    return yaml.MarkedYAMLError(None, None, problem, place.start_mark)


def cut(text: str, length: int = 100) -> str:
    """The text, or its beginning."""
    return text if len(text) <= length else f"{text[:length]}…"


def readable(line: str) -> str:
    """A line of a message, whatever was in the recipe: escapes for what cannot be printed."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return cut(line, 3000)


def plain(node: yaml.Node) -> Any:
    """The dicts, lists and scalars that a node stands for. Keys are the text as it was written."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(value) for value in node.value]
    return scalar_value(node)


def parse(text: str) -> yaml.Node | None:
    """The node of a YAML document, None if it is empty.

    Raises:
        yaml.YAMLError: a syntax error, a key given twice, a tag, a number that is none, an alias
            within itself, or too much of anything.
    """
    try:
        loader = RecipeLoader(text)
    except yaml.reader.ReaderError as error:
        place = yaml.Mark("", error.position, *_line_and_column(text, error.position), None, 0)
        problem = f"holds the character U+{error.character:04X}, which no text has"
        raise yaml.MarkedYAMLError(None, None, problem, place) from error
    node = loader.get_single_node()
    if node is not None:
        _check(loader, node, (), [0])
    return node


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n"), position - before.rfind("\n") - 1


def _check(loader: RecipeLoader, node: yaml.Node, above: tuple[int, ...], count: list[int]) -> None:
    """Refuses what recipes cannot hold, in a node and all below it; takes merges in."""
    count[0] += 1
    if count[0] > MOST_VALUES:
        raise fault(f"more than {MOST_VALUES} values, with all that aliases stand for", node)
    if id(node) in above:
        raise fault("an alias within itself", node)
    if len(above) >= DEEPEST:
        raise fault(f"more than {DEEPEST} levels within each other", node)
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
    """Refuses tags, numbers that are none, and text that no file can hold.

    Raises:
        yaml.MarkedYAMLError: as said.
    """
    if node.tag == MERGE_TAG:  # means something as a key only
        node.tag = TEXT_TAG
    is_scalar = isinstance(node, yaml.ScalarNode)
    written = _reader.resolve(yaml.ScalarNode, node.value, (True, False)) if is_scalar else ""
    if not is_scalar or node.tag not in (TEXT_TAG, written):
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
        raise fault(f"{number} is no finite number{remedy}", node)
    if math.isinf(value) or (node.tag == INTEGER_TAG and abs(value) > LARGEST_NUMBER):
        raise fault(f"{number} is too large for a number{remedy}", node)
    if value == 0 and re.search("[1-9]", re.split("[eE]", node.value)[0]):
        raise fault(f"{number} is too small for a number{remedy}", node)
    return None


def check_text(node: yaml.ScalarNode) -> None:
    """Refuses text that cannot be written to a file, or be the name of one.

    Raises:
        yaml.MarkedYAMLError: as said.
    """
    if unusable(node.value):
        raise fault(f"holds the character {unusable(node.value)}, which no text has", node)


def unusable(text: str) -> str:
    """The first character that no text has (NUL, half of a pair), in words; else nothing."""
    found = re.search("[\0\ud800-\udfff]", text)
    return f"U+{ord(found[0]):04X}" if found else ""


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


def read(path: Path, is_base: bool) -> str:
    """The text of a recipe. A base is a file; what the user names may be a pipe, too.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text in UTF-8, no file, or too large.
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
        raise ValueError(f"is no text in UTF-8 (byte {error.start}); {remedy}") from error
