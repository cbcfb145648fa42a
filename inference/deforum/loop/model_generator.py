"""Frames of an animation by a base model: `FrameGenerator` on top of `inference.images`."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from inference.artifacts import Artifact, NetworkLibrary, UsedArtifact, load_artifact
from inference.config import (
    ArtifactConfig,
    BaseModelConfig,
    ImageConfig,
    ImageToImageConfig,
    InpaintConfig,
)
from inference.deforum.loop.frame_requests import frame_request
from inference.deforum.loop.generator import FrameRequest, Picture
from inference.files import artifact_hash
from inference.images import (
    InitImage,
    draw_batch,
    evaluation,
    expand,
    face_restorer,
    group,
    prepare_init,
)
from inference.models import ImageModel, load_image_model, models_in, path_of
from inference.models import file_model_name as model_name
from inference.prompts import extract_extra_networks
from inference.runtime import InputError, check_readable, choose_device
from inference.sampling import SAMPLERS, find_sampler

if TYPE_CHECKING:
    from inference.deforum.schedules import Script

FACE_RESTORER = "CodeFormer"
"""Meaning of `restore_faces` if the file only says yes (A1111's default)."""

HANDED_IN = "(frame)"
"""Name of init images that are not files."""


class ModelGenerator:
    """Generates frames with a base model and artifacts.

    Args:
        base_model: the recipe's.
        artifacts: by their names in the recipe.
        folders: with the networks that prompts name and the base models of `checkpoint_schedule`.
        precision: fp32, fp16 or bf16.
        device: as in recipes.
        batch_size: frames generated at once if they do not depend on each other.

    Raises:
        InputError: device, base model or an artifact cannot be used.
    """

    def __init__(
        self,
        base_model: BaseModelConfig,
        artifacts: Mapping[str, ArtifactConfig] | None = None,
        folders: Sequence[Path] = (),
        precision: str = "fp32",
        device: str = "auto",
        batch_size: int = 1,
    ) -> None:
        self.base_model = base_model
        self.configs = dict(artifacts or {})
        self.folders = list(folders)
        self.precision = precision
        self.device = choose_device(device)
        self.batch_size = batch_size
        for name, one in self.configs.items():
            check_readable(one.path, f"artifacts.{name}.path")
        self.artifacts = {name: load_artifact(one.path) for name, one in self.configs.items()}
        self.checkpoint: str | None = None
        self.base = self.load(base_model)

    def load(self, config: BaseModelConfig) -> ImageModel:
        """Load a base model, attach the artifacts, and open a library for networks in prompts."""
        base = load_image_model(config, self.precision, self.device)
        for name, artifact in self.artifacts.items():
            artifact.attach(base, self.configs[name].strength)
        self.library = NetworkLibrary(base, self.folders)
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
        plain = name.partition(" [")[0].strip()  # A1111 shows `model.ckpt [hash]`
        if Path(plain).exists():
            return plain
        stem = Path(plain).stem if plain.endswith((".ckpt", ".safetensors")) else plain
        models = list(models_in(self.folders))
        for model in models:
            if plain == model.name or stem == model_name(model):
                return path_of(model)
        known = ", ".join(sorted(map(model_name, models))) or "none"
        raise InputError(
            f"checkpoint_schedule: there is no model {name!r} in artifact_dirs; there are: {known}"
        )

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


def check_words(script: Script, generator: ModelGenerator) -> None:
    """Reject before frame 0 what a later frame could not be generated with.

    Raises:
        InputError: a sampler, checkpoint, network or prompt cannot be used; names the frame.
    """
    if script["restore_faces"]:
        face_restorer(FACE_RESTORER, "restore_faces")
    known: set[tuple[str, ...]] = set()
    for frame in range(script.max_frames):
        request = frame_request(script, frame, seed=0)
        words = request.prompt, request.negative_prompt, request.sampler, str(request.checkpoint)
        if words in known:
            continue
        known.add(words)
        try:
            as_image(request)
            if request.checkpoint is not None:
                generator.find(request.checkpoint)
            for call in extract_extra_networks(request.prompt)[1]:
                generator.library.find(call)
        except InputError as error:
            where = "" if str(error).startswith("frame ") else f"frame {frame}: "
            raise InputError(f"{where}{error}") from error


def alike(requests: Sequence[FrameRequest]) -> list[list[int]]:
    """Group the indices of requests that share the settings of the whole base model."""
    groups: dict[str, list[int]] = {}
    for number, one in enumerate(requests):
        strengths = sorted(one.artifact_strengths.items())
        shared = one.checkpoint, one.clip_skip, one.freeu, strengths, one.mixes_embeddings
        groups.setdefault(repr(shared), []).append(number)
    return list(groups.values())


def as_image(request: FrameRequest) -> ImageConfig:
    """Convert the request to the settings of an image recipe.

    Raises:
        InputError: the sampler is unknown, or a value is out of range.
    """
    sampler, schedule_type = find_sampler(request.sampler)
    eta = request.ddim_eta if sampler.startswith("DDIM") else request.eta
    if SAMPLERS[sampler].default_eta is None:
        eta = None
    width, height = request.seed_resize_from
    is_resized = width > 0 and height > 0
    image = ImageConfig(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        sampler=sampler,
        schedule_type=schedule_type or "Automatic",
        eta=eta,
        width=request.width,
        height=request.height,
        variation_seed=request.subseed if request.subseed_strength else -1,
        variation_strength=request.subseed_strength,
        seed_resize_from_width=width if is_resized else 0,
        seed_resize_from_height=height if is_resized else 0,
        tiling=request.tiling,
        restore_faces=FACE_RESTORER if request.restore_faces else None,
        img2img=over_init(request),
    )
    for part in (image, *([image.img2img] if image.img2img else [])):
        for name, message in part.faults():
            raise InputError(f"frame {request.frame}: {name}: {message}")
    return image


def over_init(request: FrameRequest) -> ImageToImageConfig | None:
    """Return the img2img settings of a request with an init image."""
    if request.init is None:
        return None
    inpaint = None
    if request.mask is not None:
        inpaint = InpaintConfig(
            mask=HANDED_IN,
            mask_blur=request.mask_blur,
            masked_content=request.masked_content,  # type: ignore[arg-type]
            area="Only masked" if request.full_res_mask else "Whole picture",
            padding=request.full_res_mask_padding,
        )
    return ImageToImageConfig(
        init_image=HANDED_IN,
        denoising_strength=min(max(1 - request.strength, 0.0), 1.0),
        noise_multiplier=request.noise_multiplier,
        inpaint=inpaint,
    )


def init_of(image: ImageConfig, request: FrameRequest) -> InitImage:
    """Return the request's init image and mask, prepared."""
    assert request.init is not None
    mask = None if request.mask is None else Image.fromarray(request.mask)
    return prepare_init(image, Image.fromarray(request.init), mask)
