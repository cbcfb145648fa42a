"""Temporary replacement of weights in a model, and tensors that wait in the system's memory."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


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


@contextmanager
def on_the_host(tensors: Iterable[Tensor], but: Iterable[Tensor] = ()) -> Iterator[None]:
    """Keep the values of a GPU's tensors in the system's memory inside the context.

    The tensors are empty meanwhile, and must not be used. They stay the same objects of the same
    device and dtype, so that optimizer, DDP and hooks keep them.

    Args:
        tensors: those on other devices are left as they are.
        but: tensors whose memory stays, whoever shares it.
    """
    used = {tensor.untyped_storage().data_ptr() for tensor in but}
    waiting = {
        id(tensor): (tensor, tensor.device, tensor.data.cpu())
        for tensor in tensors
        if tensor.device.type == "cuda" and tensor.untyped_storage().data_ptr() not in used
    }
    try:
        for tensor, _, _ in waiting.values():
            tensor.data = tensor.data.new_empty(0)
        yield
    finally:
        for tensor, device, values in waiting.values():
            tensor.data = values.to(device)


def own_rows(tensor: Tensor) -> Tensor:
    """Return the rows of a weight that this process has: all, unless processes share them."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
