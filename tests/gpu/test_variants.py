# SPDX-License-Identifier: Apache-2.0
"""Inpainting models and SDXL's refiner on a CUDA device: trained, resumed, drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.config import ImageToImageConfig, InpaintConfig
from tests.gpu.test_first_gpu_run import GRID, OBJECTIVES, draw_with, run
from train.config import TrainRecipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["lora_text", "textual_inversion", "hypernetwork"])
@pytest.mark.parametrize("kind", ["sd", "sdxl", "refiner"])
def test_variants(
    kind: str,
    name: str,
    precision: str,
    make_recipe: Callable[..., TrainRecipe],
    tiny_variant: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Train, draw grids, save, resume, and redraw a picture with the artifact."""
    folder = str(tiny_variant(kind, kind != "refiner", "v_prediction"))
    options = [*OBJECTIVES[name], *GRID, f"base_model.path={folder}"]
    options += [f"mixed_precision={precision}", "validation={split: 0.3, every_n_steps: 2}"]
    run(make_recipe(*options))
    longer = [one for one in options if not one.startswith("max_train_steps")]
    path = run(make_recipe(*longer, "max_train_steps=6", "resume=true"))
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "init.png")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    mask.save(tmp_path / "mask.png")
    inpaint = InpaintConfig(mask=str(tmp_path / "mask.png")) if kind != "refiner" else None
    start = ImageToImageConfig(init_image=str(tmp_path / "init.png"), inpaint=inpaint)
    draw_with(folder, [path], precision, img2img=start)
