"""Prompt embeddings from frozen text encoders, encoded once per caption."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from inference.models import Conditions, DiffusionModel
from inference.runtime import to_device
from train.common import ALONE, Share
from train.data.caching.content_cache import StoredStates

PROMPT_CACHE_BYTES = 2 * 2**30
"""Maximum size of cached prompt embeddings; beyond it they are encoded in the step."""

DEVICE_BYTES = 2**28
"""Size of cached prompt embeddings up to which they stay on the device; beyond it in memory."""

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wrap a sequence in a progress bar with a title."""

Paused = Callable[[], AbstractContextManager[None]]
"""Stop the clock of the steps inside a context, for what is encoded between them."""


class PromptStates:
    """Prompt embeddings from frozen text encoders; encodes prompts that are not cached."""

    def __init__(self, base: DiffusionModel, stored: StoredStates | None = None) -> None:
        self.base = base
        self.stored = stored
        """If set, embeddings are stored in files instead of memory."""
        self.known: dict[str, Conditions] = {}
        self._encoded: dict[tuple[str, ...], list[Conditions]] = {}
        """By the prompts that were encoded together, on which the last digits depend."""
        self._waiting: dict[str, tuple[str, ...]] = {}
        """Prompts that are encoded when a step needs them -> those that are encoded with them."""
        self._paused: Paused = nullcontext

    @torch.no_grad()
    def fill(
        self,
        prompts: list[str],
        track: Track,
        batch_size: int = 64,
        share: Share = ALONE,
        paused: Paused | None = None,
    ) -> bool:
        """Encode the captions in advance, unless they would take too much memory.

        On a CPU, in memory, that can wait until a step needs one; see `cache_latents`.

        What an earlier stage has encoded is used again.
        Files have no such limit. With `share` as for `cache_latents`, each process encodes a part
        of those that are missing.

        Args:
            prompts: the captions.
            track: shows progress.
            batch_size: how many are encoded at once in memory.
            share: this process's part.
            paused: if given, encoding may wait until a caption is needed, inside this context.

        Returns:
            Whether these captions need the text encoders no longer; in memory not if they are of
            several lengths, which a batch encodes together.
        """
        if self.stored is not None:
            self.stored.cache.remember("text", self.base, self.stored.origin)
            self._fill_files(self.stored, prompts, track, share)
            return True
        length, width = self.base.prompt_shape
        size = len(prompts) * width * length * self.base.dtype.itemsize
        if size > PROMPT_CACHE_BYTES:
            return False
        starts = range(0, len(prompts), batch_size)
        chunks = [tuple(prompts[start : start + batch_size]) for start in starts]
        missing = [chunk for chunk in chunks if chunk not in self._encoded]
        for chunk in chunks:
            self.known |= dict(zip(chunk, self._encoded.get(chunk, ()), strict=False))
        if paused is not None and self.base.device.type == "cpu":
            self._wait_with(missing, paused)
            return False
        encoded = share.divided(
            missing,
            lambda chunk: self._encode_each(chunk, on_device=share.processes == 1),
            track=lambda rounds: track(rounds, "encoding captions"),
        )
        for chunk, each in zip(missing, encoded, strict=True):
            self._keep(chunk, each, on_device=size <= DEVICE_BYTES)
        return len({self.known[prompt].states.shape for prompt in prompts}) <= 1

    def _wait_with(self, chunks: Sequence[tuple[str, ...]], paused: Paused) -> None:
        """Encode each of these groups when a step first needs one of its prompts."""
        self._paused = paused
        self._waiting = {prompt: chunk for chunk in chunks for prompt in chunk}
        for prompt in self._waiting:
            self.known.pop(prompt, None)  # encoded among others in an earlier stage

    def _fill_files(
        self, stored: StoredStates, prompts: list[str], track: Track, share: Share
    ) -> None:
        """Write the embeddings of prompts that have no file."""
        known: set[str] = set()
        if not share.is_apart:  # those that encode together must encode the same
            known = share.of_first(lambda: {*filter(stored.has, prompts)})
        for prompt in track(prompts[share.place :: share.count], "encoding captions"):
            if prompt in known or (share.is_apart and stored.has(prompt)):
                continue
            states = self._encode([prompt])
            if share.speaks:
                stored.write(prompt, states)

    def _encode_each(self, chunk: tuple[str, ...], on_device: bool = True) -> list[Conditions]:
        """Encode prompts together; return the embeddings of each."""
        together = self._encode(chunk)
        each = [together[row : row + 1] for row in range(len(chunk))]
        if together.states.shape[1] > self.base.prompt_shape[0]:
            # A caption over 75 tokens: keep its own length.
            each = [self._encode([prompt]) for prompt in chunk]
        return each if on_device else [one.to("cpu") for one in each]

    def _keep(
        self, chunk: tuple[str, ...], each: Sequence[Conditions], on_device: bool = True
    ) -> None:
        """Keep the embeddings of prompts that were encoded together."""
        each = [one.to(self.base.device if on_device else "cpu") for one in each]
        self._encoded[chunk] = each
        self.known |= dict(zip(chunk, each, strict=True))

    def _encode(self, prompts: Sequence[str]) -> Conditions:
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
            if prompt not in self.known and prompt in self._waiting:
                with self._paused():
                    chunk = self._waiting[prompt]
                    self._keep(chunk, self._encode_each(chunk))
            return self.known.get(prompt)
        if not self.stored.has(prompt):
            self.stored.write(prompt, self._encode([prompt]))
        return self.stored.read(prompt)
