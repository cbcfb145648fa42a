"""The registry of model families: which one a base model belongs to."""

from __future__ import annotations

import torch

from inference.config import BaseModelConfig
from inference.models.base import DiffusionModel
from inference.models.cogvideox import is_video_model, load_video_model
from inference.models.stable_diffusion import load_base_model


def load_model(
    config: BaseModelConfig, precision: str = "fp32", device: torch.device | str = "cpu"
) -> DiffusionModel:
    """A model of pictures or of clips, as the files say.

    Raises:
        BaseModelError: nothing is there, a part is missing, or its files cannot be read.
    """
    load = load_video_model if is_video_model(config) else load_base_model
    return load(config, precision, device)
