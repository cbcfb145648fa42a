"""Weights of tokens put into effect on what a text encoder makes of them."""

from __future__ import annotations

import torch
from torch import Tensor


def emphasise(states: Tensor, weights: Tensor, counts: Tensor, emphasis: str) -> Tensor:
    """One chunk of the texts of one prompt, weighted as in A1111 1.10.1 (`modules/sd_emphasis.py`).

    `Original` multiplies each token's state by its weight, and then all of them by the one number
    that brings their mean back to what it was; the mean goes over all texts together. `No norm`
    leaves that out. In fp32, given back in the states' own format.

    Args:
        states: (texts, tokens, dim).
        weights: (texts, tokens).
        counts: how often each text counts in the mean, (texts,).
        emphasis: one of `EMPHASIS_MODES`; the last two change nothing.
    """
    if emphasis not in ("Original", "No norm") or bool((weights == 1).all()):
        return states
    weighted = states.float() * weights[:, :, None]
    if emphasis == "Original":
        weighted = weighted * (mean(states.float(), counts) / mean(weighted, counts))
    return weighted.to(states.dtype)


def mean(states: Tensor, counts: Tensor) -> Tensor:
    """The mean of states (texts, tokens, dim), each text taken so many times."""
    return torch.sum(states.mean((1, 2)) * counts) / counts.sum()
