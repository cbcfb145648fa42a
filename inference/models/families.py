"""The registry of model families, and base models loaded through it."""

from __future__ import annotations

import pkgutil
import warnings
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, cast

from inference.config import BaseModelConfig
from inference.models.family import KINDS, Draws, ModelFamily, PartLayout, SingleFile
from inference.models.model_files import ModelFiles
from inference.models.names import resolve_path
from inference.runtime import ArtifactError, BaseModelError, DrawWarning

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch

    from inference.models.base import DiffusionModel
    from inference.models.clip_model import ClipModel
    from inference.models.image_model import ImageModel

FAMILIES: dict[str, str | ModelFamily] = {
    "stable_diffusion": "inference.models.stable_diffusion.family:FAMILY",
    "cogvideox": "inference.models.cogvideox.family:FAMILY",
}
"""Key -> family, or where it is defined (`module:NAME`)."""
DEFAULTS: dict[Draws, str] = {"pictures": "stable_diffusion", "clips": "cogvideox"}
"""The family that reads files that no family recognizes, and reports their errors."""
GROUP = "limner.model_families"
"""Entry points of plug-ins: a `ModelFamily` each."""


def register_family(family: ModelFamily | str, name: str | None = None) -> None:
    """Add a model family, or replace one.

    Args:
        family: the family, or where it is defined (`module:NAME`).
        name: its key; needed only with `module:NAME`.
    """
    key = family if isinstance(family, str) else family.name
    FAMILIES[name or key] = family


@cache
def register_installed() -> None:
    """Add the families of installed plug-ins, once."""
    for point in entry_points(group=GROUP):
        FAMILIES.setdefault(point.name, point.value)


def family_named(name: str) -> ModelFamily:
    """Return the family of a key.

    Raises:
        BaseModelError: there is none.
    """
    if name not in FAMILIES:
        register_installed()
    if name not in FAMILIES:
        raise BaseModelError(f"model family {name!r}: unknown; known are {', '.join(FAMILIES)}")
    found = FAMILIES[name]
    if isinstance(found, str):
        found = FAMILIES[name] = cast(ModelFamily, pkgutil.resolve_name(found))
    return found


def all_families() -> list[ModelFamily]:
    """Return all families: Limner's own, then those of plug-ins.

    A plug-in that fails to load causes a warning: it may not be needed.
    """
    register_installed()
    found = []
    for name in list(FAMILIES):
        try:
            found.append(family_named(name))
        except (ImportError, AttributeError, ValueError) as error:
            del FAMILIES[name]
            what = f"model family {name!r} does not load and is left out: {error}"
            warnings.warn(what, DrawWarning, stacklevel=2)
    return found


def family_of(base: DiffusionModel) -> ModelFamily:
    """Return the family of a model."""
    return family_named(base.family_name)


def find_family(files: ModelFiles, draws: Draws = "pictures") -> ModelFamily:
    """Return the family that a base model's files fit best; among equals the last one registered.

    Args:
        files: the model's.
        draws: what a model of no known family is assumed to generate.

    Raises:
        BaseModelError: a file is damaged.
    """
    found, best = family_named(DEFAULTS[draws]), 0
    for family in all_families():
        match = family.detect(files)
        if match is not None and match >= best:
            found, best = family, match
    return found


def load_model(
    config: BaseModelConfig, precision: str = "fp32", device: torch.device | str = "cpu"
) -> DiffusionModel:
    """Load a base model of any family, detected from its files.

    Raises:
        BaseModelError: nothing is there, a part is missing, or its files cannot be read.
    """
    return _loaded(find_family(ModelFiles(config)), config, precision, device)


def _loaded(
    family: ModelFamily, config: BaseModelConfig, precision: str, device: torch.device | str
) -> DiffusionModel:
    """Load a model, and pack its weights if configured, before they move to the device."""
    if config.quantization is None:
        return family.load(config, precision, device)
    from inference.models.base import DTYPES, quantize_denoiser

    base = family.load(config, precision, "cpu")
    quantize_denoiser(base, config.quantization, DTYPES[precision])
    return base.to(device)


def load_image_model(
    config: BaseModelConfig, precision: str = "fp32", device: torch.device | str = "cpu"
) -> ImageModel:
    """Load an image model.

    Raises:
        BaseModelError: as `load_model`, or the model generates clips.
    """
    return cast("ImageModel", _load_drawing(config, precision, device, "pictures"))


def load_clip_model(
    config: BaseModelConfig, precision: str = "fp32", device: torch.device | str = "cpu"
) -> ClipModel:
    """Load a video model.

    Raises:
        BaseModelError: as `load_model`, or the model generates images.
    """
    return cast("ClipModel", _load_drawing(config, precision, device, "clips"))


def clip_skeleton(config: BaseModelConfig) -> ClipModel:
    """Build a video model without weights, from which sizes and lengths are known.

    Raises:
        BaseModelError: as `skeleton`, or the model generates images.
    """
    base = skeleton(config, "fp32")
    check_draws(family_of(base), config, "clips")
    return cast("ClipModel", base)


REMEDIES: dict[Draws, str] = {
    "pictures": "; draw with it by a recipe of `type: clip`",
    "clips": "; give a CogVideoX model, such as picto-motion or THUDM/CogVideoX-2b",
}


def _load_drawing(
    config: BaseModelConfig, precision: str, device: torch.device | str, draws: Draws
) -> DiffusionModel:
    files = ModelFiles(config)
    family = find_family(files, draws)
    check_draws(family, config, draws)
    base = _loaded(family, config, precision, device)
    if precision == "fp16" and files.stored_dtype(family.denoiser_name) == "BF16":
        warnings.warn(
            f"precision: fp16: the weights of {config.path!r} are in bf16, which holds larger "
            "numbers; if what is drawn is not finite, take bf16 or fp32",
            DrawWarning,
            stacklevel=3,
        )
    return base


def check_draws(family: ModelFamily, config: BaseModelConfig, draws: Draws) -> None:
    """Raise BaseModelError unless models of the family draw pictures, or clips."""
    if family.draws != draws:
        raise BaseModelError(f"base_model.path: {config.path!r} draws no {draws}{REMEDIES[draws]}")


def skeleton(config: BaseModelConfig, precision: str) -> DiffusionModel:
    """Build the model that a recipe names on the meta device; no weight is read.

    The configs are those of a folder, of the hub's files on this disk, of a single file's header,
    or of a published model by its hub id.

    Args:
        config: the recipe's base model.
        precision: mixed precision of a run.

    Raises:
        BaseModelError: nothing is there to read, or its parts do not belong together.
    """
    known = [title for family in all_families() for title in family.known_offline()]
    files = ModelFiles(config, is_offline=True, known=known)
    base = find_family(files).skeleton(files, precision)
    for part in base.parts.values():
        part.requires_grad_(False).eval()
    base.source = config
    return base


def folder_family(folder: Path) -> ModelFamily:
    """Return the family of a folder of parts.

    Raises:
        BaseModelError: its model_index.json is damaged.
    """
    return find_family(ModelFiles(BaseModelConfig(path=resolve_path(str(folder)))))


def part_names() -> tuple[str, ...]:
    """Return the names of the parts that models of all families have, denoisers first."""
    known = all_families()
    names = [family.denoiser_name for family in known]
    return tuple(dict.fromkeys([*names, *(part for family in known for part in family.parts)]))


def part_layout(part: str) -> PartLayout | None:
    """Return a part of the first family that has it."""
    return next((family.parts[part] for family in all_families() if part in family.parts), None)


def single_file_format(keys: Collection[str]) -> SingleFile | None:
    """Return the format of a base model in one file by its tensors' names; None if it is none."""
    formats = [family.single_file for family in all_families()]
    return next((one for one in formats if one is not None and one.recognizes(keys)), None)


def single_file_of(base: DiffusionModel) -> SingleFile:
    """Return the format in which a model is written as one file.

    Raises:
        ArtifactError: its family has none.
    """
    family = family_of(base)
    if family.single_file is None:
        raise ArtifactError(
            f"{base.path}: {KINDS[family.draws]} is kept as a diffusers folder; no program opens "
            "one as a single file"
        )
    return family.single_file
