"""One optimizer step: clipping, optimizer, LR schedule, EMA."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer

from train.common import Batch
from train.config import TrainRecipe
from train.objectives import Objective
from train.optimization.accelerator import build_strategy, layout_of
from train.optimization.ema import Average, ShownWeights
from train.optimization.fused_backward import FusedBackward, FusedStep
from train.optimization.guards import Guard
from train.optimization.offload import offloading, warn_of_idle_levers
from train.optimization.optimizers import build_optimization
from train.optimization.tensorwise import TensorwiseOptimizer, check_steps_alone
from train.optimization.training_state import TrainingState

if TYPE_CHECKING:
    from accelerate import Accelerator


class Optimization:
    """The optimizer, its LR schedule, the EMA, and the guard against values that are not finite."""

    def __init__(
        self,
        recipe: TrainRecipe,
        objective: Objective,
        accelerator: Accelerator,
        say: Callable[[str], None],
    ) -> None:
        """Build them, and wrap the objective for mixed precision and several processes.

        Args:
            recipe: the run's.
            objective: the objective, on its device.
            accelerator: of this process.
            say: prints a line, for warnings about skipped steps.

        Raises:
            InputError: a learning rate names no part of the objective, or the optimizer cannot take
                its step tensor by tensor, as `memory` asks.
        """
        self.recipe = recipe
        self.objective = objective
        self.accelerator = accelerator
        self.layout = layout_of(recipe, accelerator)
        self.strategy = build_strategy(recipe, accelerator)
        self.strategy.shard(objective)
        self.members = objective.members(recipe)
        self.parameters = list(objective.parameters())
        memory = recipe.memory
        warn_of_idle_levers(memory, accelerator.device)
        wrap = self._by_tensor if memory.steps_by_tensor else None
        optimizer, self.lr_scheduler = build_optimization(recipe.optimizer, self.members, wrap)
        self.by_tensor = optimizer if isinstance(optimizer, TensorwiseOptimizer) else None
        self.ema = None
        if recipe.ema is not None:
            self.ema = Average(
                self.parameters,
                recipe.ema.decay,
                on_cpu=memory.ema_on_cpu,
                local=self.strategy.local,
            )
        members = self.members.values()
        self.weights = ShownWeights(
            recipe, objective, members, self.ema, self.strategy, lambda: state_tensors(optimizer)
        )
        self.optimizer = self.strategy.prepare(objective, optimizer)
        self.guard = Guard(recipe.guards, accelerator, say)
        self.state = TrainingState(
            self.strategy, objective, self.optimizer, self.lr_scheduler, self.ema, self.guard
        )
        self.fused = None
        if memory.fused_backward and self.by_tensor is not None:
            names: dict[Tensor, str] = {one: name for name, one in objective.named_parameters()}
            self.fused = FusedBackward(self.by_tensor, names, recipe.max_grad_value)
        self.rates: dict[str, float] = {}
        """The learning rate of each part in the last step."""

    def accumulating(self, completes_step: bool) -> AbstractContextManager[None]:
        """Accumulate gradients inside the context; only a step's last one syncs the processes."""
        return self.strategy.accumulating(completes_step)

    def losses(self, batch: Batch) -> Tensor:
        """Return the losses (b,) of a micro-batch, with what their backward pass needs."""
        parts = [self.objective, *self.objective.base.parts.values()]
        weights = (weight for part in parts for weight in part.parameters())
        self._begin_step(batch["step"] + 1)
        with offloading(weights, self.recipe.memory, self.accelerator.device):
            return self.strategy.losses(batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch; a fused backward pass changes the weights too.

        A loss that is not finite is not passed back by the latter: the guard refuses the step.

        Args:
            loss: of the micro-batch, ().
        """
        if self.fused is not None and not loss.isfinite():
            self.fused.leave_out(loss)
        else:
            self.strategy.backward(loss)

    def step(self, number: int) -> float:
        """Change the weights if the guard allows it; advance LR schedule and EMA.

        Args:
            number: of the optimizer step, from 1.

        Returns:
            The gradients' norm before clipping.

        Raises:
            NonFiniteError: the guard ends the run; the weights are unchanged, unless `state` is
                torn.
        """
        self._begin_step(number)
        if self.fused is None:
            allowed = self.guard.allows(self.clip_gradients(), number)
        else:
            done = self.fused.finish()
            allowed = self.guard.allows(done.norm, number, lambda: self._torn_by(done))
        if allowed:
            self.optimizer.step()
            self.objective.after_step()
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        self.rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        self._advance_rates(was_skipped=not allowed or self.optimizer.step_was_skipped)
        if self.ema is not None:
            self.ema.step()
        self.optimizer.zero_grad()
        self.stop_members(number)
        return self.guard.grad_norm

    def _torn_by(self, done: FusedStep) -> str | None:
        """Report the weights that a fused backward pass changed before a gradient was refused."""
        changed, refused = done.read()
        if not changed or refused is None:
            return None
        self.state.is_torn = True
        return (
            f"With memory.fused_backward {changed} of {len(self.parameters)} tensors had been "
            f"changed by this step, before the gradient of {refused}"
        )

    def clip_gradients(self) -> Tensor:
        """Clip by norm and by value as configured; return the norm before."""
        limit = self.recipe.max_grad_norm or float("inf")
        return self.strategy.clip(self.parameters, limit, self.recipe.max_grad_value)

    def stop_members(self, step: int) -> None:
        """Freeze the members whose steps are done: they get no more gradients."""
        for member in self.members.values():
            if member.stop_step is not None and step >= member.stop_step:
                member.objective.requires_grad_(False)

    def release(self) -> None:
        """Release the wrapped objective; no step can be taken afterwards."""
        self.strategy.release()

    def _begin_step(self, number: int) -> None:
        """Let the draws of rounding be those of a step."""
        if self.by_tensor is not None:
            self.by_tensor.step_number = number

    def _by_tensor(self, optimizer: Optimizer) -> TensorwiseOptimizer:
        """Return an optimizer that takes the steps of another one tensor by tensor."""
        check_steps_alone(self.recipe.optimizer)
        return TensorwiseOptimizer(optimizer, self.parameters, self.recipe.memory, self.recipe.seed)

    def _advance_rates(self, was_skipped: bool) -> None:
        """Step the LR schedule, also after a skipped step.

        If the first step is skipped, PyTorch mistakes this for a wrong order of calls.
        """
        with warnings.catch_warnings() if was_skipped else nullcontext():
            if was_skipped:
                warnings.filterwarnings("ignore", r"Detected call of .lr_scheduler\.step")
            self.lr_scheduler.step()


def state_tensors(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield the tensors of an optimizer's state."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
