"""The memory of a run, computed from configs: weights, trained state, and what each phase takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch

from inference.clips import expand, needs_of
from inference.config import ClipConfig, ImageConfig
from inference.memory import (
    Measured,
    decoding_measured,
    denoising_measured,
    encoding_measured,
    prompts_measured,
    swapped_bytes,
    tiled,
)
from inference.models import DTYPES, DiffusionModel, quantization_savings, savings_by_layer
from inference.parallel import Layout
from train.common import encoded_at_once
from train.config import TrainRecipe
from train.data import DEVICE_BYTES, PROMPT_CACHE_BYTES, Examples
from train.families import training_of
from train.memory.figures import MemoryPlan, PartMemory
from train.memory.outline import Outline
from train.memory.ranks import Traffic, divided_bytes, on_each, traffic_of
from train.memory.steps import StepBytes, query_bytes, step_bytes
from train.objectives import Objective, drawn_dtype, read_precision
from train.optimization import trained_bytes
from train.placement import idle_parts, parts_by_phase

Stages = Sequence[tuple[TrainRecipe, Examples]]
"""Recipe and examples of each stage."""

ENCODED_TOGETHER = 64
"""Captions that are encoded at once (`train.data.PromptStates.fill`); on disk one by one."""


def memory_planned(recipe: TrainRecipe, outline: Outline, processes: int = 1) -> MemoryPlan:
    """Return the memory of a run on each of its devices."""
    recipes = [stage.recipe for stage in outline.stages]
    pairs = [*zip(recipes, outline.examples, strict=True)]
    return plan_memory(recipe, outline.objective, pairs, outline.images, processes)


def plan_memory(
    recipe: TrainRecipe,
    objective: Objective,
    stages: Stages,
    images: Sequence[ImageConfig],
    processes: int = 1,
) -> MemoryPlan:
    """Compute the memory of a run on each of its devices.

    Args:
        recipe: the run's.
        objective: from `train.memory.objective_without_weights`.
        stages: recipe and examples of each.
        images: the preview images; of a video model the clips are those of the recipe.
        processes: of the run.
    """
    base = objective.base
    inside = {id(p) for name in base.parts for _, p in own_weights(base, name)}
    trained = [p for p in objective.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    plan = MemoryPlan({name: part_memory(recipe, base, name) for name in base.parts})
    plan.denoiser = base.denoiser_name
    plan.trained = sum(p.nbytes for p in objective.parameters() if id(p) not in inside)
    plan.trained += gradients if recipe.loss.prior_copy else 0
    kept = trained_bytes(recipe, trained)
    plan.gradients, plan.optimizer, plan.ema = kept.gradients, kept.optimizer, kept.ema
    plan.host_state = kept.host
    plan.step = kept.step if recipe.memory.fused_backward else 0  # in the backward pass
    packing = recipe.base_model.quantization
    saved = savings_by_layer(base, packing) if packing else {}
    swap = base.blocks(), recipe.memory.blocks_to_swap, saved
    plan.swapped, plan.swapped_at_rest = swapped_bytes(*swap), swapped_bytes(*swap, here=0)
    copied = copied_for_drawing(recipe, objective)
    plan.drawn = sum(p.numel() * dtype.itemsize for p, dtype in copied)
    plan.host = host_bytes(recipe, plan)
    captions = captions_bytes(recipe, objective, stages)
    has_captions = captions is not None
    plan.prompts = captions if captions is not None and captions <= DEVICE_BYTES else 0
    plan.aside = idle_parts(recipe, base, has_captions, is_cached(recipe))
    whole = [name for name in base.parts if is_trained(base, name)]
    if recipe.memory.offload != "none":  # `train.optimization.ShownWeights`
        plan.spared = plan.optimizer + sum(one.nbytes for one, _ in copied)
        plan.spared += plan.ema if copied else 0
        denoising = {id(one) for one in base.denoiser.parameters()}
        plan.set_aside = plan.ema + sum(p.nbytes for p in trained if id(p) in denoising)
    offload = "none" if recipe.memory.offload == "none" else "model_offload"
    phases = parts_by_phase(base, offload, plan.aside, whole)
    plan.at_work = {phase: [*filter(at.__contains__, base.parts)] for phase, at in phases.items()}
    encoded = [encoding_needs(recipe, base, stage, has_captions) for stage in stages]
    for phase, is_before in (("captions", has_captions), ("latents", is_cached(recipe))):
        most = max(needs[phase] for needs in encoded)
        plan.needs[phase] = most if is_before else 0
        plan.needs["step"] = max(plan.needs.get("step", 0), 0 if is_before else most)
    plan.needs |= drawing_needs(recipe, objective, images, plan)
    # The average is updated by a copy of it, while there are gradients; so are single weights.
    besides = max(plan.needs.pop("step") - plan.gradients, plan.ema, kept.step - plan.step)
    for is_checkpointing in (True, False):
        needs = [step_needs(objective, one, has_captions, is_checkpointing) for one in stages]
        most = max(besides, *(one.device for one in needs))
        if is_checkpointing == recipe.gradient_checkpointing:
            plan.needs["step"] = most
            plan.host_activations = max(one.host for one in needs)
        else:
            plan.other_activations = most
    plan.whole = divided_bytes(objective, plan)
    return on_each(
        plan, recipe, Layout(0, processes, recipe.parallel.context), latent_frames(stages, base)
    )


def latent_frames(stages: Stages, base: DiffusionModel) -> int:
    """Return the latent frames of the largest example; 1 for images."""
    shapes = [latents_of(base, largest_of(examples)) for _, examples in stages]
    return max(shape[1] if len(shape) > 3 else 1 for shape in shapes)


def traffic_planned(
    recipe: TrainRecipe, outline: Outline, memory: MemoryPlan, processes: int
) -> Traffic:
    """Return what each process sends in a step, in the stage in which it is most."""
    layout, objective = Layout(0, processes, recipe.parallel.context), outline.objective
    pairs = [
        (stage.recipe, examples)
        for stage, examples in zip(outline.stages, outline.examples, strict=True)
    ]
    has_captions = captions_bytes(recipe, objective, pairs) is not None

    def planned(own: TrainRecipe, examples: Examples) -> Traffic:
        queries = 0
        if layout.context > 1:
            shape = largest_of(examples)
            queries = query_bytes(
                objective, own, shape, latents_of(objective.base, shape), has_captions
            )
        return traffic_of(own, memory.whole, layout, queries)

    return max((planned(*pair) for pair in pairs), key=lambda one: one.total)


def is_cached(recipe: TrainRecipe) -> bool:
    """Return whether latents are cached before the first step."""
    return recipe.data.caches_latents


def captions_bytes(recipe: TrainRecipe, objective: Objective, stages: Stages) -> int | None:
    """Return the bytes of cached prompt embeddings in memory; None if captions are not cached."""
    data = recipe.data
    changes = objective.changes_prompts or any(examples.changes_words for _, examples in stages)
    if changes or data.cache == "off" or not recipe.objective.learns_from_captions:
        return None
    if data.cache == "disk":
        return 0
    count = len({text for _, examples in stages for text in examples.all_prompts()})
    size = count * prod(objective.base.prompt_shape) * objective.base.dtype.itemsize
    return size if size <= PROMPT_CACHE_BYTES else None


def part_memory(recipe: TrainRecipe, base: DiffusionModel, name: str) -> PartMemory:
    """Return the weights of a part on the device, without injected LoRAs."""
    weights = own_weights(base, name)
    count, size = sum(p.numel() for _, p in weights), sum(p.nbytes for _, p in weights)
    names, sizes = {dtype: word for word, dtype in DTYPES.items()}, Counter[torch.dtype]()
    for _, p in weights:
        sizes[p.dtype] += p.numel()
    kind = names[sizes.most_common(1)[0][0]]
    packing = recipe.base_model.quantization
    if packing is not None and name == base.denoiser_name:
        size -= quantization_savings(base, packing)
        kind = packing
    return PartMemory(count, kind, size)


def host_bytes(recipe: TrainRecipe, plan: MemoryPlan) -> int:
    """Return the bytes of all weights as they are read, without those of Python and libraries."""
    size = DTYPES[read_precision(recipe)].itemsize
    needs = [
        max(part.bytes, part.parameters * (4 if name == "vae" else size))
        for name, part in plan.parts.items()
    ]
    return sum(needs)


def own_weights(base: DiffusionModel, name: str) -> list[tuple[str, torch.Tensor]]:
    """Return path and weight of all layers of a part, without injected LoRAs."""
    return [(path, p) for path, p in base.parts[name].named_parameters() if ".lora_" not in path]


def is_trained(base: DiffusionModel, name: str) -> bool:
    """Return whether weights of a part itself are trained, not only LoRA layers in it."""
    return any(weight.requires_grad for _, weight in own_weights(base, name))


def copied_for_drawing(
    recipe: TrainRecipe, objective: Objective
) -> list[tuple[torch.nn.Parameter, torch.dtype]]:
    """Return the trained weights of which previews use copies, with the format of these."""
    saved = DTYPES[recipe.saving.save_precision]
    pairs = [
        (parameter, drawn_dtype(recipe, objective.base, name))
        for name, parameter in objective.named_parameters()
    ]
    return [(one, dtype) for one, dtype in pairs if not one.dtype == saved == dtype]


def shapes_of(examples: Examples) -> set[tuple[int, ...]]:
    """Return the shapes of the examples."""
    return {examples.shape(index) for index in range(len(examples))}


def largest_of(examples: Examples) -> tuple[int, ...]:
    """Return the shape of the examples that has the most pixels."""
    return max(shapes_of(examples), key=prod)


def encoding_needs(
    recipe: TrainRecipe,
    base: DiffusionModel,
    stage: tuple[TrainRecipe, Examples],
    has_captions: bool,
) -> dict[str, int]:
    """Return the bytes of encoding captions, and images or clips, besides weights."""
    if not recipe.objective.learns_from_captions:
        return {"captions": 0, "latents": 0}
    own, examples = stage
    rows = own.train_batch_size * (2 if own.data.has_prior else 1)
    if has_captions:
        is_on_disk = recipe.data.cache == "disk"
        rows = 1 if is_on_disk else min(ENCODED_TOGETHER, len(examples.all_prompts()))
    with tiled(base.vae, bool(recipe.vae_tiling)):
        latents = [
            encoding_measured(base, encoded_at_once(shape, own.train_batch_size), shape).bytes
            for shape in shapes_of(examples)
        ]
    return {"captions": prompts_measured(base, rows).bytes, "latents": max(latents)}


def step_needs(
    objective: Objective,
    stage: tuple[TrainRecipe, Examples],
    has_captions: bool,
    is_checkpointing: bool,
) -> StepBytes:
    """Return the bytes of the largest micro-batch of a stage, without gradients."""
    recipe, examples = stage
    shape = largest_of(examples)
    latents = latents_of(objective.base, shape)
    return step_bytes(objective, recipe, shape, latents, has_captions, is_checkpointing)


def latents_of(base: DiffusionModel, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an example's latents."""
    return tuple(encoding_measured(base, 1, shape).result.shape[1:])


@contextmanager
def in_drawn_format(recipe: TrainRecipe, objective: Objective) -> Iterator[None]:
    """Have trained weights in the format of generating inside the context."""
    kept = [(parameter, parameter.data) for parameter in objective.parameters()]
    for name, parameter in objective.named_parameters():
        parameter.data = parameter.data.to(drawn_dtype(recipe, objective.base, name))
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def drawing_needs(
    recipe: TrainRecipe, objective: Objective, images: Sequence[ImageConfig], plan: MemoryPlan
) -> dict[str, int]:
    """Return the bytes of generating the previews, by phase; 0 without previews."""
    base: Any = objective.base
    clips: list[ClipConfig] = [one for one in recipe.sampling.clips.values() if one is not None]
    with in_drawn_format(recipe, objective):
        if training_of(base).examples == "clips":
            return clip_drawing_needs(base, clips, plan)
        return image_drawing_needs(recipe, base, images)


def image_drawing_needs(
    recipe: TrainRecipe, base: DiffusionModel, images: Sequence[ImageConfig]
) -> dict[str, int]:
    """Return the bytes of generating the largest images, decoded one by one."""
    if not images:
        return {"prompts": 0, "denoising": 0, "decoding": 0}
    own: Any = base
    rows = min(recipe.sampling.batch_size, len(images))
    sizes = {(one.height or own.resolution, one.width or own.resolution) for one in images}
    latents = latents_of(base, max(sizes, key=prod))
    prompts: Measured = prompts_measured(base, 2 * rows)
    with tiled(base.vae, bool(recipe.vae_tiling)):
        decoding = decoding_measured(base, (1, *latents)).bytes
    return {
        "prompts": prompts.bytes,
        "denoising": denoising_measured(base, (rows, *latents), 2).bytes,
        "decoding": decoding,
    }


def clip_drawing_needs(base: Any, clips: Sequence[ClipConfig], plan: MemoryPlan) -> dict[str, int]:
    """Return the bytes of generating the largest clip, which is decoded in tiles if it must be."""
    if not clips:
        return {"prompts": 0, "denoising": 0, "decoding": 0}
    needs = needs_of(base, expand(base, clips))
    plan.whole_decoding = needs.decoding
    prompts = prompts_measured(base, 1).bytes
    return {"prompts": prompts, "denoising": needs.drawing, "decoding": needs.tiled_decoding}
