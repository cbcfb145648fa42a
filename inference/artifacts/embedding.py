"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): vectors that stand for a name in prompts.

Files as in A1111 1.10.1 (`modules/textual_inversion/textual_inversion.py`), kohya's sd-scripts
(`emb_params`) and diffusers (one tensor, whose key is the token); for SDXL kohya's and A1111's
pair, `clip_l` and `clip_g`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import torch
from PIL import Image
from torch import Tensor

from inference.artifacts.base import Artifact, check_kind
from inference.artifacts.embedding_picture import picture_with, read_embedding_picture
from inference.artifacts.metadata import made_upon
from inference.artifacts.run_files import is_named_by_run
from inference.files import EMBEDDING_PICTURES as PICTURES
from inference.files import (
    PICKLES,
    read_pickle,
    read_tensors,
    refuse_not_finite,
    serialize,
    sound,
    write_atomically,
    write_pickle,
)
from inference.media import save_png
from inference.prompts import LearnedVectors, token_ids
from inference.runtime import ArtifactError

if TYPE_CHECKING:
    from inference.models import DiffusionModel, ImageModel

FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL's second text encoder"}
PAIR: tuple[str, ...] = ("clip_l", "clip_g")
"""Keys of SDXL's files: vectors for its first and its second text encoder."""
FACTS = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")
"""Metadata of a file, by A1111's names."""


@final
class Embedding(Artifact):
    """An embedding: vectors for the text encoder, or for each of SDXL's two."""

    kind: ClassVar[str] = "embedding"
    suffix = ".safetensors"

    def __init__(
        self,
        vectors: Tensor,
        name: str,
        facts: Mapping[str, Any] | None = None,
        vectors_2: Tensor | None = None,
    ) -> None:
        self.name = name
        """Its name in prompts."""
        self.learned = LearnedVectors(vectors, vectors_2)
        self.facts = dict(facts or {})
        """Metadata of the file, by A1111's names: step, sd_checkpoint, …"""
        self.strength = 1.0
        self._base: ImageModel | None = None
        self._shown: LearnedVectors | None = None

    @classmethod
    def create(
        cls, base: ImageModel, name: str, initialization_text: str, num_vectors: int
    ) -> Self:
        """Create an embedding for training, in fp32 and not attached yet.

        It is initialized with the token embeddings of a text: fewer tokens than vectors are
        repeated, surplus ones are left out in between; zeros for an empty text.

        Raises:
            ArtifactError: the tokenizer knows no such token, or there are too many vectors.
        """
        room = base.tokenizer.model_max_length - 2
        if not 1 <= num_vectors <= room:
            raise ArtifactError(
                f"objective.num_vectors_per_token: must lie in 1 … {room}, which is a chunk of a "
                f"prompt; got {num_vectors}"
            )
        tables = [table.detach() for table in _token_tables(base)]
        vectors = [torch.zeros(num_vectors, table.shape[1]) for table in tables]
        if ids := token_ids(base.tokenizer, initialization_text):
            chosen = [ids[index * len(ids) // num_vectors] for index in range(num_vectors)]
            vectors = [table[chosen].float().cpu().clone() for table in tables]
        return cls(vectors[0], name, made_upon(base), vectors[1] if len(vectors) > 1 else None)

    def attach(self, base: DiffusionModel, strength: float = 1.0) -> None:
        """Register the vectors for prompts that contain the name.

        Raises:
            ArtifactError: already attached, the vectors' width or number does not fit, or the name
                is taken or cannot be written in a prompt.
        """
        if self._base is not None:
            raise ArtifactError(f"{self.name}: already attached; detach it first")
        base = check_kind(self, base)
        count, room = len(self.learned.vectors), base.tokenizer.model_max_length - 2
        expected = [table.shape[1] for table in _token_tables(base)]
        if [vectors.shape[1] for vectors in self.learned.by_encoder()] != expected:
            have = "text encoder" if len(expected) == 1 else "two text encoders"
            raise ArtifactError(
                f"{self.name}: has vectors of {made_for(self.learned)}; the {have} of this base "
                f"model ({base.path}) {'has' if len(expected) == 1 else 'have'} "
                f"{' and '.join(map(str, expected))}"
            )
        if count > room:
            raise ArtifactError(f"{self.name}: has {count} vectors; a prompt's chunk holds {room}")
        if self.name in base.embeddings:
            raise ArtifactError(f"{self.name}: another embedding of this name is attached already")
        if not token_ids(base.tokenizer, self.name):
            raise ArtifactError(f"{self.name!r}: the tokenizer has no token for any letter of it")
        self._base = base
        self._shown = self.learned
        if not self.learned.vectors.requires_grad:
            copies = [v.to(base.device, base.dtype, copy=True) for v in self.learned.by_encoder()]
            self._shown = LearnedVectors(*copies)
        self.set_strength(strength)

    def set_strength(self, strength: float) -> None:
        """Multiply the vectors by the strength; at 0 the name is ordinary text in prompts."""
        self.strength = strength
        if self._base is None or self._shown is None:
            return
        self._shown.strength = strength
        self._base.embeddings.pop(self.name, None)
        if strength:
            self._base.embeddings[self.name] = self._shown

    def detach(self) -> None:
        """Make the name ordinary text in prompts again."""
        if self._base is not None:
            self._base.embeddings.pop(self.name, None)
        self._base = self._shown = None

    def save(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        """Write kohya's safetensors (`emb_params`), or A1111's `.pt` or image by the path's suffix.

        The image shows the vectors as shades; A1111 loads it from its folder of embeddings.
        SDXL's are written as kohya writes them: the pair, without metadata in a `.pt`.

        Raises:
            ArtifactError: an image is requested for SDXL; no program looks for the pair in one.
            NotFiniteError: a value is not finite.
        """
        path = Path(path)
        check_suffix(path.suffix, self.learned)
        written = [v.detach().to("cpu", dtype).contiguous() for v in self.learned.by_encoder()]
        step = int(metadata.get("ss_steps", self.facts.get("step") or 0))
        content: dict[str, Any] = {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": written[0].float()},
            "name": self.name,
            "step": step,
            "sd_checkpoint": self.facts.get("sd_checkpoint"),
            "sd_checkpoint_name": self.facts.get("sd_checkpoint_name"),
        }
        tensors = {"emb_params": written[0]}
        if len(written) > 1:  # A1111 takes every entry of the dict for a tensor
            content = tensors = dict(zip(PAIR, written, strict=True))
        refuse_not_finite(tensors)
        if path.suffix == ".png":
            save_png(path, *picture_with(self.card(step), content))
            return
        if path.suffix == ".pt":
            write_pickle(path, content)
            return
        facts = {**self.facts, "name": self.name, "step": step}
        said = {key: str(value) for key, value in facts.items() if value is not None}
        data = serialize(tensors, {**said, **metadata})
        write_atomically(path, lambda unfinished: unfinished.write_bytes(data))

    def card(self, step: int) -> Image.Image:
        """Return an image of the vectors, one above the other, with name and size."""
        from inference.media import image_grid

        vectors = self.learned.vectors.detach().float().cpu()
        shades = (vectors / vectors.abs().max().clamp_min(1e-9) * 127.5 + 127.5).round()
        picture = Image.fromarray(shades.byte().numpy()).resize((192, 192), Image.Resampling.BOX)
        label = f"{self.name}: {len(vectors)} vectors, step {step}"
        return image_grid([[picture.convert("RGB")]], column_labels=[label])

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load files of A1111, kohya and diffusers, and images that contain an embedding.

        Raises:
            ArtifactError: the content is not understood, or is not finite.
        """
        path = Path(path)
        if path.suffix in PICKLES:
            content = read_pickle(path)
            found, facts = _from_dict(path, content)
        elif path.suffix in PICTURES:
            found, facts = _from_dict(path, read_embedding_picture(path) or {})
        else:
            found, facts = _from_safetensors(path)
        vectors = [_checked(path, tensor) for tensor in found]
        if len({len(each) for each in vectors}) > 1:
            counts = " and ".join(str(len(each)) for each in vectors)
            raise ArtifactError(f"{path}: expected equally many vectors in {PAIR}, found {counts}")
        # Images, and files whose name is the run's, are called by their metadata.
        has_own_name = path.suffix in PICTURES or is_named_by_run(path)
        name = facts.get("name") if has_own_name else None
        second = vectors[1] if len(vectors) > 1 else None
        return cls(vectors[0], str(name or path.stem), facts, second)

    @classmethod
    def recognizes(cls, path: Path, keys: Sequence[str]) -> bool:
        """Recognize A1111's `string_to_param`, SDXL's pair, or a single tensor."""
        return "string_to_param" in keys or {*PAIR} <= {*keys} or len(keys) == 1


def made_for(learned: LearnedVectors) -> str:
    """Describe width and family of base models: `width 768 (SD 1.x)`."""
    widths = [vectors.shape[1] for vectors in learned.by_encoder()]
    family = "SDXL" if len(widths) > 1 else FAMILIES.get(widths[0])
    return f"width {' and '.join(map(str, widths))}{f' ({family})' if family else ''}"


def check_suffix(suffix: str, learned: LearnedVectors) -> None:
    """Raise ArtifactError if files with this suffix cannot hold a second encoder's vectors."""
    if suffix == ".png" and learned.vectors_2 is not None:
        raise ArtifactError(
            "objective.save_as: a picture carries vectors for one text encoder, and SDXL has two; "
            "take safetensors or pt"
        )


def _token_tables(base: ImageModel) -> list[Tensor]:
    """Return the token embedding weights of every text encoder."""
    encoders: list[Any] = [*base.text_encoders.values()]
    return [encoder.get_input_embeddings().weight for encoder in encoders]


def _checked(path: Path, vectors: Tensor) -> Tensor:
    """Return vectors (number, width) in fp32.

    Raises:
        ArtifactError: they have another shape, or are not finite.
    """
    vectors = sound(path, "vectors", vectors).detach()
    vectors = vectors[None] if vectors.dim() == 1 else vectors
    if vectors.dim() != 2 or not vectors.is_floating_point() or not len(vectors):
        raise ArtifactError(
            f"{path}: expected vectors (number, width), found {vectors.dtype} of shape "
            f"{tuple(vectors.shape)}"
        )
    if not vectors.isfinite().all():
        raise ArtifactError(f"{path}: holds numbers that are not finite; its training failed")
    return vectors.float()


def _from_dict(path: Path, content: dict[Any, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    if "string_to_param" not in content:
        named = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        return _by_encoder(path, named), {}
    parameters = content["string_to_param"]
    parameters = getattr(parameters, "_parameters", parameters)  # a ParameterDict, by its own name
    parameters = parameters if isinstance(parameters, Mapping) else {}
    named = {str(key): value for key, value in parameters.items() if isinstance(value, Tensor)}
    return _by_encoder(path, named), {key: content[key] for key in FACTS if key in content}


def _from_safetensors(path: Path) -> tuple[list[Tensor], dict[str, Any]]:
    tensors, metadata = read_tensors(path)
    return _by_encoder(path, tensors), {key: metadata[key] for key in FACTS if key in metadata}


def _by_encoder(path: Path, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return SDXL's pair, or the vectors for one text encoder."""
    if {*PAIR} <= tensors.keys():
        return [tensors[key] for key in PAIR]
    if len(tensors) != 1:
        raise ArtifactError(
            f"{path}: expected vectors under one name, found {len(tensors)}: "
            f"{', '.join(list(tensors)[:4])}"
        )
    return [next(iter(tensors.values()))]
