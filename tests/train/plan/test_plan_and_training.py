"""What a plan says of pictures, captions, epochs and steps is what the trainer then meets."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tests.train.run_tools import watched
from train.config.recipe import TrainRecipe
from train.data.examples.examples import Examples
from train.plan.plan import Plan, plan_run
from train.stages import Stage
from train.trainer import Trainer

Make = Callable[..., TrainRecipe]


@dataclass
class Met:
    """What a trainer has met in a stage."""

    examples: Examples | None = None
    batches: list[Any] = field(default_factory=list)

    @property
    def own(self) -> list[tuple[int, int, str]]:
        """(epoch, index, prompt) of each example that is not of a class, in order."""
        assert self.examples is not None
        return [
            (self.examples.place(position)[0], index, prompt)
            for batch in self.batches
            for position, index, prompt in zip(
                batch["positions"], batch["indices"], batch["prompts"], strict=True
            )
            if position >= 0
        ]


def trained(recipe: TrainRecipe) -> tuple[Trainer, dict[str, Met]]:
    """Trains, and keeps what each stage has met."""
    met: dict[str, Met] = defaultdict(Met)

    def watch(batch: Any, stage: Stage, examples: Examples) -> None:
        met[stage.name].examples = examples
        met[stage.name].batches.append(batch)

    trainer = Trainer(recipe, watched(watch))
    trainer.train()
    assert [*met] == [stage.name for stage in trainer.stages]
    return trainer, met


def check(plan: Plan, trainer: Trainer, met: dict[str, Met]) -> None:
    """Counts of the run against the plan's, as JSON has them."""
    reported = json.loads(json.dumps(plan.as_dict()))
    assert reported["steps"] == trainer.step_number
    assert reported["micro_batches"] == sum(len(stage.batches) for stage in met.values())
    assert reported["examples"] == sum(len(stage.own) for stage in met.values())
    for stage in reported["stages"]:
        seen = met[stage["name"]]
        used, own = seen.examples, seen.own
        assert used is not None
        assert stage["micro_batches"] == len(seen.batches)
        assert stage["examples"] == len(own)
        steps = [batch["step"] for batch in seen.batches]
        assert (stage["first_step"], stage["last_step"]) == (min(steps), max(steps) + 1)
        assert Counter(steps) == dict.fromkeys(
            range(stage["first_step"], stage["last_step"]), stage["gradient_accumulation_steps"]
        )
        epochs = Counter(epoch for epoch, _, _ in own)
        assert stage["last_epoch"] == max(epochs) + 1
        assert stage["epochs"] == round(len(own) / stage["epoch_length"], 3)
        whole = [epoch for epoch, count in epochs.items() if count == stage["epoch_length"]]
        assert whole  # so that an epoch's pictures can be counted
        for epoch in whole:
            indices = Counter(index for one, index, _ in own if one == epoch)
            shapes = Counter("x".join(map(str, sides(trainer, seen, index))) for index in indices)
            assert stage["buckets"] == dict(shapes)
            assert stage["repeated"] == 0
            check_balance(reported, used, indices)
    check_captions(reported, trainer, met)


def sides(trainer: Trainer, met: Met, index: int) -> tuple[int, int]:
    """Height and width in pixels of what the trainer took of a picture."""
    for batch in met.batches:
        if index in batch["indices"]:
            factor = trainer.base.vae_scale_factor if "latents" in batch else 1
            height, width = batch["latents" if "latents" in batch else "pixels"].shape[-2:]
            return height * factor, width * factor
    raise AssertionError(index)


def check_balance(reported: dict[str, Any], used: Examples, indices: Counter[int]) -> None:
    counted = Counter[str]()
    for index, times in indices.items():
        counted[used.pictures[index].subset] += times
    balance = reported["checks"]["captions"]["balance"]
    planned = {name: n for name, n in balance.items() if "(regularisation)" not in name}
    assert planned == (dict(counted) if planned else {})


def check_captions(reported: dict[str, Any], trainer: Trainer, met: dict[str, Met]) -> None:
    pictures = trainer.data.sources.pictures
    captions, lint = reported["captions"], reported["checks"]["captions"]
    assert captions["pictures"] == len(pictures)
    assert lint["told_by"] == trainer.data.facts["captions_from"]
    assert captions["with_caption"] == sum(bool(one.captions) for one in pictures)
    states = trainer.caches.prompt_states
    assert states is not None
    prompts = {
        text for stage in met.values() for batch in stage.batches for text in batch["prompts"]
    }
    if reported["cache"]["kind"] == "auto":
        assert reported["cache"]["prompts"] == len(states.known)
        if states.known:
            assert prompts <= states.known.keys()
    used = [stage.examples for stage in met.values()]
    if trainer.recipe.validation is not None:
        used.append(trainer.validation.examples)
    kept = sum(len(one.latents) for one in used if one is not None and one.latents is not None)
    assert reported["cache"]["latents"] == kept


def test_folder_with_wildcards_and_epochs_without_captions(make_recipe: Make) -> None:
    """8 pictures, 2 x 2 a step: two epochs are 4 steps; every second epoch has no captions."""
    recipe = make_recipe(
        "gradient_accumulation_steps=2",
        "data.captions={wildcards: true, prefix: '{a|the} ', dropout_every_n_epochs: 2}",
    )
    plan = plan_run(recipe)
    assert (plan.stages[0].epochs, plan.stages[0].last_epoch) == (2.0, 2)
    assert plan.captions is not None
    assert plan.captions.different == 17  # two of each picture, and the empty one
    trainer, met = trained(recipe)
    check(plan, trainer, met)
    empty = Counter((epoch, not prompt) for epoch, _, prompt in met[""].own)
    assert empty == {(0, False): 8, (1, True): 8}


def fill(folder: Path, count: int, size: tuple[int, int], ending: str = ".txt") -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", size, (40 * number, 90, 20)).save(folder / f"{number}.png")
        (folder / f"{number}{ending}").write_text(f"sks, {folder.name}, tag {number}")
    return folder


def test_subsets_with_repeats_and_regularisation(make_recipe: Make, tmp_path: Path) -> None:
    """3 x 2 + 2 = 8 examples of an epoch, one of the class along with each."""
    subsets = {
        "more": f"{{path: {fill(tmp_path / 'more', 3, (20, 12))}, repeats: 2}}",
        "once": f"{{path: {fill(tmp_path / 'once', 2, (9, 16), '.caption')}, "
        "captions: {shuffle_tags: true, keep_tokens: 1, token_warmup_step: 3}}",
        "class": f"{{path: {fill(tmp_path / 'class', 3, (16, 16))}, is_reg: true}}",
    }
    recipe = make_recipe(
        "data.path=null",
        *(f"data.subsets.{name}={text}" for name, text in subsets.items()),
        "max_train_steps=5",
    )
    plan = plan_run(recipe)
    assert plan.caption_lint is not None
    assert plan.caption_lint.balance == {"more": 6, "once": 2, "class (regularisation)": 3}
    assert plan.caption_lint.told_by == {".txt": 3, ".caption": 2}
    assert plan.stages[0].epochs == 1.25
    assert plan.picture_lint.small == 5  # 20x12 and 9x16 cover 16x16
    trainer, met = trained(recipe)
    check(plan, trainer, met)
    assert all(len(batch["positions"]) == 4 for batch in met[""].batches)
    # 1 + floor(step x 1 / 3) tags behind the kept one, which is all of two from step 3 on
    for batch in met[""].batches:
        for name, prompt in zip(batch["names"], batch["prompts"], strict=True):
            if "/once/" in name:
                assert prompt.count(",") == (1 if batch["step"] < 3 else 2)


def test_stages_and_a_cache_in_files(make_recipe: Make) -> None:
    recipe = make_recipe(
        "data.cache=disk",
        "stages.small={steps: 4}",
        "stages.large={resolution: 24, train_batch_size: 4, gradient_accumulation_steps: 2}",
        "max_train_steps=6",
    )
    plan = plan_run(recipe)
    assert [stage.epochs for stage in plan.stages] == [1.0, 2.0]
    trainer, met = trained(recipe)
    check(plan, trainer, met)
    again = plan_run(recipe)
    assert again.cache.latents_found == again.cache.latents == 16
    assert again.cache.prompts_found == again.cache.prompts == 8


def test_pictures_that_are_held_back(make_recipe: Make) -> None:
    recipe = make_recipe("validation={split: 0.25}", "max_train_steps=5")
    plan = plan_run(recipe)
    assert plan.stages[0].epoch_length < 8
    trainer, met = trained(recipe)
    check(plan, trainer, met)
    assert plan.validation is not None
    assert plan.stages[0].epoch_length + plan.validation.examples == 8
