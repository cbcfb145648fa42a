"""What runs leave, and whether that of two is the same."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from train.common.randomness import derive_seed, generator
from train.config.recipe import TrainRecipe
from train.data.examples.examples import Examples
from train.run_data import Data
from train.stages import Stage


def contents(run: Path) -> dict[str, str]:
    """Hashes of everything that a run leaves to use: artifacts and grids."""
    files = [file for name in ("artifacts", "samples") for file in (run / name).rglob("*")]
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.is_file()
    }


@dataclass(frozen=True)
class Straight:
    """What a run leaves that was never stopped."""

    overrides: list[str]
    contents: dict[str, str]


def check_the_same(run: Path, straight: Straight) -> None:
    found = contents(run)
    assert found.keys() == straight.contents.keys()
    assert [name for name in found if found[name] != straight.contents[name]] == []
    assert not [path for path in run.rglob(".*") if path.name != ".last"]


def weights(run: Path, step: int = 4) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    files = ("trained.safetensors", "ema.safetensors")
    return {f"{name}: {k}": v for name in files for k, v in load_file(folder / name).items()}


def largest_difference(one: Path, two: Path) -> float:
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    return max(float((value - theirs[name]).abs().max()) for name, value in ours.items())


def succeed(ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank.status == 0, rank.err


def validation_noise(numbers: list[int], timestep: int, like: torch.Tensor) -> torch.Tensor:
    """The noise of validation with seed 0, of examples with these numbers; shaped as `like`."""
    seeds = [derive_seed(0, "validation", one, timestep) for one in numbers]
    sources = [generator(0, "noise", seed) for seed in seeds]
    return torch.stack([torch.randn(like.shape[1:], generator=source) for source in sources])


def watched(watch: Callable[[Any, Stage, Examples], object]) -> Callable[[TrainRecipe], Data]:
    """Data of which `watch` sees every micro-batch with its stage, before it is learned from."""

    class WatchedData(Data):
        def batches(
            self, examples: Examples, stage: Stage, step: int, share: tuple[int, int]
        ) -> Iterator[Any]:
            for batch in super().batches(examples, stage, step, share):
                watch(batch, stage, examples)
                yield batch

    return WatchedData
