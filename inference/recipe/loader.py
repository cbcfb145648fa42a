"""Load recipes: YAML files and overrides -> plain dataclasses, or one error that lists every fault.

The schema is a dataclass. A draft (`inference.recipe.draft`) checks values against the types of its
fields, resolves `${...}` and builds the objects. A dataclass can define more:

- `faults(self)` yields (field, message) for invalid values, `idle(self)` for fields that are set
  but have no effect; both may name a nested field (`lr_scheduler.warmup_steps`);
- `inherits: ClassVar = {"images": "settings"}`: entries of the mapping `images` take the values
  they do not set from the field `settings` beside it. With a dataclass instead of "settings",
  which both the entries and the owner of the mapping subclass, entries take its fields from the
  owner;
- `begins_anew: ClassVar = ("objective",)`: if a later source gives this mapping another `type`,
  the values of earlier sources in it are discarded;
- `imports: ClassVar = {"data.kohya_config": read}`: the content of the file that this key names
  replaces the key, as if the recipe were based on it (`inference.recipe.imports`);
- `paths: ClassVar = ("path",)`: fields that are paths, or lists of them; `~` is the home folder;
- `limits: ClassVar = {"width": 16384}`: how large a number can be (`inference.recipe.limits`);
- `registries: ClassVar = {"type": NAMES}`: the names that a text can be, besides `module:name`;
- `null` removes an entry of a `dict[str, X | None]`.
"""

import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from inference.recipe.draft import (
    HOLDERS,
    Group,
    Level,
    Levels,
    References,
    RefusedError,
    blank,
    built,
    children,
    converted,
    copied,
    merged_values,
)
from inference.recipe.imports import take_in
from inference.recipe.layers import (
    Layer,
    RecipeError,
    RecipeWarning,
    absolute,
    at_home,
    begun_anew,
    dotted,
    file_layers,
    key_sources,
    merged,
    override_layers,
    shown,
    source_of,
)
from inference.recipe.limits import limit_faults
from inference.recipe.plugins import consent_to
from inference.recipe.references import ABSENT, ExpansionFault, Reference, ReferenceFault
from inference.recipe.schema import (
    describe,
    field_docs,
    fields_of,
    in_yaml,
    is_mapping,
    leaf,
    paths_of,
    unknown_key,
    without_none,
)
from inference.recipe.yaml_nodes import RecipeDumper, cut, plain, readable
from inference.runtime import without_passwords

__all__ = ["RecipeError", "RecipeWarning", "dump_recipe", "load_mapping", "load_recipe"]


def load_recipe(
    path: str | Path, schema: Callable[[dict[str, Any]], type], overrides: Sequence[str] = ()
) -> Any:
    """Load the recipe of a file, of the files it is based on, and of `key=value` overrides.

    Later ones win: bases, file, overrides. `schema` chooses the dataclass from the merged values;
    the lines of its RecipeError begin with a key (`type: expected ...`).

    Raises:
        RecipeError: one line per error, each with the file (or command line) and the key.
    """
    unread: list[str] = []
    file = absolute(path)
    layers = file_layers(file, unread)
    if unread:
        override_layers(overrides, unread)
        raise RecipeError.of(unread)
    return _load(layers, shown(file), schema, overrides)


def load_mapping(
    mapping: dict[str, Any],
    source: str,
    schema: Callable[[dict[str, Any]], type],
    overrides: Sequence[str] = (),
) -> Any:
    """Load a recipe from a mapping, such as a file would contain, and from overrides, which win.

    `source` names the mapping in messages. Text is literal: `${` in it has no meaning.

    Raises:
        RecipeError: as `load_recipe`.
    """
    node = RecipeDumper(io.StringIO()).represent_data(_escaped(mapping))
    assert isinstance(node, yaml.MappingNode)
    return _load([Layer(source, node)], source, schema, overrides)


def _load(
    layers: list[Layer],
    file: str,
    schema: Callable[[dict[str, Any]], type],
    overrides: Sequence[str],
) -> Any:
    misspelt: list[str] = []
    own = override_layers(overrides, misspelt)
    consent_to(own)
    layers = layers + own
    sources = key_sources(layers, file)
    try:
        kind = schema(merged(layers))
    except RecipeError as error:
        lines = str(error).splitlines()
        lines = [f"{source_of(line.partition(': ')[0], sources)}: {line}" for line in lines]
        raise RecipeError.of(lines + misspelt) from error
    for key in getattr(kind, "begins_anew", ()):
        layers = begun_anew(layers, key)
    layers, unused = take_in(layers, getattr(kind, "imports", {}), _escaped, misspelt)
    draft = _Draft(kind, key_sources(layers, file))
    draft.faults.update(dict.fromkeys(misspelt))
    draft.idle.update(dict.fromkeys(unused))
    for layer in layers:
        draft.put_all(layer, layer.node, (), draft.root, kind)
    try:
        draft.complete((Level(draft.root, kind),), "")
    except ExpansionFault as error:
        raise RecipeError.of([*draft.faults, f"{file}: {error}"]) from error
    recipe = draft.finish()
    if draft.faults:
        raise RecipeError.of(draft.faults)
    for line in draft.idle:
        warnings.warn(readable(line), RecipeWarning, stacklevel=3)
    return recipe


def dump_recipe(recipe: Any) -> str:
    """Return the YAML of a recipe with every field; it loads back to an equal object.

    Only passwords in addresses are left out: they are given on the command line again.
    """
    text = yaml.dump(_escaped(recipe), Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)
    return without_passwords(text)


def _escaped(value: Any) -> Any:
    """Return plain mappings, lists and scalars, with `${` and `???` in text escaped."""
    if dataclasses.is_dataclass(value):
        return {f.name: _escaped(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _escaped(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    if isinstance(value, str):
        value = re.sub(r"(?<!\\)(\\*)\$\{", r"\1\1\\${", value)
        return f"\\{value}" if re.fullmatch(r"\\*\?\?\?", value) else value
    return value


class _Draft:
    """A recipe that is being built, and the errors found so far."""

    def __init__(self, kind: type, sources: dict[str, str]) -> None:
        self.kind = kind
        self.sources = sources
        self.root = blank(kind)
        self.references = References()
        self.faults: dict[str, None] = {}  # lines in order, without duplicates
        self.idle: dict[str, None] = {}
        self.bad: set[str] = set()
        self.fields_set: dict[str, set[str]] = {}
        """Keys -> the names below them that a source sets."""
        for key in sources:
            above, _, name = key.rpartition(".")
            self.fields_set.setdefault(above, set()).add(name)
        self.givers: dict[str, tuple[str, frozenset[str]]] = {}
        """Entries that inherit -> the key that they inherit from, and the fields that they can."""

    def line(self, key: str, message: str, source: str = "") -> str:
        key = self.giver_of(key)
        if not key:
            return f"{source_of('', self.sources)}: {message}"
        return f"{source or source_of(key, self.sources)}: {cut(key, 300)}: {message}"

    def giver_of(self, key: str) -> str:
        """Return the key from which an entry inherited a key; the key itself if it did not."""
        above = key
        while above:
            entry, _, field = above.rpartition(".")
            giver, fields = self.givers.get(entry, ("", frozenset[str]()))
            if field in fields and above not in self.sources:
                return dotted(giver, field) + key.removeprefix(above)
            above = entry
        return key

    def fault(self, key: str, message: str, source: str = "") -> None:
        self.bad.add(key)
        self.faults[self.line(key, message, source)] = None

    def put(
        self,
        layer: Layer,
        node: yaml.Node,
        key: tuple[str, ...],
        hint: Any,
        holder: dict[str, Any],
        is_path: bool = False,
    ) -> None:
        """Set `key`, a value of this type in `holder`, to the value in the layer, leaf by leaf."""
        kind, is_optional = without_none(hint)
        value = None
        try:
            if layer.key and key == layer.key:
                node = layer.value_node(node, kind is str, is_optional)
            is_null = isinstance(node, yaml.ScalarNode) and plain(node) is None
            if is_null and not is_optional:
                raise ValueError(f"must not be null; expected {describe(kind)}")
            if is_mapping(kind) and isinstance(node, yaml.MappingNode):
                return self.put_members(layer, node, key, kind, holder)
            if is_mapping(kind) and not is_null:
                raise ValueError(f"expected {describe(kind)}, got {in_yaml(plain(node))}")
            value = leaf(kind, node, typed=bool(layer.key))
            if is_path:
                value = _at_home(value)
            found = None if value is None else converted(value, kind)
            holder[key[-1]] = merged_values(holder.get(key[-1]), found)
        except RefusedError as error:
            self.fault(".".join(key), _refusal(error, kind, value), layer.source)
        except ValueError as error:
            self.fault(".".join(key), str(error), layer.source)

    def put_members(
        self,
        layer: Layer,
        node: yaml.MappingNode,
        key: tuple[str, ...],
        kind: Any,
        holder: dict[str, Any],
    ) -> None:
        """Set the members of a dataclass or of a named mapping."""
        is_named = get_origin(kind) is dict
        group = holder.get(key[-1])
        if not isinstance(group, Group):
            group = holder[key[-1]] = Group(kind, {}) if is_named else blank(kind)
        self.put_all(layer, node, key, group, kind)

    def put_all(
        self, layer: Layer, node: yaml.MappingNode, key: tuple[str, ...], group: Group, kind: Any
    ) -> None:
        """Set the members of a group to the values in the layer."""
        is_named = group.is_named
        for name_node, value in node.value:
            name = name_node.value
            hint = get_args(kind)[1] if is_named else fields_of(kind).get(name)
            is_null = isinstance(value, yaml.ScalarNode) and plain(value) is None
            if hint is None:
                message = (
                    unknown_key(name, kind, self.kind) if len(self.bad) < 20 else "no such key"
                )
                self.fault(".".join((*key, name)), message, layer.source)
            elif is_named and is_null and without_none(hint)[1] and hint is not Any:
                if group.values.pop(name, ABSENT) is ABSENT:
                    entries = cut(", ".join(group.values), 1000) or "none"
                    message = f"null removes nothing; the entries are {entries}"
                    line = self.line(".".join((*key, name)), message, layer.source)
                    self.idle[line] = None
            else:
                is_path = not is_named and name in paths_of(kind)
                self.put(layer, value, (*key, name), hint, group.values, is_path)

    def complete(self, path: Levels, prefix: str) -> None:
        """Let entries inherit; find missing values and references that cannot be resolved."""
        level = path[-1]
        if isinstance(level.holder, Group):
            self.inherit(path, prefix)
        for name, value in list(children(level.holder)):
            if isinstance(value, Reference):
                key = dotted(prefix, str(name))
                try:
                    self.references.resolve(path, name)
                except ExpansionFault:
                    raise
                except ReferenceFault as error:
                    self.fault(key, str(error))
            elif value is ABSENT:
                self.fault_absent(dotted(prefix, str(name)), level, name)
            elif isinstance(value, HOLDERS):
                self.complete((*path, level.below(name)), dotted(prefix, str(name)))

    def fault_absent(self, key: str, level: Level, name: Any) -> None:
        """Report a value that must be given, unless its key is reported already."""
        if key in self.bad:
            return
        kind = level.holder.kind if isinstance(level.holder, Group) else dict
        docs = field_docs(kind) if dataclasses.is_dataclass(kind) else {}
        doc = docs.get(str(name), "").replace("\n", " ")
        sentence = doc.partition(". ")[0].rstrip(".")
        self.fault(key, "must be given" + (f" ({sentence})" if doc else ""))

    def inherit(self, path: Levels, prefix: str) -> None:
        """Fill the fields that an entry does not set from the field that its mapping `inherits`."""
        group = path[-1].holder
        assert isinstance(group, Group)
        for mapping, giver in getattr(group.kind, "inherits", {}).items():
            entries = group.values[mapping]
            for name, entry in entries.values.items() if isinstance(entries, Group) else ():
                key = dotted(prefix, mapping, name)
                if isinstance(giver, type):
                    self.take(entry, key, path, prefix, giver)
                elif isinstance(group.values[giver], Group):
                    self.take(entry, key, (*path, path[-1].below(giver)), dotted(prefix, giver))

    def take(
        self, entry: Any, key: str, giver: Levels, giver_key: str, kind: type | None = None
    ) -> None:
        """Copy what an entry does not set from the giver, also within groups that it sets.

        Copies all fields that both have, or those of a dataclass that both subclass.
        """
        if not isinstance(entry, Group):
            return
        fields = _shared_fields(entry.kind, kind or giver[-1].holder.kind)  # type: ignore[union-attr]
        self.givers[key] = giver_key, fields
        own, given = entry.values, giver[-1].held
        fields_set = self.fields_set.get(key, set())
        for field in fields - fields_set:
            value = given[field]
            with suppress(ReferenceFault):  # reported at the giver's key
                own[field] = value if type(value) in LEAVES else self.given(giver, field, value)
        for field in fields & fields_set:
            if isinstance(given[field], Group) and isinstance(own[field], Group):
                inner = (*giver, giver[-1].below(field))
                self.take(own[field], dotted(key, field), inner, dotted(giver_key, field))

    def given(self, giver: Levels, field: str, value: Any) -> Any:
        """Return a value of a giver without references, for an entry to have.

        Raises:
            ReferenceFault: a reference in it cannot be resolved.
        """
        if isinstance(value, Reference):
            return self.references.resolve(giver, field)
        if not isinstance(value, HOLDERS):
            return value
        level = giver[-1].below(field)
        for name, inner in list(children(level.holder)):
            self.given((*giver, level), name, inner)
        return copied(level.holder)

    def finish(self) -> Any:
        """Build the recipe, after the dataclasses have checked every part without errors so far."""
        recipe = None
        for prefix, sound in self.sound_parts(self.root, "", _prefixes(self.bad)):
            recipe = sound if not prefix else recipe
            parts = list(_dataclasses(sound, prefix))
            givers = _givers(parts)
            for key, part in parts:
                beyond = dict(limit_faults(part))
                others = getattr(part, "faults", tuple)() if not beyond else beyond.items()
                for field, message in others:
                    self.fault(dotted(key, field), message)
                if givers and _is_within(key, givers):
                    continue  # the entries that inherit these fields report what has no effect
                for field, message in getattr(part, "idle", tuple)():
                    self.idle[self.line(dotted(key, field), message)] = None
        return None if self.faults else recipe

    def sound_parts(
        self, group: Group, prefix: str, bad: frozenset[str]
    ) -> Iterator[tuple[str, Any]]:
        """Yield the largest parts of the draft without errors, as objects."""
        if prefix not in bad:
            yield prefix, built(group)
            return
        for name, value in group.values.items():
            if isinstance(value, Group):
                yield from self.sound_parts(value, dotted(prefix, name), bad)


def _at_home(value: Any) -> Any:
    """Return a path, or a list of them, with the home folder for `~`."""
    if isinstance(value, list):
        return [_at_home(inner) for inner in value]
    return at_home(value) if isinstance(value, str) else value


@cache
def _shared_fields(one: type, other: type) -> frozenset[str]:
    return frozenset(fields_of(one).keys() & fields_of(other).keys())


def _prefixes(keys: Iterable[str]) -> frozenset[str]:
    """Return every key above these ones, and "", which is above all."""
    found: set[str] = set()
    for key in keys:
        found.add("")
        while key := key.rpartition(".")[0]:
            if key in found:
                break
            found.add(key)
    return frozenset(found)


def _is_within(key: str, givers: set[str]) -> bool:
    """Return whether a key is one of these, or below it."""
    while key:
        if key in givers:
            return True
        key = key.rpartition(".")[0]
    return False


def _dataclasses(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield all dataclass instances in a value, including itself, with their dotted keys."""
    inner: Iterable[tuple[str, Any]]
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = ((str(index), one) for index, one in enumerate(value))
    else:
        yield key, value
        inner = ((name, getattr(value, name)) for name in fields_of(type(value)))
    for name, one in inner:
        if type(one) not in LEAVES:
            yield from _dataclasses(one, dotted(key, name))


LEAVES = (str, int, float, bool, type(None))
"""Types of the values of a recipe that contain no others."""


def _givers(parts: Sequence[tuple[str, Any]]) -> set[str]:
    """Return the dotted keys that entries inherit from, for mappings with entries."""
    return {
        dotted(name, field)
        for name, part in parts
        for mapping, giver in getattr(part, "inherits", {}).items()
        if any(entry is not None for entry in getattr(part, mapping).values())
        for field in (fields_of(giver) if isinstance(giver, type) else [giver])
    }


def _refusal(error: RefusedError, kind: Any, value: Any) -> str:
    """Explain why a value is rejected, in terms of the recipe."""
    if "expected one of" in str(error):
        return str(error)
    whole = kind is int and isinstance(value, float) and value.is_integer()
    remedy = f"; write {value:.0f}" if whole else ""
    return f"expected {describe(kind)}, got {in_yaml(value)}{remedy}"
