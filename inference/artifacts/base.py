"""The interface of all artifacts, and how a file's type is detected from its content."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, cast

import torch
from safetensors import SafetensorError, safe_open

from inference.artifacts.embedding_picture import read_embedding_picture
from inference.config import ArtifactConfig
from inference.files import EMBEDDING_PICTURES as PICTURES
from inference.files import PICKLES, artifact_hash, read_pickle, unreadable
from inference.runtime import ArtifactError, check_readable

if TYPE_CHECKING:
    from inference.models import DiffusionModel, ImageModel


ARTIFACTS: dict[str, str] = {
    "lora": "inference.artifacts.adapters.lora:Lora",
    "hypernetwork": "inference.artifacts.hypernetwork:Hypernetwork",
    "checkpoint": "inference.artifacts.checkpoint:Checkpoint",
    "embedding": "inference.artifacts.embedding:Embedding",
}
"""The known artifact types and their classes (`module:Class`)."""


class Artifact(ABC):
    """A trained change of what a base model generates.

    The class that is trained is the class that is loaded. Artifacts stack: several can be attached
    to one base model, in any order, and be detached in any order.
    """

    kind: ClassVar[str]
    suffix: str
    """Suffix of the file's name; empty if the artifact is a folder."""
    name: str
    """Its name in grids, infotext and metadata."""

    @abstractmethod
    def attach(self, base: DiffusionModel, strength: float = 1.0) -> None:
        """Activate the artifact in the base model.

        Raises:
            ArtifactError: it does not fit this base model; the base model is unchanged then.
        """

    @abstractmethod
    def set_strength(self, strength: float) -> None:
        """Set the strength: 0 gives the base model's output bit for bit, 1 the trained one."""

    @abstractmethod
    def detach(self) -> None:
        """Restore the base model bit for bit to its state before `attach`."""

    @abstractmethod
    def save(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        """Write it atomically; equal weights and metadata give equal bytes."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path) -> Self:
        """Load a file of `save` or of one of the tools that use this format.

        Raises:
            ArtifactError: the content is not understood.
        """

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path, keys: Sequence[str]) -> bool:
        """Return whether it is such an artifact: a folder (keys empty), or a file with the keys."""


def check_kind(artifact: Artifact, base: DiffusionModel) -> ImageModel:
    """Return the base model as an image model, if its family supports this artifact type.

    Raises:
        ArtifactError: it does not.
    """
    from inference.models import family_of

    family = family_of(base)
    if artifact.kind not in family.artifacts:
        known = " and ".join(f"{kind}s" for kind in ARTIFACTS if kind in family.artifacts)
        raise ArtifactError(
            f"{artifact.name}: its kind ({artifact.kind}) does not work in {base.path!r}, "
            f"{family.kind}, which takes {known}"
        )
    return cast("ImageModel", base)


def load_artifact(path: Path | str) -> Artifact:
    """Load an artifact of any type, detected from its content and not from its name.

    Raises:
        ArtifactError: the path does not exist, cannot be read, or is no known artifact.
    """
    from inference.models import is_vae, is_vae_folder

    path = Path(path)
    check_readable(path)
    if not path.exists():
        raise ArtifactError(f"{path}: no such file or folder")
    keys = [] if path.is_dir() else read_keys(path)
    if is_vae(keys) or is_vae_folder(path):
        raise ArtifactError(f"{path}: is a VAE; name it as base_model.vae={path}")
    for target in ARTIFACTS.values():
        artifact_class = pkgutil.resolve_name(target)
        if artifact_class.recognizes(path, keys):
            return artifact_class.load(path)
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        found = f"a folder with {', '.join(names[:6]) or 'nothing in it'}"
    else:
        found = f"{len(keys)} tensors ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
    raise ArtifactError(
        f"{path}: no known kind of artifact. Found {found}. Known are: LoRA files in the naming of "
        "kohya (lora_unet_…, lora_te_…) or diffusers (unet.….lora_A.weight), A1111's hypernetworks "
        "(.pt), embeddings of A1111, kohya or diffusers, and checkpoints as diffusers folders "
        "(model_index.json or unet/) or single files (model.diffusion_model.…)"
    )


def read_keys(path: Path) -> list[str]:
    """Return the names of the tensors in a file; of a safetensors file only the header is read.

    For a pickle, all keys of its dict as text, or of the dict under `state_dict`; for an image,
    those of the embedding inside.
    """
    if path.suffix.lower() in PICTURES:
        return [*(read_embedding_picture(path) or {})]
    if path.suffix.lower() in PICKLES:
        return [str(key) for key in read_pickle(path)]
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


Attached = list[tuple[ArtifactConfig, Artifact]]
"""The artifacts of a recipe with their configs, in the recipe's order."""


def load_artifacts(configs: Mapping[str, ArtifactConfig | None]) -> Attached:
    """Load a recipe's artifacts; those that are null are left out.

    Raises:
        InputError: a path cannot be read; the message names its key.
        ArtifactError: as `load_artifact`.
    """
    named = {name: config for name, config in configs.items() if config is not None}
    for name, config in named.items():
        check_readable(config.path, f"artifacts.{name}.path")
    return [(config, load_artifact(config.path)) for config in named.values()]


def set_strength(config: ArtifactConfig, artifact: Artifact, factor: float) -> UsedArtifact:
    """Set the strength for a row of the grid; return the artifact's entry for the infotext."""
    strength = config.strength * factor
    artifact.set_strength(strength)
    known_by = artifact_hash(Path(config.path), artifact.kind)
    return UsedArtifact(artifact.kind, artifact.name, strength, known_by)


@dataclass(frozen=True)
class UsedArtifact:
    """The infotext's entry about an artifact that an image was generated with."""

    kind: str
    """`lora`, …: as in `inference.artifacts`."""
    name: str
    strength: float
    hash: str | None = None
    """A1111's hash of the file; it shows the first 12 digits."""
    is_called: bool = False
    """Whether the prompt itself calls it, so that no tag is added."""
    te_strength: float | None = None
    """Strength in the text encoders, if it differs."""

    @property
    def is_at_work(self) -> bool:
        return self.strength != 0 or bool(self.te_strength)
