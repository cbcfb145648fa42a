"""The optimizer's step within the backward pass (LOMO: Lv et al. 2023, arXiv 2306.09782)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from train.optimization.tensorwise import TensorwiseOptimizer


@dataclass(frozen=True)
class FusedStep:
    """What the hooks of a backward pass have done."""

    norm: Tensor
    """Of all gradients, before clipping; (), on their device."""
    changed: Tensor
    """Number of tensors that have taken their step, ()."""
    names: list[str]
    """Of all tensors with gradients, in the order of their steps."""

    def stopped_at(self) -> tuple[int, str | None]:
        """Return the number of tensors that were changed, and the first with a faulty gradient.

        That and all after it kept their values. The host waits for the device.
        """
        count = int(self.changed)
        return count, self.names[count] if count < len(self.names) else None


class FusedBackward:
    """Changes each weight once its gradient is known, and frees the gradient."""

    def __init__(
        self, optimizer: TensorwiseOptimizer, names: Mapping[Tensor, str], limit: float | None
    ) -> None:
        """Register the hooks, which begin to work at once.

        Args:
            optimizer: of all parameters.
            names: of the parameters, in the order of the objective.
            limit: each gradient value is clipped to plus or minus this.
        """
        self.optimizer = optimizer
        self.names = dict(names)
        self.limit = limit
        self._norms: dict[Tensor, Tensor] = {}
        """Of each gradient, in the order of the hooks."""
        self._refused: Tensor | None = None
        self._changed: Tensor | None = None
        self._loss: Tensor | None = None
        for parameter in self.names:
            parameter.register_post_accumulate_grad_hook(self.take)

    @torch.no_grad()
    def take(self, parameter: Tensor) -> None:
        """Change a weight by its gradient, unless this or an earlier gradient is not finite."""
        gradient = parameter.grad
        assert gradient is not None
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        self._norms[parameter] = norm
        refused = (~norm.isfinite()).float()
        if self._refused is not None:
            refused = torch.maximum(refused, self._refused.to(refused.device))
        self._refused = refused
        taken = 1 - refused
        self._changed = taken if self._changed is None else self._changed + taken
        if self.limit is not None:
            gradient.clamp_(-self.limit, self.limit)
        if self.optimizer.skips_on_device:
            self.optimizer.update(parameter, refused)
        elif not refused:  # waits for the device
            self.optimizer.update(parameter)
        parameter.grad = None

    def leave_out(self, loss: Tensor) -> None:
        """Take no step by a loss that is not finite: it stands for the norm of its gradients."""
        self._loss = loss.detach()

    def finish(self) -> FusedStep:
        """Return what was done in the step, and begin the next."""
        if self._loss is not None:
            loss, self._loss = self._loss, None
            return FusedStep(loss.float(), torch.zeros(()), [])
        norms = [self._norms[one] for one in self.names if one in self._norms]
        changed, order = self._changed, [self.names[one] for one in self._norms]
        self._norms, self._refused, self._changed = {}, None, None
        if not norms or changed is None:
            device = next(iter(self.names)).device
            return FusedStep(torch.zeros((), device=device), torch.zeros(()), [])
        return FusedStep(torch.linalg.vector_norm(torch.stack(norms)), changed, order)
