"""Frames of an animation by a base model: `FrameGenerator` on top of `inference.images`."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from inference.artifacts import (
    Artifact,
    NetworkLibrary,
    UsedArtifact,
    load_artifact,
)
from inference.config import ArtifactConfig, BaseModelConfig, ImageConfig, SpeedConfig
from inference.deforum.loop.frame_images import as_image, find_checkpoint
from inference.deforum.loop.generator import FrameRequest, Picture
from inference.files import artifact_hash
from inference.images import (
    InitImage,
    Levers,
    draw_batch,
    evaluation,
    expand,
    group,
    picture_needs,
    place_for_drawing,
    prepare_init,
)
from inference.models import ImageModel, load_image_model
from inference.runtime import arrange, check_readable, choose_device, compile_denoiser


@dataclass
class ModelGenerator:
    """Generates frames with a base model and artifacts.

    Raises:
        InputError: device, base model or an artifact cannot be used.
    """

    base_model: BaseModelConfig
    """The recipe's."""
    configs: Mapping[str, ArtifactConfig] = field(default_factory=dict)
    """The artifacts, by their names in the recipe."""
    folders: Sequence[Path] = ()
    """With the networks that prompts name and the base models of `checkpoint_schedule`."""
    precision: str = "fp32"
    """fp32, fp16 or bf16."""
    device: str = "auto"
    """As in recipes."""
    batch_size: int = 1
    """Frames generated at once if they do not depend on each other."""
    levers: Levers = field(default_factory=Levers)
    """Where weights lie."""
    size: tuple[int, int] | None = None
    """Width and height of the frames, by which memory is chosen; None is the model's own."""

    speed: SpeedConfig = field(default_factory=SpeedConfig)
    """The recipe's levers of speed."""

    def __post_init__(self) -> None:
        self.work_device = choose_device(self.device)
        self._is_told = False
        for name, one in self.configs.items():
            check_readable(one.path, f"artifacts.{name}.path")
        self.artifacts = {name: load_artifact(one.path) for name, one in self.configs.items()}
        self.checkpoint: str | None = None
        self.base = self.load(self.base_model)

    def load(self, config: BaseModelConfig) -> ImageModel:
        """Load a base model, attach the artifacts, and open a library for networks in prompts."""
        base = load_image_model(config, self.precision, "cpu")
        arrange((base.denoiser, base.vae), self.speed)
        size = self.size or (base.resolution, base.resolution)
        place_for_drawing(
            base,
            self.work_device,
            self.levers,
            lambda swap: picture_needs(base, [size], self.batch_size, swap),
            is_first=not self._is_told,
        )
        self._is_told = True
        for name, artifact in self.artifacts.items():
            artifact.attach(base, self.configs[name].strength)
        compile_denoiser(base.denoiser, self.speed, self.work_device)
        self.library = NetworkLibrary(base, list(self.folders))
        return base

    def use_checkpoint(self, name: str | None) -> None:
        """Switch to another base model, if one is requested; None is the recipe's.

        The previous one is released first, so that memory never has to hold two.

        Raises:
            InputError: there is none of that name.
        """
        if name == self.checkpoint:
            return
        config = self.base_model
        if name is not None:
            config = dataclasses.replace(
                config, path=self.find(name), revision=None, variant=None, prediction_type=None
            )
        self.library.close()
        for artifact in self.artifacts.values():
            artifact.detach()
        del self.base, self.library
        gc.collect()  # layers and their hooks refer to each other
        self.base = self.load(config)
        self.checkpoint = name

    def find(self, name: str) -> str:
        """Return the path of a base model, given its path, or its file name (suffix optional)."""
        return find_checkpoint(name, list(self.folders))

    def generate(self, request: FrameRequest) -> Picture:
        """Return one image of the request's size."""
        return self.generate_batch([request])[0]

    def generate_batch(self, requests: Sequence[FrameRequest]) -> list[Picture]:
        """Return images that do not depend on each other, in the requests' order.

        Raises:
            InputError: a prompt, a sampler, a size or a checkpoint cannot be used.
            FloatingPointError: an image is not finite.
        """
        pictures: dict[int, Picture] = {}
        for numbers in alike(requests):
            first = requests[numbers[0]]
            self.use_checkpoint(first.checkpoint)
            asked = [as_image(requests[n]) for n in numbers]
            images = expand(self.base, asked, has_files=False)
            with evaluation(self.base), self.set_up(first) as artifacts:
                for batch in group(images, self.batch_size):
                    inits = [
                        init_of(image, requests[numbers[n]])
                        for n in batch
                        if (image := images[n]).img2img is not None
                    ]
                    drawn = draw_batch(
                        self.base,
                        [images[n] for n in batch],
                        self.library,
                        None,
                        artifacts,
                        inits,
                        first.mixes_embeddings,
                    )
                    for n, drawing in zip(batch, drawn, strict=True):
                        pictures[numbers[n]] = np.asarray(drawing.image.convert("RGB"))
        return [pictures[number] for number in range(len(requests))]

    @contextmanager
    def set_up(self, request: FrameRequest) -> Iterator[list[UsedArtifact]]:
        """Apply the request's clip skip, strengths and FreeU to the base model temporarily."""
        clip_skip = self.base.clip_skip
        if request.clip_skip is not None:
            self.base.clip_skip = request.clip_skip
        if request.freeu is not None:
            b1, b2, s1, s2 = request.freeu
            self.base.denoiser.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)
        try:
            yield [
                self.set_strength(name, artifact, request)
                for name, artifact in self.artifacts.items()
            ]
        finally:
            self.base.clip_skip = clip_skip
            if request.freeu is not None:
                self.base.denoiser.disable_freeu()

    def set_strength(self, name: str, artifact: Artifact, request: FrameRequest) -> UsedArtifact:
        """Set the strength of the schedule, or of the recipe; return what the infotext reports."""
        config = self.configs[name]
        strength = request.artifact_strengths.get(name, config.strength)
        artifact.set_strength(strength)
        known_by = artifact_hash(Path(config.path), artifact.kind)
        return UsedArtifact(artifact.kind, artifact.name, strength, known_by)


def alike(requests: Sequence[FrameRequest]) -> list[list[int]]:
    """Group the indices of requests that share the settings of the whole base model."""
    groups: dict[str, list[int]] = {}
    for number, one in enumerate(requests):
        strengths = sorted(one.artifact_strengths.items())
        shared = one.checkpoint, one.clip_skip, one.freeu, strengths, one.mixes_embeddings
        groups.setdefault(repr(shared), []).append(number)
    return list(groups.values())


def init_of(image: ImageConfig, request: FrameRequest) -> InitImage:
    """Return the request's init image and mask, prepared."""
    assert request.init is not None
    mask = None if request.mask is None else Image.fromarray(request.mask)
    return prepare_init(image, Image.fromarray(request.init), mask)
