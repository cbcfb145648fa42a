"""The memory of a training step, measured on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from inference.memory import live_bytes, prompts_measured, with_tokenizer
from inference.models import DTYPES
from train.common import Batch
from train.config import TrainRecipe
from train.objectives import Objective, enable_gradient_checkpointing
from train.optimization import is_worth_moving


class StepBytes(NamedTuple):
    """Bytes of a micro-batch's forward and backward pass."""

    device: int
    """At the peak, without gradients."""
    host: int
    """Of what `memory.activation_offload` moves."""


known: dict[tuple[object, ...], StepBytes] = {}
"""What was measured, by all that it depends on: a choice of settings measures few of them."""


def step_bytes(
    objective: Objective,
    recipe: TrainRecipe,
    pixels: Sequence[int],
    latents: Sequence[int],
    has_captions: bool,
    is_checkpointing: bool,
) -> StepBytes:
    """Return the memory of a micro-batch's forward and backward pass, without its gradients.

    With `memory.fused_backward` only the largest gradient counts as such: it is the only one then.

    Args:
        objective: on the meta device.
        recipe: of the stage.
        pixels: shape of an example.
        latents: shape of an example's latents.
        has_captions: whether prompt embeddings are cached.
        is_checkpointing: whether gradient checkpointing is enabled.
    """
    data = recipe.data
    rows = recipe.train_batch_size * (2 if data.has_prior else 1)
    has_gradients = recipe.gradient_accumulation_steps > 1
    lower = DTYPES[recipe.mixed_precision] if recipe.mixed_precision != "fp32" else None
    moves, is_fused = recipe.memory.activation_offload, recipe.memory.fused_backward
    what = repr((recipe.objective, recipe.base_model, recipe.loss))
    settings = what, data.packs_clips, lower, moves, is_fused
    shape = (
        rows,
        tuple(pixels),
        tuple(latents),
        has_captions,
        is_checkpointing,
        has_gradients,
        is_fused,
    )
    key = fingerprint(objective), *settings, *shape
    if key not in known:
        with in_training(objective, is_checkpointing), with_tokenizer(objective.base):
            batch = blank_batch(objective, rows, pixels, latents, has_captions)
            moved: list[int] = []
            with (
                away(objective, moved) if moves else nullcontext(),
                freed_at_once(trained(objective)) if is_fused else nullcontext(),
            ):
                peak = step_peak(objective, batch, lower, has_gradients)
        known[key] = StepBytes(peak - gradient_bytes(objective, is_fused), sum(moved))
    return known[key]


def query_bytes(
    objective: Objective,
    recipe: TrainRecipe,
    pixels: Sequence[int],
    latents: Sequence[int],
    has_captions: bool,
) -> int:
    """Return the bytes of the queries of the denoiser's attention layers in a forward pass.

    The arguments are those of `step_bytes`.
    """
    rows = recipe.train_batch_size * (2 if recipe.data.has_prior else 1)
    lower = DTYPES[recipe.mixed_precision] if recipe.mixed_precision != "fp32" else None
    sizes: list[int] = []

    def count(layer: nn.Module, given: tuple[object, ...], output: Tensor) -> None:
        sizes.append(output.nbytes)

    layers = [
        module
        for block in objective.base.blocks()
        for name, module in block.named_modules()
        if name.rpartition(".")[2] == "to_q"
    ]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with in_training(objective, False), with_tokenizer(objective.base), torch.no_grad():
            batch = blank_batch(objective, rows, pixels, latents, has_captions)
            with live_bytes(lower) as (_, cuda), cuda.autocast():
                objective(batch)
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes)


def fingerprint(objective: Objective) -> int:
    """Return a number that differs for other weights, other formats and other trained parts."""
    seen: list[object] = [type(objective)]
    for module in (*objective.base.parts.values(), objective):
        seen += [type(inner) for inner in module.modules()]
        seen += [(one.shape, one.dtype, one.requires_grad) for one in module.parameters()]
    return hash(tuple(seen))


def trained(objective: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that get gradients."""
    return [one for one in objective.parameters() if one.requires_grad]


def gradient_bytes(objective: Objective, is_fused: bool) -> int:
    """Return the bytes of all gradients; of the largest if each is freed at once."""
    sizes = [one.nbytes for one in trained(objective)]
    return max(sizes, default=0) if is_fused else sum(sizes)


@contextmanager
def freed_at_once(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Free each gradient inside the context once it is complete, as a fused backward pass does."""

    def free(parameter: Tensor) -> None:
        parameter.grad = None

    handles = [one.register_post_accumulate_grad_hook(free) for one in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def in_training(objective: Objective, is_checkpointing: bool) -> Iterator[None]:
    """Set an objective to training inside the context, with or without gradient checkpointing."""
    modules = [inner for part in objective.base.parts.values() for inner in part.modules()]
    modes = [(module, module.training) for module in (*modules, *objective.modules())]
    objective.train()
    if is_checkpointing:
        enable_gradient_checkpointing(objective)
    try:
        yield
    finally:
        for module in modules:
            if getattr(module, "gradient_checkpointing", False):
                cast("Any", module).gradient_checkpointing = False
        for module, mode in modes:
            module.training = mode


def blank_batch(
    objective: Objective,
    rows: int,
    pixels: Sequence[int],
    latents: Sequence[int],
    has_captions: bool,
) -> Batch:
    """Return a micro-batch of zeros with latents, on the meta device."""
    base, counters = objective.base, list(range(rows))
    prompt = " ".join(["a", *getattr(base, "embeddings", {})])  # learned words lead to gradients
    batch: dict[str, Any] = {
        "step": 0,
        "step_size": rows,
        "first_position": 0,
        "positions": counters,
        "indices": counters,
        "names": [""] * rows,
        "weight": torch.ones(rows),
        "prompts": [prompt] * rows,
        "timesteps": torch.zeros(rows, dtype=torch.long),
        "first_frames": torch.zeros(rows, 3, *pixels[-2:], device="meta"),
    }
    if "denoising" in vars(objective):
        batch["latents"] = torch.zeros(rows, *latents, device="meta")
    else:
        batch["pixels"] = torch.zeros(rows, 3, *pixels, device="meta")
    if has_captions:
        batch["prompt_states"] = prompts_measured(base, rows).result
    if base.sizes.takes_masks:
        batch["masked_pixels"] = torch.zeros(rows, 3, *pixels, device="meta")
        batch["inpainting_mask"] = torch.zeros(rows, 1, *latents[-2:], device="meta")
    return cast("Batch", batch)


def step_peak(
    objective: Objective,
    batch: Batch,
    lower: torch.dtype | None,
    has_gradients: bool,
) -> int:
    """Return the bytes of forward and backward pass at the peak, gradients included.

    Args:
        objective: in training.
        batch: the micro-batch; it counts.
        lower: the lower precision of autocast, if it is used.
        has_gradients: whether there are gradients already, of another micro-batch.
    """
    own = sum(one.nbytes for one in tensors_in(batch) if one.is_meta)
    parameters = trained(objective)
    try:
        with live_bytes(lower) as (live, cuda):
            for one in parameters if has_gradients else ():
                one.grad = torch.zeros_like(one)
            with cuda.autocast():
                losses = objective(batch)
            loss = losses.mean()
            del losses
            cuda.backward(loss)
            return own + live.peak
    finally:
        for one in parameters:
            one.grad = None


@contextmanager
def away(objective: Objective, moved: list[int]) -> Iterator[None]:
    """Free what autograd keeps inside the context, as `memory.activation_offload` does.

    Args:
        objective: whose weights stay.
        moved: takes the bytes of each tensor in pinned memory, of which PyTorch allocates powers
            of two.
    """
    modules = (objective, *objective.base.parts.values())
    weights = {one.untyped_storage()._cdata for part in modules for one in part.parameters()}

    def pack(tensor: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...], torch.dtype]:
        is_kept = tensor.untyped_storage()._cdata in weights or not tensor.is_meta
        if is_kept or not is_worth_moving(tensor):
            return tensor
        moved.append(1 << (tensor.nbytes - 1).bit_length())
        return tensor.shape, tensor.stride(), tensor.dtype

    def unpack(packed: Tensor | tuple[torch.Size, tuple[int, ...], torch.dtype]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        shape, strides, dtype = packed
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def tensors_in(batch: Batch) -> list[Tensor]:
    """Return the tensors of a micro-batch."""
    values: list[Any] = list(batch.values())
    conditions = batch.get("prompt_states")
    values += [] if conditions is None else [conditions.states, conditions.pooled]
    return [one for one in values if isinstance(one, Tensor)]
