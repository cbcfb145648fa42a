"""What frozen text encoders make of a run's captions, encoded once."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from inference.models import Conditions, DiffusionModel
from train.data.caching.content_cache import StoredStates

PROMPT_CACHE_BYTES = 2 * 2**30
"""More than this for text embeddings is not kept; they are then encoded in the step."""

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps a sequence in a progress bar with a title."""


class PromptStates:
    """What frozen text encoders make of captions; encodes those that it does not know."""

    def __init__(self, base: DiffusionModel, stored: StoredStates | None = None) -> None:
        self.base = base
        self.stored = stored
        """Given, states are kept in files and not in memory."""
        self.known: dict[str, Conditions] = {}

    @torch.no_grad()
    def fill(
        self,
        prompts: list[str],
        track: Track,
        batch_size: int = 64,
        share: tuple[int, int] = (0, 1),
    ) -> bool:
        """Encodes the captions beforehand, unless they would take too much memory.

        In files there is room for all; with `share` as for `cache_latents`, each process fills in
        a part of those that are missing.

        Returns:
            Whether text encoders have no more to do with these captions.
        """
        if self.stored is not None:
            self.stored.cache.remember("text", self.base, self.stored.origin)
            rank, processes = share
            for prompt in track(prompts[rank::processes], "encoding captions"):
                if not self.stored.has(prompt):
                    self.stored.write(prompt, self.base.encode_prompts([prompt]))
            return True
        length, width = self.base.prompt_shape
        if len(prompts) * width * length * self.base.dtype.itemsize > PROMPT_CACHE_BYTES:
            return False
        for start in track(range(0, len(prompts), batch_size), "encoding captions"):
            chunk = prompts[start : start + batch_size]
            together = self.base.encode_prompts(chunk)
            each = [together[row : row + 1] for row in range(len(chunk))]
            if together.states.shape[1] > length:  # a caption over 75 tokens: at its own length
                each = [self.base.encode_prompts([prompt]) for prompt in chunk]
            self.known |= dict(zip(chunk, each, strict=True))
        return True

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Conditions:
        """The conditions of b prompts."""
        found = [self._find(prompt) for prompt in prompts]
        known = [one for one in found if one is not None]
        if len(known) < len(prompts) or len({one.states.shape for one in known}) > 1:
            return self.base.encode_prompts(prompts)
        return Conditions.cat(known)

    def _find(self, prompt: str) -> Conditions | None:
        if self.stored is None:
            return self.known.get(prompt)
        if not self.stored.has(prompt):
            self.stored.write(prompt, self.base.encode_prompts([prompt]))
        return self.stored.read(prompt).to(self.base.device)
