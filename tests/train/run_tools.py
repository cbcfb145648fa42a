"""What runs leave, and whether that of two is the same."""

import hashlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inference.parallel import Layout
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


def straight_runs(
    commands: Any, options: Callable[[str], list[str]], folders: pytest.TempPathFactory
) -> Callable[[str], Straight]:
    """A function that trains with the options of a name without a stop, once."""

    @cache
    def run(name: str) -> Straight:
        folder = folders.mktemp("straight")
        done = commands.train(f"output_dir={folder}", *options(name))
        assert done.status == 0, done.err
        return Straight(options(name), contents(folder / "run"))

    return run


def with_slow(names: Iterable[str], slow: Sequence[str]) -> list[Any]:
    """The parameters of a test, some of them marked as slow."""
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


def check_killed_run_goes_on(
    commands: Any, expected: Straight, stop: dict[str, object], folder: Path
) -> Any:
    """Train until the stop kills it, then go on; return what the second command did."""
    overrides = [f"output_dir={folder}", "resume=true", *expected.overrides]
    assert commands.train(*overrides, stop=stop).status == -9
    done = commands.train(*overrides)
    assert done.status == 0, done.err
    check_the_same(folder / "run", expected)
    return done


def check_stopped_run_goes_on(
    commands: Any, expected: Straight, stop: dict[str, object], signal_name: str, folder: Path
) -> None:
    """Train until a signal in step 3, whose state is saved, then go on."""
    overrides = [f"output_dir={folder}", *expected.overrides]
    done = commands.train(*overrides, stop=stop)
    assert done.status == 128 + signal.Signals[f"SIG{signal_name}"], done.err
    checkpoint = folder / "run" / "checkpoints" / "step-000003"
    last_line = f"train: stopped by SIG{signal_name}; saved {checkpoint}; resume=true continues"
    assert done.err.splitlines()[-1] == last_line
    assert checkpoint.is_dir()
    done = commands.train(*overrides, "resume=true")
    assert done.status == 0, done.err
    check_the_same(folder / "run", expected)


def check_the_same(run: Path, straight: Straight) -> None:
    found = contents(run)
    assert found.keys() == straight.contents.keys()
    assert [name for name in found if found[name] != straight.contents[name]] == []
    assert not [path for path in run.rglob(".*") if path.name != ".last"]


def weights(run: Path, step: int = 4) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    files = ("trained.safetensors", "ema.safetensors")
    there = [name for name in files if (folder / name).is_file()]
    return {f"{name}: {k}": v for name in there for k, v in load_file(folder / name).items()}


def largest_difference(one: Path, two: Path, step: int = 4) -> float:
    ours, theirs = weights(one, step), weights(two, step)
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


def losses_by_hand(validation: Any, base: Any, target: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Plain mean squared errors of three examples, one column per timestep of validation.

    `target` makes what is predicted of latents, noise and alpha.
    """
    examples, columns = validation.examples, []
    pixels = torch.stack([examples.pixels(index) for index in range(3)])
    with torch.no_grad():
        latents, _ = base.encode_images(pixels)
        states = base.encode_prompts([one.captions[0] for one in examples.pictures])
        for timestep in validation.timesteps:
            noise = validation_noise(validation.numbers, timestep, latents)
            alpha = base.alphas_cumprod[timestep]
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            predicted = base.predict(noisy, torch.full((3,), timestep), states)
            errors = predicted - target(latents, noise, alpha)
            columns.append(errors.square().flatten(1).mean(1))
    return torch.stack(columns, dim=1)


def watched(watch: Callable[[Any, Stage, Examples], object]) -> Callable[[TrainRecipe], Data]:
    """Data of which `watch` sees every micro-batch with its stage, before it is learned from."""

    class WatchedData(Data):
        def batches(
            self, examples: Examples, stage: Stage, step: int, layout: Layout
        ) -> Iterator[Any]:
            for batch in super().batches(examples, stage, step, layout):
                watch(batch, stage, examples)
                yield batch

    return WatchedData
