"""Recipes of `type: animation`: from settings to frames, videos and subtitles."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from inference.config import AnimationRecipe
from inference.deforum.geometry import Camera, DepthEstimator, open_depth
from inference.deforum.loop import (
    Colors,
    Depths,
    Feedback,
    FeedbackLoop,
    FrameGenerator,
    FrameMasks,
    HybridVideo,
    IndependentFrames,
    PreviewGenerator,
    State,
    Tweens,
    load_state,
    save_state,
)
from inference.deforum.products import (
    RunFolder,
    check_products,
    finish,
    latest_run,
    new_run,
    run_of_settings,
    run_of_timestring,
    runs_without_state,
)
from inference.deforum.schedules import (
    Schedules,
    Script,
    SeedSequence,
    check,
    draw_seed,
    folder_name,
    without_effect,
)
from inference.deforum.settings import Settings, load_settings, recipe_settings
from inference.files import HeldFile, write_atomically
from inference.recipe import dump_recipe
from inference.runtime import (
    DrawWarning,
    InputError,
    Interrupted,
    StopSignals,
    choose_device,
    output,
)

NOT_OF_THE_RUN = ("seed", "resume_from_timestring", "resume_timestring")
"""Settings that may differ when a run is resumed."""

Log = Callable[[str], None]


def draw_animation(recipe: AnimationRecipe, log: Log = output) -> None:
    """Generate an animation, and log the paths of the files written.

    Raises:
        InputError: a setting cannot be satisfied; raised before frame 0 wherever that can be known.
        Interrupted: a signal ended it after a frame; everything saved is complete.
        FloatingPointError: an image is not finite, or blank although the settings forbid that.
    """
    animation = Animation(recipe)
    animation.prepare()
    animation.draw(open_generator(recipe, animation.script), log)


def open_generator(recipe: AnimationRecipe, script: Script) -> FrameGenerator:
    """Open the base model with its artifacts, or the generator that previews the camera's motion.

    Raises:
        InputError: device, base model or an artifact cannot be used; or the sampler, prompt or
            checkpoint of a frame.
    """
    if script["motion_preview_mode"]:
        return PreviewGenerator()
    from inference.artifacts import prepare_drawing
    from inference.deforum.loop import ModelGenerator, check_words
    from inference.images import Levers

    folders = [Path(folder) for folder in recipe.artifact_dirs]
    check_words(script, folders)
    return ModelGenerator(
        recipe.base_model,
        {name: one for name, one in recipe.artifacts.items() if one is not None},
        folders,
        prepare_drawing(recipe, choose_device(recipe.device)),
        recipe.device,
        recipe.batch_size,
        Levers(recipe.memory, recipe.vae_tiling),
        (script.width, script.height),
        recipe.speed,
    )


@dataclass
class Animation:
    """An animation: `prepare` reads and checks its settings, `draw` generates it.

    Args:
        recipe: the recipe.
        settings: the recipe's settings, unless given.
        estimator: estimates distances; that of `depth_model` unless given.
    """

    recipe: AnimationRecipe
    settings: Settings | None = None
    estimator: DepthEstimator | None = None

    def prepare(self) -> None:
        """Read and check everything that needs no model, and save the settings.

        Raises:
            InputError: a setting is wrong.
        """
        recipe = self.recipe
        settings = self.settings or recipe_settings(recipe)
        for note in settings.notes:
            warnings.warn(f"{settings.source or 'settings'}: {note}", DrawWarning, stacklevel=2)
        drawn = settings if settings["seed"] >= 0 else settings.replace(seed=0)
        check(drawn, Schedules.of(drawn))
        for remark in without_effect(drawn):
            warnings.warn(remark, DrawWarning, stacklevel=2)
        self.print = fingerprint(settings, recipe)
        self.plan(settings)
        while not self.claim():  # another animation of this second was faster
            self.plan(settings)
        self.held = self.hold()
        self.save_recipe()

    def hold(self) -> HeldFile:
        """Save the settings, and lock their file, so that one process at a time draws the run.

        Raises:
            InputError: another process draws it.
        """
        settings, file = self.script.settings, self.run.settings
        if not file.is_file():
            settings.save(file)
        held = self.run.hold()
        if file.read_bytes() != settings.text().encode():
            settings.save(file)
            held.release()
            held = self.run.hold()
        return held

    def plan(self, settings: Settings) -> None:
        """Choose the run, and check everything that depends on it.

        Raises:
            InputError: a setting is wrong.
        """
        recipe = self.recipe
        self.run, self.state, settings = self.begin(settings)
        names = [name for name, one in recipe.artifacts.items() if one is not None]
        self.script = Script(
            settings,
            recipe.compat,
            self.run.path,
            names,
            self.run.timestring,
            recipe.cadence_blend,
        )
        self.check_resumed()
        check_products(self.script, recipe)
        device = "cpu" if recipe.device == "auto" else recipe.device
        if self.estimator is None and self.script["depth_model"]:
            self.estimator = open_depth(self.script["depth_model"], device)
        self.masks = FrameMasks(self.script, self.script.video, self.words(device))

    def claim(self) -> bool:
        """Create the run's folder, and its state before frame 0, unless it is resumed.

        Of several animations that have chosen one name only one creates this file; so a run that
        ends before its first frame can be resumed, too.

        Returns:
            Whether the name is this run's.
        """
        self.run.make()
        if self.state.seeds:
            return True
        self.state.seeds = seed_sequence(self.script).state()
        try:
            save_state(self.run.state, self.state, self.print, is_first=True)
        except FileExistsError:
            return False
        return True

    def begin(self, settings: Settings) -> tuple[RunFolder, State, Settings]:
        """Return the folder and state of the run, and the settings with its seed."""
        found = self.found(settings)
        if found is None:
            seed = draw_seed() if settings["seed"] == -1 else settings["seed"]
            settings, output = settings.replace(seed=seed), Path(self.recipe.output_dir)
            run = new_run(lambda time: output / folder_name(settings, time))
            return run, State(), settings
        if not found.state.is_file():
            notice(f"resume: {found.state} is missing, so {found.timestring} starts from frame 0")
            seed = load_settings(str(found.settings))["seed"]
            return found, State(), settings.replace(seed=seed)
        state, known = load_state(found.state)
        if known != self.print:
            notice(
                f"{found.state}: was written with other settings; the remaining frames use the "
                "new ones"
            )
        if not state.emitted:
            notice(
                f"resume: {found.timestring} was stopped before its first frame; it starts there"
            )
        return found, state, settings.replace(seed=state.seeds["run_seed"])

    def check_resumed(self) -> None:
        """Reject changes of settings with which a run cannot be resumed.

        Raises:
            InputError: frames would have two sizes, or some would be skipped.
        """
        script, frame = self.script, self.state.frame
        for path in self.run.frames()[:1]:
            with Image.open(path) as image:
                if image.size != (script.width, script.height):
                    sizes = [f"{w}x{h}" for w, h in (image.size, (script.width, script.height))]
                    raise InputError(
                        f"W, H: the run has frames of {sizes[0]} and cannot continue with "
                        f"{sizes[1]}; restore them, or start a new run"
                    )
        starts = [block.start for block in script.blocks]
        if script.has_feedback and 0 < frame < script.max_frames and frame not in starts:
            raise InputError(
                f"diffusion_cadence: the run continues at frame {frame}, which this cadence does "
                "not diffuse; restore the cadence, or start a new run"
            )

    def found(self, settings: Settings) -> RunFolder | None:
        """Return the run to resume, if that is requested."""
        folder = Path(self.recipe.output_dir)
        if settings["resume_from_timestring"]:
            return run_of_timestring(folder, settings["resume_timestring"])
        if not self.recipe.resume:
            return None
        file = self.recipe.settings_file
        found = (file and run_of_settings(file, folder)) or latest_run(folder, self.print)
        found = found or next(filter(self.is_of, runs_without_state(folder)), None)
        if found is None:
            notice(f"resume: no animation of these settings was begun in {folder}; it starts over")
        return found

    def is_of(self, run: RunFolder) -> bool:
        """Return whether a run has saved the settings of this animation."""
        try:
            return fingerprint(load_settings(str(run.settings)), self.recipe) == self.print
        except InputError as error:
            notice(f"resume: skipped: {error}")
            return False

    def words(self, device: str) -> Any:
        """Return the model for word masks, if the settings name one."""
        if not self.script["word_mask_model"]:
            return None
        from inference.deforum.pictures import WordMasks

        return WordMasks(self.script["word_mask_model"], device)

    def save_recipe(self) -> None:
        """Save the recipe that generates the same animation again."""
        recipe = dataclasses.replace(
            self.recipe, settings_file=str(self.run.settings), settings={}, resume=False
        )
        text = dump_recipe(recipe)
        write_atomically(
            self.run.file("_recipe.yaml"), lambda file: file.write_text(text, encoding="utf-8")
        )

    def draw(self, generator: FrameGenerator, log: Log = output) -> None:
        """Generate the remaining frames, then write the videos.

        Raises:
            Interrupted: a signal ended it after a frame.
        """
        signals = StopSignals()

        def saved(state: State) -> None:
            self.keep(state)
            if signals.number and state.frame < self.script.max_frames:
                raise Interrupted(signals.number, self.run.state)

        try:
            with signals.noted(log, "frame"):
                self.loop(generator).run(self.state, saved)
            finish(self.script, self.run, self.recipe, self.state, log, self.depths)
        finally:
            self.held.release()

    def loop(self, generator: FrameGenerator) -> FeedbackLoop | IndependentFrames:
        """Return the frame loop of the animation mode."""
        script = self.script
        seeds = seed_sequence(script)
        seeds.restore(self.state.seeds)
        self.depths = Depths(script, self.estimator, self.run.save_depth)
        colors = Colors(script)
        if not script.has_feedback:
            return IndependentFrames(
                script, generator, self.masks, colors, seeds, self.show, self.recipe.batch_size
            )
        camera = Camera(script)
        hybrid = None
        if script.is_hybrid and script.video is not None:
            hybrid = HybridVideo(script, script.video, self.depths)
        return FeedbackLoop(
            script,
            generator,
            Feedback(script, camera, self.depths, colors, self.masks, hybrid),
            Tweens(script, camera, self.depths, self.masks, hybrid),
            seeds,
            self.show,
        )

    def keep(self, state: State) -> None:
        """Save the state from which a run is resumed."""
        save_state(self.run.state, state, self.print)

    def show(self, frame: int, picture: np.ndarray) -> None:
        """Save a frame."""
        self.run.save_frame(frame, picture)


def notice(remark: str) -> None:
    """Report something about a resumed run."""
    warnings.warn(remark, DrawWarning, stacklevel=4)


def seed_sequence(script: Script) -> SeedSequence:
    """Return the seeds of the frames; guided images use `seed_schedule`, as in Deforum."""
    behavior = script["seed_behavior"]
    if script["use_looper"] and script.has_feedback:
        behavior = "schedule"
    schedule = script.schedules["seed_schedule"] if behavior == "schedule" else None
    return SeedSequence(behavior, script.seed, max(1, script["seed_iter_N"]), schedule)


def fingerprint(settings: Settings, recipe: AnimationRecipe) -> str:
    """Return a hash that a state must match: settings without seed, artifacts, base model."""
    relevant = {key: value for key, value in settings.values.items() if key not in NOT_OF_THE_RUN}
    artifacts = {
        name: [one.path, one.strength] for name, one in recipe.artifacts.items() if one is not None
    }
    vae = [recipe.base_model.vae] if recipe.base_model.vae is not None else []
    others = recipe.compat, recipe.cadence_blend, recipe.base_model.path, artifacts, *vae
    text = json.dumps([relevant, others], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
