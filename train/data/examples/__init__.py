"""Examples: buckets, transforms, latents, and the stream of batches."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.data.examples.build import build_examples
    from train.data.examples.clips import ClipExamples
    from train.data.examples.examples import Examples
    from train.data.examples.latents import (
        Share,
        cache_latents,
        latents_keys,
        open_cache,
        shown,
    )
    from train.data.examples.loader import build_loader, collate
    from train.data.examples.stream import InOrder, MicroBatches, Pace

__all__ = [
    "ClipExamples", "Examples", "InOrder", "MicroBatches", "Pace", "Share",
    "build_examples", "build_loader", "cache_latents", "collate", "latents_keys", "open_cache",
    "shown",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
