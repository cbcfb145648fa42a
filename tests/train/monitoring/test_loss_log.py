"""Means of losses, by hand."""

from typing import Any

import pytest
import torch

from train.monitoring.loss_log import LossLog


class TwoProcesses:
    """The other process has seen the same."""

    def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        return 2 * value

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value, value])


def add(log: LossLog, losses: list[float], timesteps: list[int] | None) -> None:
    values = torch.tensor(losses)
    parts = {"loss": values.mean(), "loss/prior": values.sum()}
    log.add(parts, values, None if timesteps is None else torch.tensor(timesteps))


def test_means_and_those_of_bands() -> None:
    """A micro-batch counts as much as another; in a band an example as much as another."""
    accelerator: Any = TwoProcesses()
    log = LossLog(accelerator, 1000)
    add(log, [1.0, 3.0], [0, 249])
    add(log, [6.0], [250])
    add(log, [2.0, 4.0, 9.0], [999, 10, 499])
    assert len(log) == 3
    assert log.take() == pytest.approx(
        {
            "loss": (2 + 6 + 5) / 3,
            "loss/prior": (4 + 6 + 15) / 3,
            "loss_by_timestep/000-249": (1 + 3 + 4) / 3,
            "loss_by_timestep/250-499": (6 + 9) / 2,
            "loss_by_timestep/750-999": 2.0,
        }
    )
    assert len(log) == 0
    add(log, [5.0], [600])
    assert log.take() == {"loss": 5.0, "loss/prior": 5.0, "loss_by_timestep/500-749": 5.0}


def test_without_timesteps_there_are_no_bands() -> None:
    accelerator: Any = TwoProcesses()
    log = LossLog(accelerator, 1000)
    add(log, [5.0], None)
    assert log.take() == {"loss": 5.0, "loss/prior": 5.0}


def test_losses_that_are_not_finite_are_left_out() -> None:
    accelerator: Any = TwoProcesses()
    log = LossLog(accelerator, 1000)
    add(log, [1.0, 3.0], [0, 999])
    add(log, [float("nan"), 5.0], [0, 999])
    assert log.take() == {
        "loss": 2.0,
        "loss/prior": 4.0,
        "loss_by_timestep/000-249": 1.0,
        "loss_by_timestep/750-999": 4.0,
    }
