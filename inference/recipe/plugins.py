"""Plug-ins: code outside Limner, which is loaded only with consent.

Consent is an installed entry point, a name on the command line (`plugins=[module]`,
`optimizer.type=module:Class`), or the environment variable LIMNER_PLUGINS. A recipe gives none, and
neither does the recipe of a run folder: both are files that may come from somebody else.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from inference.recipe.layers import Layer, RecipeError, RecipeWarning, merged, override_layers
from inference.recipe.yaml_nodes import cut, plain
from inference.runtime import InputError, output

PLUGIN_GROUPS = (
    "limner.objectives",
    "limner.model_families",
    "limner.adapters",
    "limner.samplers",
    "limner.optimizers",
)
"""Groups of entry points that Limner's plug-ins are installed in."""

DRAWING_GROUPS = ("limner.model_families", "limner.adapters", "limner.samplers")
"""Those that drawing needs."""

PLUGIN_VARIABLE = "LIMNER_PLUGINS"
"""Environment variable with modules, or `module:name`, separated by commas or spaces."""

OURS = ("inference", "train", "torch.optim")
"""Modules that need no consent: Limner's own, and torch's optimizers and schedulers."""

MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
OBJECT = re.compile(rf"(?P<module>{MODULE.pattern}):[^\W\d]\w*")
"""`module:name`, as `optimizer.type` may be."""

Moved = Mapping[str, Mapping[str, str]]
"""Old module -> its names -> `module:name` of where each is now."""

_consented: set[str] = set()
"""Modules that the command lines of this process have named."""
_loaded: set[str] = set()
"""Entry points that this process has tried to load."""
_announced: set[str] = set()
"""Modules of which this process has printed that they were loaded."""


def consent_to(overrides: Sequence[Layer]) -> None:
    """Note the modules that a command line names as plug-ins or in a `type: module:Class`."""
    for layer in overrides:
        untyped = plain(layer.node)
        _consented.update(_modules_in(untyped))
        _consented.update(module for _, module in _types_in(untyped))


def load_consented(options: Sequence[str], moved: Moved | None = None) -> None:
    """Load the plug-ins of options `plugins=[...]`, the installed ones, and the environment's.

    Raises:
        InputError: a plug-in is not found, or an option is no list of modules.
    """
    faults: list[str] = []
    layers = override_layers(options, faults)
    for layer in layers:
        if layer.problem is not None or not isinstance(plain(layer.node)["plugins"], list):
            faults.append(f"plugins: expected a list ([a, b]), got {cut(repr(layer.text))}")
    if faults:
        raise RecipeError.of(faults)
    consent_to(layers)
    load_plugins(merged(layers), moved=moved)


def load_plugins(
    untyped: Mapping[str, Any],
    groups: Sequence[str] = PLUGIN_GROUPS,
    moved: Moved | None = None,
) -> None:
    """Import the plug-ins that are installed, in the environment, or named by a recipe.

    An installed one that does not load is a warning: the recipe may not need it.

    Args:
        untyped: what the recipe's files and the command line say together.
        groups: of entry points.
        moved: names of older versions, which a plug-in still finds.

    Raises:
        InputError: one that is named is not found, or the recipe names some without consent.
    """
    _refuse_without_consent(untyped)
    with old_names(moved or {}):
        for point in installed_plugins(groups):
            key = f"{point.group}:{point.name}={point.value}"
            if key not in _loaded and (error := loading_error(point)):
                text = f"plug-in {point.name} ({point.group}) does not load: {error}"
                warnings.warn(text, RecipeWarning, stacklevel=2)
            elif key not in _loaded:
                _announce(point.name, point.module, f"installed, {point.group}")
            _loaded.add(key)
        for name in named_plugins():
            _import(name, PLUGIN_VARIABLE)
        for name in _modules_in(untyped):
            _import(name, "plugins")


def _announce(name: str, module: str, why: str) -> None:
    """Print once which code outside Limner was loaded, from where, and by whose consent."""
    if module in _announced or os.environ.get("RANK", "0") != "0":
        return
    _announced.add(module)
    file = getattr(sys.modules.get(module), "__file__", None)
    output(f"plug-in {name} loaded from {file or 'memory'} ({why})", is_error=True)


def installed_plugins(groups: Sequence[str] = PLUGIN_GROUPS) -> list[EntryPoint]:
    """Return the installed entry points of groups, in order."""
    found = entry_points()  # once, since it looks through all installed packages
    return [
        point
        for group in groups
        for point in sorted(found.select(group=group), key=lambda point: point.name)
    ]


def named_plugins() -> list[str]:
    """Return what LIMNER_PLUGINS names."""
    return [name for name in re.split(r"[,\s]+", os.environ.get(PLUGIN_VARIABLE, "")) if name]


def loading_error(point: EntryPoint) -> str | None:
    """Load an entry point; return what went wrong, whatever it is."""
    if not point.pattern.match(point.value):
        return f"{point.value!r} is not of the form module or module:name"
    try:
        point.load()
    except (Exception, SystemExit) as error:
        return _explain(error)
    return None


def resolve(name: str, moved: Moved | None = None) -> Any:
    """Return the object that `module:name` means.

    Raises:
        InputError: it is not of this form, its module may not be loaded, or it is not found.
    """
    match = OBJECT.fullmatch(name)
    if match is None:
        raise InputError(f"{cut(repr(name))} is not of the form module:name")
    if not _is_allowed(match["module"]):
        raise InputError(_remedy([match["module"]], []))
    try:
        with old_names(moved or {}):
            found = pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:
        raise InputError(f"{name!r} cannot be loaded: {_explain(error)}") from error
    if not _is_below(match["module"], {*OURS}):
        _announce(match["module"], match["module"], "named by type")
    return found


def _import(name: str, key: str) -> None:
    """Import a plug-in that is named, maybe a file of the working folder; `key` says where.

    Raises:
        RecipeError: it cannot be imported.
    """
    point = EntryPoint(name, name, key)
    if not point.pattern.match(name):
        raise _said(key, f"{cut(repr(name))} is no name of a module")
    if not {"", here := str(Path.cwd())} & set(sys.path):  # as of `python -m`, also for `limner`
        sys.path.append(here)
    try:
        point.load()
    except (Exception, SystemExit) as error:
        why = str(error) if isinstance(error, ImportError) else _explain(error)
        raise _said(key, f"{name!r} cannot be imported: {why}") from error
    _announce(name, point.module, "named by " + (key if key == PLUGIN_VARIABLE else f"{key}=[…]"))


def _said(key: str, message: str) -> InputError:
    """Return the error of a plug-in, which a recipe or else the environment has named."""
    return (InputError if key == PLUGIN_VARIABLE else RecipeError)(f"{key}: {message}")


def _refuse_without_consent(untyped: Mapping[str, Any]) -> None:
    """Refuse a recipe that names code outside Limner which nobody has consented to.

    Raises:
        RecipeError: that, with the option that gives consent.
    """
    plugins = _modules_in(untyped)
    for name in plugins:
        if not MODULE.fullmatch(name):
            raise RecipeError(f"plugins: {cut(repr(name))} is no name of a module")
    found = [("plugins", name) for name in plugins] + list(_types_in(untyped))
    refused = [(key, module) for key, module in found if not _is_allowed(module)]
    if refused:
        missing = list(dict.fromkeys(module for _, module in refused))
        raise RecipeError(f"{refused[0][0]}: {_remedy(missing, plugins)}")


def _remedy(missing: Sequence[str], plugins: Sequence[str]) -> str:
    """Return the message for modules without consent, and how to give it."""
    listed = ", ".join(dict.fromkeys([*plugins, *missing]))
    variable = ",".join([*named_plugins(), *missing])
    return (
        f"{', '.join(missing)}: code outside Limner is not loaded because a recipe names it; if "
        f"you trust it, add plugins=[{listed}] to the command line, or set "
        f"{PLUGIN_VARIABLE}={variable}"
    )


def _is_allowed(module: str) -> bool:
    """Return whether a module, or a package above it, is ours or has been consented to."""
    known = {*OURS, *_consented}
    known |= {name.partition(":")[0] for name in named_plugins()}
    if _is_below(module, known):
        return True
    return _is_below(module, {point.module for point in installed_plugins()})


def _is_below(module: str, known: set[str]) -> bool:
    names = module.split(".")
    return any(".".join(names[:count]) in known for count in range(1, len(names) + 1))


def _modules_in(untyped: Mapping[str, Any]) -> list[str]:
    """Return the plug-ins that a recipe names; none where it has no list of them."""
    names = untyped.get("plugins")
    return [str(name) for name in names] if isinstance(names, list) else []


def _types_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and the module of every `type: module:Class`."""
    members = value.items() if isinstance(value, dict) else ()
    for name, inner in members:
        inner_key = f"{key}.{name}" if key else str(name)
        if name == "type" and isinstance(inner, str) and (match := OBJECT.fullmatch(inner)):
            yield inner_key, match["module"]
        yield from _types_in(inner, inner_key)


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# Names of older versions


@contextmanager
def old_names(moved: Moved) -> Iterator[None]:
    """Let imports find modules of older versions under their old names, for a while."""
    finder = _MovedFinder(moved)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.found:
            module = sys.modules.pop(name, None)
            parent, _, child = name.rpartition(".")
            if module is not None and vars(sys.modules.get(parent, module)).get(child) is module:
                delattr(sys.modules[parent], child)


class _MovedFinder(MetaPathFinder, Loader):
    """Finds modules that are no more, whose names are elsewhere now."""

    def __init__(self, moved: Moved) -> None:
        self.moved = moved
        self.found: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that has moved."""
        is_package = any(name.startswith(f"{fullname}.") for name in self.moved)
        if fullname not in self.moved and not is_package:
            return None
        return ModuleSpec(fullname, self, is_package=is_package)

    def exec_module(self, module: types.ModuleType) -> None:
        """Let the module find its names where they are now."""
        self.found.append(module.__name__)
        names = self.moved.get(module.__name__, {})
        setattr(module, "__getattr__", _finder_of(module.__name__, names))  # noqa: B010


def _finder_of(old: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module that has moved."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        place = names[name]
        module, _, new = place.partition(":")
        text = f"a plug-in imports {name} from {old}, which has moved: from {module} import {new}"
        warnings.warn(text, RecipeWarning, stacklevel=3)
        return getattr(importlib.import_module(module), new)

    return find
