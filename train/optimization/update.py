"""How gradients change what is learned: clipped, by the optimizer, at its rates, averaged."""

from diffusers.training_utils import EMAModel
from torch import Tensor

from train.config import TrainRecipe
from train.optimization.training_state import TrainingState


class WeightUpdate:
    """The end of an optimizer step, once all gradients are there."""

    def __init__(self, recipe: TrainRecipe, state: TrainingState) -> None:
        self.recipe = recipe
        self.accelerator = state.accelerator
        self.objective = state.objective
        self.parameters = list(state.objective.parameters())
        self.optimizer = state.optimizer
        self.lr_scheduler = state.lr_scheduler
        self.ema = state.ema
        self.guard = state.guard
        self.rates: dict[str, float] = {}
        """The learning rate of each part in the last step."""

    def step(self, number: int) -> Tensor:
        """Changes the weights if the guard allows it; learning rates and average go on.

        Returns:
            The gradients' norm before clipping.

        Raises:
            NonFiniteError: the guard ends the run; nothing has changed.
        """
        grad_norm = self.clip_gradients()
        if self.guard.allows(grad_norm, number):
            self.optimizer.step()
            self.objective.after_step()
        else:
            self._leave_out()
        self.rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self._averaged(self.ema))
        self.optimizer.zero_grad()
        return grad_norm

    def clip_gradients(self) -> Tensor:
        """Clips by norm and by value as the recipe says; returns the norm before."""
        limit = self.recipe.max_grad_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
        if self.recipe.max_grad_value is not None:
            self.accelerator.clip_grad_value_(self.parameters, self.recipe.max_grad_value)
        assert norm is not None
        return norm

    def _leave_out(self) -> None:
        """Has a loss scaler take note of the step, and the learning rates take no offence."""
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()

    def _averaged(self, ema: EMAModel) -> list[Tensor]:
        """What the average takes in: of what has stopped itself, so that it stays what it was."""
        pairs = zip(self.parameters, ema.shadow_params, strict=True)
        return [trained if trained.requires_grad else average for trained, average in pairs]
