"""Options of a function or class that a recipe names, checked against its signature."""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from inference.recipe.schema import PLAIN_NUMBER, in_yaml

LISTS = (list, tuple, Sequence, Iterable, Collection)
SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def option_faults(
    function: Callable[..., Any], options: Mapping[str, Any], given: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield every option that a function does not take, with what is wrong.

    Args:
        function: the function or class that gets the options.
        options: as the recipe has them.
        given: parameters that the recipe does not set: its caller does.
    """
    parameters = _parameters(function)
    names = [name for name in parameters if name not in given]
    for name, value in options.items():
        if name in names:
            if _fitted(value, parameters[name][0]) is _UNFIT:
                what = describe_hint(parameters[name][0])
                yield name, f"expected {what}, got {in_yaml(value)}"
            continue
        near = difflib.get_close_matches(name, names, 1)
        if near or not _takes_any(function):
            hint = f"did you mean {near[0]}?" if near else f"its options are {_listed(names)}"
            yield name, f"{_name_of(function)} takes no such option; {hint}"
    for name in names:
        if parameters[name][1] and name not in options:
            yield name, f"must be given: {_name_of(function)} has no default for it"


def typed_options(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return sound options as the function's parameters want them: tuples, numbers."""
    parameters = _parameters(function)
    unknown = (Any, False)
    fitted = {name: _fitted(options[name], parameters.get(name, unknown)[0]) for name in options}
    return {name: options[name] if value is _UNFIT else value for name, value in fitted.items()}


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of this name."""
    return name in _parameters(function)


def describe_hint(hint: Any) -> str:
    """Return a type in the words of someone who writes a recipe."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        known = [describe_hint(one) for one in arguments if _is_writable(one)]
        return " or ".join(dict.fromkeys(known)) or "nothing that a recipe can hold"
    if origin is Literal:
        return f"one of {list(arguments)}"
    if hint is None or hint is types.NoneType:
        return "null"
    if (origin or hint) in LISTS:
        return f"a list of {describe_hint(arguments[0])}" if arguments else "a list"
    return SCALARS.get(hint, str(getattr(hint, "__name__", hint)))


_UNFIT = object()
"""No value: what a recipe has does not fit."""


def _parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """Return the type of each parameter that has a name, and whether it must be given."""
    try:
        called = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
        hints = get_type_hints(called)
    except (NameError, TypeError):  # names that are imported for type checkers only
        hints = {}
    found: dict[str, tuple[Any, bool]] = {}
    for name, one in inspect.signature(function).parameters.items():
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY):
            continue
        has_default = one.default is not one.empty
        guess = type(one.default) if has_default and one.default is not None else Any
        guess = guess if guess in (*SCALARS, list, tuple) else Any
        found[name] = hints.get(name, float if guess is int else guess), not has_default
    return found


def _name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, and of a method that makes objects that of its class."""
    return getattr(function, "__self__", function).__name__


def _takes_any(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(one.kind is one.VAR_KEYWORD for one in parameters)


def _is_writable(hint: Any) -> bool:
    """Return whether a recipe can hold values of a type."""
    origin = get_origin(hint) or hint
    return origin in (*SCALARS, *LISTS, Literal, Union, types.UnionType, types.NoneType, None, Any)


def _fitted(value: Any, hint: Any) -> Any:
    """Return a recipe's value as one of a type; `_UNFIT` if it is none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        fits = [found for one in arguments if (found := _fitted(value, one)) is not _UNFIT]
        exact = [found for found in fits if type(found) is type(value)]
        return (exact or fits or [_UNFIT])[0]
    if origin is Literal:
        return value if value in arguments else _UNFIT
    if hint is Any or isinstance(hint, str):
        return value
    if hint is None or hint is types.NoneType:
        return value if value is None else _UNFIT
    if (origin or hint) in LISTS:
        return _fitted_list(value, origin or hint, arguments)
    return _fitted_scalar(value, hint)


def _fitted_scalar(value: Any, hint: Any) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str) and PLAIN_NUMBER.fullmatch(value):
        return float(value)  # YAML reads 1e-3 as text
    if hint in SCALARS:
        return value if type(value) is hint else _UNFIT
    return _UNFIT if _is_class(hint) else value


def _is_class(hint: Any) -> bool:
    """Return whether a type is a class, of which YAML holds no instances."""
    return isinstance(hint, type)


def _fitted_list(value: Any, kind: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        return _UNFIT
    hints = [one for one in arguments if one is not ...]
    is_fixed = kind is tuple and hints and ... not in arguments
    if is_fixed and len(hints) != len(value):
        return _UNFIT
    hints = hints if is_fixed else [hints[0] if hints else Any] * len(value)
    inner = [_fitted(one, hint) for one, hint in zip(value, hints, strict=True)]
    if any(one is _UNFIT for one in inner):
        return _UNFIT
    return tuple(inner) if kind is tuple else inner


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
