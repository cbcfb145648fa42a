"""Other weights in a module for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def replaced_parameters(module: nn.Module, values: Iterable[Tensor]) -> Iterator[None]:
    """Puts values, of any number format, in the place of a module's parameters, in their order.

    Afterwards the parameters themselves are back, untouched. To set their `.data` instead would be
    shorter, but a change of its format cuts a parameter off from the hooks by which DDP sums
    gradients, and each process would then go its own way.
    """
    owners = dict(module.named_modules())
    kept = dict(module.named_parameters())

    def put(name: str, parameter: nn.Parameter) -> None:
        owner, _, leaf = name.rpartition(".")
        setattr(owners[owner], leaf, parameter)

    try:
        for name, value in zip(kept, values, strict=True):
            put(name, nn.Parameter(value.detach(), requires_grad=False))
        yield
    finally:
        for name, parameter in kept.items():
            put(name, parameter)
