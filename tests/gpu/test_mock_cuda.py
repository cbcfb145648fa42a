# SPDX-License-Identifier: Apache-2.0
"""The mock device refuses what a GPU refuses, and counts what makes the host wait."""

import os

import pytest
import torch

from tests.gpu import mock_cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("LIMNER_MOCK_CUDA" not in os.environ, reason="needs the mock device"),
]


def test_tensors_on_two_devices_are_refused() -> None:
    x = torch.randn(3, 4, device="cuda")
    for wrong in (
        lambda: x + torch.randn(3, 4),
        lambda: torch.nn.functional.linear(x, torch.randn(2, 4)),
        lambda: torch.cat([x, torch.randn(3, 4)]),
        lambda: torch.randn(4)[torch.tensor([1], device="cuda")],
        lambda: torch.zeros(3).add_(x.sum()),
        lambda: torch.embedding(torch.randn(3, 4, device="cuda"), torch.tensor([1])),
    ):
        with pytest.raises(RuntimeError, match=r"same device|indexed tensor"):
            wrong()
    assert (x * torch.tensor(2.0)).is_cuda  # 0-dim CPU tensors are allowed
    assert x[torch.tensor([0, 2])].is_cuda  # so are CPU indices


def test_generators_numpy_and_formats() -> None:
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        torch.ones(2, device="cuda").numpy()
    with pytest.raises(RuntimeError, match=r"same dtype|must have the same dtype|scalar type"):
        torch.nn.Linear(4, 4, device="cuda")(torch.randn(1, 4, device="cuda", dtype=torch.float16))
    with pytest.raises(RuntimeError, match="expected scalar type"):
        torch.nn.LayerNorm(4, device="cuda")(torch.randn(1, 4, device="cuda", dtype=torch.float16))
    with torch.autocast("cuda", torch.float16):
        assert (
            torch.nn.Linear(4, 4, device="cuda")(torch.randn(1, 4, device="cuda")).dtype
            == torch.float16
        )


def test_it_learns_and_counts() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.GroupNorm(2, 8),
        torch.nn.SiLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 64, 1),
    ).to("cuda")
    optimizer, scaler = (
        torch.optim.AdamW(network.parameters(), 1e-2, fused=True),
        torch.amp.GradScaler("cuda"),
    )
    x, y = (
        torch.randn(16, 3, 8, 8).pin_memory().to("cuda", non_blocking=True),
        torch.randn(16, 1, device="cuda"),
    )
    losses, loss = [], torch.zeros(1)
    for _ in range(8):
        with torch.autocast("cuda", torch.float16):
            loss = (network(x).float() - y).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    mock_cuda.record_syncs()
    mock_cuda.SYNCS.clear()
    loss.item()
    torch.ones(3).to("cuda")
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    assert [one[0] for one in mock_cuda.SYNCS] == ["wait", "h2d"]
    mock_cuda.record_syncs(False)
    before = mock_cuda.ext.bytes_now()
    kept = torch.empty(1000, 1000, device="cuda")
    assert mock_cuda.ext.bytes_now() - before == 4_000_000
    del kept
    assert mock_cuda.ext.bytes_now() == before
