"""`python -m train.plan`: what it says is what training then does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from inference.models.base import DTYPES
from inference.recipe.loader import load_recipe
from tests.inference.artifacts.video_base import build_video_base, save_folder
from tests.train.run_tools import watched, with_slow
from train.config.recipe import TrainRecipe
from train.config.schema import train_schema
from train.data.examples.clips import ClipExamples
from train.data.examples.examples import Examples
from train.objectives.loading import load_objective
from train.plan.__main__ import main
from train.plan.plan import plan_run
from train.stages import Stage
from train.trainer import Trainer


def clips(folder: Path) -> Path:
    """Nine clips of 9 frames, and two of 17; of two shapes, one without a caption."""
    folder.mkdir()
    for number in range(9):
        count = 17 if number > 6 else 9
        size = (32, 16) if number % 2 else (16, 16)
        frames = np.random.default_rng(number).integers(0, 255, (count, *size[::-1], 3), np.uint8)
        first, *others = map(Image.fromarray, frames)
        path = folder / f"{number}.webp"
        first.save(path, save_all=True, append_images=others, duration=125, lossless=True)
        if number:
            path.with_suffix(".txt").write_text(f"clip {number % 3}")
    return folder


def clip_recipe(tmp_path: Path, **changes: Any) -> TrainRecipe:
    content = {
        "name": "run",
        "output_dir": str(tmp_path / "runs"),
        "base_model": {"path": str(save_folder(build_video_base(), tmp_path / "base"))},
        "objective": {"type": "lora", "rank": 64},
        "data": {
            "path": str(clips(tmp_path / "clips")),
            "clips": {"token_budget": 12, "frames": 9, "height": 16, "width": 32},
            "captions": {"fallback": "a clip", "dropout_rate": 0.2},
            "cache": "disk",
        },
        "stages": {
            "small": {"steps": 3, "train_batch_size": 2, "gradient_accumulation_steps": 2},
            "long": {"frames": 17},
        },
        "max_train_steps": 5,
        "log_every_n_steps": 100,
        "ema": {"decay": 0.9},
        "saving": {"save_every_n_steps": 2, "keep_last_n_checkpoints": 2},
        **changes,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return load_recipe(path, train_schema)


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def test_training_does_what_was_planned(tmp_path):
    recipe = clip_recipe(tmp_path)
    plan = plan_run(recipe)
    assert (plan.cache.latents_found, plan.cache.prompts_found) == (0, 0)
    seen: dict[str, list[Any]] = {"small": [], "long": []}
    examples: dict[str, ClipExamples] = {}

    def watch(batch: Any, stage: Stage, used: Examples) -> None:
        seen[stage.name].append(batch)
        assert isinstance(used, ClipExamples)
        examples[stage.name] = used

    trainer = Trainer(recipe, watched(watch))
    trainer.train()
    for stage in plan.stages:
        batches, used = seen[stage.name], examples[stage.name]
        positions = [position for batch in batches for position in batch["positions"]]
        assert stage.micro_batches == len(batches)
        assert stage.examples == len(positions)
        assert stage.last_epoch == used.place(positions[-1])[0] + 1
        assert stage.buckets == {str(b): n for b, n in Counter(used.buckets).items()}
        for batch in batches:
            frames, _, height, width = batch["latents"].shape[1:]
            assert f"{4 * frames - 3}x{8 * height}x{8 * width}" in stage.buckets
    assert plan.as_dict()["steps"] == trainer.step_number == 5
    assert [stage.last_step for stage in plan.stages] == [3, 5]

    assert plan.captions is not None
    batches = [*seen["small"], *seen["long"]]
    prompts = {text for batch in batches for text in batch["prompts"]}
    assert (plan.captions.with_caption, plan.captions.by_fallback) == (9, 1)
    assert plan.captions.different == 5 and prompts <= {*examples["long"].all_prompts()}
    trained = sum(parameter.numel() for parameter in trainer.optimization.parameters)
    assert sum(plan.trained.values()) == trained

    disk, run = plan.disk, trainer.run.folder
    kept = sorted(run.checkpoints.iterdir())
    artifacts = [path for path in run.artifacts.iterdir() if not path.is_symlink()]
    assert (disk.checkpoints_kept, disk.artifacts) == (len(kept), len(artifacts)) == (2, 3)
    assert size_of(kept[-1]) == pytest.approx(disk.checkpoint, rel=0.06)
    assert size_of(artifacts[0]) == pytest.approx(disk.artifact, abs=8192)  # metadata, whole blocks

    again = plan_run(recipe)
    assert again.cache.latents_found == again.cache.latents == plan.cache.latents
    assert again.cache.prompts_found == again.cache.prompts == 5
    changed = plan_run(load_recipe(tmp_path / "recipe.yaml", train_schema, ["data.flip=1"]))
    assert changed.cache.latents_found == 0 and changed.cache.prompts_found == 5


OBJECTIVES = [
    "{type: lora, rank: 2, train_text_encoder: true}",
    "{type: text_to_image, train_text_encoder: true}",
    "{type: textual_inversion, token: sks}",
    "{type: hypernetwork}",
    "{type: autoencoder}",
    "{type: autoencoder, part: decoder}",
]


@pytest.mark.parametrize("objective", with_slow(OBJECTIVES, OBJECTIVES[3:5]))
def test_what_is_trained_is_what_was_planned(objective, make_recipe):
    recipe = make_recipe(f"objective={objective}", "mixed_precision=bf16")
    plan, made = plan_run(recipe), load_objective(recipe, "cpu")  # type: ignore[arg-type]
    trained = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad)
        for name, part in made.named_children()
    }
    assert plan.trained == trained
    assert plan.memory.gradients == 4 * sum(trained.values())
    for name, part in made.base.parts.items():
        own = [p for path, p in part.named_parameters() if ".lora_" not in path]
        reported = plan.memory.parts[name]
        assert (reported.parameters, reported.bytes) == (
            sum(p.numel() for p in own),
            sum(p.nbytes for p in own),
        )
        assert DTYPES[reported.format] in {p.dtype for p in own}
    beside = sum(p.nbytes for p in made.parameters()) if "type: lora" in objective else None
    assert plan.memory.trained == beside or beside is None
    assert plan.memory.activations > 0 and plan.memory.peak > plan.memory.weights


def test_the_command(recipe_file, tmp_path, capsys):
    common = [str(recipe_file), "objective={type: lora, rank: 2}", f"output_dir={tmp_path}"]
    grid = 'sampling.images.one={prompt: "a", seed: 1}'
    assert main([*common, grid]) == 0
    shown = capsys.readouterr().out
    for words in ("8 of 8, 8 different prompts", "8 in 1.00 epochs", "16x16", "peak of a step"):
        assert words in shown
    assert main([*common, "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert (reported["steps"], reported["examples"], reported["epochs"]) == (4, 8, 1.0)
    assert reported["memory"]["previews"] == 0 and reported["class_pictures"] is None
    assert not list(tmp_path.iterdir())  # nothing is written

    for override, message in (
        ("base_model.path=someone/nothing", "hf download someone/nothing"),
        ("base_model.path=nothing", "is neither an embedded model"),
        ("data.path=nowhere", "'nowhere' is not a folder"),
        ("base_model.path=THUDM/CogVideoX-2b", "data.clips: must be given"),
    ):
        assert main([*common, override]) == 2
        assert message in capsys.readouterr().err
    assert main([]) == 2


def test_preview_clips_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They take the text encoder back, and work of the transformer and the VAE."""
    assert main(["configs/demo/circling_lora.yaml", f"output_dir={tmp_path}", "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["drawing"] > 0 and memory["previews"] > memory["drawing"]
