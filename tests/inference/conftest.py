"""The tiny models of `models`, as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.inference.models.cogvideox.models import make_video_model, write_video_folder

if TYPE_CHECKING:
    from inference.models.cogvideox.model import VideoModel


@pytest.fixture(scope="session")
def video_model() -> Callable[..., VideoModel]:
    """`make_video_model`, for models that a test may change."""
    return make_video_model


@pytest.fixture
def tiny_video_model() -> VideoModel:
    """A 5B-like model in memory, made again for every test."""
    return make_video_model()


@pytest.fixture(scope="session")
def tiny_video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 5B-like model in a diffusers folder."""
    folder = tmp_path_factory.mktemp("tiny_video")
    return write_video_folder(make_video_model(), folder)


@pytest.fixture(scope="session")
def write_video_model() -> Callable[[VideoModel, Path], Path]:
    """`write_video_folder`."""
    return write_video_folder
