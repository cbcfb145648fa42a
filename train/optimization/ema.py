"""EMA weights, cast to the saved dtype, swapped in for previews and saving."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

from diffusers.training_utils import EMAModel
from torch import Tensor

from inference.artifacts import Lora
from inference.models import DTYPES
from train.common import replaced_parameters
from train.config import TrainRecipe
from train.objectives import Member, Objective, drawn_dtype


class ShownWeights:
    """Swaps in the weights to save, with EMA their average, for a while."""

    def __init__(
        self,
        recipe: TrainRecipe,
        objective: Objective,
        members: Collection[Member],
        ema: EMAModel | None,
    ) -> None:
        self.recipe = recipe
        self.objective = objective
        self.members = members
        self.parameters = list(objective.parameters())
        self.ema = ema

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
                return value.to(DTYPES[self.recipe.saving.save_precision])

            stack.enter_context(self._replaced(saved, self._drawn))
            yield

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the weights as trained, or with EMA their average; not rounded."""
        with self._replaced():
            yield

    @contextmanager
    def of_base(self) -> Iterator[None]:
        """Use the base model without the artifact's initial change, before the first step."""
        with self._replaced(self._drawn):
            self._set_strength(0.0)
            try:
                yield
            finally:
                self._set_strength(1.0)

    def _set_strength(self, strength: float) -> None:
        for member in self.members:
            member.objective.artifact().set_strength(strength)

    def _drawn(self, name: str, value: Tensor) -> Tensor:
        return value.to(drawn_dtype(self.recipe, self.objective.base, name))

    @contextmanager
    def _replaced(self, *rounded: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Pass each tensor through the functions, and set the objective to evaluation mode."""

        def shown() -> Iterator[Tensor]:
            values = self.ema.shadow_params if self.ema is not None else self.parameters
            names = [name for name, _ in self.objective.named_parameters()]
            for name, value in zip(names, values, strict=True):
                for function in rounded:
                    value = function(name, value)
                yield value

        training = self.objective.training
        self.objective.eval()
        try:
            everywhere = [self.objective, *self.objective.base.parts.values()]
            with replaced_parameters(everywhere, self.parameters, shown()):
                yield
        finally:
            self.objective.train(training)
