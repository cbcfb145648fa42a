"""Subsets in a plan: how often each comes, counted in the stream that trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from train.data.examples import Examples
from train.data.sources import Sources


@dataclass(frozen=True)
class SubsetPlan:
    """A subset's part of an epoch."""

    name: str
    pictures: int
    """Those that are learned, without what validation holds back."""
    repeats: int
    is_reg: bool
    """Its pictures come along with those of others; their epoch is that of class pictures."""
    loss_weight: float
    examples: int
    """In an epoch, those included that fill up micro-batches."""
    share: float
    """Of the epoch's examples, or of its class pictures."""


def plan_subsets(sources: Sources, examples: Examples) -> list[SubsetPlan]:
    """A line for each subset; none where the recipe has none.

    Args:
        sources: what the run learns from.
        examples: of the first stage, with its class pictures.
    """
    if not sources.subsets:
        return []
    stream = examples.stream
    own = _count(examples, range(len(stream)))
    places = len(examples.slots) - stream.num_pictures
    of_classes = _count(examples, range(-1, -places - 1, -1))
    pictures = Counter(picture.subset for picture in examples.pictures)
    found = []
    for subset in sources.subsets:
        config = subset.config
        counts = of_classes if config.is_reg else own
        count = counts[subset.name]
        found.append(
            SubsetPlan(
                name=subset.name,
                pictures=pictures[subset.name],
                repeats=config.repeats,
                is_reg=config.is_reg,
                loss_weight=config.loss_weight,
                examples=count,
                share=round(count / max(1, counts.total()), 4),
            )
        )
    return found


def _count(examples: Examples, positions: Iterable[int]) -> Counter[str]:
    """How many examples of each subset stand at these positions."""
    indices = (int(examples.slots[examples.place(position)[1]]) for position in positions)
    return Counter(examples.subset(index).name for index in indices)
