"""Each shipped recipe is planned without its model, on a data folder of the test's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.config.models import BaseModelConfig
from inference.models.stable_diffusion.detect import ON_HUB
from inference.recipe.loader import load_recipe
from train.config.schema import train_schema
from train.plan.base import skeleton
from train.plan.plan import Plan, plan_run
from train.plan.table import show

ROOT = Path(__file__).parents[3]
RECIPES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("configs", "configs/demo")
    for path in (ROOT / folder).glob("*.yaml")
    if not path.name.startswith("animation_")
)
QUICK = ("configs/demo/line_icons_lora.yaml", "configs/demo/octopus_clip_lora.yaml")
"""Of pictures and of clips; the others build larger models or more of them."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two pictures, and one of a clip of 49 frames, with captions."""
    folder = tmp_path_factory.mktemp("data")
    frames = np.random.default_rng(0).integers(0, 255, (49, 32, 48, 3), np.uint8)
    first, *others = map(Image.fromarray, frames)
    for name in ("pictures", "clips"):
        (folder / name).mkdir()
    for number, picture in enumerate(others[:2]):
        picture.save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text("a dog")
    first.save(folder / "clips/0.webp", save_all=True, append_images=others, duration=125)
    (folder / "clips/0.txt").write_text("a dog runs")
    return folder


def planned(recipe: str, data: Path, output: Path, *overrides: str) -> Plan:
    text = (ROOT / recipe).read_text(encoding="utf-8")
    pictures, clips = data / "pictures", data / "clips"
    is_of_clips = "clips:" in text or "picto-motion" in text
    given = [f"data.path={clips if is_of_clips else pictures}"]
    if "concepts:" in text:
        name = text.split("concepts:\n")[1].split(":")[0].strip()
        given = [f"data.concepts.{name}.instance_data_dir={pictures}"]
    given += [f"output_dir={output}", *overrides]
    return plan_run(load_recipe(ROOT / recipe, train_schema, given))


@pytest.mark.filterwarnings("ignore:objective.activation_func. ComfyUI applies")
@pytest.mark.parametrize(
    "recipe",
    [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in RECIPES],
)
def test_a_shipped_recipe_is_planned_without_its_model(
    recipe: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(recipe, data, tmp_path)
    assert sum(plan.trained.values()) > 0
    assert plan.memory.peak >= plan.memory.training > plan.memory.activations > 0
    assert plan.memory.previews > 0
    assert plan.captions is not None
    has_tokenizer = plan.recipe.data.clips is None  # a T5's is not needed for a plan
    assert (plan.captions.too_long is not None) == has_tokenizer
    memory = plan.memory
    assert "text_encoder" in memory.aside or recipe not in QUICK
    assert set(memory.needs) == set(memory.at_work) == set(memory.peaks)
    assert memory.peak == max(memory.peaks.values())
    show(plan)
    assert "needed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


NUMBERS = {  # of the published models: denoiser, text encoders, VAE
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (859_520_964, 123_060_480, 83_653_863),
    "stabilityai/stable-diffusion-2-1-base": (865_910_724, 340_387_840, 83_653_863),
    "stabilityai/stable-diffusion-2-1": (865_910_724, 340_387_840, 83_653_863),
    "stabilityai/stable-diffusion-xl-base-1.0": (2_567_463_684, 817_720_320, 83_653_863),
    "stabilityai/stable-diffusion-xl-refiner-1.0": (2_259_526_660, 694_659_840, 83_653_863),
    "stable-diffusion-v1-5/stable-diffusion-inpainting": (859_535_364, 123_060_480, 83_653_863),
    "stabilityai/stable-diffusion-2-inpainting": (865_925_124, 340_387_840, 83_653_863),
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": (2_567_478_084, 817_720_320, 83_653_863),
}


@pytest.mark.parametrize("path", ON_HUB)
def test_published_pictures_need_no_files(path: str) -> None:
    base = skeleton(BaseModelConfig(path=path), "fp32")
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in base.parts.items()}
    text = sum(count for name, count in counts.items() if "text" in name)
    assert (counts[base.denoiser_name], text, counts["vae"]) == NUMBERS[path]
    assert base.prediction_type == ("v_prediction" if path.endswith("2-1") else "epsilon")
    wanted = 1024 if "-xl-" in path else 768 if path.endswith("2-1") else 512
    assert base.denoiser.config.sample_size * base.vae_scale_factor == wanted
    assert all(len(one) == 49408 for one in base.tokenizers)
