"""The loss of class pictures: its weight, that it is added, and where its examples stand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train.config.data import DataConfig
from train.config.recipe import LossConfig, TrainRecipe
from train.data.examples.examples import Examples
from train.data.examples.loader import build_loader
from train.data.examples.stream import MicroBatches
from train.data.sources.folder import find_pictures
from train.losses.prior import prior_weight, total_loss, weigh_class_pictures
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"prior_weight": 0.75}, {0: 0.75, 50: 0.75, 99: 0.75}),
        ({"prior_weight_min": 0.5}, {0: 1.0, 25: 0.875, 50: 0.75, 99: 0.505}),
        (
            {"prior_weight": 0.75, "prior_weight_min": 0.25, "prior_weight_target": 40},
            {0: 0.75, 10: 0.625, 20: 0.5, 40: 0.25, 99: 0.25},
        ),
    ],
)
def test_weight_at_each_step(options: dict[str, Any], expected: dict[int, float]) -> None:
    config = LossConfig(**options)
    weights = {step: prior_weight(config, step, 100) for step in expected}
    assert weights == pytest.approx(expected)


def test_loss_of_the_class_is_added() -> None:
    """(1 + 3) / 2 + 0.5 * (10 + 30) / 2 = 12."""
    batch: Any = {"positions": [4, 5, -5, -6], "weight": torch.ones(4)}
    weigh_class_pictures(batch, 0.5)
    assert batch["weight"].tolist() == [1, 1, 0.5, 0.5]
    losses = torch.tensor([1.0, 3.0, 10.0, 30.0], requires_grad=True)
    total, parts = total_loss(losses, batch)
    assert total.item() == 12.0
    assert {name: value.item() for name, value in parts.items()} == {"instance": 2, "prior": 20}
    total.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [0.5, 0.5, 0.25, 0.25]


def test_loss_without_a_class_is_the_mean() -> None:
    batch: Any = {"positions": [4, 5], "weight": torch.tensor([1.0, 2.0])}
    weigh_class_pictures(batch, 0.5)
    total, parts = total_loss(torch.tensor([1.0, 3.0]), batch)
    assert (total.item(), parts) == (3.5, {})


def batches(rank: int, processes: int, accumulation: int) -> list[list[int]]:
    return list(
        MicroBatches(
            batch_size=2,
            accumulation=accumulation,
            rank=rank,
            num_processes=processes,
            start_step=0,
            max_steps=2,
            with_class_pictures=True,
        )
    )


def test_class_pictures_have_positions_of_their_own() -> None:
    alone = batches(0, 1, 2)
    assert alone[:2] == [[0, 1, -1, -2], [2, 3, -3, -4]]
    pairs = zip(batches(0, 2, 1), batches(1, 2, 1), strict=True)
    assert [batch for pair in pairs for batch in pair] == alone
    everything = [position for batch in alone for position in batch]
    assert len(set(everything)) == len(everything)


@pytest.fixture
def examples(pictures: Path) -> Examples:
    """Five pictures of a subject, and three of its class."""
    data = DataConfig(path=str(pictures))
    found = find_pictures(data, captioned=True)
    examples = Examples(found[:5], data, resolution=8, seed=7)
    examples.add_class_pictures(found[5:])
    return examples


def test_both_streams_show_each_picture_equally_often(examples: Examples) -> None:
    seen = [examples[position]["indices"] for position in range(10)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    seen = [examples[~position]["indices"] for position in range(6)]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [5, 6, 7]
    assert len(examples) == 8


def test_a_batch_has_the_class_behind_the_subject(examples: Examples) -> None:
    sampler = MicroBatches(
        batch_size=2,
        accumulation=1,
        rank=0,
        num_processes=1,
        start_step=1,
        max_steps=2,
        with_class_pictures=True,
    )
    (batch,) = build_loader(examples, sampler)
    assert batch["positions"] == [2, 3, -3, -4]
    assert [index < 5 for index in batch["indices"]] == [True, True, False, False]
    assert batch["pixels"].shape == (4, 3, 8, 8)


def test_noise_and_timesteps_do_not_come_twice(make_recipe: MakeRecipe) -> None:
    objective: Any = Trainer(make_recipe()).objective
    like, positions = torch.zeros(1, 4, 4, 4), [0, 1, -1, -2]
    noise = objective.denoising.noise(positions, like)
    assert len({tuple(one.flatten().tolist()) for one in noise}) == 4
    assert torch.equal(noise[:2], objective.denoising.noise([0, 1], like))
