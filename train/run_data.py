"""The data of a run: its images, validation split, class images, and batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inference.models import DiffusionModel
from inference.parallel import Layout
from train.class_images import draw_missing
from train.common import Batch, DataError, Share, StopSignals, derive_seed
from train.config import TrainRecipe
from train.data import (
    Examples,
    Track,
    at_commits,
    build_examples,
    build_loader,
    class_facts,
    class_folders,
    class_pictures,
    find_sources,
)
from train.losses import prior_weight, weigh_class_pictures
from train.runs import CLASS_PICTURE, HELD_BACK, Row, rows_of
from train.stages import Stage, step_size


class Data:
    """The files of a run, and the batches from them."""

    def __init__(self, recipe: TrainRecipe) -> None:
        """Find the files, without loading weights.

        Raises:
            DataError: images or captions cannot be used.
        """
        self.sources = find_sources(recipe)
        self.recipe = at_commits(recipe, self.sources.commits)
        """The recipe, with commits instead of branches for streamed datasets."""
        self.folder = Path(recipe.output_dir) / recipe.name
        """The run's."""
        self.class_folders = class_folders(self.sources.concepts, self.folder)
        self.class_pictures = self.sources.class_pictures
        """The class images paired with examples; a concept's only once they are generated."""
        self.facts: dict[str, Any] = self.sources.facts
        """Data about the images for environment.json."""

    def rows(self) -> Iterator[Row]:
        """Yield the rows of data.jsonl.gz for images, validation images and class images."""
        yield from rows_of(self.sources.pictures, self.recipe.data)
        yield from rows_of(self.sources.held_back.pictures, self.recipe.data, HELD_BACK)
        yield from self.class_rows()

    def class_rows(self) -> Iterator[Row]:
        """Yield the rows of class images."""
        yield from rows_of(self.class_pictures, self.recipe.data, CLASS_PICTURE)

    def draw_class_pictures(
        self,
        base: DiffusionModel,
        resolution: int,
        share: Share,
        track: Track,
        signals: StopSignals,
    ) -> None:
        """Generate this process's share of the missing class images.

        Args:
            base: the model, as before training.
            resolution: of the images.
            share: of this process.
            track: shows the progress.
            signals: generating ends early once one has come.
        """
        draw_missing(
            base,  # pyright: ignore[reportArgumentType]  # only its family has concepts
            self.class_folders,
            self.recipe,
            resolution,
            share,
            track,
            signals,
        )

    def find_class_pictures(self) -> None:
        """Add the class images of concepts, once all of them are generated.

        Raises:
            DataError: a folder has none, or some are corrupt and the recipe does not skip them.
        """
        data = self.recipe.data
        self.class_pictures = class_pictures(
            self.class_folders, data.captions.extensions, data.broken_pictures
        )
        self.facts |= class_facts(self.class_pictures)

    def examples(self, stage: Stage, base: DiffusionModel, processes: int) -> Examples:
        """Return the examples of a stage, with the existing class images.

        Raises:
            InputError: the base model does not support this size or length.
        """
        examples = build_examples(stage.recipe, self.sources, base, stage.pace(processes))
        if self.class_pictures:
            examples.add_class_pictures(self.class_pictures)
        return examples

    def batches(
        self, examples: Examples, stage: Stage, step: int, layout: Layout
    ) -> Iterator[Batch]:
        """Yield a process's micro-batches of a stage, each with its step and random seed.

        Args:
            examples: of the stage.
            stage: the current stage.
            step: completed optimizer steps.
            layout: the process's place among all; those along context get the same batches.

        Raises:
            DataError: an image cannot be read.
        """
        rank, processes = layout.data_rank, layout.data_size
        recipe, size = stage.recipe, step_size(stage.recipe, processes)
        micro_batches = stage.micro_batches(step, rank, processes, bool(self.class_pictures))
        for turn, batch in enumerate(build_loader(examples, micro_batches), stage.turn(step)):
            if isinstance(batch, DataError):
                raise batch
            batch["step"] = stage.step_of(turn)
            batch["step_size"] = size
            batch["first_position"] = stage.first_position
            batch["seed"] = derive_seed(recipe.seed, "dropout", turn * processes + rank)
            batch["completes_step"] = stage.completes_step(turn)
            weight = prior_weight(recipe.loss, batch["step"], recipe.max_train_steps)
            weigh_class_pictures(batch, weight)
            yield batch
