"""A folder of clips with captions, and the examples made of them."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inference.video.reading import read_clip
from train.clip_config import ClipDataConfig
from train.data.examples import Examples
from train.data.folder import DataError, Picture, files_in, read_metadata, with_captions
from train.data_config import DataConfig
from train.randomness import derive_seed

CLIP_EXTENSIONS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".webp")


def find_clips(config: DataConfig, captioned: bool) -> list[Picture]:
    """All clips of the folder, sorted by path.

    Raises:
        DataError: no folder, no clip, or clips without a caption.
    """
    assert config.path is not None
    paths = files_in(config.path, "data.path", CLIP_EXTENSIONS, "clips")
    if not captioned:
        return [Picture(path, ()) for path in paths]
    return with_captions(paths, read_metadata(Path(config.path)), config.captions)


class ClipExamples(Examples):
    """The example at each position of the stream: frames of one size and number."""

    def __init__(
        self,
        clips: list[Picture],
        config: DataConfig,
        size: tuple[int, int],
        seed: int,
        template: tuple[str, ...],
    ) -> None:
        super().__init__(clips, config, size[0], seed, template)
        assert config.clips is not None
        self.clips = config.clips
        self.size = size
        """Height and width."""

    def content(self, index: int, epoch: int = 0) -> dict[str, Tensor]:
        draw = random.Random(derive_seed(self.seed, "augmentation", epoch, index))
        return {"pixels": cut_clip(self.pictures[index].path, self.clips, self.size, draw)}


def cut_clip(
    path: Path, config: ClipDataConfig, size: tuple[int, int], draw: random.Random
) -> Tensor:
    """Frames (3, f, h, w) in -1 … 1 of a clip.

    Raises:
        DataError: the clip is broken or too short.
    """
    footage = read_clip(path)
    frames, fps = footage.frames, footage.fps
    if config.fps is not None:
        count = max(1, round(len(frames) * config.fps / fps))
        frames = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    room = len(frames) - config.frames
    if room < 0:
        raise DataError(f"{path}: {len(frames)} frames; data.clips.frames asks {config.frames}")
    start = {"start": 0, "center": room // 2, "random": draw.randint(0, room)}[config.part]
    chosen = frames[start : start + config.frames]
    if chosen.shape[1:3] != size:
        height, width = size
        scale = max(height / chosen.shape[1], width / chosen.shape[2])
        whole = (
            max(width, round(chosen.shape[2] * scale)),
            max(height, round(chosen.shape[1] * scale)),
        )
        left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
        chosen = np.stack(
            [
                np.asarray(
                    Image.fromarray(frame)
                    .resize(whole, Image.Resampling.LANCZOS)
                    .crop((left, top, left + width, top + height))
                )
                for frame in chosen
            ]
        )
    return torch.from_numpy(chosen.copy()).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)
