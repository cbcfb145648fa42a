"""The training loop, for every objective."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from inference.memory import MemoryPlan
from inference.models import DiffusionModel
from inference.recipe import RecipeWarning, dump_recipe
from inference.runtime import (
    Interrupted,
    arrange,
    choose_kernels,
    compile_denoiser,
    compute_exactly,
    uncompiled,
)
from train.caches import Caches
from train.common import Batch, NonFiniteError, StopSignals, of_first, seeded, send
from train.config import TrainRecipe
from train.data import Examples
from train.losses import total_loss
from train.monitoring import Previews, Run, Validation, grid_images, open_folder
from train.objectives import (
    BaseReader,
    Objective,
    enable_gradient_checkpointing,
    load_objective,
    read_base,
)
from train.optimization import Optimization, build_accelerator
from train.placement import Reckon, place_parts
from train.run_data import Data
from train.runs import RunDirectory
from train.saving import Savings
from train.stages import Stage, stage_at, stages_of

DataFactory = Callable[[TrainRecipe], Data]
RunFactory = Callable[[TrainRecipe, RunDirectory, Accelerator, int], Run]
CacheFactory = Callable[[TrainRecipe, Objective, Accelerator], Caches]

NOTHING = "nothing yet, since no step was taken"
"""What is saved of a run that is stopped before its first step."""


class Trainer:
    """A run, from its recipe to its artifact."""

    def __init__(
        self,
        recipe: TrainRecipe,
        data: DataFactory = Data,
        run: RunFactory = Run,
        caches: CacheFactory = Caches,
        reckon: Reckon | None = None,
        read: BaseReader = read_base,
    ) -> None:
        """Check files and folder, then load the weights; nothing is written yet.

        Args:
            recipe: the run's.
            data: builds the run's data.
            run: builds its logging and manifests.
            caches: builds its caches.
            reckon: computes its memory, for `memory.offload: auto`.
            read: returns its base model.

        Raises:
            InputError: the run cannot start.
        """
        self.data = data(recipe)
        self.recipe = recipe = self.data.recipe
        images = grid_images(recipe, self.data.sources.concepts)
        folder = open_folder(self.data)
        self.accelerator = build_accelerator(recipe)
        choose_kernels(recipe.speed, self.accelerator.device, RecipeWarning)
        price = recipe.deterministic and compute_exactly(self.accelerator.device, RecipeWarning)
        self.memory = MemoryPlan()
        """Where the weights of the base model lie."""

        def place(objective: Objective) -> None:
            trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
            device = self.accelerator.device
            self.memory = place_parts(recipe, objective.base, device, trained, reckon)

        objective = load_objective(recipe, self.accelerator.device, place, read)
        if recipe.gradient_checkpointing:
            enable_gradient_checkpointing(objective)
        arrange((objective.base.denoiser, objective.base.vae), recipe.speed)
        compile_denoiser(objective.base.denoiser, recipe.speed, self.accelerator.device)
        self.run = run(
            recipe, folder, self.accelerator, objective.base.parametrization.num_train_timesteps
        )
        say = self.run.progress.say
        if price:
            say(price)
        if self.memory.reason:
            say(f"memory: {self.memory.summary} ({self.memory.reason})")
        self.optimization = Optimization(recipe, objective, self.accelerator, say)
        self.caches = caches(recipe, objective, self.accelerator)
        self.previews = Previews(recipe, images, self.optimization, self.run)
        self.savings = Savings(recipe, self.data, self.optimization, folder, say)
        self.validation = Validation(recipe, self.data, self.optimization, self.caches, self.run)
        self.signals = StopSignals()
        self.layout = self.optimization.layout
        self.stages = stages_of(recipe, self.layout.data_size)
        self.stage = self.stages[0]
        self.examples = self.examples_of(self.stage)
        self.step_number = 0

    @property
    def objective(self) -> Objective:
        """Return the objective."""
        return self.optimization.objective

    @property
    def base(self) -> DiffusionModel:
        """Return the model that the objective changes."""
        return self.optimization.objective.base

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files, and generates previews."""
        return self.accelerator.is_main_process

    @property
    def shares_weights(self) -> bool:
        """Return whether each process holds a share of the weights: then all draw and save."""
        return self.optimization.strategy.is_sharded

    def train(self) -> Path:
        """Train to the last step; return the artifact's path.

        Raises:
            RunDirectoryError: another process writes to the run's folder.
            Interrupted: a stop signal came; the state has been saved.
            NonFiniteError: losses or gradients are not finite; the state before was saved.
        """
        of_first(self.accelerator, lambda: self.run.take_folder(self.data))
        try:
            return self.take_steps()
        finally:
            self.run.folder.release()

    def take_steps(self) -> Path:
        """Train to the last step in the locked folder; see `train`."""
        recipe = self.recipe
        with self.run.progress, self.signals.noted(self.run.progress.say):
            if self.data.class_folders:
                self.draw_class_pictures()
            self.until_stopped(self.begin)
            self.stop_before_a_step()
            for stage in [one for one in self.stages if self.step_number < one.last_step]:
                self.until_stopped(self.enter, stage)
                if self.step_number == 0:
                    self.until_stopped(self.validation.show, 0)
                self.stop_if_asked()
                for batch in self.data.batches(self.examples, stage, self.step_number, self.layout):
                    self.forward_backward(batch)
                    if not batch["completes_step"]:
                        continue
                    grad_norm = self.update_weights()
                    if self.due(recipe.log_every_n_steps) or self.step_number == stage.last_step:
                        self.log(grad_norm)
                    if recipe.validation and self.due(recipe.validation.every_n_steps):
                        self.validation.show(self.step_number)
                    if self.due(recipe.saving.save_every_n_steps):
                        self.save()
                    if self.due(recipe.sampling.sample_every_n_steps):
                        self.draw()
                    self.stop_if_asked()
            self.close()
        return self.savings.last(self.step_number)

    def begin(self) -> None:
        """Resume if configured, and open the run's folder."""
        if self.recipe.resume:
            self.resume()
        if self.is_main or self.shares_weights:
            self.open()
            if self.step_number > 0:
                self.catch_up()
        self.run.progress.advance(self.step_number)
        self.objective.train()
        self.run.clock.go_on()

    def draw_class_pictures(self) -> None:
        """Generate the missing ones in all processes, then train on all of them.

        Raises:
            Interrupted: a stop signal came; the generated ones are saved.
        """
        resolution, track = self.examples.resolution, self.run.progress.track
        with self.optimization.weights.of_base():
            self.data.draw_class_pictures(
                self.base, resolution, self.accelerator, track, self.signals
            )
        if asked := self.signals.of_all(self.accelerator):
            self.close()
            raise Interrupted(asked, "the class pictures that are drawn")
        self.accelerator.wait_for_everyone()
        self.data.find_class_pictures()

    def resume(self) -> None:
        """Restore the state of the newest intact checkpoint, if there is one."""
        find = self.run.find_checkpoint
        checkpoint = of_first(self.accelerator, lambda: find(self.data))
        if checkpoint is None:
            return
        self.step_number = self.optimization.state.read(checkpoint)
        self.stage = stage_at(self.stages, self.step_number)
        self.examples = self.examples_of(self.stage)
        self.run.progress.say(f"resuming {checkpoint} at step {self.step_number}")
        self.run.tell_of_memory(self.memory.summary if self.memory.reason else None)
        self.optimization.stop_members(self.step_number)

    def open(self) -> None:
        """Write recipe and manifests, and at the start of a run the base model's row."""
        step = self.step_number
        if step < self.recipe.max_train_steps:
            self.savings.check_room()
        if self.is_main:
            self.open_run()
        if step == 0:
            with uncompiled(self.recipe.speed):
                self.previews.keep_base_row()

    def open_run(self) -> None:
        """Write recipe and manifests."""
        step = self.step_number
        text = dump_recipe(replace(self.recipe, resume=False, overwrite=False))
        kept = step and self.run.folder.data.is_file()
        facts = self.data.facts
        if self.memory.reason:
            facts = facts | {"memory": self.memory.summary}
        self.run.open(step, text, facts, None if kept else self.data.rows())

    def catch_up(self) -> None:
        """Write the artifacts and the preview grid that an interrupted run did not reach."""
        step = self.step_number
        is_saved = self.due(self.recipe.saving.save_every_n_steps)
        is_last = step >= self.recipe.max_train_steps
        if is_saved or is_last:
            decided, savings = self.savings.decided, self.savings
            if not decided(lambda: savings.are_made(step)):
                savings.artifacts(step, self.examples)
            decided(lambda: savings.list_artifacts(step))
        is_drawn = self.due(self.recipe.sampling.sample_every_n_steps)
        if is_drawn and not self.savings.decided(self.run.folder.grid(step).is_file):
            with uncompiled(self.recipe.speed):
                self.previews.draw(step, self.examples)

    def enter(self, stage: Stage) -> None:
        """Build the examples of a stage, and encode them as far as they do not change."""
        progress, clock = self.run.progress, self.run.clock
        if stage.name:
            progress.say(f"stage {stage.name}: steps {stage.first_step} to {stage.last_step}")
        self.stage, self.examples = stage, self.examples_of(stage)
        self.base.settle(())
        self.accelerator.gradient_accumulation_steps = stage.recipe.gradient_accumulation_steps
        with clock.paused():
            self.validation.fill(progress.track)
            self.caches.fill(self.examples, stage, progress.track, clock.paused)

    def examples_of(self, stage: Stage) -> Examples:
        """Return those of a stage, for the base model, with the existing class images."""
        return self.data.examples(stage, self.base, self.layout.data_size)

    def forward_backward(self, batch: Batch) -> None:
        """Add the gradients of a micro-batch; dropout uses the batch's own seed."""
        optimization = self.optimization
        send(batch, self.accelerator.device)
        self.caches.add_prompts(batch)
        timesteps = self.objective.timesteps(batch)
        if timesteps is not None:
            batch["timesteps"] = timesteps
        random = seeded(batch["seed"], self.accelerator.device)
        with random, optimization.accumulating(batch["completes_step"]):
            losses = optimization.losses(batch)
            optimization.guard.watch(losses, batch)
            loss, parts = total_loss(losses, batch)
            optimization.backward(loss)
        parts = {"loss": loss} | {f"loss/{name}": value for name, value in parts.items()}
        self.run.losses.add(parts, losses, timesteps)

    def update_weights(self) -> float:
        """Take an optimizer step; return the gradients' norm before clipping.

        Raises:
            NonFiniteError: losses or gradients are not finite; the state before was saved.
        """
        try:
            grad_norm = self.optimization.step(self.step_number + 1)
        except NonFiniteError as error:
            fault = str(error)
        else:
            self.step_number += 1
            self.run.progress.advance(self.step_number)
            return grad_norm
        raise NonFiniteError(f"{fault}. {self.rescue()}")

    def rescue(self) -> str:
        """Save the state before a faulty step, if it is intact; report the result."""
        if self.shares_weights:
            done = self.savings.rescue(self.step_number)
        else:
            done = of_first(self.accelerator, lambda: self.savings.rescue(self.step_number))
        self.close()
        return done

    def due(self, every: int) -> bool:
        """Return whether a periodic event is due now; always at the last step."""
        return self.step_number % every == 0 or self.step_number == self.recipe.max_train_steps

    def log(self, grad_norm: float) -> None:
        """Log losses, learning rates and speed since the last entry."""
        rates, skips = self.optimization.rates, self.optimization.guard.counts
        self.run.log(self.step_number, self.stage, grad_norm, rates, skips)

    def save(self) -> None:
        """Save an artifact to generate with and a checkpoint to resume; other processes wait."""
        with self.run.clock.paused():
            if self.is_main or self.shares_weights:
                self.savings.save(self.step_number, self.examples)
            self.accelerator.wait_for_everyone()

    def draw(self) -> None:
        """Generate the preview grid; other processes wait.

        A signal ends it early, except after the last step: a resumed run generates the grid; and
        except where all draw together, and none may leave the others waiting.
        """
        with self.run.clock.paused(), uncompiled(self.recipe.speed):
            is_last = self.step_number == self.recipe.max_train_steps
            if self.is_main or self.shares_weights:
                signals = None if is_last or self.shares_weights else self.signals
                self.previews.draw(self.step_number, self.examples, signals)
            self.accelerator.wait_for_everyone()

    def until_stopped(self, work: Callable[..., object], *arguments: object) -> None:
        """Do work that comes before a step; a signal ends it early, a resumed run does it again.

        Of several processes each ends by itself, since the others may wait for one that has ended;
        in later stages, where there is a state to save, they end together after the next step.

        Raises:
            Stopped: a signal came, and this is one of several processes.
        """
        if self.accelerator.num_processes == 1:
            self.signals.attempt(work, *arguments)
        elif self.step_number == 0:
            with self.signals.at_once():
                work(*arguments)
        else:
            work(*arguments)

    def stop_before_a_step(self) -> None:
        """Stop once this process, which has no others, has received a signal in `begin`.

        Raises:
            Interrupted: it has; nothing has changed since the newest checkpoint.
        """
        if self.accelerator.num_processes == 1 and self.signals.number:
            self.close()
            raise Interrupted(self.signals.number, self.run.folder.newest_checkpoint() or NOTHING)

    def stop_if_asked(self) -> None:
        """Save and stop, on all processes together, once one of them has received a signal.

        Raises:
            Interrupted: one has.
        """
        asked = self.signals.of_all(self.accelerator)
        if asked and self.step_number < self.recipe.max_train_steps:
            if (self.is_main or self.shares_weights) and self.step_number > 0:
                self.savings.checkpoint(self.step_number)
            self.close()
            saved = self.run.folder.checkpoint(self.step_number) if self.step_number else NOTHING
            raise Interrupted(asked, saved)

    def close(self) -> None:
        """Close TensorBoard and the connection to the other processes."""
        self.run.close()
        self.accelerator.wait_for_everyone()
        self.optimization.release()
        self.accelerator.free_memory()
        self.accelerator.end_training()
