"""Several objectives on one stream of batches, as in pivotal tuning (an embedding and a LoRA).

Pivotal tuning: Roich et al. 2021 (arXiv 2106.05744), for diffusion models cloneofsimo/lora.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from inference.artifacts import Artifact
from inference.models import DiffusionModel
from train.common import Batch
from train.config import CombinedConfig, MemberConfig, TrainRecipe
from train.families import build_denoising
from train.objectives.base import Member, Objective


class CombinedObjective(Objective):
    """Trains its members together; they are attached to the base model in their order."""

    def __init__(self, recipe: TrainRecipe, base: DiffusionModel) -> None:
        from train.objectives.loading import build_objective

        super().__init__(base)
        config = recipe.objective
        assert isinstance(config, CombinedConfig)
        self.denoising = build_denoising(recipe, base)
        self._members: dict[str, Member] = {}
        for name, member in config.by_name.items():
            own = member_recipe(recipe, name, member)
            objective = build_objective(own, base)
            objective.artifact().name = member.objective.word or f"{recipe.name}_{name}"
            self.add_module(name, objective)
            self._members[name] = Member(own, objective, member.stop_step)
        self.stops_parts = any(member.stop_step for member in self._members.values())

    def members(self, recipe: TrainRecipe) -> dict[str, Member]:
        return self._members

    def trains(self, part: str) -> bool:
        return any(member.objective.trains(part) for member in self._members.values())

    def forward(self, batch: Batch) -> Tensor:
        losses = self.denoising.loss(batch)
        for member in self._members.values():
            losses = losses + member.objective.unused()
        return losses

    def after_step(self) -> None:
        for member in self._members.values():
            member.objective.after_step()

    def artifact(self) -> Artifact:
        raise TypeError("a combined objective has an artifact for each of its members")


def member_recipe(recipe: TrainRecipe, name: str, member: MemberConfig) -> TrainRecipe:
    """Return the run's recipe as it would be for this member alone."""
    rate, decay = member.learning_rate, member.weight_decay
    output_name = recipe.saving.output_name
    return replace(
        recipe,
        name=f"{recipe.name}_{name}",
        objective=member.objective,
        saving=replace(recipe.saving, output_name=output_name and f"{output_name}_{name}"),
        optimizer=replace(
            recipe.optimizer,
            learning_rate=recipe.optimizer.learning_rate if rate is None else rate,
            learning_rates=member.learning_rates,
            weight_decay=recipe.optimizer.weight_decay if decay is None else decay,
        ),
        lr_scheduler=member.lr_scheduler or recipe.lr_scheduler,
        max_train_steps=member.stop_step or recipe.max_train_steps,
    )
