"""Files of other programs that a recipe imports, as if it were based on them."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from inference.recipe.layers import Layer, absolute, at_home, shown
from inference.recipe.yaml_nodes import MAPPING_TAG, RecipeDumper, plain
from inference.runtime import InputError, check_readable


@dataclass
class Imported:
    """The content of an imported file, as keys of a recipe."""

    mapping: dict[str, Any]
    unused: list[str] = field(default_factory=list)
    """What of it has no effect here, a line each."""


Reader = Callable[[str], Imported]
"""Reads the file that a recipe names, and returns the keys that replace the reference.

Raises:
    InputError: the file cannot be used; one line per error."""


def take_in(
    layers: Sequence[Layer],
    readers: Mapping[str, Reader],
    escaped: Callable[[Any], Any],
    faults: list[str],
) -> tuple[list[Layer], list[str]]:
    """Replace the keys that name imported files by the content of those files.

    Args:
        layers: layers of a recipe. The last one that names a file wins; the file's content is
            inserted before it, like a base of the recipe.
        readers: reader of each dotted key that names a file.
        escaped: escapes text so that OmegaConf takes it literally.
        faults: list that errors are appended to.

    Returns:
        The layers without these keys, and the messages about content without effect.
    """
    kept, unused = list(layers), []
    for key, read in readers.items():
        names = tuple(key.split("."))
        places = [place for place, layer in enumerate(kept) if _value(layer, names) is not None]
        if not places:
            continue
        node = _value(kept[places[-1]], names)
        assert node is not None
        value = kept[places[-1]].text if kept[places[-1]].key == names else plain(node)
        if not isinstance(value, str) or not value or plain(node) is None:
            continue  # the schema reports the error
        try:
            value = at_home(value)
            check_readable(value)
            found = read(value)
        except InputError as error:
            faults += [
                f"{kept[places[-1]].source}: {key}: {line}" for line in str(error).split("\n")
            ]
            continue
        unused += [f"{value}: {line}" for line in found.unused]
        for place in places:
            kept[place] = replace(kept[place], node=_without(kept[place].node, names))
        content = RecipeDumper(io.StringIO(), sort_keys=False).represent_data(
            escaped(found.mapping)
        )
        assert isinstance(content, yaml.MappingNode)
        kept.insert(places[-1], Layer(shown(absolute(Path(value))), content))
    return kept, unused


def _value(layer: Layer, names: Sequence[str]) -> yaml.Node | None:
    """Return the node of a key in a layer; None if the layer does not set it."""
    node: yaml.Node | None = layer.node
    for name in names:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for key, value in node.value if key.value == name), None)
    return node


def _without(node: yaml.MappingNode, names: Sequence[str]) -> yaml.MappingNode:
    """Return a mapping without one of its keys. The node is not modified: others may use it."""
    first, *rest = names
    entries = []
    for key, value in node.value:
        if key.value != first:
            entries.append((key, value))
        elif rest and isinstance(value, yaml.MappingNode):
            entries.append((key, _without(value, rest)))
        elif rest:
            entries.append((key, value))
    return yaml.MappingNode(MAPPING_TAG, entries, node.start_mark, node.end_mark)
