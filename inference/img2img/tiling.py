"""Tiling: pictures whose left meets their right, and whose top meets their bottom.

As A1111 1.10.1 (`modules/sd_hijack.py`, `apply_circular`): every convolution of UNet and VAE looks
around the border to the other side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

PADDING_MODE, PAD_WIDTHS = "padding_mode", "_reversed_padding_repeated_twice"
CHANGED = (PADDING_MODE, PAD_WIDTHS)


@contextmanager
def circular_padding(modules: Iterable[nn.Module]) -> Iterator[None]:
    """All convolutions within these modules wrap around; afterwards they are as before.

    What is hung into the modules counts, such as LoRAs of convolutions; what is attached later does
    not. Not for several threads drawing with the same modules at once.

    Args:
        modules: the UNet and the VAE. Their pictures should be at least as large as the widest
            padding.
    """
    before: list[tuple[nn.Conv2d, dict[str, object]]] = []
    try:
        for convolution in _padded_convolutions(modules):
            before.append((convolution, {name: vars(convolution)[name] for name in CHANGED}))
            setattr(convolution, PADDING_MODE, "circular")
            setattr(convolution, PAD_WIDTHS, _pad_widths(convolution))
        yield
    finally:
        for convolution, values in before:
            vars(convolution).update(values)


def _padded_convolutions(modules: Iterable[nn.Module]) -> list[nn.Conv2d]:
    """Each once, also if it is shared. Those without padding see no border."""
    found: dict[int, nn.Conv2d] = {}
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Conv2d) and any(_pad_widths(part)):
                found[id(part)] = part
    return list(found.values())


def _pad_widths(convolution: nn.Conv2d) -> list[int]:
    """Left, right, top, bottom, as torch's `pad` wants them.

    Torch computes them when a convolution is made; a padding that was set later (`artifacts.
    low_rank`) needs them anew.
    """
    if isinstance(convolution.padding, str):  # "same" and "valid" cannot be set later
        return list(vars(convolution)[PAD_WIDTHS])
    vertical, horizontal = convolution.padding
    return [horizontal, horizontal, vertical, vertical]
