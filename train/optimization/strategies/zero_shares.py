"""The shares of weights and optimizer that a process has under DeepSpeed's ZeRO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from train.common import RunDirectoryError

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Share:
    """A run of a flattened parameter, whose optimizer step this process takes."""

    flat: Tensor
    """Its fp32 weights lie in here with others'; also the optimizer's parameter, 1-D."""
    at: int
    """Where they begin in `flat`."""
    start: int
    """Where they begin in the flattened parameter."""
    numel: int

    def of(self, flat: Tensor) -> Tensor:
        """Return this share of a tensor laid out as `flat`."""
        return flat.detach().narrow(0, self.at, self.numel)

    def within(self, whole: Tensor) -> Tensor:
        """Return this share of a whole parameter, or of a tensor of its shape."""
        return whole.detach().reshape(-1).narrow(0, self.start, self.numel)


def run_of(numel: int, processes: int, rank: int) -> tuple[int, int]:
    """Return where a process's run of a parameter begins under stage 3, and its length."""
    size = ceil(numel / processes)
    start = min(rank * size, numel)
    return start, min(size, numel - start)


def share_of(zero: Any, parameter: Any, stage: int, rank: int) -> Share | None:
    """Return this process's share of a parameter; None if it has nothing of it.

    Args:
        zero: DeepSpeed's optimizer.
        parameter: a trained one.
        stage: of ZeRO.
        rank: of this process.
    """
    if stage == 3:
        group, at, size = zero.grad_position[zero.get_param_id(parameter)]
        start = min(rank * size, parameter.ds_numel)
        length = min(size, parameter.ds_numel - start)
        return Share(zero.fp32_partitioned_groups_flat[group], at, start, length)
    place = parameter._hp_mapping
    if place is None:
        return None
    flat = zero.single_partition_of_fp32_groups[place.param_group_index]
    ours, theirs = place.hp_fragment_address, place.lp_fragment_address
    return Share(flat, ours.start, theirs.start, ours.numel)


class ZeroOptimizer:
    """The optimizer in the terms of whole parameters, for the loop and for checkpoints.

    `clip` of the strategy takes its step, so that `step` and `zero_grad` do nothing.
    """

    def __init__(self, optimizer: Optimizer, accelerator: Accelerator) -> None:
        """Note the groups before DeepSpeed replaces their parameters by flat shares.

        Args:
            optimizer: torch's; the LR schedule changes its groups.
            accelerator: of this process.
        """
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.members: list[list[nn.Parameter]] = [
            list(group["params"]) for group in optimizer.param_groups
        ]
        self.shapes = {one: one.shape for group in self.members for one in group}
        self.shares: dict[nn.Parameter, Share | None] = {}
        """Once DeepSpeed has divided the parameters."""
        self.step_was_skipped = False
        """Whether gradients were not finite in the last step."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return all, in the order of the groups."""
        return [one for group in self.members for one in group]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the groups, with whole parameters."""
        pairs = zip(self.optimizer.param_groups, self.members, strict=True)
        return [{**group, "params": members} for group, members in pairs]

    def step(self) -> None:
        """Do nothing: DeepSpeed has taken the step."""

    def zero_grad(self) -> None:
        """Do nothing: DeepSpeed has cleared the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state_dict of the whole, with tensors that have shapes alone (meta)."""
        state = {}
        for known in list(self.optimizer.state.values())[:1]:
            for i, one in enumerate(self.parameters):
                state[i] = {
                    key: torch.empty(
                        self.shapes[one] if value.ndim else (), dtype=value.dtype, device="meta"
                    )
                    for key, value in known.items()
                }
        return self._with_groups(state)

    def whole_state_dict(self) -> dict[str, Any] | None:
        """Return torch's state_dict in the first process; all processes must call it."""
        state: dict[int, dict[str, Tensor]] = {}
        keys = self._keys()
        for i, one in enumerate(self.parameters):
            own = self._state(one)
            if not keys:
                continue
            state[i] = {}
            for key in keys:
                value = own.get(key)
                if key == "step":
                    state[i][key] = self._number(value)
                else:
                    share = self.shares[one]
                    piece = None if value is None or share is None else share.of(value)
                    state[i][key] = self.first_whole(self.shapes[one], share, piece)
        return self._with_groups(state) if self.accelerator.is_main_process else None

    def load(self, saved: Mapping[str, Any]) -> None:
        """Restore what `whole_state_dict` returned, of any number of processes, or torch's own.

        Raises:
            RunDirectoryError: parameters of one flat tensor have different numbers of steps.
        """
        for group, own in zip(saved["param_groups"], self.optimizer.param_groups, strict=True):
            own.update({key: value for key, value in group.items() if key != "params"})
        self.optimizer.state.clear()
        for i, one in enumerate(self.parameters):
            share, state = self.shares[one], saved["state"].get(i, {})
            if share is None:
                continue
            flat: dict[str, Any] = self.optimizer.state[share.flat]
            for key, value in state.items():
                if key == "step":
                    self._set_step(flat, value, share)
                    continue
                if key not in flat:
                    flat[key] = torch.zeros_like(share.flat, requires_grad=False)
                share.of(flat[key]).copy_(share.within(value))

    def tensors(self) -> Iterator[Tensor]:
        """Yield this process's weights and the optimizer's state, without padding."""
        for one, share in self.shares.items():
            if share is not None:
                yield share.of(share.flat)
                states = self._state(one).values()
                yield from (share.of(value) for value in states if value.ndim)

    def first_whole(self, shape: torch.Size, share: Share | None, piece: Tensor | None) -> Tensor:
        """Return a whole fp32 tensor on the CPU, in the first process; empty in others."""
        whole = self._spread(shape, share, piece)
        distributed.reduce(whole, 0)
        if not self.accelerator.is_main_process:
            return torch.empty(0)
        return whole.view(torch.float32).view(shape).cpu()

    def whole(self, shape: torch.Size, share: Share | None, piece: Tensor | None) -> Tensor:
        """Return a whole fp32 tensor in all processes, on their device."""
        whole = self._spread(shape, share, piece)
        distributed.all_reduce(whole)
        return whole.view(torch.float32).view(shape)

    def _spread(self, shape: torch.Size, share: Share | None, piece: Tensor | None) -> Tensor:
        """Return zeros with a share, as integers: their sum keeps every bit."""
        whole = torch.zeros(shape.numel(), dtype=torch.int32, device=self.accelerator.device)
        if share is not None and piece is not None:
            share.within(whole).copy_(piece.view(torch.int32))
        return whole

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the optimizer's state of the flat tensor with this process's share."""
        share = self.shares[parameter]
        return {} if share is None else self.optimizer.state.get(share.flat, {})

    def _keys(self) -> list[str]:
        """Return the names of the state's tensors, the same in all processes."""
        from accelerate.utils import gather_object

        own = {key: None for state in self.optimizer.state.values() for key in state}
        return list(dict.fromkeys(gather_object(list(own))))

    def _number(self, value: Tensor | None) -> Tensor:
        """Return a number that is the same in the processes that have it."""
        own = torch.tensor([-1.0 if value is None else float(value)])
        own = own.to(self.accelerator.device)
        distributed.all_reduce(own, op=distributed.ReduceOp.MAX)
        return own.cpu().reshape(())

    def _set_step(self, flat: dict[str, Any], step: Tensor, share: Share) -> None:
        if "step" in flat and float(flat["step"]) != float(step):
            raise RunDirectoryError(
                f"the checkpoint's optimizer has taken {float(flat['step']):g} steps of some "
                f"weights and {float(step):g} of others, which ZeRO holds in one tensor: continue "
                "with parallel: ddp"
            )
        is_fused = any(group.get("fused") for group in self.optimizer.param_groups)
        device = share.flat.device if is_fused else step.device
        flat["step"] = step.detach().to(device, torch.float32, copy=True)

    def _with_groups(self, state: Mapping[int, Any]) -> dict[str, Any]:
        groups, first = [], 0
        for group, members in zip(self.optimizer.param_groups, self.members, strict=True):
            plain = {key: value for key, value in group.items() if key != "params"}
            groups.append({**plain, "params": list(range(first, first + len(members)))})
            first += len(members)
        return {"state": dict(state), "param_groups": groups}
