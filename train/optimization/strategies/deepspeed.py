"""Weights, gradients and optimizer in shares, by DeepSpeed through accelerate's plugin.

ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inference.files import is_finite
from inference.runtime import InputError
from train.common import Batch, RunDirectoryError, replaced_parameters
from train.config import LoraConfig
from train.objectives import Objective
from train.optimization.strategies.base import Content, Shown, Strategy
from train.optimization.strategies.files import (
    AVERAGES,
    TRAINED,
    read_state,
    trained_tensors,
    write_whole,
)
from train.optimization.strategies.sharded_files import is_sharded
from train.optimization.strategies.zero_config import imported
from train.optimization.strategies.zero_shares import Share, ZeroOptimizer, run_of, share_of
from train.runs import CheckpointWriter

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer

BUCKET = 500_000_000
"""DeepSpeed's number of gradients that are sent together, for which it reserves memory at once."""


class Wrapped(nn.Module):
    """What DeepSpeed wraps: the objective under autocast, with the modules that are divided.

    The modules alone are children, so that each has DeepSpeed's hooks once.
    """

    def __init__(self, objective: Objective, modules: Sequence[nn.Module], precision: str) -> None:
        super().__init__()
        self.modules_divided = nn.ModuleList(modules)
        self._objective = (objective,)
        self.precision = precision

    def forward(self, batch: Batch) -> Tensor:
        (objective,) = self._objective
        if self.precision != "bf16":
            return objective(batch)
        device = next(self.parameters()).device.type
        # Without the cache, which would keep each gathered weight to the end of the pass.
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            return objective(batch).float()


class Zero(Strategy):
    """Stage 1 divides the optimizer's state, stage 2 gradients too, stage 3 all weights too.

    Under stage 3 those are the denoiser's and those of the text encoders that get gradients, also
    frozen ones.
    """

    is_sharded: ClassVar[bool] = True

    engine: Any
    """DeepSpeed's."""
    optimizer: ZeroOptimizer
    objective: Objective

    @property
    def stage(self) -> int:
        """Return the stage of ZeRO."""
        return self._config["zero_optimization"]["stage"]

    @property
    def _config(self) -> dict[str, Any]:
        plugin = self.accelerator.state.deepspeed_plugin
        assert plugin is not None
        return plugin.deepspeed_config

    def shard(self, objective: Objective) -> None:
        """Check what only the base model tells; DeepSpeed divides the weights in `prepare`.

        Raises:
            InputError: some weights would get no gradients, parts wait in the system's memory, or
                an adapter needs whole weights.
        """
        self.objective = objective
        skips = objective.base.skips_last_text_layers
        if skips and any(objective.trains(name) for name in objective.base.text_encoders):
            raise InputError(
                f"parallel: zero{self.stage} would change the last layers of the text encoder, "
                "which this base model skips, without gradients: train it without the text "
                "encoder, or take ddp or fsdp"
            )
        config = self.recipe.objective
        if self.stage == 3 and isinstance(config, LoraConfig) and config.reads_weights:
            raise InputError(
                f"objective.algorithm: {config.algorithm} may read the weights of a layer, of "
                "which parallel: zero3 leaves each process a share: take lora, or zero2"
            )
        placement = objective.base.placement
        if self.stage == 3 and placement is not None and placement.plan.offload != "none":
            raise InputError(
                "memory.offload: parallel: zero3 moves weights by itself: set memory: none, and "
                "parallel.cpu_offload: all to keep them in the system's memory"
            )

    def prepare(self, objective: Objective, optimizer: Optimizer) -> AcceleratedOptimizer:
        modules: list[nn.Module] = [objective]
        if self.stage == 3:
            modules = [objective.base.denoiser, *objective.encoders_with_gradients.values()]
        wrapped = Wrapped(objective, modules, self.recipe.mixed_precision)
        self.optimizer = ZeroOptimizer(optimizer, self.accelerator)
        trained = sum(one.numel() for one in self.optimizer.parameters)
        self._config["zero_optimization"].setdefault("reduce_bucket_size", min(BUCKET, trained))
        # Of all stages the most; the loop sets that of a stage.
        self.accelerator.gradient_accumulation_steps = self._config["gradient_accumulation_steps"]
        self.engine, _ = self.accelerator.prepare(wrapped, optimizer)
        rank = self.accelerator.process_index
        self.optimizer.shares = {
            one: share_of(self.engine.optimizer, one, self.stage, rank)
            for one in self.optimizer.parameters
        }
        return cast("AcceleratedOptimizer", self.optimizer)

    @contextmanager
    def accumulating(self, completes_step: bool) -> Iterator[None]:
        self.accelerator.sync_gradients = completes_step
        self.engine.set_gradient_accumulation_boundary(completes_step)
        yield

    def losses(self, batch: Batch) -> Tensor:
        return self.engine(batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss.

        Those of a loss that is not finite are made so too, since DeepSpeed decides by gradients.
        """
        loss = loss * torch.where(loss.isfinite(), 1.0, float("nan"))
        steps = self.accelerator.gradient_accumulation_steps
        self.engine.backward(loss / steps, scale_wrt_gas=False)

    def clip(
        self, parameters: Sequence[nn.Parameter], limit: float, largest: float | None
    ) -> Tensor:
        """Clip by the norm of DeepSpeed's configuration, take the step, return the norm before.

        With gradients that are not finite DeepSpeed takes no step, and the norm is infinite.
        """
        self.engine.step()
        self.optimizer.step_was_skipped = bool(self.engine.optimizer.overflow)
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32)
        return norm.detach().to(self.accelerator.device).reshape(())

    def local(self, tensor: Tensor) -> Tensor:
        if self.stage < 3:
            return tensor
        one: Any = tensor
        numel = one.ds_numel if hasattr(one, "ds_tensor") else one.numel()
        start, length = run_of(numel, self.accelerator.num_processes, self._rank)
        if hasattr(one, "ds_tensor"):
            return one.ds_tensor.detach().narrow(0, 0, length)
        return tensor.detach().reshape(-1).narrow(0, start, length)

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index

    def all_finite(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether all are finite, and this process's shares.

        Those of which other processes have shares are given by their shapes alone.
        """
        own = [*(one for one in tensors if not one.is_meta), *self.optimizer.tensors()]
        flag = torch.tensor([int(all(map(is_finite, own)))], device=self.accelerator.device)
        return bool(cast("Tensor", self.accelerator.gather(flag)).min())

    @contextmanager
    def shown(self, objective: Objective, what: Shown) -> Iterator[None]:
        """Compute with other values; under stage 3 each process has all weights meanwhile."""
        named = dict(objective.named_parameters())
        everywhere = [objective, *objective.base.parts.values()]

        def values() -> Iterator[Tensor]:
            for i, (name, one) in enumerate(named.items()):
                value = one if what.averages is None else self._whole_average(one, what.averages[i])
                yield what.rounded(name, value.detach()).to(one.device)

        with self._gathered(), replaced_parameters(everywhere, list(named.values()), values()):
            yield

    @contextmanager
    def whole_on_first(self, objective: Objective, what: Shown) -> Iterator[None]:
        named = dict(objective.named_parameters())
        everywhere = [objective, *objective.base.parts.values()]
        values = []
        for i, (name, one) in enumerate(named.items()):
            value = self._first(one, None if what.averages is None else what.averages[i])
            if self.accelerator.is_main_process:
                values.append(what.rounded(name, value))
        if not self.accelerator.is_main_process:
            yield
            return
        with replaced_parameters(everywhere, list(named.values()), values):
            yield

    def write(self, writer: CheckpointWriter, content: Content) -> None:
        """Write whole tensors in the first process: an ordinary checkpoint, for any strategy."""
        state = self.optimizer.whole_state_dict()
        trained = {}
        for name, one in content.objective.state_dict(keep_vars=True).items():
            trained[name] = self._first(one) if isinstance(one, nn.Parameter) else one
        averages = None
        if content.averages is not None:
            pairs = zip(content.objective.parameters(), content.averages, strict=True)
            averages = {str(i): self._first(*pair) for i, pair in enumerate(pairs)}
        if writer.is_first:
            write_whole(writer, trained, {"optimizer": state, **content.others}, averages)

    def read(self, folder: Path, content: Content) -> dict[str, Any]:
        if is_sharded(folder):
            raise RunDirectoryError(
                f"{folder} has the shards of FSDP2, which parallel: zero{self.stage} does not read:"
                " continue with parallel=fsdp; or with parallel=ddp up to its next checkpoint, "
                "which every strategy reads"
            )
        trained = trained_tensors(folder / TRAINED)
        places = content.objective.state_dict(keep_vars=True)
        if places.keys() != trained.keys():
            names = ", ".join(sorted(places.keys() ^ trained.keys())[:3])
            raise RunDirectoryError(f"{folder / TRAINED}: {names} is not in both, file and model")
        for name, one in places.items():
            self._set(one, trained[name])
        state = read_state(folder)
        self.optimizer.load(state.pop("optimizer"))
        if content.averages is not None:
            averages = trained_tensors(folder / AVERAGES)
            for i, (one, own) in enumerate(
                zip(content.objective.parameters(), content.averages, strict=True)
            ):
                own.data.copy_(self._part(one, averages[str(i)]))
        return state

    def release(self) -> None:
        """Release DeepSpeed's engine with its hooks.

        Divided weights keep their shapes, which describe the artifacts, without values.
        """
        everything = list(self.engine.module.parameters()) if self.stage == 3 else []
        shapes = [cast("Any", one).ds_shape for one in everything]
        self.engine.destroy()
        for one, shape in zip(everything, shapes, strict=True):
            one.data = torch.full((), float("nan"), dtype=one.dtype, device=one.device).expand(
                shape
            )
        del self.engine

    def _first(self, parameter: nn.Parameter, average: Tensor | None = None) -> Tensor:
        """Return a whole weight or its average on the CPU in the first process."""
        held = self.local(parameter) if average is None else average
        if self.stage < 3:
            return held.detach().cpu() if self.accelerator.is_main_process else torch.empty(0)
        return self.optimizer.first_whole(*self._divided(parameter, held))

    def _whole_average(self, parameter: nn.Parameter, average: Tensor) -> Tensor:
        """Return a whole average in all processes."""
        if self.stage < 3:
            return average
        return self.optimizer.whole(*self._divided(parameter, average))

    def _divided(
        self, parameter: nn.Parameter, held: Tensor
    ) -> tuple[torch.Size, Share | None, Tensor]:
        return self.optimizer.shapes[parameter], self.optimizer.shares[parameter], held

    def _part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """Return what this process holds of a whole tensor in a parameter's shape."""
        share = self.optimizer.shares[parameter]
        return whole if self.stage < 3 or share is None else share.within(whole)

    def _set(self, place: Tensor, value: Tensor) -> None:
        """Set a weight, with DeepSpeed's copy of it, or a buffer."""
        if not isinstance(place, nn.Parameter):
            place.copy_(value)
            return
        share = self.optimizer.shares[place]
        self.local(place).data.copy_(self._part(place, value))
        if share is not None:
            share.of(share.flat).copy_(share.within(value))
        if self.stage == 3 and place.numel() == value.numel():
            place.data.copy_(value)  # small weights stay whole in each process

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Let each process have all weights, without the hooks that gather and free them."""
        if self.stage < 3:
            yield
            return
        gathered = imported().zero.GatheredParameters
        hooks = self.engine.optimizer.parameter_offload
        with ExitStack() as stack:
            self.engine.empty_partition_cache()
            everything = list(self.engine.module.parameters())
            stack.enter_context(gathered(everything))
            hooks._remove_module_hooks()
            hooks.forward_hooks, hooks.backward_hooks = [], []
            stack.callback(hooks.setup_zero_stage3_hooks)
            yield
