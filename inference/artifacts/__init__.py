"""Trained artifacts: attach them to a base model, save and load them."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.artifacts.adapters import (
        Adapter,
        Lora,
        LoraSpec,
        adapter,
        adapter_of,
        format_of,
        is_lora,
        part_of,
        read_layers,
        save_diffusers,
        save_kohya,
        says_alpha,
        twin_of,
    )
    from inference.artifacts.base import (
        ARTIFACTS,
        Artifact,
        Attached,
        UsedArtifact,
        load_artifact,
        load_artifacts,
        read_keys,
        set_strength,
    )
    from inference.artifacts.checkpoint import Checkpoint
    from inference.artifacts.drawing_format import prepare_drawing
    from inference.artifacts.embedding import Embedding, check_suffix, made_for
    from inference.artifacts.embedding_picture import read_embedding_picture
    from inference.artifacts.hypernetwork import Hypernetwork
    from inference.artifacts.hypernetwork_files import (
        HypernetworkSpec,
        distance_from_identity,
        read_hypernetwork,
    )
    from inference.artifacts.library import NetworkLibrary
    from inference.artifacts.merging import merge, write_file_of, write_folder_of

__all__ = [
    "ARTIFACTS", "Adapter", "Artifact", "Attached", "Checkpoint", "Embedding", "Hypernetwork",
    "HypernetworkSpec", "Lora", "LoraSpec", "NetworkLibrary", "UsedArtifact", "adapter",
    "adapter_of", "check_suffix", "distance_from_identity", "format_of", "is_lora",
    "load_artifact", "load_artifacts", "made_for", "merge", "part_of", "prepare_drawing",
    "read_embedding_picture", "read_hypernetwork", "read_keys", "read_layers", "save_diffusers",
    "save_kohya", "says_alpha", "set_strength", "twin_of", "write_file_of", "write_folder_of",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
