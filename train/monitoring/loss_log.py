"""Mean losses between two entries in TensorBoard, also by timestep."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

BANDS = 4
"""Bands of timesteps with a curve of their own: the loss of all of them is nearly flat."""


class LossLog:
    """Collects the losses of micro-batches; returns their means over all processes."""

    def __init__(self, accelerator: Accelerator, num_timesteps: int) -> None:
        self.accelerator = accelerator
        self.num_timesteps = num_timesteps
        self.parts: list[dict[str, Tensor]] = []
        self.bands = torch.zeros(2, BANDS)
        """Sum of the losses and number of the examples in each band."""
        self.has_bands = False

    def __len__(self) -> int:
        """Return the number of micro-batches of this process."""
        return len(self.parts)

    def add(self, parts: dict[str, Tensor], losses: Tensor, timesteps: Tensor | None) -> None:
        """Add a micro-batch.

        Args:
            parts: the loss and its components, scalars.
            losses: of each example, (b,).
            timesteps: (b,), if there are any.
        """
        self.parts.append({name: value.detach() for name, value in parts.items()})
        if timesteps is None:
            return
        self.has_bands = True
        places = timesteps * BANDS // self.num_timesteps
        values = losses.detach().float()
        counted = torch.isfinite(values)
        rows = torch.stack([values.where(counted, 0.0), counted.float()])
        self.bands = self.bands.to(values.device).index_add(1, places.to(values.device), rows)

    def take(self) -> dict[str, float]:
        """Return the means of all processes since the last call, without empty bands.

        Values that are not finite (`train.optimization.guards`) are left out. The host waits for
        the device once.
        """
        names = list(self.parts[0])
        own = torch.stack([torch.stack([parts[name] for name in names]) for parts in self.parts])
        everyones = cast("Tensor", self.accelerator.gather(own[None]))
        bands = self.bands.to(own.device)
        if self.has_bands:
            bands = cast("Tensor", self.accelerator.reduce(bands, "sum"))
        read = torch.cat([everyones.flatten(), bands.flatten()]).cpu()
        losses = read[: everyones.numel()].view(everyones.shape)
        entries_values = {}
        for column, name in enumerate(names):
            means = torch.stack([finite_mean(process[:, column]) for process in losses])
            entries_values[name] = finite_mean(means).item()
        if self.has_bands:
            sums, counts = read[-bands.numel() :].view(2, BANDS).tolist()
            for band, (total, count) in enumerate(zip(sums, counts, strict=True)):
                if count:
                    name = band_name(band, self.num_timesteps)
                    entries_values[f"loss_by_timestep/{name}"] = total / count
        self.parts.clear()
        self.bands.zero_()
        return entries_values


def band_name(band: int, num_timesteps: int) -> str:
    """Return the first and the last timestep of a band."""
    first, behind = (edge * num_timesteps // BANDS for edge in (band, band + 1))
    return f"{first:03d}-{behind - 1:03d}"


def finite_mean(values: Tensor) -> Tensor:
    """Return the mean of the finite values; nan if there are none."""
    return values[torch.isfinite(values)].mean()
