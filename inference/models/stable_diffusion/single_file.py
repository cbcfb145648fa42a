"""Base models as single files (`.safetensors`, `.ckpt`) that A1111, Forge and ComfyUI open.

A file of SD 1.x, SD 2.x, SDXL or its refiner needs no other files. A model of other sizes (`picto`)
is described by its metadata, `limner.model`: other programs cannot build such a model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from inference.config import BaseModelConfig
from inference.files import TensorFile, open_tensors
from inference.models.base import weight_dtype
from inference.models.folder import tokenizer_names
from inference.models.stable_diffusion.detect import (
    MODEL,
    NOISE_SCHEDULE,
    TRAINED_PARTS,
    ZERO_SNR,
    Config,
    Family,
    FamilyError,
    family_of,
    prediction_type_of,
    settings_of,
)
from inference.models.stable_diffusion.keys import (
    build_tokenizer,
    clip_tokenizer,
    from_file,
    is_left_out,
    is_open_clip,
    places,
    splitting_tokenizer,
)
from inference.models.stable_diffusion.model import BaseModel
from inference.runtime import ArtifactError, BaseModelError, InputError, check_readable

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MOST_NAMES = 20
"""Names that an error lists, of each type."""

SMALLEST_SHARE = 4.8973451890853435e-08
"""A1111's share of the signal at the last timestep of models trained with zero terminal SNR."""


@dataclass
class ModelParts:
    """A base model's parts by their names in the diffusers layout."""

    modules: dict[str, nn.Module]
    """The file's parts: `unet`, `vae`, `text_encoder`, with SDXL `text_encoder_2`; a refiner's
    without `text_encoder`."""
    tokenizers: dict[str, CLIPTokenizer]
    """`tokenizer`, with SDXL `tokenizer_2`, which is a refiner's only one."""
    noise_schedule: Config
    """Settings as in a scheduler_config.json."""
    prediction_type: str | None
    """`epsilon`, `v_prediction`, or None if the file does not have it."""
    trained: tuple[str, ...] | None = None
    """The trained parts, if the file lists them."""


def read_model(
    path: Path,
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype | None = None,
    only_trained: bool = False,
    without_weights: bool = False,
) -> ModelParts:
    """Read a single file's parts, frozen, on the CPU. No code in it is run.

    Args:
        path: the file.
        dtype: dtype of the parts.
        vae_dtype: that of the VAE, if it differs.
        only_trained: skip the others if the file lists its trained parts.
        without_weights: parts stay on the meta device, and the file's tensors are not read.

    Raises:
        ArtifactError: it cannot be read, is of no known family, or weights are missing,
            superfluous, or have other shapes.
    """
    file = open_tensors(path)
    try:
        family = family_of(file.shapes)
        settings = settings_of(file.metadata)
    except FamilyError as error:
        raise ArtifactError(f"{path}: {error}") from error
    trained = (
        tuple(file.metadata[TRAINED_PARTS].split(",")) if TRAINED_PARTS in file.metadata else None
    )
    wanted = trained if trained and only_trained else tuple(family.layout)
    present = [part for part in wanted if _is_in(file, family.layout[part])]
    resolution = file.metadata.get("modelspec.resolution", "")
    modules: dict[str, nn.Module] = {}
    prediction_type = prediction_type_of(family, file.shapes, file.metadata)
    for part in present:
        config = settings.get("configs", family.configs)[part]
        if part == "unet" and "configs" not in settings:
            own = _size(resolution, prediction_type, family) | input_channels(file, family)
            config = {**config, **own}
        module_dtype = vae_dtype if part == "vae" and vae_dtype else dtype
        try:
            modules[part] = build_part(part, config, family)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ArtifactError(
                f"{path}: its metadata {MODEL!r} builds no {part}: {error}"
            ) from error
        modules[part].requires_grad_(False).eval()
        if not without_weights:
            _fill(path, modules[part], part, file, family, module_dtype)
    if not without_weights:
        _check_left_over(path, file, family, modules, wanted == tuple(family.layout))
    return ModelParts(
        modules=modules,
        tokenizers=_tokenizers(settings, family),
        noise_schedule=_noise_schedule(settings, file.shapes, prediction_type),
        prediction_type=prediction_type,
        trained=trained,
    )


def _size(resolution: str, prediction_type: str | None, family: Family) -> Config:
    """Return the size in latents from the file, or that of SD 2.x's two versions."""
    side = resolution.lower().partition("x")[0]
    if side.isdecimal() and int(side) >= 64:
        return {"sample_size": int(side) // 8}
    return {"sample_size": 96} if family.key == "sd2" and prediction_type != "epsilon" else {}


def input_channels(file: TensorFile, family: Family) -> Config:
    """Return the number of the UNet's input channels: 9 for inpainting checkpoints."""
    shape = file.shapes.get(f"{family.layout['unet']}input_blocks.0.0.weight", ())
    return {"in_channels": shape[1]} if len(shape) == 4 else {}


def _is_in(file: TensorFile, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in file.shapes)


def build_part(part: str, config: Config, family: Family) -> nn.Module:
    """Return a part without weights: its parameters are on the meta device."""
    from accelerate import init_empty_weights
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with init_empty_weights(include_buffers=False):
        if part == "unet":
            return UNet2DConditionModel(**config)
        if part == "vae":
            return AutoencoderKL(**config)
        known = {key: config[key] for key in family.configs[part]}
        text_class = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
        return text_class(CLIPTextConfig(**known))


def _fill(
    path: Path, module: nn.Module, part: str, file: TensorFile, family: Family, dtype: torch.dtype
) -> None:
    """Load the weights into a part.

    Raises:
        ArtifactError: some are missing or have other shapes; the message lists all.
    """
    empty, found = module.state_dict(), {}
    missing, misshapen = [], []
    for name, place in places(part, empty, family.layout).items():
        key = place.key if place.key in file.shapes else place.key.replace(".text_model.", ".", 1)
        if key not in file.shapes:  # NovelAI's first files lack `text_model.`
            missing.append(place.key)
            continue
        value = from_file(place, file.read(key))
        if value.shape != empty[name].shape:
            misshapen.append(
                f"{key} {tuple(value.shape)}, expected {tuple(empty[name].shape)} as {name}"
            )
            continue
        own = weight_dtype(module, name, dtype) if value.is_floating_point() else value.dtype
        found[name] = value.to(own).contiguous()
    faults = [
        f"{what}: {listed(names)}"
        for what, names in (("missing", missing), ("of other shapes", misshapen))
        if names
    ]
    if faults:
        raise ArtifactError(
            f"{path}: its {part} is not that of {family.title}; {'; '.join(faults)}"
        )
    module.load_state_dict(found, strict=True, assign=True)


def _check_left_over(
    path: Path,
    file: TensorFile,
    family: Family,
    modules: Mapping[str, nn.Module],
    is_whole: bool,
) -> None:
    used = {
        place.key
        for part, module in modules.items()
        for place in places(part, module.state_dict(), family.layout).values()
    }
    used |= {key.replace(".text_model.", ".", 1) for key in used}
    text: Any = modules.get("text_encoder")
    layers = text.config.num_hidden_layers if text is not None else 0
    over = [key for key in file.shapes if key not in used]
    over = [key for key in over if not is_left_out(key, family.layout, layers)]
    if over and is_whole:
        raise ArtifactError(
            f"{path}: holds {len(over)} tensors that {family.title} does not have: {listed(over)}"
        )


def listed(names: Collection[str]) -> str:
    """List the names, and how many more there are beyond MOST_NAMES."""
    more = len(names) - MOST_NAMES
    return ", ".join([*sorted(names)[:MOST_NAMES], *([f"and {more} more"] if more > 0 else [])])


def _tokenizers(settings: Mapping[str, Any], family: Family) -> dict[str, CLIPTokenizer]:
    own: Mapping[str, Any] = settings.get("tokenizers", {})
    tokenizers = {}
    for part, prefix in family.layout.items():
        if "text_encoder" not in part:
            continue
        name = part.replace("text_encoder", "tokenizer")
        if name in own:
            merges = [tuple(merge.split(" ", 1)) for merge in own[name]["merges"]]
            marks = (own[name][mark] for mark in ("start", "end", "pad"))
            tokenizers[name] = build_tokenizer(own[name]["vocabulary"], merges, *marks)
        else:
            tokenizers[name] = clip_tokenizer(pads_with_end=not is_open_clip(prefix))
    return tokenizers


def _noise_schedule(
    settings: Mapping[str, Any], keys: Collection[str], prediction_type: str | None
) -> Config:
    schedule = {**NOISE_SCHEDULE, **settings.get("noise_schedule", {})}
    if ZERO_SNR in keys:  # Lin et al. 2023, arXiv 2305.08891
        schedule["rescale_betas_zero_snr"] = True
    return {**schedule, "prediction_type": prediction_type or "epsilon"}


def read_base_model(
    config: BaseModelConfig, dtype: torch.dtype, without_weights: bool = False
) -> BaseModel:
    """Load a base model from a single file; the VAE in fp32, or all on the meta device.

    Raises:
        BaseModelError: it cannot be read, or neither it nor `config.prediction_type` gives
            the prediction type.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    path = Path(config.path)
    check_readable(path, "base_model.path")
    if not path.is_file():
        raise BaseModelError(f"base_model.path: no such file: {config.path!r}")
    try:
        model = read_model(path, dtype, torch.float32, without_weights=without_weights)
    except InputError as error:
        raise BaseModelError(f"base_model.path: {error}") from error
    needed = [
        "unet",
        "vae",
        *(name.replace("tokenizer", "text_encoder") for name in model.tokenizers),
    ]
    absent = [part for part in needed if part not in model.modules]
    if absent:
        raise BaseModelError(
            f"base_model.path: {config.path!r} holds no {' and no '.join(absent)}; expected all "
            "parts. Name it under `artifacts` to put those that it holds into another model"
        )
    prediction_type = config.prediction_type or model.prediction_type
    if prediction_type is None:
        raise BaseModelError(
            f"base_model.prediction_type: {config.path!r} does not say what it predicts; set "
            "v_prediction for a model of SD 2.x made for 768x768 pixels, epsilon for 512x512"
        )
    schedule = {**model.noise_schedule, "prediction_type": prediction_type}
    noise_scheduler: Any = DDPMScheduler.from_config(schedule)
    modules: dict[str, Any] = model.modules
    second = model.tokenizers.get("tokenizer_2")
    first = model.tokenizers.get("tokenizer") or (second and splitting_tokenizer(second))
    assert first is not None
    return BaseModel(
        path=config.path,
        tokenizer=first,
        text_encoder=modules.get("text_encoder"),
        vae=modules["vae"],
        unet=modules["unet"],
        alphas_cumprod=noise_scheduler.alphas_cumprod.float().clamp(min=SMALLEST_SHARE),
        prediction_type=prediction_type,
        noise_schedule=dict(noise_scheduler.config),
        dtype=dtype,
        clip_skip=config.clip_skip,
        tokenizer_2=second,
        text_encoder_2=modules.get("text_encoder_2"),
    )


def parts_of(base: BaseModel) -> ModelParts:
    """Return a base model's parts, to be written as a single file."""
    return ModelParts(
        modules=dict(base.parts),
        tokenizers=dict(zip(tokenizer_names(base), base.tokenizers, strict=True)),
        noise_schedule=base.noise_schedule,
        prediction_type=base.prediction_type,
    )
