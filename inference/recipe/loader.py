"""Load recipes: YAML files and overrides -> plain dataclasses, or one error that lists every fault.

The schema is a dataclass. OmegaConf's structured configs check values, resolve `${...}` and build
the objects; nothing of OmegaConf is left after `load_recipe`. A dataclass can define more:

- `faults(self)` yields (field, message) for invalid values, `idle(self)` for fields that are set
  but have no effect; both may name a nested field (`lr_scheduler.warmup_steps`);
- `inherits: ClassVar = {"images": "settings"}`: entries of the mapping `images` take the values
  they do not set from the field `settings` beside it. With a dataclass instead of "settings",
  which both the entries and the owner of the mapping subclass, entries take its fields from the
  owner;
- `quiet_in_bases: ClassVar = ("memory.ema_on_cpu",)`: keys that bases set for the recipes to which
  they apply; that one has no effect is reported only where the recipe itself sets it;
- `begins_anew: ClassVar = ("objective",)`: if a later source gives this mapping another `type`,
  the values of earlier sources in it are discarded;
- `imports: ClassVar = {"data.kohya_config": read}`: the content of the file that this key names
  replaces the key, as if the recipe were based on it (`inference.recipe.imports`);
- `paths: ClassVar = ("path",)`: fields that are paths, or lists of them; `~` is the home folder;
- `limits: ClassVar = {"width": 16384}`: how large a number can be (`inference.recipe.limits`);
- `short_form: ClassVar = "offload"`: a single value in place of the mapping is that of this field;
- `registries: ClassVar = {"type": NAMES}`: the names that a text can be, besides `module:name`;
- `null` removes an entry of a `dict[str, X | None]`.
"""

import dataclasses
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, TupleConfig
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from inference.recipe.imports import take_in
from inference.recipe.layers import (
    COMMAND_LINE,
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
from inference.recipe.plain_entries import PlainEntries, set_aside
from inference.recipe.plugins import consent_to
from inference.recipe.references import (
    MISSING,
    ExpansionFault,
    Key,
    References,
    check_form,
    targets,
    unfilled,
)
from inference.recipe.schema import (
    describe,
    field_docs,
    fields_of,
    in_full,
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


MOST_UNKNOWN = 50
"""How many unknown keys of a mapping are reported one by one, at most."""


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
    layers, draft.aside = set_aside(kind, layers)
    for layer in layers:
        draft.put(layer, layer.node, (), kind)
    try:
        draft.refer()
    except ExpansionFault as error:
        raise RecipeError.of([*draft.faults, f"{file}: {error}"]) from error
    draft.complete(draft.config, "")
    draft.complete_aside()
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
        self.config = deepcopy(_structured(kind))
        self.faults: dict[str, None] = {}  # lines in order, without duplicates
        self.idle: dict[str, None] = {}
        self.bad: dict[str, str] = {}
        """Keys -> messages."""
        self.aside: list[PlainEntries] = []
        self.givers: dict[str, tuple[str, frozenset[str]]] = {}
        """Entries that inherit -> the key that they inherit from, and the fields that they can."""
        self.given: dict[str, Any] = {}
        """Keys that entries inherit -> their values."""

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
        self.bad.setdefault(key, message)
        self.faults[self.line(key, message, source)] = None

    def put(
        self, layer: Layer, node: yaml.Node, key: tuple[str, ...], hint: Any, is_path: bool = False
    ) -> None:
        """Set `key`, which is of type `hint`, to the value in the layer, leaf by leaf."""
        kind, is_optional = without_none(hint)
        value = None
        try:
            if layer.key and key == layer.key:
                node = layer.value_node(node, kind is str, is_optional)
            is_null = isinstance(node, yaml.ScalarNode) and plain(node) is None
            if is_null and not is_optional:
                raise ValueError(f"must not be null; expected {describe(kind)}")
            if isinstance(node, yaml.ScalarNode) and not is_null:
                node = in_full(node, kind)
            if is_mapping(kind) and isinstance(node, yaml.MappingNode):
                return self.put_members(layer, node, key, kind)
            if is_mapping(kind) and not is_null:
                raise ValueError(f"expected {describe(kind)}, got {in_yaml(plain(node))}")
            value = leaf(kind, node, typed=bool(layer.key))
            check_form(value)
            if is_path:
                value = _at_home(value)
            OmegaConf.update(self.config, _path(key), value)
        except OmegaConfBaseException as error:
            self.fault(".".join(key), _refusal(error, kind, value), layer.source)
        except ValueError as error:
            self.fault(".".join(key), str(error), layer.source)

    def put_members(
        self, layer: Layer, node: yaml.MappingNode, key: tuple[str, ...], kind: Any
    ) -> None:
        """Set the members of a dataclass or of a named mapping."""
        is_named = get_origin(kind) is dict
        if key and OmegaConf.select(self.config, _path(key)) is None:
            OmegaConf.update(self.config, _path(key), {} if is_named else _structured(kind))
        unknown = 0
        for name_node, value in node.value:
            name = name_node.value
            hint = get_args(kind)[1] if is_named else fields_of(kind).get(name)
            if hint is None and (unknown := unknown + 1) > MOST_UNKNOWN:
                continue
            is_null = isinstance(value, yaml.ScalarNode) and plain(value) is None
            if hint is None:
                message = (
                    unknown_key(name, kind, self.kind) if len(self.bad) < 20 else "no such key"
                )
                self.fault(".".join((*key, name)), message, layer.source)
            elif is_named and is_null and without_none(hint)[1] and hint is not Any:
                entries = OmegaConf.select(self.config, _path(key))
                if name in entries:
                    entries.pop(name)
                else:
                    message = (
                        f"null removes nothing; the entries are {', '.join(entries) or 'none'}"
                    )
                    line = self.line(".".join((*key, name)), message, layer.source)
                    self.idle[line] = None
            else:
                is_path = not is_named and name in paths_of(kind)
                self.put(layer, value, (*key, name), hint, is_path)
        if unknown > MOST_UNKNOWN:
            message = f"and {unknown - MOST_UNKNOWN:,} more unknown keys"
            self.faults[self.line(".".join(key), message, layer.source)] = None

    def is_quiet(self, key: str) -> bool:
        """Return whether a base set a key that may have no effect (`quiet_in_bases`)."""
        if key not in getattr(self.kind, "quiet_in_bases", ()):
            return False
        return source_of(key, self.sources) not in (self.sources[""], COMMAND_LINE)

    def refer(self) -> None:
        """Replace references by the values that OmegaConf resolves them to, inner ones first.

        Raises:
            ExpansionFault: all together expand to too much.
        """
        tree: Any = OmegaConf.to_container(self.config, resolve=False)
        references = References(tree)
        faults = references.faults()
        for key in (*references.sizes, *faults):
            message = faults[key] if key in faults else self.resolve(key, references.texts[key])
            if message:
                self.fault(".".join(map(str, key)), message)
                self.replace(key, MISSING)

    def resolve(self, key: Key, text: str) -> str:
        """Replace a reference by its value, or explain why that is of another type."""
        kind, found = _hint_at(self.kind, key), targets(text)
        try:
            value = self.holder(key)[key[-1]]
            if not isinstance(value, float) or math.isfinite(value):
                self.replace(key, _escaped(value))
                return ""
            why = f"{value} is not a finite number"
        except OmegaConfBaseException as error:
            why = str(error).partition("\n")[0]
        if not found:  # only escaped ones
            return f"expected {describe(kind)}, got {in_yaml(text)}"
        names = found[0].key(key)
        if (
            found[0].text == text
            and names
            and not OmegaConf.is_missing(self.holder(names), names[-1])
        ):
            value = OmegaConf.select(self.config, _path(names))
            why = f"expected {describe(kind)}, got {in_yaml(value)}"
        return unfilled(found[0].text, why)

    def replace(self, key: Key, value: Any) -> None:
        """Set a value; a tuple is set as a whole, since it cannot be modified."""
        holder = self.holder(key)
        if isinstance(holder, TupleConfig):
            items: Any = OmegaConf.to_container(holder, resolve=False)
            value = [value if index == key[-1] else item for index, item in enumerate(items)]
            key = key[:-1]
        OmegaConf.update(self.config, _path(key), value)

    def holder(self, key: Key) -> Any:
        """Return the part of the config that holds the value at a key."""
        holder: Any = self.config
        for name in key[:-1]:
            holder = holder[name]
        return holder

    def complete(self, node: Any, prefix: str) -> None:
        """Let entries inherit; find missing values."""
        self.inherit(node, prefix)
        names: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
        for name in names:
            key = dotted(prefix, str(name))
            if OmegaConf.is_missing(node, name):
                if reported := self.bad.get(self.giver_of(key)):
                    self.bad.setdefault(key, reported)
                else:
                    doc = field_docs(OmegaConf.get_type(node)).get(name, "").replace("\n", " ")
                    sentence = doc.partition(". ")[0].rstrip(".")
                    self.fault(key, "must be given" + (f" ({sentence})" if doc else ""))
            elif isinstance(child := node[name], CONTAINERS):
                self.complete(child, key)

    def complete_aside(self) -> None:
        """Let what is true of an entry be true of those that are like it, and not in the config."""
        like = {
            ".".join((*aside.mapping, first)): [".".join((*aside.mapping, one)) for one in others]
            for aside in self.aside
            for first, others in aside.alike.items()
        }
        for first in like.keys() & self.givers.keys():
            self.givers.update(dict.fromkeys(like[first], self.givers[first]))
        for key, message in list(self.bad.items()):
            first = key
            while first and first not in like:
                first = first.rpartition(".")[0]
            for other in like.get(first, ()):
                below = other + key.removeprefix(first)
                if self.giver_of(below) == below:
                    self.fault(below, message)
                self.bad.setdefault(below, message)

    def inherit(self, node: Any, prefix: str) -> None:
        """Fill the fields that an entry does not set from the field that its mapping `inherits`."""
        kind = OmegaConf.get_type(node)
        for mapping, giver in getattr(kind, "inherits", {}).items():
            for name, entry in node[mapping].items():
                key = dotted(prefix, mapping, name)
                if isinstance(giver, type):
                    self.take(entry, key, node, prefix, giver)
                else:
                    self.take(entry, key, node[giver], dotted(prefix, giver))

    def take(
        self, entry: Any, key: str, giver: Any, giver_key: str, kind: type | None = None
    ) -> None:
        """Copy what an entry does not set from the giver, also within groups that it sets.

        Copies all fields that both have, or those of a dataclass that both subclass.
        """
        if not _is_group(entry) or not _is_group(giver):
            return
        fields = _shared_fields(OmegaConf.get_type(entry), kind or OmegaConf.get_type(giver))
        self.givers[key] = giver_key, fields
        for field in fields:
            own = dotted(key, field)
            with suppress(OmegaConfBaseException):  # reported at the giver's key
                if own not in self.sources:
                    given = dotted(giver_key, field)
                    if given not in self.given:
                        self.given[given] = _escaped(giver[field])
                    entry[field] = self.given[given]
                elif all(_is_group(each[field]) for each in (entry, giver)):
                    self.take(entry[field], own, giver[field], dotted(giver_key, field))

    def finish(self) -> Any:
        """Build the recipe, after the dataclasses have checked every part without errors so far."""
        recipe = None
        for prefix, sound in self.sound_parts(self.config, "", _with_prefixes(self.bad)):
            recipe = sound if not prefix else recipe
            parts = [
                part
                for key, one in self.with_aside(prefix, sound)
                for part in _dataclasses(one, key)
            ]
            givers = _givers(parts)
            for key, part in parts:
                beyond = dict(limit_faults(part))
                others = getattr(part, "faults", tuple)() if not beyond else beyond.items()
                for field, message in others:
                    self.fault(dotted(key, field), message)
                if givers and _is_within(key, givers):
                    continue  # the entries that inherit these fields report what has no effect
                for field, message in getattr(part, "idle", tuple)():
                    if not self.is_quiet(dotted(key, field)):
                        self.idle[self.line(dotted(key, field), message)] = None
        return None if self.faults else recipe

    def with_aside(self, prefix: str, sound: Any) -> Iterator[tuple[str, Any]]:
        """Yield a part of the recipe, with the entries that were set aside in it or beside it."""
        above, _, name = prefix.rpartition(".")
        for aside in self.aside:
            mapping = ".".join(aside.mapping)
            if not prefix or f"{mapping}.".startswith(f"{prefix}."):
                aside.add_to(sound, tuple(prefix.split(".")) if prefix else ())
            elif above == mapping and name in aside.alike:
                yield from ((dotted(above, one), entry) for one, entry in aside.like(name, sound))
        yield prefix, sound

    def sound_parts(
        self, node: DictConfig, prefix: str, bad: frozenset[str]
    ) -> Iterator[tuple[str, Any]]:
        """Yield the largest parts of the config without errors, as objects."""
        if prefix not in bad:
            yield prefix, OmegaConf.to_object(node)
            return
        for name in map(str, node):
            if OmegaConf.is_missing(node, name):
                continue
            if isinstance(child := node[name], DictConfig):
                yield from self.sound_parts(child, dotted(prefix, name), bad)


CONTAINERS = (DictConfig, ListConfig, TupleConfig)


@cache
def _structured(kind: type) -> DictConfig:
    """Return the config of a dataclass; copy it before use. Cached, since building it is slow."""
    return OmegaConf.structured(kind)


def _is_group(value: Any) -> bool:
    """Return whether a value of a config is a dataclass."""
    return isinstance(value, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(value))


def _at_home(value: Any) -> Any:
    """Return a path, or a list of them, with the home folder for `~`."""
    if isinstance(value, list):
        return [_at_home(inner) for inner in value]
    return at_home(value) if isinstance(value, str) else value


@cache
def _shared_fields(one: type, other: type) -> frozenset[str]:
    return frozenset(fields_of(one).keys() & fields_of(other).keys())


def _with_prefixes(keys: Iterable[str]) -> frozenset[str]:
    """Return these keys and every key above them, up to ""."""
    found: set[str] = set()
    for key in keys:
        while key not in found:
            found.add(key)
            key = key.rpartition(".")[0]
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
    elif isinstance(value, str):  # OmegaConf's own kind, which stands for the text ???
        return
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


def _hint_at(kind: Any, path: Key) -> Any:
    """Return the type of the value at a key of a schema."""
    for name in path:
        kind, _ = without_none(kind)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            kind = fields_of(kind)[str(name)]
        else:
            kind = get_args(kind)[-1 if get_origin(kind) is dict else 0] if get_args(kind) else Any
    return without_none(kind)[0]


def _path(key: Key) -> str:
    """Return a key in OmegaConf's syntax."""
    return ".".join(re.sub(r"([.\[\]=])", r"\\\1", str(name)) for name in key)


def _refusal(error: OmegaConfBaseException, kind: Any, value: Any) -> str:
    """Explain why OmegaConf rejects a value, in terms of the recipe."""
    first = str(error).partition("\n")[0]
    if isinstance(error, GrammarParseError):
        return unfilled(str(value), first)
    if "expected one of" in first:
        return first
    whole = kind is int and isinstance(value, float) and value.is_integer()
    remedy = f"; write {value:.0f}" if whole else ""
    return f"expected {describe(kind)}, got {in_yaml(value)}{remedy}"
