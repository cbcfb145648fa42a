"""Temporary replacement of weights in a model."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def replaced_parameters(
    modules: Iterable[nn.Module], parameters: Sequence[nn.Parameter], values: Iterable[Tensor]
) -> Iterator[None]:
    """Replace parameters by values, of any dtype, wherever modules hold them.

    Afterwards the parameters themselves are back, unchanged. Setting their `.data` would be
    shorter, but a change of its dtype detaches a parameter from the hooks by which DDP sums
    gradients, and the processes would diverge.
    """
    owners: dict[nn.Parameter, set[tuple[nn.Module, str]]] = {p: set() for p in parameters}
    for module in modules:
        for inner in module.modules():
            for name, parameter in inner.named_parameters(recurse=False):
                if parameter in owners:
                    owners[parameter].add((inner, name))
    try:
        for places, value in zip(owners.values(), values, strict=True):
            replacement = nn.Parameter(value.detach(), requires_grad=False)
            for owner, name in places:
                setattr(owner, name, replacement)
        yield
    finally:
        for parameter, places in owners.items():
            for owner, name in places:
                setattr(owner, name, parameter)
