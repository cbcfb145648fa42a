"""The one loop: every objective is trained here."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from inference.models.stable_diffusion import BaseModel
from inference.recipe import dump_recipe
from inference.runtime import Interrupted, limner_version
from train.caches import Caches
from train.class_images import draw_missing
from train.common import Batch, DataError, NonFiniteError, StopSignals, derive_seed, of_first
from train.config import TrainRecipe
from train.data import (
    Examples,
    at_commits,
    build_examples,
    build_loader,
    class_facts,
    class_folders,
    class_pictures,
    find_sources,
)
from train.losses import prior_weight, total_loss, weigh_class_pictures
from train.monitoring import (
    LossLog,
    ProgressBar,
    Reports,
    StepClock,
    Validation,
    build_grid,
    grid_images,
)
from train.objectives import enable_gradient_checkpointing, load_objective
from train.optimization import (
    Guard,
    ShownWeights,
    TrainingState,
    WeightUpdate,
    build_accelerator,
    build_optimization,
    prepare,
)
from train.runs import CLASS_PICTURE, HELD_BACK, Row, RunDirectory, rows_of
from train.saving import Savings
from train.stages import Stage, stage_at, stages_of, step_size


class Trainer:
    """A run, from its recipe to its artifact."""

    def __init__(self, recipe: TrainRecipe) -> None:
        sources = find_sources(recipe)
        recipe = at_commits(recipe, sources.commits)
        images = grid_images(recipe, sources.concepts)
        self.recipe = recipe
        self.run = RunDirectory(Path(recipe.output_dir) / recipe.name)
        self.class_folders = class_folders(sources.concepts, self.run.path)
        self.facts = sources.facts
        self.sources = sources
        self.class_pictures = sources.class_pictures
        text, rows = dump_recipe(recipe), self.data_rows()
        self.run.open(text, self.facts, recipe.resume, recipe.overwrite, rows)
        self.accelerator = build_accelerator(recipe)
        self.is_main = self.accelerator.is_main_process
        self.step_number = 0
        self.signals = StopSignals()

        self.objective = load_objective(recipe, self.accelerator.device)
        self.base = self.objective.base
        if recipe.gradient_checkpointing:
            enable_gradient_checkpointing(self.objective)
        self.members = self.objective.members(recipe)
        self.parameters = list(self.objective.parameters())
        self.optimizer, self.lr_scheduler = build_optimization(recipe.optimizer, self.members)
        self.ema = self._build_ema()
        self.weights = ShownWeights(recipe, self.objective, self.members.values(), self.ema)
        self.prepared, self.optimizer = prepare(self.accelerator, self.objective, self.optimizer)
        self.progress = ProgressBar(recipe.max_train_steps, self.is_main)
        self.guard = Guard(recipe.guards, self.accelerator, self.progress.say)
        self.state = TrainingState(
            self.accelerator,
            self.objective,
            self.optimizer,
            self.lr_scheduler,
            self.ema,
            self.guard,
        )
        self.update = WeightUpdate(recipe, self.state)
        self.stages = stages_of(recipe, self.accelerator.num_processes)
        self.stage = self.stages[0]
        self.caches = Caches(recipe, self.objective, self.accelerator)
        self.examples = self._build_examples()
        self.grid = build_grid(recipe, self.base, images, self.run.samples)
        self.clock = StepClock()
        self.losses = LossLog(self.accelerator, self.base.parametrization.num_train_timesteps)
        self.savings = self._build_savings()
        self.reports = self._build_reports()
        self.validation = Validation(
            recipe,
            sources,
            self.objective,
            self.accelerator,
            self.weights,
            self.caches,
            self.reports,
        )

    def train(self) -> Path:
        """Trains to the last step; returns the artifact's path.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state has been saved.
            NonFiniteError: losses or gradients are not finite; the state before is saved.
        """
        with self.progress, self.signals.noted(self.progress.say):
            self.begin()
            try:
                for batch in self.batches():
                    grad_norm = self.step(batch)
                    if self.accelerator.sync_gradients:
                        self.end_step(grad_norm)
            except NonFiniteError as error:
                fault = str(error)
            else:
                return self.end()
            raise NonFiniteError(f"{fault}. {self.rescue()}")

    def end_step(self, grad_norm: Tensor | None) -> None:
        """What follows after the weights have changed."""
        recipe = self.recipe
        self.step_number += 1
        self.stop_members()
        self.progress.advance(self.step_number)
        if self.due(recipe.log_every_n_steps) or self.step_number == self.stage.last_step:
            self.log(grad_norm)
        self.validation.after(self.step_number)
        if self.due(recipe.saving.save_every_n_steps):
            self.save()
        if self.due(recipe.sampling.sample_every_n_steps):
            self.sample()
        self.stop_if_asked()

    def begin(self) -> None:
        """Draws class pictures, resumes if asked, makes the folder ready, fills the caches."""
        if self.class_folders:
            self.add_class_pictures()
        checkpoint = None
        if self.recipe.resume:
            checkpoint = of_first(self.accelerator, self.find_checkpoint)
        if checkpoint is not None:
            self.step_number = self.state.read(checkpoint)
            self.stage = stage_at(self.stages, self.step_number)
            self.examples = self._build_examples()
            self.progress.say(f"resuming {checkpoint} at step {self.step_number}")
            self.stop_members()
        if self.is_main:
            self.open_folder()
        self.progress.advance(self.step_number)
        self.objective.train()
        self.clock.go_on()

    def find_checkpoint(self) -> Path | None:
        """The newest sound one; damaged ones are told.

        Raises:
            RunDirectoryError: all are damaged, or the pictures have changed.
        """
        if self.class_folders and self.run.newest_checkpoint() is not None:
            rows = rows_of(self.class_pictures, self.recipe.data, CLASS_PICTURE)
            self.run.refuse_other_pictures(class_facts(self.class_pictures), rows)
        self.run.tell_touched(self.progress.say)
        return self.run.saved.newest_sound(self.progress.say)

    def add_class_pictures(self) -> None:
        """Draws those that are missing with the base model, then has all of them learned along.

        Raises:
            Interrupted: SIGINT or SIGTERM came; what is drawn is saved.
        """
        folders, stop = self.class_folders, lambda: self.signals.number
        assert isinstance(self.base, BaseModel)
        with self.weights.of_base():
            size, track = self.examples.resolution, self.progress.track
            draw_missing(self.base, folders, self.recipe, size, self.accelerator, track, stop)
        if asked := self.signals.of_all(self.accelerator):
            self.close()
            raise Interrupted(asked, "the class pictures that are drawn")
        self.accelerator.wait_for_everyone()
        data = self.recipe.data
        self.class_pictures = class_pictures(
            folders, data.captions.extensions, data.broken_pictures
        )
        self.facts |= class_facts(self.class_pictures)

    def open_folder(self) -> None:
        """Recipe, environment, TensorBoard, the base model's row.

        Also the artifacts and the grid that a run still owes which was cut before it made them.
        """
        if self.step_number < self.recipe.max_train_steps:
            self.savings.check_room()
        text = dump_recipe(replace(self.recipe, resume=False, overwrite=False))
        kept = self.step_number and self.run.data.is_file()
        self.run.write_start(text, self.facts, None if kept else self.data_rows())
        self.reports.open(self.step_number, text)
        owed = self.step_number and self.due(self.recipe.saving.save_every_n_steps)
        if owed and not self.savings.are_made(self.step_number):
            self.save_artifacts()
        owed = self.step_number and self.due(self.recipe.sampling.sample_every_n_steps)
        if owed and not self.run.grid(self.step_number).is_file():
            self.reports.draw(self.step_number, self.examples)

    def data_rows(self) -> Iterator[Row]:
        """What the run's folder tells of its pictures, of those held back and of class pictures."""
        yield from rows_of(self.sources.pictures, self.recipe.data)
        yield from rows_of(self.sources.held_back.pictures, self.recipe.data, HELD_BACK)
        yield from rows_of(self.class_pictures, self.recipe.data, CLASS_PICTURE)

    def enter(self, stage: Stage) -> None:
        """Makes the examples of a stage, and encodes them as far as they stay what they are."""
        if stage.name:
            self.progress.say(f"stage {stage.name}: steps {stage.first_step} to {stage.last_step}")
        self.stage = stage
        self.accelerator.gradient_accumulation_steps = stage.recipe.gradient_accumulation_steps
        self.accelerator.step = 0
        self.examples = self._build_examples()
        with self.clock.paused():
            self.validation.fill(self.progress.track)
            self.caches.fill(self.examples, stage, self.progress.track)
        self.validation.before(self.step_number)

    def batches(self) -> Iterator[Batch]:
        """This process's micro-batches from the current step on, stage by stage."""
        for stage in self.stages:
            if self.step_number < stage.last_step:
                self.enter(stage)
                yield from self.batches_of(stage)

    def batches_of(self, stage: Stage) -> Iterator[Batch]:
        """Those of a stage, each with its own random seed."""
        recipe, step = stage.recipe, self.step_number
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        micro_batches = stage.micro_batches(step, rank, processes, bool(self.class_pictures))
        loader = build_loader(self.examples, micro_batches)
        for turn, batch in enumerate(loader, stage.turn(step)):
            if isinstance(batch, DataError):
                raise batch
            batch["step"] = stage.step_of(turn)
            batch["step_size"] = step_size(recipe, processes)
            batch["first_position"] = stage.first_position
            weight = prior_weight(recipe.loss, batch["step"], recipe.max_train_steps)
            weigh_class_pictures(batch, weight)
            torch.manual_seed(derive_seed(recipe.seed, "dropout", turn * processes + rank))
            if (states := self.caches.prompt_states) is not None:
                batch["prompt_states"] = states(batch["prompts"])
            yield batch

    def step(self, batch: Batch) -> Tensor | None:
        """One micro-batch; at the last of an optimizer step the weights change.

        Returns:
            The gradients' norm before clipping, at the last micro-batch of a step.
        """
        grad_norm = None
        with self.accelerator.accumulate(self.prepared):
            losses = self.prepared(batch)
            self.guard.watch(losses, batch)
            loss, parts = total_loss(losses, batch)
            parts = {"loss": loss} | {f"loss/{name}": value for name, value in parts.items()}
            self.losses.add(parts, losses, self.objective.timesteps(batch))
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                grad_norm = self.update.step(self.step_number + 1)
        return grad_norm

    def stop_members(self) -> None:
        """Members that have had their steps are kept as they are; they get no gradients."""
        for member in self.members.values():
            if member.stop_step is not None and self.step_number >= member.stop_step:
                member.objective.requires_grad_(False)

    def rescue(self) -> str:
        """Saves the state before a faulty step, if it is sound; says what was done."""
        done = of_first(self.accelerator, lambda: self.savings.rescue(self.step_number))
        self.close()
        return done

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; at the last step, yes."""
        return self.step_number % every == 0 or self.step_number == self.recipe.max_train_steps

    def log(self, grad_norm: Tensor | None) -> None:
        """Mean losses over micro-batches and processes since the last entry, rates, speed."""
        assert grad_norm is not None
        self.reports.log(
            self.step_number,
            self.stage,
            grad_norm,
            self.accelerator.num_processes,
            self.update.rates,
            self.guard.counts,
        )

    def save(self) -> None:
        """An artifact to draw with, and a checkpoint to resume; the other processes wait."""
        with self.clock.paused():
            if self.is_main:
                pictures, others = self.facts["pictures"], len(self.class_pictures)
                self.savings.save(self.step_number, pictures, others)
            self.accelerator.wait_for_everyone()

    def save_checkpoint(self) -> Path:
        if self.is_main:
            self.savings.checkpoint(self.step_number)
        return self.run.checkpoint(self.step_number)

    def save_artifacts(self) -> None:
        pictures, others = self.facts["pictures"], len(self.class_pictures)
        self.savings.artifacts(self.step_number, pictures, others)

    def sample(self) -> None:
        """Draws the grid; the other processes wait."""
        with self.clock.paused():
            if self.is_main:
                self.reports.draw(self.step_number, self.examples)
            self.accelerator.wait_for_everyone()

    def stop_if_asked(self) -> None:
        """Saves and stops on all processes together once one of them has had a signal."""
        asked = self.signals.of_all(self.accelerator)
        if asked and self.step_number < self.recipe.max_train_steps:
            checkpoint = self.save_checkpoint()
            self.close()
            raise Interrupted(asked, checkpoint)

    def end(self) -> Path:
        """The artifact's path, or the folder of several; makes what a resumed run still owes."""
        if self.is_main and not self.savings.are_made(self.step_number):
            self.save_artifacts()
        self.close()
        return self.savings.last()

    def close(self) -> None:
        """Ends TensorBoard and the connection to the other processes."""
        self.reports.close()
        self.accelerator.wait_for_everyone()
        # DDP goes before the process group: as its last owner it would wait, holding Python's
        # lock, for a thread of the group that may need this lock to end.
        del self.prepared
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _build_examples(self) -> Examples:
        """Those of the current stage, with the class pictures that are there."""
        stage, pace = self.stage, self.stage.pace(self.accelerator.num_processes)
        examples = build_examples(stage.recipe, self.sources, self.base, pace)
        if self.class_pictures:
            examples.add_class_pictures(self.class_pictures)
        return examples

    def _build_ema(self) -> EMAModel | None:
        if self.recipe.ema is None:
            return None
        return EMAModel(self.parameters, decay=self.recipe.ema.decay, foreach=True)

    def _build_savings(self) -> Savings:
        return Savings(
            self.recipe,
            self.run,
            self.members,
            self.weights,
            self.state,
            self.progress.say,
            self.facts | {"limner": limner_version(), "name": self.recipe.name},
        )

    def _build_reports(self) -> Reports:
        return Reports(
            self.recipe,
            self.run,
            self.base,
            self.grid,
            self.weights,
            self.losses,
            self.progress,
            self.clock,
        )
