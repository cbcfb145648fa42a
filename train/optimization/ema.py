"""EMA weights, cast to the saved dtype, swapped in for previews and saving."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from inference.artifacts import Lora
from inference.models import DTYPES
from train.common import on_the_host
from train.config import TrainRecipe
from train.objectives import Member, Objective, drawn_dtype
from train.optimization.strategies import Shown, Strategy
from train.optimization.tensorwise import on_host


class Average:
    """The moving average of the trained weights, in fp32 (diffusers: training_utils.EMAModel).

    On the parameters' device, or with `memory.ema_on_cpu` on the CPU.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        decay: float,
        *,
        on_cpu: bool,
        local: Callable[[Tensor], Tensor] = lambda parameter: parameter,
    ) -> None:
        """Begin with the values of the parameters.

        Args:
            parameters: the trained ones.
            decay: the largest.
            on_cpu: whether the average lies on the CPU.
            local: returns what this process holds of a parameter (`Strategy.local`).
        """
        self.parameters = list(parameters)
        self.local = local
        self.decay = decay
        self.on_cpu = on_cpu
        self.shadow_params = [self._of(one).clone() for one in self.parameters]
        self.optimization_step = 0
        """Steps of the run, also skipped ones."""

    @torch.no_grad()
    def step(self) -> None:
        """Move the average towards the weights; of members that are done it stays."""
        self.optimization_step += 1
        before = self.optimization_step - 1
        decay = min((1 + before) / (10 + before), self.decay) if before else 0.0
        pairs = zip(self.shadow_params, self.parameters, strict=True)
        moving = [(shadow, one) for shadow, one in pairs if one.requires_grad]
        if not self.on_cpu and moving:
            shadows = [shadow for shadow, _ in moving]
            weights = [self.local(one) for _, one in moving]
            kernels = torch.ops.aten
            differences = kernels._foreach_sub.List(shadows, weights)
            kernels._foreach_sub_.List(shadows, differences, alpha=1 - decay)
            return
        for shadow, one in moving:
            shadow.sub_(shadow - self._of(one), alpha=1 - decay)

    def _of(self, parameter: nn.Parameter) -> Tensor:
        """Return a weight in the format and on the device of the average, not always a copy."""
        weight = self.local(parameter).detach()
        if self.on_cpu and weight.device.type != "cpu":
            weight = on_host(weight)
        return weight.float()


class ShownWeights:
    """Swaps in the weights to save, with EMA their average, for a while."""

    def __init__(
        self,
        recipe: TrainRecipe,
        objective: Objective,
        members: Collection[Member],
        ema: Average | None,
        strategy: Strategy,
        state: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        """Prepare the swap.

        Args:
            recipe: the run's.
            objective: what is trained.
            members: its parts with recipes of their own.
            ema: the average.
            strategy: holds the weights.
            state: returns the optimizer's tensors, which previews do not need.
        """
        self.recipe = recipe
        self.objective = objective
        self.members = members
        self.parameters = list(objective.parameters())
        self.ema = ema
        self.strategy = strategy
        self.state = state

    @contextmanager
    def as_saved_and_drawn(self) -> Iterator[None]:
        """Use the values of artifacts, in the dtype of generating: the weights of a preview grid.

        A LoRA whose file has another alpha is scaled as there.
        """
        with ExitStack() as stack:
            factors: dict[Tensor, float] = {}
            for member in self.members:
                artifact = member.objective.artifact()
                if isinstance(artifact, Lora):
                    factors |= stack.enter_context(artifact.as_in_file())
            named = dict(self.objective.named_parameters())

            def saved(name: str, value: Tensor) -> Tensor:
                if named[name] in factors:
                    value = value * factors[named[name]]
                return self._drawn(name, value.to(DTYPES[self.recipe.saving.save_precision]))

            stack.enter_context(self._shown(saved))
            stack.enter_context(self._room())
            yield

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the weights as trained, or with EMA their average, in the format of training."""
        trained = {name: one.dtype for name, one in self.objective.named_parameters()}
        with self._shown(lambda name, value: value.to(trained[name])):
            yield

    @contextmanager
    def to_save(self) -> Iterator[None]:
        """Use the same, not rounded, and where they lie: with `memory.ema_on_cpu` on the CPU.

        Only the first process has them, and may write them.
        """
        what = Shown(self._averages, lambda _, value: value)
        with self._evaluating(), self.strategy.whole_on_first(self.objective, what):
            yield

    @contextmanager
    def of_base(self) -> Iterator[None]:
        """Use the base model without the artifact's initial change, before the first step."""
        with self._shown(self._drawn), self._room():
            self._set_strength(0.0)
            try:
                yield
            finally:
                self._set_strength(1.0)

    def _room(self) -> AbstractContextManager[None]:
        """Let trained weights, average and optimizer wait on the host, where parts do too."""
        placement = self.objective.base.placement
        if placement is None or placement.plan.offload == "none":
            return nullcontext()
        averages = [] if self.ema is None else self.ema.shadow_params
        everywhere = [self.objective, *self.objective.base.parts.values()]
        shown = [one for module in everywhere for one in module.parameters()]
        return on_the_host([*self.parameters, *averages, *self.state()], but=shown)

    def _set_strength(self, strength: float) -> None:
        for member in self.members:
            member.objective.artifact().set_strength(strength)

    def _drawn(self, name: str, value: Tensor) -> Tensor:
        return value.to(drawn_dtype(self.recipe, self.objective.base, name))

    @contextmanager
    def _shown(self, rounded: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Compute with the weights to show, each passed through a function."""
        what = Shown(self._averages, rounded)
        with self._evaluating(), self.strategy.shown(self.objective, what):
            yield

    @property
    def _averages(self) -> Sequence[Tensor] | None:
        return None if self.ema is None else self.ema.shadow_params

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Set the objective to evaluation mode."""
        training = self.objective.training
        self.objective.eval()
        try:
            yield
        finally:
            self.objective.train(training)
