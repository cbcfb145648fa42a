"""The interface of model families: everything else accesses an architecture through it.

A family is asked by its key, `DiffusionModel.family_name`, through `inference.models.families`.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from inference.config import BaseModelConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from inference.files import TensorFile
    from inference.models.base import DiffusionModel
    from inference.models.lora_layout import LoraLayout
    from inference.models.model_files import ModelFiles


Draws = Literal["pictures", "clips"]
KINDS: dict[Draws, str] = {"pictures": "a model of pictures", "clips": "a video model"}
"""The output of a family's models -> the word for such a model in messages."""

CastPart = Callable[[str, "dict[str, Tensor]"], "dict[str, Tensor]"]
"""Part and its weights -> the weights in the dtype of the file."""


class Match(IntEnum):
    """How well the files of a base model fit a family."""

    LAYOUT = 1
    """They have the layout; other families may share it."""
    NAMED = 2
    """They name the family."""


@dataclass(frozen=True)
class PartLayout:
    """A part that has weights, as in the diffusers layout."""

    target: str
    """Its class, `module:Class`."""
    behaviour: tuple[str, ...]
    """Settings that change the computation without changing the shapes of the weights."""
    owner: str
    """What has such a part, for messages."""

    def load_class(self) -> Any:
        """Import its class."""
        return pkgutil.resolve_name(self.target)


class SingleFile(ABC):
    """The format of single files of a family's base models."""

    @abstractmethod
    def recognizes(self, keys: Iterable[str]) -> bool:
        """Return whether some tensor has a name of such a file."""

    @abstractmethod
    def holds_denoiser(self, keys: Iterable[str]) -> bool:
        """Return whether a file with these tensors is enough to generate."""

    @abstractmethod
    def read_parts(self, path: Path) -> tuple[dict[str, nn.Module], str | None]:
        """Return the trained parts, all where the file names none, and the prediction type.

        Raises:
            ArtifactError: the file cannot be read, or its weights do not fit.
        """

    @abstractmethod
    def write(
        self,
        path: Path,
        base: DiffusionModel,
        cast_part: CastPart,
        metadata: Mapping[str, str],
        trained: Collection[str] | None = None,
        weights_of: Callable[[nn.Module], dict[str, Tensor]] | None = None,
    ) -> list[str]:
        """Write all parts of a base model.

        Args:
            path: the file.
            base: the model.
            cast_part: casts the weights of a part.
            metadata: overrides the model's own.
            trained: names of the parts that a run has trained.
            weights_of: the weights of a module by name; None is its state dict.

        Returns:
            Remarks for the user.
        """

    @abstractmethod
    def inspect(self, file: TensorFile) -> dict[str, str]:
        """Describe a file: family, prediction type, parts.

        Raises:
            InputError: it is a model of another family.
        """

    @abstractmethod
    def inspect_metadata(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return the metadata for people to read, explained if necessary."""


class ModelFamily(ABC):
    """An architecture of base models: how its files are detected, read, written and described."""

    name: ClassVar[str]
    """Its key, in inference and in training."""
    title: ClassVar[str]
    draws: ClassVar[Draws]
    artifacts: ClassVar[frozenset[str]]
    """Artifact types that its models support."""
    parts: ClassVar[Mapping[str, PartLayout]]
    """The parts that have weights, by their names in the diffusers layout; the denoiser first."""
    denoiser_name: ClassVar[str]
    single_file: ClassVar[SingleFile | None]
    """Format of single files; None if its models are diffusers folders only."""
    published: ClassVar[Mapping[str, str]]
    """Published models by name: their titles."""
    architectures: ClassVar[Mapping[str, str]]
    """kohya's `ss_base_model_version` -> `modelspec.architecture`."""
    licenses: ClassVar[Mapping[str, str]] = {}
    """kohya's `ss_base_model_version` -> licence of the published model, which what is trained on
    it inherits."""
    lora_layouts: ClassVar[tuple[LoraLayout, ...]]
    """Naming of LoRA layers, one for each variant of the architecture."""

    @property
    def kind(self) -> str:
        """Return the word for its models in messages."""
        return KINDS[self.draws]

    @abstractmethod
    def detect(self, files: ModelFiles) -> Match | None:
        """Return how well a base model's files match this family; no weights are read.

        Raises:
            BaseModelError: a file is damaged.
        """

    @abstractmethod
    def load(
        self, config: BaseModelConfig, precision: str, device: torch.device | str
    ) -> DiffusionModel:
        """Load every part, frozen and in evaluation mode, with plain weights.

        `load_model` packs them afterwards, if `quantization` is configured.

        Raises:
            BaseModelError: a part is missing or cannot be read, or the parts do not fit together.
        """

    @abstractmethod
    def skeleton(self, files: ModelFiles, precision: str) -> DiffusionModel:
        """Build the model on the meta device, from configs alone.

        Raises:
            BaseModelError: a config is missing, or the parts do not fit together.
        """

    @abstractmethod
    def known_offline(self) -> tuple[str, ...]:
        """Return the titles of the published models whose skeletons need no files."""

    @abstractmethod
    def part_dtype(
        self, base: DiffusionModel, config: BaseModelConfig, precision: str, part: str
    ) -> torch.dtype:
        """Return the dtype of a frozen part in a run of some precision.

        Raises:
            BaseModelError: the recipe requests a dtype that the part does not support.
        """

    @abstractmethod
    def lora_layout(self, base: DiffusionModel) -> LoraLayout:
        """Return the naming of LoRA layers in a model."""

    @abstractmethod
    def lora_variant(self, names: Mapping[str, object], width: int | None) -> LoraLayout:
        """Return the naming of a LoRA's own variant.

        Args:
            names: kohya's names of its layers.
            width: what the layout's `readers` among them read, if there are any.
        """

    @abstractmethod
    def version(self, base: DiffusionModel) -> str:
        """Return kohya's `ss_base_model_version` of a model.

        A model that is not published is `limner_<name or width>`.
        """

    @abstractmethod
    def metadata(self, base: DiffusionModel) -> dict[str, str]:
        """Return a LoRA's metadata about the model that it was trained on."""

    @abstractmethod
    def inspect(self, folder: Path, index: Mapping[str, Any]) -> dict[str, str]:
        """Describe the model of a diffusers folder by its JSON files.

        Raises:
            InputError: a config lacks something.
        """
