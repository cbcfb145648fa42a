"""What a recipe's dataclasses define: key names, types, docstrings, values."""

import dataclasses
import difflib
import itertools
import keyword
import math
import re
import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from inference.recipe.foreign import counterpart
from inference.recipe.yaml_nodes import cut, plain

ODD_NUMBER = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers that YAML 1.1 reads as octal (0123 is 83) or in base 60 (12:30 is 750)."""

PLAIN_NUMBER = re.compile(r"[-+]?([0-9]{1,400}(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")

REFERENCE = re.compile(r"(?<!\\)(\\\\)*\$\{")
"""An unescaped `${`: a reference to another value of the recipe."""


@cache
def fields_of(kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass and their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@cache
def paths_of(kind: type) -> frozenset[str]:
    """Return the fields of a dataclass that are paths: `paths` of it and of its bases."""
    return frozenset(name for base in kind.__mro__ for name in vars(base).get("paths", ()))


@cache
def field_docs(kind: type) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass and its bases, by field name."""
    import ast
    import inspect
    import textwrap

    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # made by make_dataclass, or built in
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for line, below in itertools.pairwise(body):
            match line, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    docs[name] = inspect.cleandoc(text)
    return docs


def without_none(hint: Any) -> tuple[Any, bool]:
    """Return a type without its `| None`, and whether it accepts None."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, hint is Any
    kinds = tuple(kind for kind in get_args(hint) if kind is not types.NoneType)
    return Union[kinds], len(kinds) < len(get_args(hint))  # noqa: UP007 (built at run time)


def is_mapping(kind: Any) -> bool:
    """Return whether values of this type are mappings with known types."""
    return dataclasses.is_dataclass(kind) or get_origin(kind) is dict


def short_form_of(kind: Any) -> str | None:
    """Return the field whose value can stand for the whole mapping: `short_form` of a dataclass."""
    return getattr(kind, "short_form", None) if dataclasses.is_dataclass(kind) else None


def in_full(node: yaml.ScalarNode, kind: Any) -> yaml.Node:
    """Return the mapping that a single value stands for; the node itself if it stands for none."""
    word = short_form_of(kind)
    if word is None:
        return node
    name = yaml.ScalarNode("tag:yaml.org,2002:str", word)
    return yaml.MappingNode("tag:yaml.org,2002:map", [(name, node)])


def describe(kind: Any) -> str:
    """Describe a type in words for the author of a recipe."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        word = short_form_of(kind)
        short = f"{describe(fields_of(kind)[word])}, or " if word else ""
        return f"{short}a mapping with keys of {kind.__name__} ({', '.join(fields_of(kind))})"
    if origin is dict:
        return "a mapping of names of your choice (`name: ...`, not `- ...`)"
    if origin is Union:
        return " or ".join(describe(one) for one in arguments)
    if origin is Literal:
        return f"one of {list(arguments)}"
    if origin in (list, tuple):
        fixed = origin is tuple and ... not in arguments
        count = f"of {len(arguments)} values" if fixed else "of any length"
        return f"a list {count} ([a, b]), each {describe(arguments[0])}"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(kind, "a value")


def in_yaml(value: Any) -> str:
    """Return a value as it is written in a recipe."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return cut(repr(value), 200)


def all_keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that a recipe can have, with `<name>` for names chosen by the user."""
    kind, _ = without_none(kind)
    if get_origin(kind) is dict:
        yield from all_keys(get_args(kind)[1], f"{prefix}<name>.")
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        for name, hint in fields_of(kind).items():
            yield f"{prefix}{name}"
            yield from all_keys(hint, f"{prefix}{name}.")


def unknown_key(name: str, kind: type, root: type) -> str:
    """Return the message for a key that `kind` does not have, with similar keys."""
    message = f"Key {cut(name)!r} not in {kind.__name__!r}"
    if len(name) > 100:
        return message
    known = list(all_keys(root))
    if "." in name and name in known:
        nested = name.replace(".", ": {") + ": ..." + "}" * name.count(".")
        return f"{message}; in a file it is written {nested}"
    if told := counterpart(name, known):
        return f"{message}; {told}"
    by_last_word: dict[str, list[str]] = {}
    for key in known:
        by_last_word.setdefault(key.rpartition(".")[2], []).append(key)
    elsewhere = by_last_word.get(name, [])
    if elsewhere:
        message += f"; {' and '.join(map(repr, elsewhere[:3]))} exist"
        message += "s" if len(elsewhere) == 1 else ""
    near = difflib.get_close_matches(name, fields_of(kind))
    if not near and not elsewhere:
        close = difflib.get_close_matches(name, by_last_word, n=1)
        near = [key for word in close for key in by_last_word[word]][:3]
    if near:
        which = "Did you mean: " if len(near) == 1 else "Did you mean one of: "
        return f"{message}. {which}{', '.join(map(repr, near))}?"
    return message if elsewhere else f"{message}; its keys are {', '.join(fields_of(kind))}"


def is_word(name: str) -> bool:
    """Return whether a field of a dataclass can have this name."""
    return name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")


def got(value: Any, name: str, beside: Any) -> str:
    """Describe the value found for a key; if it is missing, suggest a similar key beside it."""
    if value is not None:
        return cut(repr(value))
    others = beside if isinstance(beside, dict) and name not in beside else []
    lower = {str(other).lower(): str(other) for other in others}
    near = difflib.get_close_matches(name, lower, 1)
    return f"nothing, but the unknown key {cut(lower[near[0]])!r}" if near else "nothing"


def is_number(text: str) -> bool:
    """Return whether a quoted text is a finite number, or contains a reference."""
    finite = PLAIN_NUMBER.fullmatch(text) and math.isfinite(float(text))
    return bool(finite or REFERENCE.search(text))


def list_leaf(kind: Any, node: yaml.SequenceNode, typed: bool) -> list[Any]:
    """Return the value of a list of this type, as `leaf`."""
    inner, _ = without_none(get_args(kind)[0])
    is_nested = not all(isinstance(child, yaml.ScalarNode) for child in node.value)
    if is_nested and inner in (int, float, bool):  # OmegaConf accepts them in a tuple
        raise ValueError(f"expected {describe(kind)}, got {in_yaml(plain(node))}")
    return [leaf(inner, child, typed) for child in node.value]


def leaf(kind: Any, node: yaml.Node, typed: bool) -> Any:
    """Return the value of a leaf of this type.

    `typed`: the value was typed on the command line, where 7 may well be meant as text.

    Raises:
        ValueError: YAML reads something else than the text looks like.
    """
    origin, value = get_origin(kind), plain(node)
    if not isinstance(node, yaml.ScalarNode):
        if kind is str or origin is Literal:
            what = "list" if isinstance(value, list) else "mapping"
            raise ValueError(f"YAML reads this as a {what}; put the text in quotes")
        if origin in (list, tuple) and isinstance(node, yaml.SequenceNode):
            return list_leaf(kind, node, typed)
        return value
    text = node.value
    refers = isinstance(value, str) and REFERENCE.search(value)
    if origin in (list, tuple) and value is not None and not refers:
        raise ValueError(f"expected {describe(kind)}, got {in_yaml(value)}")
    as_text = (kind is str and isinstance(value, bool | int | float)) or (
        origin is Literal and isinstance(value, bool)
    )
    if as_text and typed:
        return text
    if as_text:
        fits = kind is str or text in get_args(kind)
        remedy = f'write "{text}"' if fits else f"expected {describe(kind)}"
        raise ValueError(f"YAML reads {text} as {in_yaml(value)}; {remedy}")
    if isinstance(value, int | float) and ODD_NUMBER.fullmatch(text):
        raise ValueError(f"YAML reads {text} as {value}; write {value} if that is meant")
    if kind in (int, float) and isinstance(value, str) and not is_number(value):
        raise ValueError(f"expected {describe(kind)}, got {in_yaml(value)}")
    if kind is bool and isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {text}")
    return value
