"""EMA weights, cast to the saved dtype, swapped in for previews and saving."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import Tensor

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
    def as_saved(self) -> Iterator[None]:
        """Use the dtype of artifacts."""
        with self._replaced(self._saved):
            yield

    @contextmanager
    def as_saved_and_drawn(self) -> Iterator[None]:
        """Use the dtype of artifacts, then that of generating: the weights of a preview grid."""
        with self._replaced(self._saved, self._drawn):
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

    def _saved(self, name: str, value: Tensor) -> Tensor:
        return value.to(DTYPES[self.recipe.saving.save_precision])

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
