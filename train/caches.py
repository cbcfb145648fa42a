"""Latents and prompt embeddings that a run encodes once, as far as they do not change."""

from __future__ import annotations

import warnings

from accelerate import Accelerator

from inference.models import DiffusionModel
from inference.recipe import RecipeWarning
from train.common import Batch
from train.config import TrainRecipe
from train.data import (
    Examples,
    PromptStates,
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


def put_aside(recipe: TrainRecipe, base: DiffusionModel, examples: Examples) -> None:
    """Offload parts that steps do not use to the CPU; call it when captions are encoded.

    Generating previews moves them back for a while.
    """
    for part in idle_parts(recipe, base, True, examples.latents is not None):
        base.parts[part].to("cpu")


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

    def fill(self, examples: Examples, stage: Stage, track: Track) -> None:
        """Encode the inputs of a stage's examples; all processes together."""
        if not self.recipe.objective.learns_from_captions:
            return
        self.tell_cut_prompts(examples)
        data, batch_size = self.recipe.data, stage.recipe.train_batch_size
        share = self.accelerator.process_index, self.accelerator.num_processes
        cache_latents(examples, self.base, batch_size, track, self.folder, share)
        states, stay = self.prompt_states, data.cache != "off" and not examples.changes_words
        if states and stay and states.fill(examples.all_prompts(), track, share=share):
            put_aside(self.recipe, self.base, examples)
        else:  # an earlier stage may have offloaded what each step uses now
            for encoder in self.base.text_encoders.values():
                encoder.to(self.base.device)
        self.accelerator.wait_for_everyone()

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
