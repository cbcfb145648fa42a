"""Images and captions become examples, examples become batches."""

from typing import TYPE_CHECKING

import train.data.streaming  # noqa: F401 (registers itself with the containers)
from inference.lazy import lazy

if TYPE_CHECKING:
    from train.data.caching import (
        DEVICE_BYTES,
        PROMPT_CACHE_BYTES,
        Paused,
        PromptStates,
        StoredStates,
        Track,
        latents_kept,
        text_origin,
    )
    from train.data.containers import file_state
    from train.data.examples import (
        ClipExamples,
        Examples,
        InOrder,
        MicroBatches,
        Pace,
        Share,
        build_examples,
        build_loader,
        cache_latents,
        collate,
        latents_keys,
        open_cache,
        shown,
    )
    from train.data.pictures import Facts, Known, picture_facts
    from train.data.sources import (
        FALLBACK,
        ClassFolder,
        ClassPicture,
        Clip,
        Concept,
        Picture,
        Sources,
        at_commits,
        class_facts,
        class_folders,
        class_pictures,
        find_sources,
        longest_choice,
        parts_of,
        pictures_there,
        plain_caption,
        read_lines,
        short_clips,
        size_on_disk,
        split_tags,
    )
    from train.data.streaming import folders_of, kept_bytes, name_of

__all__ = [
    "DEVICE_BYTES", "FALLBACK", "PROMPT_CACHE_BYTES", "ClassFolder", "ClassPicture", "Clip",
    "ClipExamples", "Concept", "Examples", "Facts", "InOrder", "Known", "MicroBatches", "Pace",
    "Paused", "Picture", "PromptStates", "Share", "Sources", "StoredStates", "Track", "at_commits",
    "build_examples", "build_loader", "cache_latents", "class_facts", "class_folders",
    "class_pictures", "collate", "file_state", "find_sources", "folders_of", "kept_bytes",
    "latents_kept", "latents_keys", "longest_choice", "name_of", "open_cache", "parts_of",
    "picture_facts", "pictures_there", "plain_caption", "read_lines", "short_clips", "shown",
    "size_on_disk", "split_tags", "text_origin",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
