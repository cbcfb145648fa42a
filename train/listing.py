"""What recipes can name, and which plug-ins are there: `limner list KIND`, `limner plugins`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

from inference.runtime import run_command
from train.config import plugin_options, with_plugins

Rows = dict[str, str]
"""Name -> one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the entries of a kind; return the exit status: 0 done, 2 no such kind."""
    return run_command("list", list_kind, arguments, prints_result=True)


def list_kind(arguments: list[str]) -> int:
    """Print the usage or the entries of a kind; return the exit status."""
    from inference.runtime import output

    usage = f"usage: limner list {'|'.join(KINDS)} [plugins=[MODULE]]"
    if not arguments or arguments[0] in ("-h", "--help"):
        output(usage, is_error=not arguments)
        return 0 if arguments else 2
    named, arguments = plugin_options(arguments)
    kind, *others = arguments or [""]
    if others or kind not in KINDS:
        from difflib import get_close_matches

        near = get_close_matches(kind, KINDS, 1)
        found = f"got {others[0]!r} besides {kind}" if others else f"got {kind!r}"
        hint = f"; did you mean {near[0]}?" if near and not others else ""
        output(f"list: expected one of {', '.join(KINDS)}; {found}{hint}", is_error=True)
        return 2

    if status := with_plugins("list", named):
        return status
    rows = KINDS[kind]()
    width = max(map(len, rows))
    output("\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows.items()))
    return 0


def objectives() -> Rows:
    """Return the values of `objective.type`."""
    from train.config import OBJECTIVE_CONFIGS

    return {name: first_line(config) for name, config in OBJECTIVE_CONFIGS.items()}


def samplers() -> Rows:
    """Return the samplers, each with the schedule that `Automatic` stands for."""
    from inference.sampling import SAMPLERS

    return {
        name: f"schedule: {one.automatic}" if "pictures" in one.media else "of clips alone"
        for name, one in SAMPLERS.items()
    }


def schedules() -> Rows:
    """Return the noise schedules, each with the samplers whose `Automatic` it is."""
    from inference.sampling import SAMPLERS, schedule_types

    users: dict[str, list[str]] = {name: [] for name in schedule_types()}
    for name, sampler in SAMPLERS.items():
        if sampler.automatic != "Automatic":
            users[sampler.automatic].append(name)
    return {name: f"default of {', '.join(of)}" if of else "" for name, of in users.items()}


def optimizers() -> Rows:
    """Return the values of `optimizer.type`."""
    from train.config import OPTIMIZERS, function_of

    return {name: first_line(function_of(name, OPTIMIZERS)) for name in OPTIMIZERS}


def families() -> Rows:
    """Return the families of base models."""
    from inference.models import all_families

    return {name: title for one in all_families() for name, title in one.published.items()}


def recipes() -> Rows:
    """Return the shipped recipes, each with the first line of its comment."""
    from inference.recipe import shipped_recipes

    folder = shipped_recipes()
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    names = {path.relative_to(folder): path for path in paths}
    return {
        f"configs/{name.as_posix()}": opening(path)
        for name, path in names.items()
        if name.parts[0] not in ("accelerate", "cluster")
    }


KINDS: dict[str, Callable[[], Rows]] = {
    "objectives": objectives,
    "samplers": samplers,
    "schedules": schedules,
    "optimizers": optimizers,
    "families": families,
    "recipes": recipes,
}


def first_line(documented: object) -> str:
    """Return the first line of a docstring."""
    return (documented.__doc__ or "").strip().partition("\n")[0]


def opening(recipe: Path) -> str:
    """Return the first comment of a recipe, without the line that is for editors."""
    with recipe.open(encoding="utf-8") as file:
        comments = (line[1:].strip() for line in file if line.startswith("#"))
        return next((one for one in comments if not one.startswith("yaml-language-server:")), "")


@dataclass(frozen=True)
class Plugin:
    """A plug-in, and why it does not load (None: it loads)."""

    group: str
    name: str
    value: str
    """`module:name` or `module`."""
    distribution: str
    error: str | None


def list_plugins(arguments: Sequence[str] | None = None) -> int:
    """Print the plug-ins; return the exit status: 0 all load, 1 some do not, 2 wrong input."""
    return run_command("plugins", print_plugins, arguments, prints_result=True)


def print_plugins(arguments: list[str]) -> int:
    """Print the usage or the plug-ins; return the exit status."""
    from inference.recipe import PLUGIN_GROUPS, PLUGIN_VARIABLE
    from inference.runtime import output

    if arguments:
        asked = arguments[0] in ("-h", "--help")
        text = (
            "usage: limner plugins\nLoads the installed entry points of the groups "
            f"{', '.join(PLUGIN_GROUPS)}, and the modules that {PLUGIN_VARIABLE} names."
        )
        output(text, is_error=not asked)
        return 0 if asked else 2
    found = list(plugins())
    for one in found:
        state = one.error or "loads"
        output(f"{one.group}: {one.name} = {one.value} ({one.distribution}): {state}")
    if not found:
        output(f"no plug-ins: no entry points are installed, and {PLUGIN_VARIABLE} names none")
    return 1 if any(one.error for one in found) else 0


def plugins() -> Iterator[Plugin]:
    """Try to load every installed plug-in, and every one named in the environment."""
    from inference.recipe import (
        PLUGIN_VARIABLE,
        installed_plugins,
        loading_error,
        named_plugins,
        old_names,
        warnings_reported,
    )
    from train.config import MOVED

    with old_names(MOVED), warnings_reported("plugins"):
        for point in installed_plugins():
            where = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
            yield Plugin(point.group, point.name, point.value, where, loading_error(point))
        for value in named_plugins():
            point = EntryPoint(value, value, PLUGIN_VARIABLE)
            yield Plugin(PLUGIN_VARIABLE, value, value, "environment", loading_error(point))
