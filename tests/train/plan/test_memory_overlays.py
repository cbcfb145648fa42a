"""Each overlay of configs/memory fits its GPU with every objective that it is for."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.recipe import RecipeWarning, load_recipe
from train.config import train_schema
from train.memory import GIB, memory_planned, outlined
from train.plan.fit import FRAGMENTS

CONFIGS = Path(__file__).parents[3] / "configs"
OVERLAYS = sorted(path.stem for path in (CONFIGS / "memory").glob("*.yaml"))
NAME = re.compile(r"(\w+?)_(\d+)gb(_whole)?")
FROZEN, WHOLE = ["lora", "textual_inversion", "hypernetwork"], ["text_to_image", "dreambooth"]
QUICK = {("sd15_12gb_whole", "dreambooth")}
"""The others take seconds of the same code."""


def cases() -> list[object]:
    found = []
    for overlay in OVERLAYS:
        match = NAME.fullmatch(overlay)
        assert match is not None, f"configs/memory/{overlay}.yaml: FAMILY_SIZEgb, or with _whole"
        whole, clips = bool(match[3]), match[1].startswith("cog")
        for objective in (WHOLE if whole else FROZEN)[: 1 if clips else None]:
            marks = () if (overlay, objective) in QUICK else pytest.mark.slow
            found.append(pytest.param(overlay, objective, marks=marks, id=f"{overlay}-{objective}"))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, and one of a clip of 81 frames, with captions."""
    folder = tmp_path_factory.mktemp("data")
    frames = np.random.default_rng(0).integers(0, 255, (81, 48, 64, 3), np.uint8)
    first, *others = map(Image.fromarray, frames)
    for name in ("pictures", "clips"):
        (folder / name).mkdir()
    for number in range(4):
        others[number].resize((1024, 1024)).save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text("a dog")
    first.save(folder / "clips/0.webp", save_all=True, append_images=others, duration=125)
    (folder / "clips/0.txt").write_text("a dog runs")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("overlay", "objective"), cases())
def test_a_run_fits_its_gpu(overlay: str, objective: str, data: Path, tmp_path: Path) -> None:
    match = NAME.fullmatch(overlay)
    assert match is not None
    family, size = match[1], int(match[2])
    has_clips = family.startswith("cog")
    example = CONFIGS / f"{'cogvideox_lora' if has_clips else objective}.yaml"
    bases = [example, CONFIGS / f"base/{family}.yaml", CONFIGS / f"memory/{overlay}.yaml"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: [{', '.join(map(str, bases))}]\nname: x\n")
    folder = data / ("clips" if has_clips else "pictures")
    given = [f"output_dir={tmp_path}", f"data.path={folder}"]
    if objective == "dreambooth":
        given = [given[0], f"data.concepts.subject.instance_data_dir={folder}"]
    if has_clips and objective != "lora":
        given.append(f"objective={{type: {objective}}}")
    if family == "cogvideox15_5b":
        own = {"frames": 81, "height": 768, "width": 1360}
        given += [f"{key}.{name}={n}" for key in CLIPS for name, n in own.items()]
    plan = load_recipe(recipe, train_schema, given)
    memory = memory_planned(plan, outlined(plan))
    assert memory.peak <= size * GIB * (1 - FRAGMENTS), memory.peaks
    assert plan.gradient_checkpointing or size >= 12


CLIPS = ("data.clips", "sampling.clip_settings")


def test_there_is_one_for_each_family_and_usual_size() -> None:
    families = {path.stem for path in (CONFIGS / "base").glob("*.yaml")}
    for family in ("sd15", "sd21", "sdxl", "cogvideox_2b", "cogvideox_5b", "cogvideox15_5b"):
        assert family in families
        sizes = {8, 12, 16, 24, 80} - ({8} if family.startswith("cog") else set())
        assert {f"{family}_{size}gb" for size in sizes} <= {*OVERLAYS}


def test_overlays_keep_the_average_on_the_cpu_where_there_is_one(tmp_path: Path) -> None:
    """A key of a base that has no effect in this recipe is no mistake of its author."""
    (tmp_path / "base.yaml").write_text(
        "name: x\nobjective: {type: text_to_image}\nbase_model: {path: picto}\n"
        "data: {path: x}\nmemory: {ema_on_cpu: true}\n",
        encoding="utf-8",
    )
    (tmp_path / "own.yaml").write_text("base: base.yaml\n", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_recipe(tmp_path / "own.yaml", train_schema)
    with pytest.warns(RecipeWarning, match=r"command line: memory.ema_on_cpu: has no effect"):
        load_recipe(tmp_path / "own.yaml", train_schema, ["memory.ema_on_cpu=true"])
    with pytest.warns(RecipeWarning, match=r"base.yaml: memory.ema_on_cpu: has no effect"):
        load_recipe(tmp_path / "base.yaml", train_schema)
