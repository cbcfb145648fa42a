"""Latents and prompt embeddings on disk, addressed by content, and prefetch threads."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.data.caching.content_cache import (
        ContentCache,
        StoredLatents,
        StoredStates,
        key_of,
        latents_kept,
        text_origin,
        vae_origin,
    )
    from train.data.caching.prompt_states import (
        DEVICE_BYTES,
        PROMPT_CACHE_BYTES,
        Paused,
        PromptStates,
        Track,
    )
    from train.data.caching.threads import THREADS, prefetch, write_behind

__all__ = [
    "DEVICE_BYTES", "PROMPT_CACHE_BYTES", "THREADS", "ContentCache", "Paused", "PromptStates",
    "StoredLatents", "StoredStates", "Track", "key_of", "latents_kept", "prefetch", "text_origin",
    "vae_origin", "write_behind",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
