"""Recipes of `type: clip`: from the recipe to files."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

from inference.artifacts import Attached, attach_all, load_artifacts, prepare_drawing, set_strength
from inference.clips.caches import StepCache
from inference.clips.drawing import ClipDrawing, Way, draw_clips
from inference.clips.memory import needs_of
from inference.clips.output import ClipFiles, contact_sheet, write_clip
from inference.clips.requests import expand
from inference.clips.sampling import steps_taken
from inference.config import ClipConfig, ClipsRecipe
from inference.files import Naming
from inference.images import Levers, parse_infotext, place_for_drawing
from inference.media import prepare_folder, write_new_grid
from inference.memory import MemoryNeeds
from inference.models import ClipModel, clip_skeleton, load_clip_model
from inference.parallel import ImaginedRing, Layout, group_address, joined, ring_of
from inference.runtime import (
    DrawWarning,
    InputError,
    Processes,
    compile_denoiser,
    number,
    output,
    progress_bar,
)


def draw_recipe(recipe: ClipsRecipe) -> None:
    """Generate and save the recipe's clips, and print the paths.

    Of several processes each generates a part, and the first one saves; with `parallel.context`
    so many generate each clip together.

    Raises:
        InputError: device, folder, base model, an artifact or a clip's settings cannot be used.
    """
    with joined("draw"), closing(Processes(group_address())) as processes:
        draw_with(recipe, processes)


def draw_with(recipe: ClipsRecipe, processes: Processes) -> None:
    """Generate a recipe's clips together with the other processes."""
    layout = Layout(processes.rank, processes.count, recipe.parallel.context)
    saver, base, attached, requests, way = processes.together(lambda: set_up(recipe, processes))
    requests = processes.broadcast_from_main(requests)  # contains random seeds
    if layout.context > 1:
        base.divide(layout)
    factors = recipe.compare_strengths if attached and recipe.compare_strengths else [1.0]
    own = requests[layout.data_rank :: layout.data_size]
    total, done = sum(map(steps_taken, own)) * len(factors), 0
    drawings: list[ClipDrawing] = []
    ring = ring_of(layout, base.device)
    with progress_bar() as show_progress, base.frames_shared(ring):

        def draw(request: ClipConfig) -> list[ClipDrawing]:
            nonlocal done
            before = done
            if processes.is_first:
                way.progress = lambda step, _: show_progress(before + step, total)
            drawn = draw_clips(base, [request], way)
            done += steps_taken(request)
            return drawn

        for factor in factors:
            way.artifacts = [set_strength(*one, factor) for one in attached]
            for drawn in processes.share(requests, draw, layout.context):
                if saver:
                    saver.save(drawn, len(requests))
                    drawings += drawn
    if saver and recipe.contact_sheet:
        saver.save_sheet(drawings, factors)


def set_up(
    recipe: ClipsRecipe, processes: Processes
) -> tuple[Saver | None, ClipModel, Attached, list[ClipConfig], Way]:
    """Prepare everything that a recipe needs.

    Raises:
        InputError: device, folder, base model, an artifact or a clip's settings cannot be used.
    """
    saver = Saver(recipe, prepare_folder(recipe.output_dir)) if processes.is_first else None
    if saver and "mp4" in recipe.formats:
        saver.check_mp4()
    device = processes.device(recipe.device)
    attached = load_artifacts(recipe.artifacts)
    precision = prepare_drawing(recipe, device, processes.is_first)
    base = load_clip_model(recipe.base_model, precision, "cpu")
    if recipe.drop_learned_positions and not base.drop_learned_positions():
        recorded = "drop_learned_positions: has no effect, this model has learned no positions"
        warnings.warn(recorded, DrawWarning, stacklevel=2)
    if recipe.parallel.context > 1:
        base.check_context(recipe.parallel.context)
    requests = expand(base, [clip for clip in recipe.clips.values() if clip is not None])
    merges = recipe.speed.merge_lora and not recipe.compare_strengths
    attach_all(base, attached, merges)
    levers = Levers(recipe.memory, recipe.vae_tiling)
    rehearsal = ImaginedRing(recipe.parallel.context) if recipe.parallel.context > 1 else None

    def needs(swap: float) -> MemoryNeeds:
        with base.frames_shared(rehearsal):
            return needs_of(base, requests, swap)

    place_for_drawing(base, device, levers, needs, processes.is_first)
    compile_denoiser(base.denoiser, recipe.speed, device)
    cache = StepCache(recipe.cache, recipe.cache_settings)
    way = Way(cache, image_latent_scale=recipe.image_latent_scale)
    return saver, base, attached, requests, way


class Saver:
    """Saves a recipe's clips in the order of the recipe, and prints the paths."""

    def __init__(self, recipe: ClipsRecipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        self.started = datetime.now()
        self.count = 0

    def check_mp4(self) -> None:
        """Check before generating whether videos can be written.

        Raises:
            InputError: PyAV is missing.
        """
        from inference.media import pyav

        try:
            pyav()
        except InputError as error:
            raise InputError(f"formats: {error}; or take gif or webp") from error

    def save(self, drawings: Sequence[ClipDrawing], total: int) -> None:
        """Save clips under the names from the recipe's pattern."""
        recipe = self.recipe
        files = ClipFiles(recipe.file_name, recipe.formats, recipe.crf, recipe.save_text)
        for drawing in drawings:
            paths = write_clip(
                self.folder,
                drawing.frames,
                drawing.request.fps or 8,
                drawing.infotext,
                naming_of(drawing, self.count % total, total, self.started),
                files,
            )
            self.count += 1
            for path in paths:
                output(path)

    def save_sheet(self, drawings: Sequence[ClipDrawing], factors: Sequence[float]) -> None:
        """Save frames of all clips in one image, with the clips' infotexts."""
        per_factor = len(drawings) // len(factors)
        labels = []
        for place, drawing in enumerate(drawings):
            label = f"{drawing.request.prompt}, seed {drawing.request.seed}"
            if len(factors) > 1:
                label = f"strength {number(factors[place // per_factor])}: {label}"
            labels.append(label)
        sheet = contact_sheet([drawing.frames for drawing in drawings], labels)
        infotexts = [drawing.infotext for drawing in drawings]
        output(write_new_grid(self.folder, sheet, infotexts, "sheet-"))


def naming_of(drawing: ClipDrawing, index: int, total: int, started: datetime) -> Naming:
    """Return the fields for a clip's name; `index` is its place among `total`."""
    request, recorded = drawing.request, parse_infotext(drawing.infotext).parameters
    return Naming(
        seed=request.seed,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        width=request.width or 0,
        height=request.height or 0,
        sampler=recorded["Sampler"],
        schedule_type="Trailing",
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        model_name=recorded["Model"],
        model_hash=recorded.get("Model hash", ""),
        denoising_strength=request.strength if request.video else None,
        generation_index=index,
        num_generations=total,
        pixels=drawing.frames.tobytes(),
        started=started,
    )


def report_recipe(recipe: ClipsRecipe) -> str:
    """Report what the recipe would generate, rounded as in drawing; no weights are read.

    Of a base model that is not on this disk, only what the recipe says is reported.
    """
    lines = [f"base model: {recipe.base_model.path}", f"folder: {recipe.output_dir}"]
    lines += [
        f"artifact {name}: {config.path}, strength {number(config.strength)}"
        for name, config in recipe.artifacts.items()
        if config is not None
    ]
    try:
        base = clip_skeleton(recipe.base_model)
        if recipe.drop_learned_positions:
            base.drop_learned_positions()
        if recipe.parallel.context > 1:
            base.check_context(recipe.parallel.context)
    except InputError as error:
        base = None
        lines.append(f"sizes and lengths are not checked: {error}")
    for name, clip in recipe.clips.items():
        if clip is not None:
            lines += clip_lines(name, clip, base)
    rows = len(recipe.compare_strengths) if recipe.artifacts and recipe.compare_strengths else 1
    clips = rows * sum(clip.count for clip in recipe.clips.values() if clip is not None)
    return "\n".join([*lines, f"clips: {clips}, each as {', '.join(recipe.formats)}"])


def clip_lines(name: str, clip: ClipConfig, base: ClipModel | None) -> Iterator[str]:
    """Yield the report on one entry, and what the model cannot generate of it."""
    drawn, problem = clip, ""
    if base is not None:
        try:
            (drawn,) = expand(base, [dataclasses.replace(clip, count=1)])
        except InputError as error:
            problem = str(error)
    seeds = "random" if clip.seed == -1 else f"{clip.seed}"
    if clip.count > 1:
        seeds += f" and {clip.count - 1} more"
    own = "the model's own"
    size = f"{drawn.width or own} x {drawn.height or own}"
    yield f"clip {name}: {clip.prompt}"
    yield (
        f"  seed {seeds}, {steps_taken(clip)} steps, sampler {drawn.sampler or own}, "
        f"CFG scale {number(clip.cfg_scale)}"
    )
    yield f"  frames: {drawn.frames or own}; size: {size}; fps: {number(drawn.fps or own)}"
    for key in ("image", "end_image", "video", "control_video"):
        if path := getattr(clip, key):
            is_there = "" if Path(path).exists() else " (not there)"
            yield f"  {key}: {path}{is_there}"
    if problem:
        yield f"  problem: {problem}"
