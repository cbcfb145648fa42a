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
        diffusers_note,
        format_of,
        is_lora,
        part_of,
        read_layers,
        read_lora,
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
        comfyui_difference,
        distance_from_identity,
        read_hypernetwork,
    )
    from inference.artifacts.library import NetworkFiles, NetworkLibrary
    from inference.artifacts.merging import attach_all, merge, write_file_of, write_folder_of
    from inference.artifacts.metadata import base_facts
    from inference.artifacts.run_files import MANIFEST, companions_of

__all__ = [
    "ARTIFACTS", "MANIFEST", "Adapter", "Artifact", "Attached", "Checkpoint", "Embedding",
    "Hypernetwork", "HypernetworkSpec", "Lora", "LoraSpec", "NetworkFiles", "NetworkLibrary",
    "UsedArtifact", "adapter", "adapter_of", "attach_all", "base_facts", "check_suffix",
    "comfyui_difference", "companions_of", "diffusers_note", "distance_from_identity", "format_of",
    "is_lora", "load_artifact", "load_artifacts", "made_for", "merge", "part_of", "prepare_drawing",
    "read_embedding_picture", "read_hypernetwork", "read_keys", "read_layers", "read_lora",
    "save_diffusers", "save_kohya", "says_alpha", "set_strength", "twin_of", "write_file_of",
    "write_folder_of",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
