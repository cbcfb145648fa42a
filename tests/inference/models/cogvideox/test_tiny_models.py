"""The tiny models that the other tests use are what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.config.models import BaseModelConfig
from inference.models.cogvideox.model import VideoModel
from inference.models.families import load_model
from inference.runtime.errors import InputError


def test_a_written_model_is_the_one_in_memory(
    tiny_video_folder: Path, tiny_video_model: VideoModel
) -> None:
    loaded = load_model(BaseModelConfig(path=str(tiny_video_folder)))
    assert isinstance(loaded, VideoModel)
    for name, part in tiny_video_model.parts.items():
        found = loaded.parts[name].state_dict()
        for key, tensor in part.state_dict().items():
            assert torch.equal(found[key], tensor), f"{name} {key}"
    prompts = ["a red ball moves left", ""]
    states = tiny_video_model.encode_prompts(prompts).states
    assert states.shape == (2, 16, 32)
    assert torch.equal(loaded.encode_prompts(prompts).states, states)


def test_kinds(video_model: Callable[..., Any]) -> None:
    for kind, is_image_to_video, step in (("5b_i2v", True, 1), ("1.5", False, 2)):
        model = video_model(kind)
        assert model.is_image_to_video == is_image_to_video
        assert model.latent_frame_step == step
        assert model.size_step == 16


def test_a_folder_with_the_schedule_of_another_model_is_refused(
    video_model: Any, write_video_model: Any, tmp_path: Path
) -> None:
    model = video_model()
    model.noise_schedule = {"_class_name": "CogVideoXDDIMScheduler"}  # as made without arguments
    folder = write_video_model(model, tmp_path)
    with pytest.raises(
        InputError, match=r"scheduler_config\.json: no schedule of CogVideoX: .*'epsilon'"
    ):
        load_model(BaseModelConfig(path=str(folder)))
