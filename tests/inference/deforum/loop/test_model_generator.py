"""A schedule of base models: one of them is held at a time."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.checkpoint import Checkpoint
from inference.artifacts.embedding import Embedding
from inference.config.models import ArtifactConfig, BaseModelConfig
from inference.deforum.loop import model_generator
from inference.deforum.loop.generator import FrameRequest
from inference.deforum.loop.model_generator import ModelGenerator
from inference.models.stable_diffusion.loading import load_base_model


@pytest.fixture
def artifacts(tiny_base_folder: Path, tmp_path: Path) -> dict[str, ArtifactConfig]:
    """One of each way to hold on to a model."""
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    made: dict[str, Any] = {
        "lora.safetensors": Lora.create(base, LoraSpec(1, 1, 0, None, True), 0),
        "sks.safetensors": Embedding.create(base, "sks", "a", 1),
        "whole": Checkpoint.of(base),
    }
    for layer in made["lora.safetensors"].layers.values():
        layer.lora_B.weight.data.fill_(0.1)  # else it changes nothing, and is refused
    for name, artifact in made.items():
        artifact.save(tmp_path / name, torch.float32, {})
    return {name.partition(".")[0]: ArtifactConfig(path=str(tmp_path / name)) for name in made}


def test_the_previous_model_is_released_before_the_next_is_loaded(
    artifacts: dict[str, ArtifactConfig],
    tiny_base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "models"
    for name in ("first", "second"):
        shutil.copytree(tiny_base_folder, folder / name)
    generator = ModelGenerator(
        BaseModelConfig(path=str(folder / "first")), artifacts, [folder], device="cpu"
    )
    alive: list[int] = []
    known: list[Any] = []
    load = model_generator.load_image_model

    def note(*arguments: Any) -> Any:
        alive.append(sum(one() is not None for one in known))
        return load(*arguments)

    monkeypatch.setattr(model_generator, "load_image_model", note)
    for name in ("second", None):
        known[:] = [weakref.ref(one) for one in (generator.base, *generator.base.parts.values())]
        generator.generate(FrameRequest(0, "sks", "", 16, 16, seed=1, steps=1, checkpoint=name))
    assert alive == [0, 0]
