"""Micro-batches that threads prepare for a GPU: those of the plain loader, in order."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import train.data.examples.loader as module
from train.common import DataError
from train.config import DataConfig
from train.data.examples.examples import Examples
from train.data.examples.loader import AHEAD, LoaderAhead, build_loader
from train.data.examples.stream import MicroBatches
from train.data.sources.folder import find_pictures

BATCHES = MicroBatches(2, 1, 0, 1, 0, 9)


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examples:
    """Five pictures with random crops; nothing is pinned, which needs a GPU."""
    monkeypatch.setattr(module, "pinned", lambda batch: batch)
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 255, (8, 20, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    config = DataConfig(path=str(tmp_path), crop="random", flip=0.5)
    return Examples(find_pictures(config, captioned=False), config, 8, seed=5)


def test_they_are_those_of_the_plain_loader(examples: Examples) -> None:
    plain: Any = list(build_loader(examples, BATCHES))
    ahead: Any = list(LoaderAhead(examples, BATCHES))
    assert len(plain) == len(ahead) == len(LoaderAhead(examples, BATCHES)) == 9
    for one, two in zip(plain, ahead, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            other = two[name]
            assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name


def test_errors_come_in_their_place(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corrupt image is a value, as with workers; anything else is raised."""
    positions = list(BATCHES)

    def failing(chosen: list[int]) -> Any:
        if chosen == positions[3]:
            return DataError("corrupt")
        if chosen == positions[5]:
            raise OSError("gone")
        return [{"positions": position} for position in chosen]

    monkeypatch.setattr(examples, "__getitems__", failing, raising=False)
    seen = iter(LoaderAhead(examples, BATCHES))
    first: list[Any] = [next(seen) for _ in range(5)]
    assert [one["positions"] for one in first[:3]] == positions[:3]
    assert isinstance(first[3], DataError)
    with pytest.raises(OSError, match="gone"):
        next(seen)


def test_nothing_is_prepared_once_it_is_closed(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, prepared = threading.active_count(), []
    own = examples.__getitems__

    def counted(chosen: list[int]) -> Any:
        prepared.append(chosen)
        return own(chosen)

    monkeypatch.setattr(examples, "__getitems__", counted, raising=False)
    seen: Any = iter(LoaderAhead(examples, BATCHES))
    next(seen)
    seen.close()
    assert len(prepared) <= AHEAD + 1 < len(BATCHES)
    assert threading.active_count() == threads
