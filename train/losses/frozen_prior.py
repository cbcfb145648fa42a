"""Class images whose target is the base model's prediction, not their content.

It keeps the adapter from changing the class: OneTrainer's prior prediction
concepts; "output preservation" in ai-toolkit. As the loss compares two predictions of the same
noisy image, any images of the class will do, also real ones, without teaching their look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from inference.models import Conditions
from train.common import Batch, replaced_parameters

if TYPE_CHECKING:
    from collections.abc import Collection

    from inference.artifacts import Artifact


Predict = Callable[[Tensor, Tensor, Batch], Tensor]


class FrozenPrior:
    """The base model without the trained change."""

    def __init__(
        self,
        objective: nn.Module,
        frozen: Collection[nn.Module],
        artifacts: Collection[Artifact],
        *,
        keeps_copy: bool,
        changes_prompts: bool,
    ) -> None:
        """Record the base model's state; call before the first step.

        Args:
            objective: the objective.
            frozen: the parts of the base model.
            artifacts: the objective's artifacts, set to strength 0 for a moment.
            keeps_copy: whether the base model's own weights are trained, and copied here.
            changes_prompts: whether training changes prompt embeddings.
        """
        self.objective = objective
        self.frozen = list(frozen)
        self.artifacts = [] if keeps_copy else list(artifacts)
        self.parameters = list(objective.parameters()) if keeps_copy else []
        self.copies = [parameter.detach().clone() for parameter in self.parameters]
        """On the device of the objective, in the format of training."""
        self.changes_prompts = changes_prompts

    def targets(
        self, predict: Predict, noisy: Tensor, target: Tensor, timesteps: Tensor, batch: Batch
    ) -> Tensor:
        """Return the targets (b, c, h, w); for class images the base model's predictions.

        Args:
            predict: the model's prediction of noisy latents at timesteps, for a batch.
            noisy: latents (b, c, h, w) at the timesteps.
            target: noise or velocity, the usual target.
            timesteps: (b,).
            batch: a micro-batch whose class images come last.
        """
        count = sum(position >= 0 for position in batch["positions"])
        if count == len(target):
            return target
        own = rows_from(batch, count)
        if self.changes_prompts:
            own.pop("prompt_states", None)
        with torch.no_grad(), self.base_only():
            predicted = predict(noisy[count:], timesteps[count:], own)
        return torch.cat([target[:count], predicted.to(target)])

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Let the base model predict without the artifacts inside the context."""
        training = self.objective.training
        self.objective.eval()
        for artifact in self.artifacts:
            artifact.set_strength(0.0)
        try:
            with self._as_it_was():
                yield
        finally:
            for artifact in self.artifacts:
                artifact.set_strength(1.0)
            self.objective.train(training)

    def _as_it_was(self) -> AbstractContextManager[None]:
        if not self.parameters:
            return nullcontext()
        everywhere = [self.objective, *self.frozen]
        return replaced_parameters(everywhere, self.parameters, self.copies)


def rows_from(batch: Batch, first: int) -> Batch:
    """Return the examples of a micro-batch from a row on."""
    count = len(batch["positions"])

    def cut(value: Any) -> Any:
        is_row_by_row = isinstance(value, Tensor | list) and len(value) == count
        return value[first:] if is_row_by_row or isinstance(value, Conditions) else value

    return cast("Batch", {name: cut(value) for name, value in batch.items()})
