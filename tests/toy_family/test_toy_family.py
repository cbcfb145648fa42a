"""A family of rectified flow, registered in both halves: trains, draws, saves, resumes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inference.artifacts import Checkpoint, load_artifact
from inference.config import BaseModelConfig, ImageConfig
from inference.images import draw
from inference.media.grid import grid_cells
from inference.memory import packed_layers
from inference.models import FAMILIES, load_model, register_family
from inference.recipe import load_recipe
from tests.toy_family.family import FlowFamily, FlowTraining, ToyFlow, new_toy_flow
from tests.toy_family.rectified_flow import RectifiedFlow
from train.config import TrainRecipe, train_schema
from train.families import TRAINING, build_denoising, register_training
from train.trainer import Trainer

RECIPE = """
name: run
base_model: {{path: {base}}}
data: {{path: {pictures}}}
objective: {{type: lora, rank: 2}}
optimizer: {{learning_rate: 1.0e-2}}
max_train_steps: 4
train_batch_size: 2
log_every_n_steps: 1
saving: {{save_every_n_steps: 2}}
sampling: {{settings: {{steps: 3, sampler: Euler}}, images: {{one: {{prompt: red}}}}}}
"""


@pytest.fixture(autouse=True)
def both_halves() -> Iterator[None]:
    register_family(FlowFamily())
    register_training("toy_flow", FlowTraining())
    yield
    del FAMILIES["toy_flow"], TRAINING["toy_flow"]


@pytest.fixture(autouse=True)
def no_accelerator_left() -> Iterator[None]:
    """accelerate keeps its state for the whole process; every test begins without."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for colour in ("red", "lime", "blue", "white"):
        Image.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(colour, "utf-8")
    return folder


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    base = new_toy_flow(shift=2.0)
    Checkpoint.of(base, ["toy_dit"]).save(tmp_path / "base", torch.float32, {})
    return tmp_path / "base"


def recipe_of(base: Path, pictures: Path, *overrides: str) -> TrainRecipe:
    path = base.parent / "recipe.yaml"
    path.write_text(RECIPE.format(base=base, pictures=pictures), "utf-8")
    return load_recipe(path, train_schema, [f"output_dir={base.parent}", *overrides])


def drawn(base: ToyFlow, **settings: object) -> bytes:
    usual = {"prompt": "red", "seed": 3, "steps": 4, "width": 16, "height": 16}
    usual |= {"sampler": "Euler", "cfg_scale": 2.0}
    return draw(base, [ImageConfig(**{**usual, **settings})])[0].image.tobytes()  # type: ignore[arg-type]


def test_it_is_saved_found_and_read(base_folder: Path) -> None:
    base = new_toy_flow(shift=2.0)
    again = load_model(BaseModelConfig(path=str(base_folder)))
    assert isinstance(again, ToyFlow)
    assert isinstance(again.parametrization, RectifiedFlow)
    assert again.parametrization.shift == 2.0
    for key, tensor in base.toy_dit.state_dict().items():
        assert torch.equal(again.toy_dit.state_dict()[key], tensor)
    assert drawn(again) == drawn(base)


def test_it_draws() -> None:
    base = new_toy_flow()
    assert drawn(base) == drawn(base)
    assert drawn(base) != drawn(base, prompt="blue")
    assert drawn(base) != drawn(base, seed=4)
    assert drawn(base) != drawn(base, sampler="DPM++ 2M")


def test_it_trains_saves_and_goes_on(base_folder: Path, pictures: Path) -> None:
    """Stopped after two steps and resumed, it ends in the same bytes."""
    at_once = Trainer(recipe_of(base_folder, pictures, "name=at_once")).train()
    for steps in (2, 4):
        options = ["name=in_parts", f"max_train_steps={steps}", "resume=true"]
        in_parts = Trainer(recipe_of(base_folder, pictures, *options)).train()
    assert at_once.read_bytes() != b""
    one, two = load_file(at_once), load_file(in_parts)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (
        len([key for key in one if key.endswith("lora_up.weight")]) == 8
    )  # 2 blocks of q, k, v, o
    assert all(one[key].abs().sum() > 0 for key in one if key.endswith("lora_up.weight"))
    grids = sorted((base_folder.parent / "at_once").rglob("*.png"))
    assert grids, "a run ends with a grid"

    base = load_model(BaseModelConfig(path=str(base_folder)))
    assert isinstance(base, ToyFlow)
    before = drawn(base)
    learned = load_artifact(at_once)
    learned.attach(base)
    assert drawn(base) != before


def test_it_is_quantized(base_folder: Path, pictures: Path) -> None:
    """In training and drawing, by nothing but the names of its layers; the grid is as drawn."""
    options = ["base_model.quantization=fp8", "sampling.settings.cfg_scale=2.0"]
    artifact = Trainer(recipe_of(base_folder, pictures, *options)).train()
    packed, plain = (
        load_model(BaseModelConfig(path=str(base_folder), quantization=kind))
        for kind in ("fp8", None)
    )
    assert isinstance(packed, ToyFlow) and isinstance(plain, ToyFlow)
    assert len(packed_layers(packed.toy_dit)) == 2 * (4 + 2)
    assert drawn(packed) != drawn(plain)
    load_artifact(artifact).attach(packed)
    grid = Image.open(base_folder.parent / "run" / "samples" / "step-000004.png")
    settings = {"prompt": "red", "seed": 0, "steps": 3, "width": 16, "height": 16}
    image = ImageConfig(**settings, sampler="Euler", cfg_scale=2.0)  # type: ignore[arg-type]
    [drawing] = draw(packed, [image])
    assert drawing.image.tobytes() == grid_cells(grid)[1][0].convert("RGB").tobytes()


@pytest.mark.slow
def test_it_learns(base_folder: Path, pictures: Path) -> None:
    """The flow's loss falls, at the same noise and times."""
    recipe = recipe_of(base_folder, pictures, "max_train_steps=40", "objective.rank=16")
    trainer = Trainer(recipe)
    base = trainer.base
    colours = ("red", "lime", "blue", "white")
    images = [np.asarray(Image.open(pictures / f"{colour}.png")) for colour in colours]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    batch = {
        "pixels": pixels.repeat(8, 1, 1, 1),
        "prompts": [*colours] * 8,
        "positions": list(range(32)),
        "indices": list(range(32)),
    }

    def loss() -> float:
        with torch.no_grad():
            return float(build_denoising(recipe, base).loss(batch).mean())  # type: ignore[arg-type]

    before = loss()
    trainer.train()
    assert loss() < 0.9 * before
