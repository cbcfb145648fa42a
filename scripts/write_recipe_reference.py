"""Writes docs/recipes.md, the reference of every recipe key, out of the field docstrings.

    python -m scripts.write_recipe_reference

And docs/schema/, the same as JSON Schemas for editors. A test compares the files with what this
module gives, so they cannot part.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import MISSING

from inference.config import DRAWING_RECIPES
from inference.recipe import field_docs, fields_of, without_none
from train.config import ObjectiveConfig, TrainRecipe, choices, schema_text

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = DOCS / "recipes.md"
SCHEMAS = {name: DOCS / "schema" / f"{name}.schema.json" for name in ("train", "draw")}

INTRODUCTION = """\
# Recipes: every key

*Written by `python -m scripts.write_recipe_reference` out of the docstrings in `train/config.py`
and `inference/config.py`. Change them there.*

A recipe is a YAML file. `python -m train RECIPE [key=value ...]` trains it,
`python -m inference RECIPE [key=value ...]` draws it. A key that does not exist, a value of the
wrong type and a combination that cannot be are refused before anything is loaded; a key without
effect is warned about.

- **`base:`** names a recipe, or a list of recipes, that this one is based on, relative to the file
  that names it. What wins over what: bases in their order, then the file, then `key=value` on the
  command line. Mappings are merged key by key; lists are replaced whole; an `objective` of another
  `type` takes nothing from that of the base.
- **On the command line** a key is written with dots: `optimizer.learning_rate=1e-4`. Its value is
  YAML; for a field that is text it is taken as it is typed.
- **Named mappings**, whose keys below are written `<name>`, have entries of your choice, and
  `<name>: null` drops one that a base has given.
- **`${optimizer.learning_rate}`** stands for another value of the recipe, `${.rank}` for one beside
  it. Text that shall contain `${` is written `\\${`.
- **Quotes.** YAML reads `no`, `on` and `12:30` as something else than text, and takes `: `, `#`,
  `[`, `{` and some more for its own signs. Put prompts in quotes, or below `>-`:

  ```yaml
  sampling:
    images:
      portrait:
        prompt: >-
          (a cat:1.2), [red:blue:0.5] background
  ```
"""


def main() -> None:
    """Writes the files."""
    texts = {REFERENCE: reference()}
    texts |= {path: schema_text(name) for name, path in SCHEMAS.items()}
    for path, text in texts.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)


def reference() -> str:
    """The whole text of docs/recipes.md."""
    written: dict[type, str] = {}
    blocks = [INTRODUCTION, "## Training: `python -m train`"]
    blocks += sections(TrainRecipe, "", written)
    for name, config in DRAWING_RECIPES.items():
        blocks.append(f"## Drawing: `python -m inference`, `type: {name}`")
        blocks += sections(config, "", written)
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def sections(
    kind: type, key: str, written: dict[type, str], given: str = "", giver: type | None = None
) -> Iterator[str]:
    """A dataclass as Markdown blocks: what it is, its own keys, then what lies below it.

    A class in `written` (class -> key) has had its table before; `given` is the class's neighbour
    from which its entries take what they do not say themselves: if that is the mapping's owner,
    the fields of `giver`.
    """
    yield (kind.__doc__ or "").strip()
    if kind in written:
        yield f"Its keys are those of `{written[kind]}` above."
        return
    written[kind] = key
    shared = next((names for names in written if written[names] == given), None) if given else None
    inherited = set(fields_of(giver or shared)) if shared else set()
    docs = {"type": "What this mapping is."} | field_docs(kind)
    lines = ["key | value | default | meaning", "--- | --- | --- | ---"]
    below: list[tuple[type, str, str, type | None]] = []
    for name, hint in fields_of(kind).items():
        path = f"{key}.{name}".lstrip(".")
        inner, path = entry_kind(hint, path)
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            if giver is None or name not in inherited:
                below.append((inner, path, *neighbour(kind, key, name)))
            docs = {name: (inner.__doc__ or "").strip().partition("\n")[0]} | docs
        if name not in inherited:
            cells = f"`{name}`", type_words(hint), default(kind, name), " ".join(docs[name].split())
            lines.append(" | ".join(cell.replace("|", "\\|") for cell in cells))
    yield "\n".join(f"| {line} |" for line in lines)
    if inherited:
        keys = ", ".join(f"`{name}`" for name in fields_of(giver)) if giver else "every key"
        yield f"And {keys} of `{given}`, which gives what is not said here."
    for inner, path, place, owner in below:
        for choice in choices(inner, kind):
            word = f" of `type: {choice.type}`" if issubclass(choice, ObjectiveConfig) else ""
            yield f"### `{path}`{word}"
            yield from sections(choice, path, written, place, owner)


def neighbour(kind: type, key: str, mapping: str) -> tuple[str, type | None]:
    """Where the entries of a mapping take from what they do not say; see `sections`."""
    giver = getattr(kind, "inherits", {}).get(mapping, "")
    if isinstance(giver, type):
        return key, giver
    return (f"{key}.{giver}".lstrip("."), None) if giver else ("", None)


def entry_kind(hint: Any, path: str) -> tuple[Any, str]:
    """The type a field is about, and the path to it: of a named mapping, those of its entries."""
    kind, _ = without_none(hint)
    if get_origin(kind) is not dict:
        return kind, path
    return without_none(get_args(kind)[1])[0], f"{path}.<name>"


def type_words(hint: Any) -> str:
    """A type in few words."""
    if hint is Any:
        return "any value"
    kind, is_optional = without_none(hint)
    origin, arguments = get_origin(kind), get_args(kind)
    words = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
    if origin is Literal:
        text = ", ".join(f"`{choice}`" for choice in arguments)
    elif origin is Union:
        text = " or ".join(map(type_words, arguments))
    elif origin is dict:
        return f"names, each: {type_words(without_none(arguments[1])[0])}"
    elif origin is tuple and ... not in arguments:
        text = f"list of {len(arguments)}: {type_words(arguments[0])}"
    elif origin in (list, tuple):
        text = f"list: {type_words(arguments[0])}"
    else:
        text = words.get(kind, "mapping, see below")
    return f"{text} or `null`" if is_optional else text


def default(kind: type, name: str) -> str:
    """What a field is when nothing is said, as a recipe has it."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "**must be given**"
    if value == MISSING:
        return "**must be given**"
    if dataclasses.is_dataclass(value):
        return ""
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value not in ("", {}) else {"": "empty"}.get(str(value), "none")


if __name__ == "__main__":
    main()
