"""Latents and prompt embeddings that a run encodes once, as far as they do not change."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from functools import cached_property

from accelerate import Accelerator

from inference.models import DiffusionModel
from inference.parallel import Layout, Ring, ring_of
from inference.recipe import RecipeWarning
from train.common import Batch
from train.config import TrainRecipe
from train.data import (
    Examples,
    Paused,
    PromptStates,
    Share,
    StoredStates,
    Track,
    cache_latents,
    open_cache,
    text_origin,
)
from train.families import training_of
from train.objectives import Objective
from train.placement import idle_parts
from train.stages import Stage


def put_aside(
    recipe: TrainRecipe, base: DiffusionModel, examples: Examples, has_prompts: bool = True
) -> None:
    """Let the parts that steps do not use wait on the CPU, as far as `memory.offload` says so.

    Args:
        recipe: the run's.
        base: the model.
        examples: of the stage.
        has_prompts: whether the embeddings of all captions are cached.
    """
    idle = idle_parts(recipe, base, has_prompts, examples.latents is not None)
    base.settle([name for name in base.parts if name not in idle])


class Caches:
    """Latents and prompt embeddings, in memory or in the folder of `cache: disk`."""

    def __init__(self, recipe: TrainRecipe, objective: Objective, accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.base = objective.base
        self.accelerator = accelerator
        self.folder = open_cache(recipe.data, recipe.output_dir)
        self.prompt_states: PromptStates | None = None
        """None if captions are unused, or their embeddings change at every step."""
        if recipe.objective.learns_from_captions and not objective.changes_prompts:
            folder = self.folder
            stored = folder and StoredStates(folder, text_origin(self.base))
            self.prompt_states = PromptStates(self.base, stored)

    def fill(self, examples: Examples, stage: Stage, track: Track, paused: Paused) -> None:
        """Encode the inputs of a stage's examples; all processes together.

        Args:
            examples: of the stage.
            stage: the current stage.
            track: shows progress.
            paused: stops the clock of the steps, for what is encoded between them.
        """
        if not self.recipe.objective.learns_from_captions:
            put_aside(self.recipe, self.base, examples)
            return
        self.tell_cut_prompts(examples)
        data, batch_size = self.recipe.data, stage.recipe.train_batch_size
        share = self.accelerator.process_index, self.accelerator.num_processes
        self.cache_latents(examples, batch_size, track, paused)
        states, stay = self.prompt_states, data.cache != "off" and not examples.changes_words
        is_known = bool(
            states
            and stay
            and states.fill(examples.all_prompts(), track, share=share, paused=paused)
        )
        put_aside(self.recipe, self.base, examples, is_known)
        self.accelerator.wait_for_everyone()

    @cached_property
    def layout(self) -> Layout:
        """Return this process's place among all."""
        accelerator, context = self.accelerator, self.recipe.parallel.context
        return Layout(accelerator.process_index, accelerator.num_processes, context)

    @cached_property
    def ring(self) -> Ring | None:
        """Return the processes that encode this one's clips together; None if it is alone."""
        return ring_of(self.layout, self.accelerator.device)

    def cache_latents(
        self, examples: Examples, batch_size: int, track: Track, paused: Paused | None = None
    ) -> None:
        """Encode every image or clip once; see `train.data.cache_latents`."""
        share = Share(self.layout.data_rank, self.layout.data_size, self.ring)
        cache_latents(examples, self.base, batch_size, track, self.folder, share, paused)

    def encoding_together(self) -> AbstractContextManager[None]:
        """Let the processes that have the same batches encode clips together in the context."""
        return self.base.frames_shared(self.ring)

    def add_prompts(self, batch: Batch) -> None:
        """Add the prompt embeddings to a batch, unless captions are unused or embeddings change."""
        if self.prompt_states is not None:
            batch["prompt_states"] = self.prompt_states(batch["prompts"])

    def tell_cut_prompts(self, examples: Examples) -> None:
        """Warn about captions that the text encoder truncates."""
        training = training_of(self.base)
        if not training.truncates_prompts or examples.changes_words:
            return
        note = training.describe_truncation(self.base, examples.all_prompts())
        if note and self.accelerator.is_main_process:
            warnings.warn(note, RecipeWarning, stacklevel=2)
