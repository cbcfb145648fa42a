"""Class pictures that teach what the base model predicts of them, not what they show.

The learned change is held to do nothing where the class is meant: OneTrainer's prior prediction
concepts; "output preservation" in ai-toolkit. As the loss compares two predictions of the same
noisy picture, any pictures of the class will do, real ones too, without teaching their look.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from inference.conditions import Conditions
from train.batch import Batch
from train.replacing import replaced_parameters

if TYPE_CHECKING:
    from collections.abc import Collection

    from inference.artifacts.base import Artifact
    from train.config import TrainRecipe
    from train.denoising import Denoising
    from train.objectives.base import Objective


class FrozenPrior:
    """The base model without what is being trained upon it."""

    def __init__(
        self, objective: Objective, artifacts: Collection[Artifact], keeps_copy: bool
    ) -> None:
        """Remembers what the base model is; to be made before the first step.

        Args:
            objective: what is trained.
            artifacts: what it learns, to be taken out for a moment at strength 0.
            keeps_copy: whether the base model's own weights are trained, and copied here.
        """
        self.objective = objective
        self.artifacts = [] if keeps_copy else list(artifacts)
        self.parameters = list(objective.parameters()) if keeps_copy else []
        self.copies = [parameter.detach().clone() for parameter in self.parameters]
        """On the device of what is trained, in fp32."""

    def targets(
        self, denoising: Denoising, noisy: Tensor, target: Tensor, timesteps: Tensor, batch: Batch
    ) -> Tensor:
        """What is to be predicted (b, c, h, w): of class pictures what the base model does.

        Args:
            denoising: how predictions are made.
            noisy: latents (b, c, h, w) at the timesteps.
            target: noise or velocity, as of all others.
            timesteps: (b,).
            batch: of which class pictures stand behind all others.
        """
        count = sum(position >= 0 for position in batch["positions"])
        if count == len(target):
            return target
        own = rows_from(batch, count)
        if self.objective.changes_prompts:
            own.pop("prompt_states", None)
        with torch.no_grad(), self.base_only():
            states = denoising.states(own)
            at = timesteps[count:].to(noisy.device)
            predicted = denoising.predict(noisy[count:], at, states, own)
        return torch.cat([target[:count], predicted.to(target)])

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Within it the base model predicts as if nothing had been learned."""
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
        everywhere = [self.objective, *self.objective.base.parts.values()]
        return replaced_parameters(everywhere, self.parameters, self.copies)


def with_prior(recipe: TrainRecipe, objective: Objective) -> Objective:
    """The objective, its class pictures teaching what the recipe says; before the first step."""
    if recipe.loss.prior == "prediction" and recipe.data.has_prior:
        learned = [member.objective.artifact() for member in objective.members(recipe).values()]
        prior = FrozenPrior(objective, learned, recipe.loss.prior_copy)
        objective.denoising = replace(objective.denoising, prior=prior)
    return objective


def rows_from(batch: Batch, first: int) -> Batch:
    """The examples of a micro-batch from a row on."""
    count = len(batch["positions"])

    def cut(value: Any) -> Any:
        is_row_by_row = isinstance(value, Tensor | list) and len(value) == count
        return value[first:] if is_row_by_row or isinstance(value, Conditions) else value

    return cast("Batch", {name: cut(value) for name, value in batch.items()})
