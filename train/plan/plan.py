"""Dry run: everything about a run that is known before training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config import TrainRecipe
    from train.data import Examples, Sources
    from train.memory import MemoryPlan
    from train.objectives import Objective
    from train.plan.data import (
        CachePlan,
        CaptionPlan,
        ClassPlan,
        StagePlan,
        SubsetPlan,
        ValidationPlan,
    )
    from train.plan.lints import CaptionLint
    from train.plan.pictures import PictureLint
    from train.plan.probe import Probe
    from train.plan.streams import StreamPlan
    from train.plan.traffic import Waiting


@dataclass(frozen=True)
class DiskPlan:
    """Bytes that the run's folder needs at once, without previews and logs."""

    checkpoint: int
    checkpoints_kept: int
    """While a checkpoint is written there is one more."""
    artifact: int
    artifacts: int
    """Number of saves in the whole run; all artifacts are kept."""
    free: int

    @property
    def needed(self) -> int:
        return self.checkpoint * (self.checkpoints_kept + 1) + self.artifact * self.artifacts


@dataclass(frozen=True)
class Plan:
    """The figures of a run."""

    recipe: TrainRecipe
    processes: int
    trained: dict[str, int]
    """Number of trained parameters, by part of the objective."""
    stages: list[StagePlan]
    captions: CaptionPlan | None
    subsets: list[SubsetPlan]
    class_pictures: ClassPlan | None
    validation: ValidationPlan | None
    cache: CachePlan
    disk: DiskPlan
    memory: MemoryPlan
    caption_lint: CaptionLint | None
    picture_lint: PictureLint
    streams: list[StreamPlan]
    waiting: Waiting | None
    """For the other processes; None on one process."""
    probe: Probe | None = None

    @property
    def data_size(self) -> int:
        """Return the number of processes with examples of their own."""
        return self.processes // self.recipe.parallel.context

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, sizes in bytes."""
        recipe, memory = self.recipe, self.memory
        figures = ("away", "activations", "encoding", "drawing")
        figures += ("filling", "training", "previews", "peaks", "peak", "process")
        return {
            "name": recipe.name,
            "objective": recipe.objective.type,
            "base_model": recipe.base_model.path,
            "processes": self.processes,
            "steps": recipe.max_train_steps,
            "examples": sum(stage.examples for stage in self.stages),
            "micro_batches": sum(stage.micro_batches for stage in self.stages),
            "epochs": round(sum(stage.epochs for stage in self.stages), 3),
            "trained": self.trained,
            "stages": [asdict(stage) for stage in self.stages],
            "captions": None if self.captions is None else asdict(self.captions),
            "subsets": [asdict(subset) for subset in self.subsets],
            "class_pictures": None if self.class_pictures is None else asdict(self.class_pictures),
            "checks": {
                "captions": None if self.caption_lint is None else asdict(self.caption_lint),
                "pictures": asdict(self.picture_lint),
            },
            "validation": None if self.validation is None else asdict(self.validation),
            "cache": asdict(self.cache),
            "streams": [asdict(one) for one in self.streams],
            "disk": asdict(self.disk) | {"needed": self.disk.needed},
            "memory": asdict(memory) | {name: getattr(memory, name) for name in figures},
            "traffic": None if self.waiting is None else self.waiting.as_dict(),
            "probe": None if self.probe is None else asdict(self.probe),
        }


def plan_run(
    recipe: TrainRecipe,
    processes: int = 1,
    check_pictures: bool = False,
    bandwidth: str | None = None,
) -> Plan:
    """Return everything that is known of a run before it starts.

    Sources, objective, stages and examples are made by the same functions as in training, on a base
    model without weights.

    Args:
        recipe: the run's recipe.
        processes: number of processes of the run.
        check_pictures: whether to search for duplicates, for which each image is decoded once.
        bandwidth: what a process sends in a second, as in 50GB/s; else a usual one.

    Raises:
        InputError: the run could not start: data, captions, sizes or the base model.
    """
    from train.memory import memory_planned, outlined, traffic_planned
    from train.plan.data import (
        plan_cache,
        plan_captions,
        plan_class_pictures,
        plan_stage,
        plan_subsets,
        plan_validation,
    )
    from train.plan.lints import lint_captions
    from train.plan.streams import plan_streams
    from train.plan.traffic import BANDWIDTH, Waiting, bandwidth_in, logged_step

    speed = bandwidth_in(BANDWIDTH if bandwidth is None else bandwidth)
    outline = outlined(recipe, processes)
    sources, objective, made = outline.sources, outline.objective, outline.examples
    memory, size = memory_planned(recipe, outline, processes), processes // recipe.parallel.context
    waiting = None
    if processes > 1:
        traffic = traffic_planned(recipe, outline, memory, processes)
        waiting = Waiting(traffic, speed, logged_step(recipe))
    is_captioned = recipe.objective.learns_from_captions
    return Plan(
        recipe=recipe,
        processes=processes,
        trained=numbers_trained(objective),
        stages=[
            plan_stage(stage, one, sources.pictures, size)
            for stage, one in zip(outline.stages, made, strict=True)
        ],
        captions=plan_captions(sources, made[0], objective.base, True) if is_captioned else None,
        subsets=plan_subsets(sources, made[0]),
        class_pictures=plan_class_pictures(outline.folders, recipe, len(sources.class_pictures)),
        validation=plan_validation(recipe, sources, objective),
        cache=plan_cache(recipe, sources, objective, made),
        disk=plan_disk(recipe, objective),
        memory=memory,
        caption_lint=lint_captions(recipe, sources, made[0], objective.base)
        if is_captioned
        else None,
        picture_lint=look_at_pictures(sources, made, check_pictures),
        streams=plan_streams(recipe, sources),
        waiting=waiting,
    )


def numbers_trained(objective: Objective) -> dict[str, int]:
    """Return the number of trained parameters of each part of an objective."""
    return {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad)
        for name, part in objective.named_children()
    }


def probed(plan: Plan) -> Plan:
    """Return a plan with measured steps of each stage on this device; see `probe_run`.

    Of a plan for several processes one alone is measured.
    """
    from train.config import TrainParallelConfig
    from train.memory import memory_planned, outlined
    from train.plan.probe import probe_run
    from train.plan.traffic import StepTime

    cache, recipe, memory, waiting = plan.cache, plan.recipe, plan.memory, plan.waiting
    to_encode = cache.latents - (cache.latents_found or 0)
    if plan.processes > 1:
        recipe = replace(recipe, parallel=TrainParallelConfig())
        memory = memory_planned(recipe, outlined(recipe))
    probe = probe_run(recipe, memory, to_encode)
    if waiting is not None:
        seconds = max(stage.seconds for stage in probe.stages)
        waiting = replace(waiting, step=StepTime(seconds, "--probe"))
    return replace(plan, probe=probe, waiting=waiting)


def look_at_pictures(sources: Sources, stages: list[Examples], thorough: bool) -> PictureLint:
    """Return the lints of images, if requested with duplicates; shows progress in a terminal."""
    from tqdm import tqdm

    from train.plan.pictures import lint_pictures

    pictures = [*sources.pictures, *sources.class_pictures]
    with tqdm(total=len(pictures), desc="looking at pictures", leave=False, disable=None) as bar:
        return lint_pictures(pictures, stages, thorough, bar.update)


def plan_disk(recipe: TrainRecipe, objective: Objective) -> DiskPlan:
    """Return the size of saves: that of `TrainingState` and of the artifacts."""
    import shutil
    import warnings

    from inference.models import DTYPES
    from inference.recipe import RecipeWarning
    from train.common import RunDirectoryError
    from train.config import LoraConfig
    from train.optimization import state_bytes
    from train.runs import check_writable, existing

    trained = [p for p in objective.parameters() if p.requires_grad]
    numbers = sum(p.numel() for p in trained)
    state = sum(t.nbytes for t in objective.state_dict().values())
    state += state_bytes(recipe.optimizer, trained, recipe.memory)
    state += 4 * numbers if recipe.ema is not None else 0
    every, last = recipe.saving.save_every_n_steps, recipe.max_train_steps
    savings = last // every + bool(last % every)
    twin = isinstance(recipe.objective, LoraConfig) and recipe.objective.comfyui_twin
    artifact = numbers * DTYPES[recipe.saving.save_precision].itemsize * (2 if twin else 1)
    folder = Path(recipe.output_dir)
    try:
        check_writable([folder])
    except RunDirectoryError as error:  # the run may be for another machine
        warnings.warn(f"output_dir: {error}", RecipeWarning, stacklevel=2)
    keep = min(recipe.saving.keep_last_n_checkpoints, savings)
    return DiskPlan(state, keep, artifact, savings, shutil.disk_usage(existing(folder)).free)
