"""The weights of a model in shares, whole block by block while they are at work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from inference.runtime import InputError
from train.common import Batch
from train.objectives import Objective

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Place(NamedTuple):
    """Where a module has a trained weight."""

    owner: nn.Module
    attribute: str
    name: str
    """Of the weight in the objective."""


@dataclass(frozen=True)
class Wrapping:
    """What is whole together, and where shares lie."""

    reshards: bool = True
    """Whether a block is a share again between its forward and its backward pass."""
    on_cpu: bool = False
    """Whether shares lie in the system's memory, with the optimizer's step."""
    classes: Sequence[str] | None = None
    """Names of the classes of modules that are whole at a time; None for the denoiser's blocks, and
    the layers of text encoders that are trained; empty for everything together."""


class ShardedModel:
    """An objective and its denoiser, of which each process has a share.

    Text encoders that are not trained as a whole, and the VAE, stay whole: they work once for each
    caption and image, mostly before the first step, and can wait on the host.
    """

    def __init__(self, objective: Objective, mesh: DeviceMesh, wrapping: Wrapping) -> None:
        """Divide the weights; each process must have the same ones.

        Raises:
            InputError: no module is of the classes to wrap.
        """
        self.objective = objective
        root = Together(objective, objective.base.denoiser)
        self.blocks = blocks_of(objective, wrapping.classes)
        offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
        policy: OffloadPolicy = offload if wrapping.on_cpu else OffloadPolicy()
        for block in self.blocks:
            fully_shard(
                block,
                mesh=mesh,
                reshard_after_forward=wrapping.reshards,
                offload_policy=policy,
                ignored_params=shares(block),
            )
        fully_shard(root, mesh=mesh, offload_policy=policy, ignored_params=shares(root))
        assert isinstance(root, FSDPModule)
        self.root = root
        self.places = self._places()
        with torch.no_grad():
            root(lambda: None)  # now, so that no block is ever mistaken for the root
            root.reshard()
            for block in self.blocks:  # now, so that no buffer is made in inference mode
                assert isinstance(block, FSDPModule)
                block.unshard()
                block.reshard()

    def __call__(self, batch: Batch) -> Tensor:
        """Return the losses (b,) of a micro-batch."""
        return self.root(self.objective, batch)

    @contextmanager
    def at_work(self, rounded: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Let any part compute, in all processes together, with trained weights that are rounded.

        Args:
            rounded: returns a whole weight, by its name in the objective, as it computes.
        """
        shown: dict[str, nn.Parameter] = {}

        def show(block: nn.Module, *_: Any) -> None:
            for owner, attribute, name in self.places[block]:
                whole = getattr(owner, attribute)
                if whole is shown.get(name):
                    continue
                value = rounded(name, whole.detach())
                shown[name] = nn.Parameter(value, requires_grad=False)
                setattr(owner, attribute, shown[name])

        with ExitStack() as stack:
            stack.callback(self.root.reset_iter_state)
            self.root.unshard()
            show(self.root)
            for block in self.blocks:
                stack.callback(block.register_forward_pre_hook(show).remove)
            yield

    def _places(self) -> dict[nn.Module, list[Place]]:
        """Return where trained weights are, by the block that makes them whole."""
        blocks = {inner: block for block in self.blocks for inner in block.modules()}
        names = {one: name for name, one in self.objective.named_parameters()}
        found: dict[nn.Module, list[Place]] = defaultdict(list)
        everywhere = [self.objective, *self.objective.base.parts.values()]
        for inner in dict.fromkeys(one for part in everywhere for one in part.modules()):
            for attribute, parameter in inner.named_parameters(recurse=False):
                if parameter in names:
                    place = Place(inner, attribute, names[parameter])
                    found[blocks.get(inner, self.root)].append(place)
        return found


class Together(nn.Module):
    """What is whole during a whole micro-batch: what is in no block."""

    def __init__(self, objective: Objective, denoiser: nn.Module) -> None:
        super().__init__()
        self.objective = objective
        self.denoiser = denoiser

    def forward(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return what work does with the weights."""
        return work(*arguments)


def shares(module: nn.Module) -> set[nn.Parameter]:
    """Return the weights of a module that are divided already."""
    return {one for one in module.parameters() if isinstance(one, DTensor)}


def blocks_of(objective: Objective, classes: Sequence[str] | None) -> list[nn.Module]:
    """Return the modules that are whole at a time, inner ones first.

    Raises:
        InputError: no module is of these classes.
    """
    base = objective.base
    encoders = [one for name, one in base.text_encoders.items() if is_whole(one)]
    if classes is None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [inner for one in encoders for inner in one.modules()]
        found = [one for one in layers if isinstance(one, GradientCheckpointingLayer)]
        return [*base.blocks(), *found]
    everything = [inner for part in (base.denoiser, *encoders) for inner in part.modules()]
    found = [one for one in everything if type(one).__name__ in classes]
    if classes and not found:
        raise InputError(
            f"accelerate's config: fsdp_transformer_layer_cls_to_wrap: {', '.join(classes)} is no "
            f"class of a module in {base.path!r}; leave it out for the blocks of the model"
        )
    return found[::-1]


def is_whole(encoder: nn.Module) -> bool:
    """Return whether a part is trained as a whole."""
    return all(one.requires_grad for one in encoder.parameters())
