"""What `scripts/compare_with.py` runs: the demo recipes, cut to a minute or less each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHORT_RUN = (
    "max_train_steps=20",
    "lr_scheduler.warmup_steps=5",
    "saving.save_every_n_steps=10",
    "sampling.sample_every_n_steps=10",
)
SHORT_GRID = "sampling.settings.steps=4"
SHORT_CLIPS = "sampling.clip_settings.steps=3"


def short_class(name: str) -> tuple[str, ...]:
    """Return overrides for one quickly drawn class picture for each picture of a subject."""
    concept = f"data.concepts.{name}"
    return f"{concept}.num_class_images_per=1", f"{concept}.class_infer_steps=4"


def no_clips(*names: str) -> tuple[str, ...]:
    """Return overrides that take clips out of the previews."""
    return tuple(f"sampling.clips.{name}=null" for name in names)


TRAINED = {
    "octopus_dreambooth": (SHORT_GRID, *short_class("octopus")),
    "frog_dreambooth": (SHORT_GRID, *short_class("frog")),
    "penguin_dreambooth": (SHORT_GRID, *short_class("penguin")),
    "circling_lora": (SHORT_CLIPS,),
    "octopus_clip_lora": (SHORT_CLIPS,),
    "line_icons_lora": (SHORT_GRID,),
    "line_icons_hypernetwork": (SHORT_GRID,),
    "noto_cat_textual_inversion": (SHORT_GRID,),
    "noto_cat_combined": (SHORT_GRID, "objective.members.word.stop_step=10"),
}
"""Recipe of configs/demo -> what else makes it short."""

SHORT_ANIMATION = (
    "artifacts.icons.path=icons.safetensors",
    "settings.max_frames=8",
    "settings.steps=6",
)
DRAWN = {
    "configs/demo/animation_zoom.yaml": SHORT_ANIMATION,
    "configs/demo/animation_fly.yaml": SHORT_ANIMATION,
    "configs/demo/animation_between.yaml": SHORT_ANIMATION,
    "configs/demo/animation_video.yaml": SHORT_ANIMATION,
    "configs/inference/clip.yaml": ("settings.steps=4", "clips.car.sampler=dpm"),
    "configs/inference/images.yaml": ("settings.steps=6",),
    "configs/inference/samplers.yaml": ("settings.steps=5",),
    "configs/inference/schedules.yaml": ("settings.steps=5",),
}
"""Recipe -> what makes it short."""

PLANNED = {
    "circling_lora": no_clips("dog", "rabbit", "banana", "rocket"),
    "octopus_clip_lora": no_clips("left", "up", "bouncing", "right"),
}
"""Recipe of configs/demo -> options of its plan: at 2c1390f a plan fails if clips are drawn."""


@dataclass(frozen=True)
class Item:
    """A command that runs in both trees."""

    name: str
    module: str
    recipe: str
    options: tuple[str, ...]
    result: str
    """Folder or, of a plan, file of what it leaves, in the working folder."""


def all_items() -> list[Item]:
    """Return every item: those that take longest first, so that no process waits at the end."""
    items = []
    for name, options in TRAINED.items():
        recipe, run = f"configs/demo/{name}.yaml", f"runs/{name}"
        items.append(Item(f"train/{name}", "train", recipe, (*SHORT_RUN, *options), run))
    for recipe, options in DRAWN.items():
        name = Path(recipe).stem
        out = f"outputs/{name}"
        options = (*options, f"output_dir={out}")
        items.append(Item(f"draw/{name}", "inference", recipe, options, out))
    for name in TRAINED:
        recipe, plan = f"configs/demo/{name}.yaml", f"plans/{name}.json"
        options = ("--json", "output_dir=planned", *PLANNED.get(name, ()))
        items.append(Item(f"plan/{name}", "train.plan", recipe, options, plan))
    return items
