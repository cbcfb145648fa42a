"""Recipes of `type: animation`: from settings to frames, and what is made of them."""

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
from inference.deforum.settings import Settings, recipe_settings
from inference.recipe import dump_recipe
from inference.runtime import DrawWarning, InputError, Interrupted, StopSignals

NOT_OF_THE_RUN = ("seed", "resume_from_timestring", "resume_timestring")
"""Settings that a resumed run may have otherwise."""

Say = Callable[[str], None]


def draw_animation(recipe: AnimationRecipe, say: Say = print) -> None:
    """Draws an animation, and prints the paths of what came of it.

    Raises:
        InputError: anything that the settings ask for cannot be had; told before frame 0 wherever
            it can be known.
        Interrupted: a signal ended it after a frame; what was saved is complete.
        FloatingPointError: a picture is not finite, or blank where that shall not be.
    """
    animation = Animation(recipe)
    animation.prepare()
    animation.draw(open_generator(recipe, animation.script), say)


def open_generator(recipe: AnimationRecipe, script: Script) -> FrameGenerator:
    """The base model with its artifacts; or what shows the camera's way without one.

    Raises:
        InputError: device, base model or an artifact cannot be used; or a frame's sampler, prompt
            or checkpoint.
    """
    if script["motion_preview_mode"]:
        return PreviewGenerator()
    from inference.deforum.loop import ModelGenerator, check_words

    generator = ModelGenerator(
        recipe.base_model,
        {name: one for name, one in recipe.artifacts.items() if one is not None},
        [Path(folder) for folder in recipe.artifact_dirs],
        recipe.precision,
        recipe.device,
        recipe.batch_size,
    )
    check_words(script, generator)
    return generator


@dataclass
class Animation:
    """An animation on its way: `prepare` finds out what is to be done, `draw` does it.

    Args:
        recipe: says what.
        settings: those of the recipe, unless given.
        estimator: tells distances; `depth_model`'s unless given.
    """

    recipe: AnimationRecipe
    settings: Settings | None = None
    estimator: DepthEstimator | None = None

    def prepare(self) -> None:
        """Reads and checks all that can be known without a model, and saves the settings.

        Raises:
            InputError: something is wrong with it.
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
        self.run.make()
        self.script.settings.save(self.run.settings)
        self.save_recipe()

    def begin(self, settings: Settings) -> tuple[RunFolder, State, Settings]:
        """Where the run lies, how far it is, and the settings with its seed."""
        found = self.found(settings)
        if found is None:
            seed = draw_seed() if settings["seed"] == -1 else settings["seed"]
            settings, output = settings.replace(seed=seed), Path(self.recipe.output_dir)
            run = new_run(lambda time: output / folder_name(settings, time))
            return run, State(), settings
        if not found.state.is_file():
            raise InputError(f"resume: {found.state} is missing; nothing can be gone on with")
        state, known = load_state(found.state)
        if known != self.print:
            warnings.warn(
                f"{found.state}: was written with other settings; what is left is drawn with the "
                "new ones",
                DrawWarning,
                stacklevel=3,
            )
        return found, state, settings.replace(seed=state.seeds["run_seed"])

    def check_resumed(self) -> None:
        """Refuses settings that a run cannot go on with, where they were changed in between.

        Raises:
            InputError: frames would have two sizes, or some would be left out.
        """
        script, frame = self.script, self.state.frame
        for path in self.run.frames()[:1]:
            with Image.open(path) as image:
                if image.size != (script.width, script.height):
                    sizes = [f"{w}x{h}" for w, h in (image.size, (script.width, script.height))]
                    raise InputError(
                        f"W, H: the run was begun with frames of {sizes[0]} and cannot go on with "
                        f"{sizes[1]}; set them back, or begin a new run"
                    )
        starts = [block.start for block in script.blocks]
        if script.has_feedback and 0 < frame < script.max_frames and frame not in starts:
            raise InputError(
                f"diffusion_cadence: the run goes on at frame {frame}, which is none of those that "
                "are diffused now; set the cadence back, or begin a new run"
            )

    def found(self, settings: Settings) -> RunFolder | None:
        """The run to go on with, if one is asked for."""
        folder = Path(self.recipe.output_dir)
        if settings["resume_from_timestring"]:
            return run_of_timestring(folder, settings["resume_timestring"])
        if not self.recipe.resume:
            return None
        saved = self.recipe.settings_file and run_of_settings(self.recipe.settings_file)
        return saved or latest_run(folder, self.print)

    def words(self, device: str) -> Any:
        """What finds words in pictures, where the settings name a model for it."""
        if not self.script["word_mask_model"]:
            return None
        from inference.deforum.pictures import WordMasks

        return WordMasks(self.script["word_mask_model"], device)

    def save_recipe(self) -> None:
        """The recipe that draws the same animation again."""
        recipe = dataclasses.replace(
            self.recipe, settings_file=str(self.run.settings), settings={}, resume=False
        )
        self.run.file("_recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")

    def draw(self, generator: FrameGenerator, say: Say = print) -> None:
        """Draws what is left of the frames, then makes videos of them.

        Raises:
            Interrupted: a signal ended it after a frame.
        """
        signals = StopSignals()

        def saved(state: State) -> None:
            self.keep(state)
            if signals.number and state.frame < self.script.max_frames:
                raise Interrupted(signals.number, self.run.state)

        with signals.noted(say, "frame"):
            self.loop(generator).run(self.state, saved)
        finish(self.script, self.run, self.recipe, self.state, say, self.depths)

    def loop(self, generator: FrameGenerator) -> FeedbackLoop | IndependentFrames:
        """What draws the frames, as the mode asks for it."""
        script = self.script
        seeds = seed_sequence(script)
        if self.state.seeds:
            seeds.restore(self.state.seeds)
        else:
            self.state.seeds = seeds.state()
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
            self.masks,
            hybrid,
            seeds,
            self.show,
        )

    def keep(self, state: State) -> None:
        """Saves what a resumed run goes on from."""
        save_state(self.run.state, state, self.print)

    def show(self, frame: int, picture: np.ndarray) -> None:
        """Saves a frame."""
        self.run.save_frame(frame, picture)


def seed_sequence(script: Script) -> SeedSequence:
    """The seeds of the frames; guided images follow `seed_schedule`, as in Deforum."""
    behavior = script["seed_behavior"]
    if script["use_looper"] and script.has_feedback:
        behavior = "schedule"
    schedule = script.schedules["seed_schedule"] if behavior == "schedule" else None
    return SeedSequence(behavior, script.seed, max(1, script["seed_iter_N"]), schedule)


def fingerprint(settings: Settings, recipe: AnimationRecipe) -> str:
    """What a state must fit to: settings without seed, artifacts, base model."""
    told = {key: value for key, value in settings.values.items() if key not in NOT_OF_THE_RUN}
    artifacts = {
        name: [one.path, one.strength] for name, one in recipe.artifacts.items() if one is not None
    }
    others = recipe.compat, recipe.cadence_blend, recipe.base_model.path, artifacts
    text = json.dumps([told, others], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
