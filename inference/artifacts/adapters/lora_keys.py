"""The names of LoRA layers in files, by the layouts of the model families."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from inference.models import LoraLayout, ModelFamily, all_families
from inference.runtime import ArtifactError


def begin_of(name: str) -> tuple[str, ModelFamily] | None:
    """Return the longest known prefix of a kohya name and its owner; None if none is known.

    Of equally long ones the family that was registered last wins.
    """
    known = [
        (begin, family)
        for family in all_families()
        for begin in family.lora_layouts[0].begins
        if name.startswith(begin)
    ]
    return max(reversed(known), key=lambda one: len(one[0]), default=None)


def family_of_names(names: Collection[str]) -> ModelFamily:
    """Return the family that kohya's names belong to; the first family if they match none.

    Files with a part of a denoiser belong to the family of that part.
    """
    found = [one for name in names if (one := begin_of(name))]
    return max(found, key=lambda one: len(one[0]))[1] if found else all_families()[0]


def part_of(name: str) -> str:
    """Return the part of the base model that a kohya name belongs to, in the diffusers layout."""
    found = begin_of(name)
    return found[1].lora_layouts[0].begins[found[0]] if found else ""


def layout_of(part: str, preferred: LoraLayout | None = None) -> LoraLayout:
    """Return `preferred` if it has names for layers of a part, else the first such layout.

    Raises:
        ArtifactError: no family has such a part.
    """
    layouts = [layout for family in all_families() for layout in family.lora_layouts]
    for layout in (preferred, *layouts):
        if layout is not None and part in layout.prefixes:
            return layout
    raise ArtifactError(f"{part}: no part of a base model that a LoRA is known for")


def layers_of(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return path and module of every linear and convolution layer, in the model's order.

    Where a LoRA is injected, this is the original layer.
    """
    waiting: list[tuple[str, nn.Module]] = [("", part)]
    seen: set[nn.Module] = set()
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield path.removesuffix(".base_layer"), module
        inner = [
            (f"{path}.{name}" if path else name, child)
            for name, child in module.named_children()
            if not name.startswith("lora_")  # of hundreds of LoRAs, maybe
        ]
        waiting += reversed(inner)


def kohya_name(part: str, path: str, layout: LoraLayout | None = None) -> str:
    """Return a layer's name in kohya's files, e.g. `lora_unet_mid_block_attentions_0_…`.

    Args:
        part: `unet`, `transformer`, `text_encoder` or `text_encoder_2`.
        path: the module's path within the part, as in diffusers and transformers.
        layout: the layout of the file; None is the first one with such a part.
    """
    return layout_of(part, layout).kohya_name(part, path)


def known_names(part: str, path: str) -> list[str]:
    """Return every name that some tool's file may have for a layer of a base model."""
    return layout_of(part).known_names(part, path)


def diffusers_path(name: str) -> tuple[str, str]:
    """Return part and path of the layer that a kohya name denotes.

    Raises:
        ArtifactError: the name is not understood.
    """
    found = begin_of(name)
    if found is None:
        raise ArtifactError(f"{name}: not a layer's name as kohya writes it")
    begin, family = found
    layout = family.lora_layouts[0]
    part = layout.begins[begin]
    return part, layout.diffusers_path(part, name.removeprefix(begin), name)
