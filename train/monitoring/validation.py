"""The loss of the validation split, always at the same noise and timesteps.

kohya sd-scripts `train_network.py` (fixed timesteps), ai-toolkit `ValidationConfig` (fixed noise
for each item). It does not affect training: it uses no random numbers of training, and
does not change weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor

from inference.parallel import SIGNS
from inference.runtime import InputError
from train.common import Batch, DataError, derive_seed
from train.config import ClipDataConfig, ExampleConfig, TrainRecipe, ValidationConfig
from train.data import Examples, InOrder, Sources, Track, build_examples, collate
from train.monitoring.loss_log import BANDS, band_name
from train.objectives import Objective
from train.optimization import Optimization
from train.stages import stages_of

if TYPE_CHECKING:
    from train.caches import Caches
    from train.monitoring.run import Run
    from train.run_data import Data

Config = TypeVar("Config", bound=ExampleConfig)


class Validation:
    """Measures and logs the validation loss; without `validation` in the recipe it does nothing."""

    def __init__(
        self,
        recipe: TrainRecipe,
        data: Data,
        optimization: Optimization,
        caches: Caches,
        run: Run,
    ) -> None:
        """Build the examples, with the size that images have at the end of the run.

        Raises:
            InputError: the base model has no such timestep, or cannot encode the images.
        """
        self.recipe = recipe
        self.config = recipe.validation
        self.objective = optimization.objective
        self.accelerator = optimization.accelerator
        self.share = optimization.share
        self.weights = optimization.weights
        self.caches = caches
        self.run = run
        if self.config is None:
            return
        last = stages_of(recipe, optimization.layout.data_size)[-1].recipe
        self.batch_size = 1 if recipe.data.packs_clips else last.train_batch_size
        """A row of packed clips has one timestep."""
        self.examples = still_examples(last, data.sources, self.objective)
        self.numbers = [data.sources.held_back.numbers[one.path] for one in self.examples.pictures]
        self.timesteps = timesteps_of(self.config, self.objective)

    def fill(self, track: Track) -> None:
        """Encode the validation split once; before parts of the base model are offloaded."""
        captioned = self.recipe.objective.learns_from_captions
        if self.config is None or self.examples.latents is not None or not captioned:
            return
        caches = self.caches
        caches.cache_latents(self.examples, self.batch_size, track)
        changes = self.examples.changes_words
        if caches.prompt_states and self.recipe.data.cache != "off" and not changes:
            caches.prompt_states.fill(self.examples.all_prompts(), track, share=caches.share)

    def show(self, step: int) -> None:
        """Log the loss to TensorBoard, also by timestep, and to the terminal.

        All processes call this together.
        """
        if self.config is None:
            return
        with self.run.clock.paused(), SIGNS.at_length("validation"):
            losses = self.measure(step)
            self.objective.base.tidy()
        if self.run.board is not None:
            scalars = {"validation/loss": losses.double().mean().item()}
            if "denoising" in vars(self.objective):
                scalars |= self.by_band(losses)
            self.run.board.scalars(scalars, step)
        mean = losses.double().mean().item()
        of = f"{len(losses)} {self.examples.kind} at {losses.shape[1]} timesteps"
        self.run.progress.say(f"validation at step {step}: loss {mean:.4f} of {of}")

    def by_band(self, losses: Tensor) -> dict[str, float]:
        """Return the means of losses (examples, timesteps) over the timesteps of each band."""
        count = self.objective.base.parametrization.num_train_timesteps
        means = losses.double().mean(0).tolist()
        bands: dict[int, list[float]] = {}
        for timestep, mean in zip(self.timesteps, means, strict=True):
            bands.setdefault(timestep * BANDS // count, []).append(mean)
        return {
            f"validation/loss_by_timestep/{band_name(band, count)}": sum(own) / len(own)
            for band, own in sorted(bands.items())
        }

    def measure(self, step: int) -> Tensor:
        """Return losses (examples, timesteps), fp32, on the CPU: all of them in every process.

        Each process has a share of the micro-batches, which do not depend on their number.

        Raises:
            DataError: an image cannot be read, in any of the processes.
        """
        accelerator, fault = self.accelerator, None
        losses = torch.zeros(len(self.examples), len(self.timesteps))
        try:
            self.fill_in(losses, step, self.share.place, self.share.count)
        except DataError as error:  # raised when no process waits any more
            fault = error
        if not self.share.speaks:  # others of the same micro-batches do
            losses.zero_()
        gathered = torch.cat([losses.flatten(), torch.tensor([float(fault is not None)])])
        gathered = cast("Tensor", accelerator.reduce(gathered.to(accelerator.device), "sum")).cpu()
        if fault is not None:
            raise fault
        if gathered[-1]:
            raise DataError("validation: another process cannot read one of its pictures")
        return gathered[:-1].view_as(losses)

    @torch.no_grad()
    def fill_in(self, losses: Tensor, step: int, rank: int, processes: int) -> None:
        """Put the losses of a process's share into (examples, timesteps)."""
        with self.weights.averaged(), self.fixed_draws():
            for chunk in self.chunks()[rank::processes]:
                examples = collate(self.examples.__getitems__(chunk))
                if isinstance(examples, DataError):
                    raise examples
                self.caches.add_prompts(examples)
                for column, timestep in enumerate(self.timesteps):
                    batch = self.at(examples, chunk, timestep, step)
                    losses[chunk, column] = self.objective(batch).float().cpu()

    def at(self, examples: Batch, chunk: Sequence[int], timestep: int, step: int) -> Batch:
        """Return a micro-batch at a timestep, with noise by the images' names."""
        assert self.config is not None
        seed, numbers = self.config.seed, [self.numbers[index] for index in chunk]
        return {
            **examples,
            "positions": [derive_seed(seed, "validation", one, timestep) for one in numbers],
            "timesteps": torch.full((len(chunk),), timestep),
            "step": step,
            "step_size": len(chunk),
            "first_position": 0,
        }

    def chunks(self) -> list[list[int]]:
        """Return micro-batches of examples of one shape."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        for index in range(len(self.examples)):
            shapes.setdefault(self.examples.shape(index), []).append(index)
        size = self.batch_size
        return [
            own[first : first + size]
            for own in shapes.values()
            for first in range(0, len(own), size)
        ]

    @contextmanager
    def fixed_draws(self) -> Iterator[None]:
        """Derive noise from validation's seed, and use the VAE's means, inside the context."""
        assert self.config is not None
        if "denoising" not in vars(self.objective):
            yield
            return
        usual = self.objective.denoising
        fixed = {"seed": self.config.seed, "latent_sampling": "deterministic", "prior": None}
        self.objective.denoising = replace(usual, **fixed)
        try:
            yield
        finally:
            self.objective.denoising = usual


def still_examples(recipe: TrainRecipe, sources: Sources, objective: Objective) -> Examples:
    """Return the validation examples, always the same: first caption, centre crop."""
    pictures = [replace(one, captions=one.captions[:1]) for one in sources.held_back.pictures]
    subsets = [
        replace(one, config=replace(still(one.config), repeats=1), template=one.template[:1])
        for one in sources.subsets
    ]
    own = replace(
        sources,
        pictures=pictures,
        config=still(sources.config),
        template=sources.template[:1],
        subsets=subsets,
        class_pictures=[],
    )
    clips = still_clips(recipe.data.clips)
    data = replace(still(recipe.data), subsets={}, latent_sampling="deterministic", clips=clips)
    examples = build_examples(replace(recipe, data=data), own, objective.base)
    examples.stream = InOrder(recipe.seed, len(examples))
    return examples


def still(config: Config) -> Config:
    """Return a dataset config without randomness between file and example."""
    captions = replace(
        config.captions,
        dropout_rate=0.0,
        dropout_every_n_epochs=0,
        shuffle_tags=False,
        tag_dropout_rate=0.0,
        token_warmup_step=0.0,
    )
    masks = config.masks
    return replace(
        config,
        captions=captions,
        crop="center",
        flip=float(config.flip == 1),
        background="white" if config.background == "random" else config.background,
        color_jitter=None,
        masks=None if masks is None else replace(masks, unmasked_probability=0.0),
    )


def still_clips(config: ClipDataConfig | None) -> ClipDataConfig | None:
    """Return the config with the middle of each clip."""
    return None if config is None else replace(config, part="center")


def timesteps_of(config: ValidationConfig, objective: Objective) -> list[int]:
    """Return the timesteps at which each image is measured; a single dummy if the loss has none.

    Raises:
        InputError: the base model has no such timestep.
    """
    if "denoising" not in vars(objective):
        return [0]
    count = objective.base.parametrization.num_train_timesteps
    if above := [timestep for timestep in config.timesteps if timestep >= count]:
        raise InputError(
            f"validation.timesteps: {above[0]} is above the last of this base model, {count - 1}"
        )
    low, high = objective.denoising.timestep_range
    parts = min(config.num_timesteps, high - low)
    middles = [low + (2 * part + 1) * (high - low) // (2 * parts) for part in range(parts)]
    return config.timesteps or middles
