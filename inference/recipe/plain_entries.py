"""Entries of named mappings that need no conversion: an optimization of OmegaConf's result.

OmegaConf takes milliseconds for each entry, and a recipe can have thousands, such as one for each
image. Of the entries of a mapping that set the same fields, also within groups, each to a value of
the field's type or a number that is converted to it, only the first is left to OmegaConf. The
others become copies of the object that it builds, with their own values, which is what it would
build of them.
"""

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

import yaml
from omegaconf import OmegaConf

from inference.recipe.layers import Layer
from inference.recipe.references import NAME, texts
from inference.recipe.schema import fields_of, leaf, without_none
from inference.recipe.yaml_nodes import MAPPING_TAG, plain

Names = tuple[str, ...]
PLAIN = (str, int, float, bool)
UNKNOWN = object()
"""No value: what a field is set to is for OmegaConf to say."""
Shape = frozenset[Any]


@dataclass
class PlainEntries:
    """The entries of a mapping that OmegaConf does not read."""

    mapping: Names
    order: list[str]
    """Names of all entries of the mapping."""
    alike: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Name of an entry that OmegaConf reads -> names of those like it -> the values they set."""

    def add_to(self, recipe: Any, above: Names = ()) -> None:
        """Add the entries to a recipe, or to the part of it below these names."""
        for name in self.mapping[len(above) :]:
            recipe = getattr(recipe, name)
        entries = dict(recipe)
        for first in self.alike:
            entries.update(self.like(first, recipe[first]))
        recipe.clear()
        recipe.update((name, entries[name]) for name in self.order if name in entries)

    def like(self, first: str, entry: Any) -> Iterator[tuple[str, Any]]:
        """Yield the entries like one that OmegaConf read, with their names."""
        for name, values in self.alike[first].items():
            yield name, _copy(entry, values)


def set_aside(kind: type, layers: Sequence[Layer]) -> tuple[list[Layer], list[PlainEntries]]:
    """Return the layers without the entries that OmegaConf need not read, and these."""
    kept, aside = list(layers), []
    referred = {word for layer in layers for word in _words_of_references(layer.node)}
    for path, hint in mappings_of(kind):
        entries = _entries(layers, path, without_none(hint)[1])
        found = PlainEntries(path, list(entries))
        firsts: dict[Shape, str] = {}
        for name, ((layer, node), *later) in entries.items():
            is_alone = not later and not layer.key and "." not in name and name not in referred
            values = plain_values(hint, node) if is_alone else None
            if values is not None:
                first = firsts.setdefault(_shape(values), name)
                if first != name:
                    found.alike.setdefault(first, {})[name] = values
        if found.alike:
            aside.append(found)
            names = {name for others in found.alike.values() for name in others}
            kept = [replace(one, node=_without(one.node, path, names)) for one in kept]
    return kept, aside


def plain_values(hint: Any, node: yaml.Node) -> dict[str, Any] | None:
    """Return the values of an entry by field, those of a group in it as a dict.

    None unless it is certain what OmegaConf makes of all of them.
    """
    if not isinstance(node, yaml.MappingNode):
        return None
    hints, values = fields_of(without_none(hint)[0]), {}
    for name, value in node.value:
        kind, is_optional = without_none(hints.get(name.value))
        if is_dataclass(kind) and isinstance(value, yaml.MappingNode):
            found = plain_values(kind, value)
            found = UNKNOWN if found is None else found
        elif get_origin(kind) is list and isinstance(value, yaml.SequenceNode):
            found = [_plain_value(get_args(kind)[0], False, one) for one in value.value]
            found = UNKNOWN if UNKNOWN in found else found
        else:
            found = _plain_value(kind, is_optional, value)
        if found is UNKNOWN:
            return None
        values[name.value] = found
    return values


def _plain_value(kind: Any, is_optional: bool, node: yaml.Node) -> Any:
    """Return the value of a field or of a list's member; UNKNOWN if that is left to OmegaConf."""
    if not isinstance(node, yaml.ScalarNode):
        return UNKNOWN
    is_literal = get_origin(kind) is Literal
    try:
        found = leaf(kind, node, typed=False) if kind in PLAIN or is_literal else plain(node)
        if found is None:
            return None if is_optional and kind is not Any else UNKNOWN
        if kind in (int, float) and type(found) in (int, str):
            found = kind(found)  # "7" and, for a float, 7
    except ValueError:  # OmegaConf's way reports it
        return UNKNOWN
    if is_literal:
        is_one = any(type(found) is type(one) and found == one for one in get_args(kind))
        return found if is_one else UNKNOWN
    is_special = kind is str and any(sign in str(found) for sign in ("${", "???", "~"))
    return found if kind in PLAIN and type(found) is kind and not is_special else UNKNOWN


def _shape(values: dict[str, Any]) -> Shape:
    """Return which fields are set, also within groups."""
    return frozenset(
        (name, _shape(one)) if isinstance(one, dict) else name for name, one in values.items()
    )


def _copy(entry: Any, values: dict[str, Any]) -> Any:
    """Return a copy of a dataclass with other values; of a group in it those of a dict."""
    held: dict[str, Any] = {}
    for one in fields(entry):
        given = getattr(entry, one.name)
        if isinstance(values.get(one.name), dict):
            held[one.name] = _copy(given, values[one.name])
        elif one.name in values:
            held[one.name] = values[one.name]
        elif type(given) not in PLAIN:
            held[one.name] = deepcopy(given)
    return replace(entry, **held)


@cache
def mappings_of(kind: type, above: Names = ()) -> list[tuple[Names, Any]]:
    """Return the named mappings of a dataclass whose entries can be copies, with their types.

    These have fields that do not depend on each other, and no other entry inherits the mapping.
    """
    found: list[tuple[Names, Any]] = []
    givers = getattr(kind, "inherits", {}).values()
    for one in fields(kind):
        hint, _ = without_none(fields_of(kind)[one.name])
        entry, _ = without_none(get_args(hint)[1]) if get_origin(hint) is dict else (None, False)
        if any(
            one.name in (fields_of(each) if isinstance(each, type) else [each]) for each in givers
        ):
            continue
        if is_dataclass(hint) and isinstance(hint, type):
            found += mappings_of(hint, (*above, one.name))
        elif is_dataclass(entry) and isinstance(entry, type) and one.default_factory is dict:
            defaults = OmegaConf.to_container(OmegaConf.structured(entry), resolve=False)
            if all(inner.init for inner in fields(entry)) and not any(texts(defaults)):
                found.append(((*above, one.name), get_args(hint)[1]))
    return found


def _entries(
    layers: Sequence[Layer], path: Names, is_optional: bool
) -> dict[str, list[tuple[Layer, yaml.Node]]]:
    """Return the layers that set each entry of a mapping; {} if one sets something else there."""
    found: dict[str, list[tuple[Layer, yaml.Node]]] = {}
    for layer in layers:
        node: yaml.Node | None = layer.node
        for name in path:
            if node is not None and not isinstance(node, yaml.MappingNode):
                return {}
            members = node.value if node is not None else []
            node = next((value for key, value in members if key.value == name), None)
        if node is not None and not isinstance(node, yaml.MappingNode):
            return {}
        for key, value in node.value if node is not None else []:
            if not isinstance(value, yaml.ScalarNode) or plain(value) is not None:
                found.setdefault(key.value, []).append((layer, value))
            elif found.pop(key.value, None) is None or not is_optional:
                return {}
    return found


def _without(node: yaml.MappingNode, path: Names, names: set[str]) -> yaml.MappingNode:
    """Return a mapping without entries of one below it. The node is not modified."""
    members: list[tuple[yaml.ScalarNode, Any]] = []
    for key, value in node.value:
        if path and key.value == path[0]:
            members.append((key, _without(value, path[1:], names)))
        elif path or key.value not in names:
            members.append((key, value))
    return yaml.MappingNode(MAPPING_TAG, members, node.start_mark, node.end_mark)


def _words_of_references(node: yaml.Node) -> Iterator[str]:
    """Yield every word of the texts below a node that contain references."""
    if isinstance(node, yaml.ScalarNode):
        if "${" in node.value:
            yield from re.findall(NAME, node.value)
        return
    for child in node.value:
        yield from _words_of_references(child[1] if isinstance(child, tuple) else child)
