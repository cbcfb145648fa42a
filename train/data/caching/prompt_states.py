"""Prompt embeddings from frozen text encoders, encoded once per caption."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from inference.models import Conditions, DiffusionModel
from inference.runtime import to_device
from train.data.caching.content_cache import StoredStates

PROMPT_CACHE_BYTES = 2 * 2**30
"""Maximum size of cached prompt embeddings; beyond it they are encoded in the step."""

DEVICE_BYTES = 2**28
"""Size of cached prompt embeddings up to which they stay on the device; beyond it in memory."""

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wrap a sequence in a progress bar with a title."""


class PromptStates:
    """Prompt embeddings from frozen text encoders; encodes prompts that are not cached."""

    def __init__(self, base: DiffusionModel, stored: StoredStates | None = None) -> None:
        self.base = base
        self.stored = stored
        """If set, embeddings are stored in files instead of memory."""
        self.known: dict[str, Conditions] = {}
        self._encoded: dict[tuple[str, ...], list[Conditions]] = {}
        """By the prompts that were encoded together, on which the last digits depend."""

    @torch.no_grad()
    def fill(
        self,
        prompts: list[str],
        track: Track,
        batch_size: int = 64,
        share: tuple[int, int] = (0, 1),
    ) -> bool:
        """Encode the captions in advance, unless they would take too much memory.

        What an earlier stage has encoded is used again. Offloaded text encoders are moved back.
        Files have no such limit; with `share` as for `cache_latents`, each process encodes a part
        of those that are missing.

        Returns:
            Whether these captions need the text encoders no longer; in memory not if they are of
            several lengths, which a batch encodes together.
        """
        if self.stored is not None:
            self.stored.cache.remember("text", self.base, self.stored.origin)
            rank, processes = share
            for prompt in track(prompts[rank::processes], "encoding captions"):
                if not self.stored.has(prompt):
                    self.stored.write(prompt, self._encode([prompt]))
            return True
        length, width = self.base.prompt_shape
        size = len(prompts) * width * length * self.base.dtype.itemsize
        if size > PROMPT_CACHE_BYTES:
            return False
        starts = range(0, len(prompts), batch_size)
        chunks = [tuple(prompts[start : start + batch_size]) for start in starts]
        missing = [chunk for chunk in chunks if chunk not in self._encoded]
        for chunk in track(missing, "encoding captions"):
            together = self._encode(chunk)
            each = [together[row : row + 1] for row in range(len(chunk))]
            if together.states.shape[1] > length:  # a caption over 75 tokens: keep its own length
                each = [self._encode([prompt]) for prompt in chunk]
            if size > DEVICE_BYTES:
                each = [one.to("cpu") for one in each]
            self._encoded[chunk] = each
        for chunk in chunks:
            self.known |= dict(zip(chunk, self._encoded[chunk], strict=True))
        return len({self.known[prompt].states.shape for prompt in prompts}) <= 1

    def _encode(self, prompts: Sequence[str]) -> Conditions:
        for encoder in self.base.text_encoders.values():
            encoder.to(self.base.device)
        return self.base.encode_prompts(prompts)

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Conditions:
        """Return the embeddings of b prompts."""
        found = [self._find(prompt) for prompt in prompts]
        known = [one for one in found if one is not None]
        if len(known) < len(prompts) or len({one.states.shape for one in known}) > 1:
            return self._encode(prompts)
        return self._on_device(Conditions.cat(known))

    def _on_device(self, conditions: Conditions) -> Conditions:
        """Copy a batch, as one, without waiting for it."""
        device, pooled = self.base.device, conditions.pooled
        return Conditions(
            to_device(conditions.states, device),
            None if pooled is None else to_device(pooled, device),
        )

    def _find(self, prompt: str) -> Conditions | None:
        if self.stored is None:
            return self.known.get(prompt)
        if not self.stored.has(prompt):
            self.stored.write(prompt, self._encode([prompt]))
        return self.stored.read(prompt)
