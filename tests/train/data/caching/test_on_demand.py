"""On a CPU, latents and prompt embeddings are encoded when a step needs them: the same values."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor

from inference.models.conditions import Conditions
from train import caches as caches_module
from train.common.errors import DataError
from train.config.data import DataConfig
from train.config.recipe import TrainRecipe
from train.data.caching.prompt_states import PromptStates
from train.data.examples.examples import Examples
from train.data.examples.latents import LatentsOnDemand, cache_latents
from train.data.sources.folder import find_pictures
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]


class Base:
    """Encodes to values that depend on what is encoded at once, as the last digits do."""

    device = torch.device("cpu")
    dtype = torch.float32
    prompt_shape = (3, 2)
    text_encoders: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.encoded: list[Any] = []

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.encoded.append(len(pixels))
        small = pixels[..., ::2, ::2] + pixels.sum()
        return small, small.abs() + 0.1

    def encode_prompts(self, prompts: tuple[str, ...]) -> Conditions:
        self.encoded.append(tuple(prompts))
        states = torch.tensor([float(len(prompt)) for prompt in prompts]) + 10 * len(prompts)
        length = 3 if max(map(len, prompts)) < 5 else 6
        return Conditions(states[:, None, None].expand(-1, length, 2))


class Clock:
    """Counts how often it was paused."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.count += 1
        yield


def track(values: Any, title: str) -> Any:
    return values


def examples_of(root: Path, **options: Any) -> Examples:
    if not root.exists():
        root.mkdir()
        for number in range(5):
            Image.new("RGB", (8, 8), (number * 50, 9, 9)).save(root / f"{number}.png")
    config = DataConfig(path=str(root), **options)
    return Examples(find_pictures(config, captioned=False), config, 8, 0)


@pytest.mark.parametrize("sampling", ["once", "deterministic", "random"])
def test_latents_are_those_of_encoding_all_in_advance(tmp_path: Path, sampling: str) -> None:
    made = [examples_of(tmp_path / "p", latent_sampling=sampling) for _ in range(2)]
    bases: list[Any] = [Base(), Base()]
    clock = Clock()
    cache_latents(made[0], bases[0], 2, track)
    cache_latents(made[1], bases[1], 2, track, paused=clock.paused)
    first, second = made[0].latents, made[1].latents
    assert isinstance(first, list) and isinstance(second, LatentsOnDemand)
    assert bases[0].encoded == [2, 2, 1] and bases[1].encoded == [] and len(second) == 5
    for index in (3, 0, 2, 4, 1):
        assert first[index].keys() == second[index].keys()
        assert all(torch.equal(first[index][name], second[index][name]) for name in first[index])
    assert bases[1].encoded == [2, 2, 1] and clock.count == 3


@pytest.mark.parametrize(("device", "workers"), [("cuda", 0), ("cpu", 1), ("cpu", 0)])
def test_others_encode_all_in_advance(tmp_path: Path, device: str, workers: int) -> None:
    """Before the VAE is put aside; workers have no base model; archives are read in order."""
    folder = tmp_path / "p"
    examples, base = examples_of(folder, num_workers=workers), Base()
    if (device, workers) == ("cpu", 0):
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
        examples = examples_of(tmp_path / "p.zip")
    base.device = torch.device(device)  # type: ignore[misc]
    cache_latents(examples, base, 2, track, paused=Clock().paused)  # type: ignore[arg-type]
    assert isinstance(examples.latents, list) and base.encoded == [2, 2, 1]


def test_corrupt_pictures_are_reported_before_the_first_step(tmp_path: Path) -> None:
    examples, base = examples_of(tmp_path / "p"), Base()
    for number in (1, 4):
        file = tmp_path / "p" / f"{number}.png"
        file.write_bytes(file.read_bytes()[:45])
    with pytest.raises(
        DataError, match=r"2 of 5 pictures cannot be used:(?s:.*)1\.png.*\n.*4\.png"
    ):
        cache_latents(examples, base, 2, track, paused=Clock().paused)  # type: ignore[arg-type]
    assert base.encoded == []


def test_captions_are_encoded_in_the_same_groups() -> None:
    """Also one over 75 tokens, which keeps its length, and those of a later stage."""
    stages = [["a", "bb", "ccc", "long caption"], ["a", "ccc", "dddd"]]
    bases: list[Any] = [Base(), Base()]
    eager, lazy = (PromptStates(base) for base in bases)
    for prompts in stages:
        eager.fill(prompts, track, batch_size=2)
        lazy.fill(prompts, track, batch_size=2, paused=Clock().paused)
        for prompt in reversed(prompts):
            assert torch.equal(eager([prompt]).states, lazy([prompt]).states), prompt
    assert sorted(bases[0].encoded) == sorted(bases[1].encoded)
    count = len(bases[1].encoded)
    lazy(["a", "dddd"])
    assert len(bases[1].encoded) == count


def test_a_run_has_the_bytes_of_one_that_encodes_all_in_advance(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_advance(*arguments: Any) -> None:
        cache_latents(*arguments[:6])

    weights = []
    for name in ("on_demand", "in_advance"):
        if name == "in_advance":
            monkeypatch.setattr(caches_module, "cache_latents", in_advance)
        trainer = Trainer(make_recipe(f"name={name}", "max_train_steps=2"))
        trainer.train()
        weights.append(trainer.objective.state_dict())
        is_on_demand = isinstance(trainer.examples.latents, LatentsOnDemand)
        assert is_on_demand == (name == "on_demand")
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
