"""How LoRA files name the layers of a family's models, and which layers are trained."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from inference.runtime import ArtifactError

if TYPE_CHECKING:
    from torch import nn

    from inference.models.base import DiffusionModel

_WORDS = re.compile(
    r"down_blocks|up_blocks|mid_block|transformer_blocks|proj_(?:in|out)|to_(?:q|k|v|out)|"
    r"patch_embed|text_proj|norm_out|ofs_embedding|time_emb_proj|conv_shortcut|conv_(?:in|out)|(?:time|add)_embedding|linear_[12]|"
    r"text_model|self_attn|(?:q|k|v|out)_proj|[a-z]+\d*|\d+"
)
"""The words of module paths; those that contain an underscore are listed."""


class LoraLayout(ABC):
    """The names and targets of LoRA layers in one variant of an architecture."""

    denoiser: ClassVar[str]
    """The part that is trained by default."""
    prefixes: Mapping[str, str]
    """Part -> first word of kohya's names."""
    begins: ClassVar[Mapping[str, str]]
    """Prefix of kohya's names -> the part. The longest prefix wins."""
    targets: ClassVar[Mapping[str, str]]
    """Target of a recipe -> pattern of module paths within the denoiser."""
    usual_targets: ClassVar[tuple[str, ...]]
    """Targets of a recipe that names none."""
    text_encoder_targets: ClassVar[str | None]
    """Pattern of module paths within text encoders; None if these are never trained."""
    untrained_text_encoder: ClassVar[str] = ""
    """Why they are not trained."""
    file_format: ClassVar[Literal["kohya", "diffusers"]]
    """Naming of the files that are written."""
    readers: ClassVar[tuple[str, ...]]
    """Suffixes of names of layers whose input width identifies a LoRA's model."""
    widths: ClassVar[Mapping[int, str]]
    """That width -> title of the model."""
    versions: ClassVar[Mapping[int, str]]
    """That width -> kohya's `ss_base_model_version`."""
    linear_widths: ClassVar[tuple[int, ...]]
    """Widths of models whose projections are linear, though kohya writes convolutions."""
    made_for: ClassVar[str]
    """What a LoRA was made for, with `{width}` and `{model}`, and the verb of the base model's."""
    made_for_elsewhere: ClassVar[str]
    """The same for a base model of another architecture."""

    def kohya_name(self, part: str, path: str) -> str:
        """Return a layer's name in kohya's files, e.g. `lora_unet_mid_block_attentions_0_…`.

        Args:
            part: its name in the diffusers layout.
            path: the module's path within the part, as in diffusers and transformers.
        """
        return f"{self.prefixes[part]}_{self.kohya_path(part, path).replace('.', '_')}"

    @abstractmethod
    def kohya_path(self, part: str, path: str) -> str:
        """Return a module's path as kohya's trainer sees it."""

    @abstractmethod
    def known_names(self, part: str, path: str) -> list[str]:
        """Return every name that some tool's file may have for a layer."""

    @abstractmethod
    def diffusers_path(self, part: str, joined: str, name: str) -> str:
        """Return the module path that a kohya name denotes.

        Args:
            part: the part of the name.
            joined: the name without its prefix.
            name: the whole name.

        Raises:
            ArtifactError: the name is not understood.
        """

    @abstractmethod
    def is_target(self, path: str, module: nn.Module, target: str) -> bool:
        """Return whether a layer of the denoiser belongs to one of the recipe's targets."""

    @abstractmethod
    def recognizes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether a file in diffusers' naming is of this variant, not only by part names."""

    @abstractmethod
    def input_width(self, base: DiffusionModel) -> int:
        """Return the input width of a model's `readers`."""

    def is_text_encoder_target(self, path: str) -> bool:
        """Return whether a text encoder's layer is one that a LoRA is trained on."""
        pattern = self.text_encoder_targets
        return pattern is not None and re.search(rf"\.({pattern})$", path) is not None


def dotted(joined: str, name: str) -> str:
    """Return a path with dots instead of the underscores of names.

    Raises:
        ArtifactError: the name has other words than paths do.
    """
    words = _WORDS.findall(joined)
    if "_".join(words) != joined:
        raise ArtifactError(f"{name}: not a layer's name as kohya writes it")
    return ".".join(words)
