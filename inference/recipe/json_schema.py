"""JSON Schema (draft 2020-12) of recipes, for editors, from the dataclasses that check them.

It accepts what `inference.recipe` accepts of a single file, before rules between keys: since
`base:` and the command line give keys too, nothing is required but a `type` that is not the usual.
"""

import dataclasses
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from inference.recipe.references import MISSING
from inference.recipe.schema import (
    PLAIN_NUMBER,
    field_docs,
    fields_of,
    short_form_of,
    without_none,
)

Schema = dict[str, Any]
Choices = Callable[[type, type], Iterable[type]]
"""(class of a field, class that has the field) -> classes that the recipe can choose from."""

DRAFT = "https://json-schema.org/draft/2020-12/schema"

REFERENCE = {
    "description": "${key} stands for the value of another key.",
    "type": "string",
    "pattern": r"\$\{",
}
PRIMITIVES: dict[type, tuple[str, str]] = {
    int: ("integer", r"^[-+]?[0-9]+$"),
    float: ("number", f"^({PLAIN_NUMBER.pattern})$"),
    bool: (
        "boolean",
        r"^([yYnN01]|[yY][eE][sS]|[nN][oO]|[oO][nN]|[oO][fF][fF]|[tT][rR][uU][eE]"
        r"|[fF][aA][lL][sS][eE])$",
    ),
}
"""Type -> its name in JSON Schema, and how OmegaConf reads it from text in quotes."""

OBJECT_PATTERN = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"
"""`module:name`, where a registry lists the names that need no module."""

BASE = {
    "description": "Recipes that this one is based on, relative to this file; keys below win.",
    "type": ["string", "array", "null"],
    "items": {"type": "string"},
}


def recipe_json_schema(roots: Sequence[type], title: str, choices: Choices) -> Schema:
    """Return the schema of recipes of one of these classes.

    Args:
        roots: dataclasses of whole recipes; the first is that of recipes without `type`.
        title: title of the schema.
        choices: returns the classes that a field of an abstract class can have.
    """
    definitions = _Definitions(choices)
    names = [definitions.add(kind) for kind in roots]
    for name in names:
        definitions.schemas[name]["properties"]["base"] = BASE
    for name in names[1:]:
        definitions.schemas[name]["anyOf"] = [{"required": ["type"]}, {"required": ["base"]}]
    root = _ref(names[0]) if len(names) == 1 else {"anyOf": list(map(_ref, names))}
    return {"$schema": DRAFT, "title": title, **root, "$defs": definitions.schemas}


class _Definitions:
    """The schemas of the dataclasses that are needed, by name."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.names: dict[type, str] = {}
        self.schemas: dict[str, Schema] = {"reference": REFERENCE}
        for name, pattern in PRIMITIVES.values():
            texts = {"type": "string", "pattern": pattern}
            self.schemas[name] = {"anyOf": [{"type": name}, texts, _ref("reference")]}

    def add(self, kind: type) -> str:
        """Add the schema of a dataclass unless it exists; return its name."""
        if kind in self.names:
            return self.names[kind]
        name = kind.__name__
        if name in self.schemas:  # a plug-in's class has the name of one of ours
            name = f"{kind.__module__}.{name}"
        self.names[kind] = name
        properties: Schema = {}
        self.schemas[name] = {
            "description": _opening(kind),
            "type": "object",
            "additionalProperties": False,
            "properties": properties,
        }
        for field in dataclasses.fields(kind):
            properties[field.name] = self.field(kind, field)
        return name

    def field(self, owner: type, field: dataclasses.Field[Any]) -> Schema:
        """Return the schema of a field: its docstring, its default, and what it accepts."""
        hint = fields_of(owner)[field.name]
        inner = without_none(hint)[0]
        fallback = _opening(inner if dataclasses.is_dataclass(inner) else owner)
        text = " ".join(field_docs(owner).get(field.name, fallback).split())
        schema: Schema = {"description": text}
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default in (MISSING, dataclasses.MISSING):
            schema["description"] += " Must be given, here or in a base."
        elif isinstance(default, str | int | float | list | tuple) or default is None:
            schema["default"] = list(default) if isinstance(default, tuple) else default
        registry = getattr(owner, "registries", {}).get(field.name)
        if registry is not None:
            code = {"type": "string", "pattern": f"^{OBJECT_PATTERN}$"}
            return schema | {"anyOf": [{"enum": list(registry)}, code, _ref("reference")]}
        return schema | self.value(hint, owner)

    def value(self, hint: Any, owner: type) -> Schema:
        """Return what a type accepts."""
        if hint is Any:
            return {}
        kind, is_optional = without_none(hint)
        options = self.options(kind, owner)
        if is_optional:
            options.append({"type": "null"})
        return options[0] if len(options) == 1 else {"anyOf": options}

    def options(self, kind: Any, owner: type) -> list[Schema]:
        """Return the alternative schemas of a type without None, of which one must match."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            return [option for one in arguments for option in self.options(one, owner)]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            word = short_form_of(kind)
            values = self.options(fields_of(kind)[word], kind) if word else []
            return [*(_ref(self.add(one)) for one in self.choices(kind, owner)), *values]
        if origin is dict:
            return [{"type": "object", "additionalProperties": self.value(arguments[1], owner)}]
        if origin is Literal and len(arguments) == 1:  # the tag that distinguishes classes
            return [{"const": arguments[0]}]
        if origin is Literal:
            return [{"enum": list(arguments)}, _ref("reference")]
        if origin in (list, tuple):
            array: Schema = {"type": "array", "items": self.value(arguments[0], owner)}
            if origin is tuple and ... not in arguments:
                array |= {"minItems": len(arguments), "maxItems": len(arguments)}
            return [array, _ref("reference")]
        return [_ref(PRIMITIVES[kind][0])] if kind in PRIMITIVES else [{"type": "string"}]


def _opening(kind: Any) -> str:
    """Return the first line of a class's docstring."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}
