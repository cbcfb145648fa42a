"""Files of other programs that a recipe takes in, as if it were based on them."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from inference.recipe.layers import Layer, absolute, shown
from inference.recipe.yaml_nodes import MAPPING_TAG, RecipeDumper, plain
from inference.runtime import InputError


@dataclass
class Imported:
    """What a file says, as keys of a recipe."""

    mapping: dict[str, Any]
    told: list[str] = field(default_factory=list)
    """What of it has no effect here, a line each."""


Reader = Callable[[str], Imported]
"""Takes what a recipe says and gives what stands in its place.

Raises:
    InputError: the file cannot be used, in one line for each fault.
"""


def take_in(
    layers: Sequence[Layer],
    readers: Mapping[str, Reader],
    escaped: Callable[[Any], Any],
    faults: list[str],
) -> tuple[list[Layer], list[str]]:
    """Puts what files say in the place of the keys that name them.

    Args:
        layers: of a recipe; the last of those that name a file decides, and what the file says
            stands before it, as the recipe's bases do.
        readers: by the dotted key that names the file.
        escaped: makes text that is text for OmegaConf too.
        faults: gets what is wrong.

    Returns:
        The layers, without these keys; and what has no effect, in words.
    """
    kept, told = list(layers), []
    for key, read in readers.items():
        names = tuple(key.split("."))
        places = [place for place, layer in enumerate(kept) if _value(layer, names) is not None]
        if not places:
            continue
        node = _value(kept[places[-1]], names)
        assert node is not None
        value = kept[places[-1]].text if kept[places[-1]].key == names else plain(node)
        if not isinstance(value, str) or not value or plain(node) is None:
            continue  # the schema says what is wrong with it
        try:
            found = read(value)
        except InputError as error:
            faults += [
                f"{kept[places[-1]].source}: {key}: {line}" for line in str(error).split("\n")
            ]
            continue
        told += [f"{value}: {line}" for line in found.told]
        for place in places:
            kept[place] = replace(kept[place], node=_without(kept[place].node, names))
        content = RecipeDumper(io.StringIO(), sort_keys=False).represent_data(
            escaped(found.mapping)
        )
        assert isinstance(content, yaml.MappingNode)
        kept.insert(places[-1], Layer(shown(absolute(Path(value))), content))
    return kept, told


def _value(layer: Layer, names: Sequence[str]) -> yaml.Node | None:
    """What a layer says of a key; None where it says nothing."""
    node: yaml.Node | None = layer.node
    for name in names:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for key, value in node.value if key.value == name), None)
    return node


def _without(node: yaml.MappingNode, names: Sequence[str]) -> yaml.MappingNode:
    """A mapping without one of its keys. The node itself stays: it may be used elsewhere too."""
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
