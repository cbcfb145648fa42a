"""Checkpoints: whole parts of a base model, as a diffusers folder or as a single file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from inference.artifacts.base import Artifact, read_keys
from inference.files import is_finite, write_folder
from inference.memory import plain_weight, repack, restorer
from inference.models import (
    FACTS,
    cast,
    compact,
    family_of,
    folder_family,
    live_weights,
    packed_by_name,
    part_layout,
    part_names,
    read_part,
    single_file_format,
    single_file_of,
    weight_shapes,
    weights_of,
    write_base_model,
)
from inference.runtime import ArtifactError

if TYPE_CHECKING:
    from inference.models import DiffusionModel

_holders: WeakKeyDictionary[nn.Module, Checkpoint] = WeakKeyDictionary()
"""Part of a base model -> the checkpoint whose weights it has now."""


@final
class Checkpoint(Artifact):
    """New weights for the UNet or transformer, the text encoders or the VAE.

    On disk it is a complete base model, as a folder or as one file (`suffix` .safetensors): the
    trained parts in the requested dtype, the others unchanged.
    """

    kind: ClassVar[str] = "checkpoint"
    suffix = ""

    def __init__(
        self,
        parts: dict[str, nn.Module],
        base: DiffusionModel | None = None,
        path: Path | None = None,
        name: str = "checkpoint",
        prediction_type: str | None = None,
    ) -> None:
        self.name = name
        self.parts = parts
        """`unet` or `transformer`, `text_encoder`, `text_encoder_2`, `vae` -> the module with the
        new weights."""
        self.strength = 1.0
        self.prediction_type = prediction_type
        """The prediction type of the denoiser, if its file has it."""
        self._base = base
        self._path = path
        self._originals: dict[str, dict[str, Tensor]] = {}
        self._restorers: dict[str, dict[str, Callable[[], None]]] = {}
        """Part -> path of a packed layer (quantized) -> restores its original weight."""
        self._target: DiffusionModel | None = None
        self._scaling_factor = 1.0

    @classmethod
    def of(cls, base: DiffusionModel, parts: Sequence[str] | None = None) -> Self:
        """Return the trained parts of a base model, or its denoiser if none are named.

        The weights are shared.
        """
        names = (base.denoiser_name,) if parts is None else parts
        return cls({part: base.parts[part] for part in names}, base=base)

    def attach(self, base: DiffusionModel, strength: float = 1.0) -> None:
        """Write the weights over those of the base model, of which a copy is kept.

        Raises:
            ArtifactError: shapes or settings differ, or a part already has another checkpoint.
        """
        if self._target is not None:
            raise ArtifactError(f"{self.name}: already attached; detach it first")
        for part, module in self.parts.items():
            if part not in base.parts:
                layout = part_layout(part)
                raise ArtifactError(
                    f"{self.name}: has a {part} ({layout.owner if layout else 'another model'}), "
                    f"which this base model ({base.path}) lacks. Name it as base_model.path instead"
                )
            self._check_fit(part, module, base)
        for part in self.parts:
            live = live_weights(base.parts[part])
            self._originals[part] = {key: value.clone() for key, value in live.items()}
            packed = packed_by_name(base.parts[part])
            self._restorers[part] = {path: restorer(layer) for path, layer in packed.items()}
            _holders[base.parts[part]] = self
        self._scaling_factor = base.vae.config.scaling_factor
        self._target = base
        self.set_strength(strength)

    def set_strength(self, strength: float) -> None:
        """Interpolate the weights linearly between 0 (the base model) and 1 (the checkpoint).

        Those of packed layers (quantized) are unpacked for it, and packed again.
        """
        self.strength = strength
        if self._target is None:
            return
        for part, module in self.parts.items():
            new = weights_of(module)
            for key, value in live_weights(self._target.parts[part]).items():
                value.copy_(_mix(self._originals[part][key], new[key], strength))
            packed = packed_by_name(self._target.parts[part])
            for path, restore in self._restorers[part].items():
                restore()
                if strength != 0:
                    layer = packed[path]
                    repack(layer, _mix(plain_weight(layer), new[f"{path}.weight"], strength))
        if "vae" in self.parts:
            vae: Any = self.parts["vae"]
            factor = _mix_numbers(self._scaling_factor, vae.config.scaling_factor, strength)
            self._target.vae.register_to_config(scaling_factor=factor)

    def detach(self) -> None:
        """Restore the original weights."""
        if self._target is None:
            return
        strength = self.strength
        self.set_strength(0.0)
        self.strength = strength
        for part in self.parts:
            del _holders[self._target.parts[part]]
        self._originals, self._restorers = {}, {}
        self._target = None

    def save(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        """Write a folder that diffusers' pipelines (SD, SDXL, CogVideoX) and Limner open.

        If the path ends in .safetensors, write the file that A1111, Forge and ComfyUI open.

        Raises:
            ArtifactError: only some parts were loaded, so that there is no complete base model, or
                a single file is requested for a video model.
        """
        base = self._base or self._complete_base()
        if Path(path).suffix.lower() == ".safetensors":
            self._save_single_file(Path(path), base, dtype, metadata)
            return
        write_folder(
            Path(path),
            lambda folder: write_base_model(folder, base, self.parts, dtype, metadata),
        )

    def _save_single_file(
        self, path: Path, base: DiffusionModel, dtype: torch.dtype, metadata: dict[str, str]
    ) -> None:
        def in_format(part: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
            return cast(weights, dtype) if part in self.parts else compact(weights, dtype)

        single_file_of(base).write(path, base, in_format, metadata, self.parts, weights_of)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load the trained parts; from a folder of another tool, all parts that exist.

        Raises:
            ArtifactError: the content is not understood, or is not finite.
        """
        path = Path(path)
        if path.is_file():
            form = single_file_format(read_keys(path))
            if form is None:
                raise ArtifactError(f"{path}: holds no base model that is known here")
            modules, prediction_type = form.read_parts(path)
            check_finite(path, modules)
            return cls(modules, path=path, name=path.stem, prediction_type=prediction_type)
        known = folder_family(path).parts
        found = [part for part in known if (path / part / "config.json").is_file()]
        if (path / FACTS).is_file():
            found = json.loads((path / FACTS).read_text(encoding="utf-8"))["parts"]
        if not found:
            raise ArtifactError(
                f"{path}: none of {', '.join(part_names())} with a config.json in it"
            )
        file = path / "scheduler" / "scheduler_config.json"
        schedule = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        modules = {part: read_part(path, part) for part in found}
        check_finite(path, modules)
        return cls(
            modules,
            path=path,
            name=path.name,
            prediction_type=schedule.get("prediction_type", "epsilon") if schedule else None,
        )

    @classmethod
    def recognizes(cls, path: Path, keys: Sequence[str]) -> bool:
        """Recognize a folder with model_index.json or a model part, or a file with its tensors."""
        names = ("model_index.json", *part_names())
        if path.is_dir():
            return any((path / name).exists() for name in names)
        return single_file_format(keys) is not None

    def _complete_base(self) -> DiffusionModel:
        from inference.config import BaseModelConfig
        from inference.models import load_model
        from inference.runtime import BaseModelError

        try:
            return load_model(BaseModelConfig(path=str(self._path)))
        except BaseModelError as error:
            raise ArtifactError(f"{self.name}: cannot be saved as a whole: {error}") from error

    def _check_fit(self, part: str, module: nn.Module, base: DiffusionModel) -> None:
        target = base.parts[part]
        if module is target:
            raise ArtifactError(f"{self.name}: its {part} is this base model's own")
        if target in _holders:
            raise ArtifactError(
                f"{self.name}: the base model's {part} is replaced by {_holders[target].name!r} "
                "already; detach that one first"
            )
        for key in family_of(base).parts[part].behaviour:
            theirs, ours = getattr(module.config, key, None), getattr(target.config, key, None)
            if theirs != ours:
                raise ArtifactError(f"{self.name}: its {part} has {key} {theirs}, not {ours}")
        theirs, ours = weight_shapes(module), weight_shapes(target)
        for key in sorted(theirs.keys() ^ ours.keys()):
            where = "the checkpoint" if key in theirs else "this base model"
            raise ArtifactError(f"{self.name}: does not fit: only {where} has {part}.{key}")
        for key, shape in theirs.items():
            if shape != ours[key]:
                raise ArtifactError(
                    f"{self.name}: {part}.{key} has shape {shape}, in this base model {ours[key]}. "
                    "Name it as base_model.path instead"
                )
        if part == base.denoiser_name:
            self._check_prediction_type(base)

    def _check_prediction_type(self, base: DiffusionModel) -> None:
        theirs, ours = self.prediction_type, base.prediction_type
        if theirs and theirs != ours:
            raise ArtifactError(
                f"{self.name}: predicts {theirs}, this base model {ours}. Name it as "
                "base_model.path instead"
            )


def check_finite(path: Path, parts: Mapping[str, nn.Module]) -> None:
    """Raise ArtifactError if a weight of a part is not finite."""
    for part, module in parts.items():
        for name, value in weights_of(module).items():
            if not is_finite(value):
                raise ArtifactError(
                    f"{path}: {part}.{name} holds numbers that are not finite; its training failed"
                )


def _mix(original: Tensor, new: Tensor, strength: float) -> Tensor:
    """Return exactly `original` at strength 0 and `new` at 1, and the linear mix elsewhere."""
    if strength == 0:
        return original
    new = new.to(original.device)
    if strength == 1 or not original.is_floating_point():
        return new
    return torch.lerp(original.float(), new.float(), strength)


def _mix_numbers(original: float, new: float, strength: float) -> float:
    exact = {0.0: original, 1.0: new}
    return exact.get(strength, original + strength * (new - original))
