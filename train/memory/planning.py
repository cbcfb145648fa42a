"""The memory of a run, computed from configs: weights, trained state, activations, previews."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from inference.clips import decoding_bytes, expand, needs_of
from inference.config import ClipConfig, ImageConfig
from inference.models import DTYPES, DiffusionModel, skeleton
from train.common import encoded_at_once
from train.config import AutoencoderConfig, LoraConfig, TrainRecipe
from train.data import (
    ClassFolder,
    ClipExamples,
    Examples,
    Sources,
    build_examples,
    class_folders,
    find_sources,
    pictures_there,
)
from train.families import LIVE_TENSORS, traced, training_of
from train.monitoring import grid_images
from train.objectives import Objective, objective_on, read_precision
from train.optimization import state_bytes
from train.stages import Stage, stages_of

GIB = 2**30
CONTEXT = GIB // 2
"""Approximate GPU memory of CUDA and its libraries."""


@dataclass(frozen=True)
class PartMemory:
    """A part of the base model."""

    parameters: int
    format: str
    """That of most weights: fp32, fp16, bf16, nf4 or int8; fp32 if trained."""
    bytes: int


@dataclass
class MemoryPlan:
    """Bytes on one device."""

    parts: dict[str, PartMemory] = field(default_factory=dict)
    """The base model."""
    aside: list[str] = field(default_factory=list)
    """Parts that are offloaded before the first step (`train.caches.put_aside`)."""
    trained: int = 0
    """Weights besides the base model (LoRA, embedding, loss.prior_copy, …), in fp32."""
    gradients: int = 0
    optimizer: int = 0
    ema: int = 0
    casts: int = 0
    """Copies of trained weights in the dtype of the computation, and DDP's of gradients."""
    activations: int = 0
    """Forward and backward of a micro-batch, in the largest stage."""
    other_activations: int = 0
    """The same with the opposite setting of gradient checkpointing."""
    encoding: int = 0
    """Temporary memory of VAE and text encoders."""
    host: int = 0
    """Memory of the system while the base model is read, before it moves to the device."""
    drawing: int = 0
    """Temporary memory of the previews: denoiser or VAE decoding, with reloaded weights."""

    @property
    def weights(self) -> int:
        return sum(part.bytes for part in self.parts.values())

    @property
    def away(self) -> int:
        """Return the weights of the offloaded parts."""
        return sum(self.parts[name].bytes for name in self.aside)

    @property
    def state(self) -> int:
        """Return the memory that is used from the first step to the last."""
        weights = self.weights - self.away
        return weights + self.trained + self.optimizer + self.ema + CONTEXT

    @property
    def filling(self) -> int:
        """Return the peak while caches are filled, before the first step."""
        return self.weights + self.trained + self.ema + self.encoding + CONTEXT

    @property
    def training(self) -> int:
        """Return the peak of a step."""
        return self.state + self.gradients + self.casts + self.activations

    @property
    def previews(self) -> int:
        """Return the peak while previews are generated, when there are no gradients."""
        return self.state + self.casts + self.drawing if self.drawing else 0

    @property
    def peak(self) -> int:
        return max(self.filling, self.training, self.previews)


@dataclass(frozen=True)
class Outline:
    """What a run is made of, on a base model without weights."""

    sources: Sources
    images: list[ImageConfig]
    """Of the previews."""
    folders: list[ClassFolder]
    objective: Objective
    """On the meta device."""
    stages: list[Stage]
    examples: list[Examples]
    """Of each stage."""


def outlined(recipe: TrainRecipe, processes: int = 1) -> Outline:
    """Return the parts of a run, made by the same functions as in training.

    Raises:
        InputError: the run could not start: data, captions, sizes or the base model.
    """
    sources = find_sources(recipe)
    images = [*grid_images(recipe, sources.concepts).values()]
    folders = class_folders(sources.concepts, Path(recipe.output_dir) / recipe.name)
    objective = objective_without_weights(recipe, skeleton(recipe.base_model, "fp32"))
    base, data, stages = objective.base, recipe.data, stages_of(recipe, processes)
    examples = [build_examples(s.recipe, sources, base, s.pace(processes)) for s in stages]
    there = pictures_there(folders, data.captions.extensions, data.broken_pictures)
    for one in examples if (others := sources.class_pictures or there) else ():
        one.add_class_pictures(others)
    return Outline(sources, images, folders, objective, stages, examples)


def objective_without_weights(recipe: TrainRecipe, base: DiffusionModel) -> Objective:
    """Build the objective as `objective_on`, without quantized weights and feature networks."""
    config = recipe.objective
    if isinstance(config, AutoencoderConfig):
        config = replace(config, perceptual_weight=0.0, l1_weight=config.l1_weight or 1.0)
    unpacked = replace(recipe.base_model, quantization=None)
    if not isinstance(config, LoraConfig):
        training_of(base).fill_skeleton(base)
    # What others begin with is worked out from values; a LoRA's is as large as it is random.
    with torch.device("meta" if isinstance(config, LoraConfig) else "cpu"):
        objective = objective_on(replace(recipe, objective=config, base_model=unpacked), base)
    base.to("meta")
    return objective.to("meta")


def plan_memory(
    recipe: TrainRecipe,
    objective: Objective,
    stages: Sequence[tuple[TrainRecipe, Examples]],
    images: Sequence[ImageConfig],
    processes: int = 1,
) -> MemoryPlan:
    """Compute the memory of a run on each of its devices.

    Args:
        recipe: the run's.
        objective: from `train.objectives.loading.objective_on`, on the meta device.
        stages: recipe and examples of each.
        images: the preview images; of a video model the clips are those of the recipe.
        processes: of the run.
    """
    base, size = objective.base, DTYPES[recipe.mixed_precision].itemsize
    inside = {id(p) for name in base.parts for _, p in own_weights(base, name)}
    trained = [p for p in objective.parameters() if p.requires_grad]
    numbers = sum(p.numel() for p in trained)
    plan = MemoryPlan(parts={name: part_memory(recipe, base, name) for name in base.parts})
    plan.trained = sum(4 * p.numel() for p in objective.parameters() if id(p) not in inside)
    plan.trained += 4 * numbers if recipe.loss.prior_copy else 0
    plan.gradients = 4 * numbers
    plan.optimizer = state_bytes(recipe.optimizer, trained)
    plan.ema = 4 * numbers if recipe.ema is not None else 0
    plan.casts = size * numbers if size < 4 else 0
    plan.casts += 4 * numbers if processes > 1 else 0
    encoding = [encoding_bytes(recipe, base, one) for one in stages]
    plan.encoding = max(encoding)
    is_encoded = not recipe.objective.learns_from_captions or is_cached(recipe)
    for is_checkpointing in (True, False):
        needs = [activation_bytes(objective, *one, is_checkpointing) for one in stages]
        most: int = max(needs if is_encoded else [*needs, *encoding])
        if is_checkpointing == recipe.gradient_checkpointing:
            plan.activations = most
        else:
            plan.other_activations = most
    plan.aside = parts_put_aside(recipe, objective, stages)
    plan.host = host_bytes(recipe, plan)
    plan.drawing = drawing_bytes(recipe, base, images, plan)
    return plan


def memory_planned(recipe: TrainRecipe, outline: Outline, processes: int = 1) -> MemoryPlan:
    """Return the memory of a run on each of its devices."""
    recipes = [stage.recipe for stage in outline.stages]
    pairs = [*zip(recipes, outline.examples, strict=True)]
    return plan_memory(recipe, outline.objective, pairs, outline.images, processes)


def in_gib(count: int) -> str:
    """Return a number of bytes for people; below 10 MiB in MiB."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.2f} MiB"


def parts_put_aside(
    recipe: TrainRecipe, objective: Objective, stages: Sequence[tuple[TrainRecipe, Examples]]
) -> list[str]:
    """Return the parts that the trainer offloads once everything is encoded."""
    base, data = objective.base, recipe.data
    changes = objective.changes_prompts or data.cache == "off"
    changes = changes or any(examples.changes_words for _, examples in stages)
    if changes or not recipe.objective.learns_from_captions:
        return []
    return training_of(base).idle_parts(base, is_cached(recipe))


def is_cached(recipe: TrainRecipe) -> bool:
    """Return whether latents are cached before the first step."""
    return recipe.data.cache != "off" and not recipe.data.is_random


def part_memory(recipe: TrainRecipe, base: DiffusionModel, name: str) -> PartMemory:
    """Return the weights of a part on the device, without injected LoRAs."""
    weights = [(path, p) for path, p in base.parts[name].named_parameters() if ".lora_" not in path]
    count, size = sum(p.numel() for _, p in weights), sum(p.nbytes for _, p in weights)
    names, sizes = {dtype: word for word, dtype in DTYPES.items()}, Counter[torch.dtype]()
    for _, p in weights:
        sizes[p.dtype] += p.numel()
    kind = names[sizes.most_common(1)[0][0]]
    packing = recipe.base_model.quantization
    if packing is not None and name == base.denoiser_name:
        size -= training_of(base).quantization_savings(base, packing)
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


def activation_bytes(
    objective: Objective, recipe: TrainRecipe, examples: Examples, is_checkpointing: bool
) -> int:
    """Return the bytes of the largest micro-batch of a stage in forward and backward pass."""
    base, size = objective.base, DTYPES[recipe.mixed_precision].itemsize
    rows = recipe.train_batch_size * (2 if recipe.data.has_prior else 1)
    if not recipe.objective.learns_from_captions:
        return max(_vae_activations(base, examples, rows, size, is_checkpointing))
    shapes = shapes_of(examples)
    needed = training_of(base).activation_bytes(recipe, base, rows, shapes, is_checkpointing)
    return needed + text_kept(objective, rows, is_checkpointing) * size


def text_kept(objective: Objective, rows: int, is_checkpointing: bool) -> int:
    """Return the values that text encoders with gradients keep for their backward pass."""
    base, kept = objective.base, 0
    ids = torch.zeros(rows, base.prompt_shape[0], dtype=torch.long, device="meta")
    for encoder in objective.encoders_with_gradients.values():
        kept += traced(encoder, lambda e=encoder: e(ids)).kept(is_checkpointing)
    return kept


def shapes_of(examples: Examples) -> set[tuple[int, ...]]:
    """Return the shapes of the examples."""
    return {examples.shape(index) for index in range(len(examples))}


def _vae_activations(
    base: DiffusionModel, examples: Examples, rows: int, size: int, is_checkpointing: bool
) -> list[int]:
    """Return the activations of training the VAE, for each shape of the examples."""
    needs: list[int] = []
    for shape in shapes_of(examples):
        pixels = torch.zeros(rows, 3, *shape, device="meta")
        seen = traced(base.vae, lambda p=pixels: base.vae(p, sample_posterior=False))
        needs.append(seen.kept(is_checkpointing) * size)
    return needs


def encoding_bytes(
    recipe: TrainRecipe, base: DiffusionModel, stage: tuple[TrainRecipe, Examples]
) -> int:
    """Return the most that encoding images, a clip, or prompts takes besides weights."""
    examples, batch = stage[1], stage[0].train_batch_size
    vae, size = base.vae, base.vae.dtype.itemsize
    prompts = 64 if examples.changes_words else min(64, len(examples.all_prompts()))
    needs = [prompt_bytes(base, prompts)]
    for shape in shapes_of(examples) if recipe.objective.learns_from_captions else ():
        at_once = encoded_at_once(shape, batch)
        if isinstance(examples, ClipExamples):
            needs.append(at_once * decoding_bytes(vae, shape[1], shape[2]))
        else:
            widest = vae.config.block_out_channels[0] * shape[0] * shape[1]
            needs.append(at_once * LIVE_TENSORS * widest * size)
    return max(needs)


def prompt_bytes(base: DiffusionModel, rows: int) -> int:
    """Return the bytes of encoding so many prompts at once: hidden layers and attention scores."""
    needs = []
    for encoder in base.text_encoders.values():
        sizes_of_encoder = encoder.config.to_dict()  # type: ignore[operator]
        wide = sizes_of_encoder.get("d_ff") or sizes_of_encoder["intermediate_size"]
        heads = sizes_of_encoder.get("num_heads") or sizes_of_encoder["num_attention_heads"]
        tokens = base.prompt_shape[0]
        hidden = LIVE_TENSORS * wide * base.dtype.itemsize
        needs.append(rows * tokens * (hidden + 2 * 4 * heads * tokens))
    return max(needs)


def drawing_bytes(
    recipe: TrainRecipe, base: DiffusionModel, images: Sequence[ImageConfig], plan: MemoryPlan
) -> int:
    """Return the bytes of generating the previews, with reloaded weights; 0 without previews."""
    if training_of(base).examples == "clips":
        return clip_drawing_bytes(recipe, base, plan)
    if not images:
        return 0
    rows = min(recipe.sampling.batch_size, len(images))
    return training_of(base).image_drawing_bytes(base, images, rows) + plan.away


def clip_drawing_bytes(recipe: TrainRecipe, base: Any, plan: MemoryPlan) -> int:
    """Return the bytes of generating preview clips with a video model."""
    clips: list[ClipConfig] = [one for one in recipe.sampling.clips.values() if one is not None]
    if not clips:
        return 0
    needs = needs_of(base, expand(base, clips))
    back = {name: plan.parts[name].bytes for name in plan.aside}
    decoding = needs.decoding + back.get("vae", 0)
    return max(needs.drawing, decoding, back.get("text_encoder", 0))
