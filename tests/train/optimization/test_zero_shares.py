"""Shares of flat tensors, without DeepSpeed: each number has one place."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from train.common.errors import RunDirectoryError
from train.optimization.strategies.zero_shares import Share, ZeroOptimizer, run_of


@pytest.mark.parametrize(("numel", "processes"), [(7, 2), (8, 2), (1, 4), (9, 4), (5, 1)])
def test_runs_cover_each_number_once(numel: int, processes: int) -> None:
    covered = [
        place
        for rank in range(processes)
        for start, length in [run_of(numel, processes, rank)]
        for place in range(start, start + length)
    ]
    assert covered == list(range(numel))


def trained_state() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Two parameters after a step of AdamW."""
    parameters = [nn.Parameter(torch.arange(6.0).view(2, 3)), nn.Parameter(torch.ones(4))]
    optimizer = torch.optim.AdamW(parameters, lr=0.5)
    for number, one in enumerate(parameters, 1):
        one.grad = torch.full_like(one, number)
    optimizer.step()
    return parameters, optimizer


def second_of_two(
    parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[ZeroOptimizer, torch.Tensor]:
    """As a process holds it that has the last two numbers of the first, and all of the second."""
    accelerator: Any = None
    own = ZeroOptimizer(optimizer, accelerator)
    flat = torch.zeros(6)
    own.shares = {parameters[0]: Share(flat, 0, 4, 2), parameters[1]: Share(flat, 2, 0, 4)}
    return own, flat


def test_torchs_state_is_cut_into_shares() -> None:
    parameters, whole = trained_state()
    saved = deepcopy(whole.state_dict())
    saved["param_groups"][0]["lr"] = 0.25
    own, flat = second_of_two(parameters, torch.optim.AdamW(parameters, lr=0.5))
    assert own.state_dict()["state"] == {}
    own.load(saved)
    state = own.optimizer.state[flat]
    expected = torch.cat([saved["state"][0]["exp_avg"].flatten()[4:], saved["state"][1]["exp_avg"]])
    assert torch.equal(state["exp_avg"], expected)
    assert float(state["step"]) == 1
    assert own.param_groups[0]["lr"] == 0.25
    shapes = own.state_dict()
    assert shapes["param_groups"] == saved["param_groups"]
    assert [shapes["state"][i]["exp_avg"].shape for i in (0, 1)] == [(2, 3), (4,)]
    assert sorted(shapes["state"][0]) == sorted(saved["state"][0])


def test_different_numbers_of_steps_in_one_flat_tensor_are_refused() -> None:
    parameters, whole = trained_state()
    saved = deepcopy(whole.state_dict())
    saved["state"][1]["step"] += 3
    own, _ = second_of_two(parameters, torch.optim.AdamW(parameters))
    with pytest.raises(RunDirectoryError, match="1 steps of some weights and 4 of others"):
        own.load(saved)
