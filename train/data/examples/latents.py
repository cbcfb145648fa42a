"""Latents of a run's images or clips, encoded once."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.models import DiffusionModel
from inference.parallel import Ring
from train.common import ALONE, DataError, Share, encoded_at_once
from train.config import DataConfig
from train.data.caching import (
    THREADS,
    ContentCache,
    Paused,
    StoredLatents,
    Track,
    key_of,
    latents_kept,
    prefetch,
    vae_origin,
    write_behind,
)
from train.data.examples.examples import Examples
from train.data.pictures import CorruptImages, Known, picture_facts

NAMES_SHOWN = 8


def shown(names: Sequence[str]) -> str:
    """Return the names, shortened to the first ones if there are many."""
    more = f", … {len(names)} together" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def check_latents(mean: Tensor, std: Tensor, paths: Sequence[Path]) -> None:
    """Raise DataError, with the name of the image, if any latent is not finite.

    Args:
        mean: mean of each image's distribution, (b, …).
        std: its standard deviation, as `mean`.
        paths: the files of the images.
    """
    finite = torch.isfinite(mean).flatten(1).all(1) & torch.isfinite(std).flatten(1).all(1)
    if finite.all():
        return
    faulty = [str(path) for path, good in zip(paths, finite.tolist(), strict=True) if not good]
    raise DataError(
        f"latents are not finite: {shown(faulty)}. The VAE cannot encode this: check whether the "
        "image is intact; base_model.vae_precision=fp32 if the VAE is in half precision"
    )


def open_cache(config: DataConfig, output_dir: str) -> ContentCache | None:
    """Return the folder of `cache: disk`; None if nothing is stored in files."""
    if config.cache != "disk":
        return None
    return ContentCache(Path(config.cache_dir or Path(output_dir) / "cache"))


def cache_latents(
    examples: Examples,
    base: DiffusionModel,
    batch_size: int,
    track: Track,
    cache: ContentCache | None = None,
    share: Share = ALONE,
    paused: Paused | None = None,
) -> None:
    """Encode every image or clip once; with random crops or flips some of each (`variants`).

    On a CPU, in memory, that can wait until a step needs it: there is no other device that the VAE
    would have to leave. Then the first step need not wait for the last image.

    Args:
        examples: get the cached latents, which replace their pixels.
        base: the base model, whose VAE encodes.
        batch_size: how many of one shape are encoded at once in memory; large ones singly.
        track: shows progress.
        cache: with `cache: disk`, the folder from `open_cache`.
        share: this process's part: each encodes a share of what is missing, and gets the latents of
            the others; with a folder all must wait for each other before the first example is read.
        paused: if given, encoding may wait until an example is needed, inside this context.
    """
    if not examples.config.caches_latents:
        return
    if examples.config.cache == "disk":
        assert cache is not None
        examples.latents = _latents_on_disk(examples, base, cache, track, share)
    elif paused is not None and can_wait(examples, base):
        check_readable(examples)
        examples.latents = LatentsOnDemand(examples, base, batch_size, paused, share.ring)
    else:
        examples.latents = _latents_in_memory(examples, base, batch_size, track, share)


@torch.no_grad()
def _latents_in_memory(
    examples: Examples, base: DiffusionModel, batch_size: int, track: Track, share: Share
) -> list[dict[str, Tensor]]:
    found, ring = CorruptImages(len(examples), what=examples.kind), share.ring
    chunks = list(_alike(examples, batch_size))
    order = [row for chunk in chunks[share.place :: share.count] for row in chunk]
    with prefetch(examples.content_of_row, order, _depth(examples)) as prepared:

        def encode(chunk: list[int]) -> tuple[dict[int, dict[str, Tensor]], list[str]]:
            """Return the latents, unless files are corrupt; then only search for more."""
            contents, corrupt = [], CorruptImages(len(chunk), what=examples.kind)
            for _ in chunk:
                with corrupt.gathered():
                    contents.append(next(prepared).result())
            found.messages += [one for one in corrupt.messages if one not in found.messages]
            if _any(ring, base, bool(found.messages)):
                return {}, corrupt.messages
            return _encoded(examples, base, chunk, contents, ring), []

        kept: dict[int, dict[str, Tensor]] = {}
        encoded = share.divided(
            chunks, encode, track=lambda rounds: track(rounds, "encoding pictures")
        )
        for latents, messages in encoded:
            kept |= latents
            found.messages += [one for one in messages if one not in found.messages]
    _refuse(found, base, ring)
    return [kept[row] for row in range(len(examples.owners))]


def _together(base: DiffusionModel, pixels: Tensor, ring: Ring | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents, encoded by all processes of a ring."""
    if ring is None:
        return base.encode_images(pixels)
    with base.frames_shared(ring):
        return base.encode_images(pixels)


def _any(ring: Ring | None, base: DiffusionModel, flag: bool) -> bool:
    """Return whether a flag is set, in any of the processes that encode together."""
    return flag if ring is None else ring.any(flag, base.device)


def _refuse(corrupt: CorruptImages, base: DiffusionModel, ring: Ring | None) -> None:
    """Raise DataError if files are corrupt, for any of the processes that encode together."""
    is_faulty = _any(ring, base, bool(corrupt.messages))
    corrupt.refuse()
    if is_faulty:
        raise DataError("another process cannot read a file that this one has read")


def _encoded(
    examples: Examples,
    base: DiffusionModel,
    chunk: Sequence[int],
    contents: Sequence[dict[str, Tensor]],
    ring: Ring | None,
) -> dict[int, dict[str, Tensor]]:
    """Return what replaces the pixels in rows of one shape, which are encoded at once."""
    mean, std = _together(base, torch.stack([one.pop("pixels") for one in contents]), ring)
    indices = examples.owners[chunk].tolist()
    check_latents(mean, std, [examples.pictures[index].path for index in indices])
    encoded = latents_kept(mean, std, examples.config.latent_sampling, examples.seed, indices)
    return {
        row: content | {name: value[place] for name, value in encoded.items()}
        for place, (row, content) in enumerate(zip(chunk, contents, strict=True))
    }


def can_wait(examples: Examples, base: DiffusionModel) -> bool:
    """Return whether images may be encoded in the order of the steps, between them.

    Not those of containers and streams, which are read in their own order; and a loader's workers
    have no base model.
    """
    config, pictures = examples.config, examples.pictures
    in_order = config.streaming is not None or not all(one.path.exists() for one in pictures)
    return base.device.type == "cpu" and config.num_workers == 0 and not in_order


def check_readable(examples: Examples) -> None:
    """Decode every example.

    Raises:
        DataError: files are corrupt.
    """
    corrupt = CorruptImages(len(examples), what=examples.kind)
    with prefetch(examples.content, range(len(examples)), _depth(examples)) as prepared:
        for content in prepared:
            with corrupt.gathered():
                content.result()
    corrupt.refuse()


class LatentsOnDemand:
    """Latents of every image or clip of a run, by row, encoded when a step first needs one.

    The last digits depend on what is encoded at once: the groups are those of encoding all in
    advance.
    """

    def __init__(
        self,
        examples: Examples,
        base: DiffusionModel,
        batch_size: int,
        paused: Paused,
        ring: Ring | None = None,
    ) -> None:
        self.examples = examples
        self.base = base
        self.paused = paused
        self.ring = ring
        self.chunks = {row: chunk for chunk in _alike(examples, batch_size) for row in chunk}
        """The rows that are encoded together with one."""
        self.kept: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.chunks)

    @torch.no_grad()
    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Return the tensors that replace the pixels of an example in a batch.

        Raises:
            DataError: an image cannot be read, or its latents are not finite.
        """
        if row not in self.kept:
            chunk, depth = self.chunks[row], _depth(self.examples)
            encoding = prefetch(self.examples.content_of_row, chunk, depth)
            with self.paused(), encoding as prepared:
                contents = [one.result() for one in prepared]
                self.kept |= _encoded(self.examples, self.base, chunk, contents, self.ring)
        return self.kept[row]


def _depth(examples: Examples) -> int:
    """Return how many examples are decoded in advance: clips take much memory."""
    return 2 if len(examples.shape(0)) > 2 else 2 * THREADS


def _alike(examples: Examples, batch_size: int) -> Iterator[list[int]]:
    """Yield groups of rows of one shape that are encoded at once, each in order."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for row, index in enumerate(examples.owners.tolist()):
        shapes.setdefault(examples.shape(index), []).append(row)
    for shape, rows in shapes.items():
        size = encoded_at_once(shape, batch_size)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


@torch.no_grad()
def _latents_on_disk(
    examples: Examples,
    base: DiffusionModel,
    cache: ContentCache,
    track: Track,
    share: Share,
) -> StoredLatents:
    """Encode one example at a time, so that the result does not depend on the others.

    What another run has encoded meanwhile is kept; each run starts at another entry.
    """
    vae, ring = vae_origin(base), share.ring
    cache.remember("vae", base, vae)
    keys = latents_keys(examples, vae)
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    own = _shared_out(examples, first, share)
    missing = [key for key in own if not cache.has(key)]
    if ring is not None:  # those that encode together must encode the same
        missing = ring.of_first(missing)
    elif not share.is_apart:
        there = share.of_first(lambda: {key for key in first if cache.has(key)})
        missing = [key for key in own if key not in there]
    owners = {key: int(examples.owners[first[key]]) for key in missing}
    corrupt = CorruptImages(len({*owners.values()}), what=examples.kind)

    def prepare(key: str) -> dict[str, Tensor] | None:
        known = ring is None and share.is_apart and cache.has(key)
        return None if known else examples.content_of_row(first[key])

    with (
        prefetch(prepare, missing, _depth(examples)) as prepared,
        write_behind(cache.write) as write,
    ):
        for key in track(missing, "encoding pictures"):
            content = None
            with corrupt.gathered():
                content = next(prepared).result()
            is_over = content is None or bool(corrupt.messages)  # then only search for more
            if _any(ring, base, is_over) or content is None:
                continue
            mean, std = _together(base, content.pop("pixels")[None], ring)
            check_latents(mean, std, [examples.pictures[owners[key]].path])
            if share.speaks and (ring is None or ring.is_first):
                write(key, content | {"mean": mean[0].cpu(), "std": std[0].cpu()})
    _refuse(corrupt, base, ring)
    sampling = examples.config.latent_sampling
    return StoredLatents(cache, keys, examples.owners, sampling, examples.seed)


def _shared_out(examples: Examples, first: dict[str, int], share: Share) -> list[str]:
    """Return what a process encodes: streamed shards in order, else entries from anywhere.

    Args:
        examples: the examples of the run.
        first: the first row of each key.
        share: this process's part.
    """
    rank, processes = share.place, share.count
    if examples.config.streaming is not None:
        ordered, count = sorted(first, key=first.__getitem__), len(first)
        return ordered[rank * count // processes : (rank + 1) * count // processes]
    own = sorted(first)[rank::processes]
    start = os.getpid() * 7919 % max(len(own), 1) if share.is_apart else 0
    return own[start:] + own[:start]


def latents_keys(examples: Examples, vae: dict[str, Any]) -> list[str]:
    """Return the key of each row of latents in the cache, given the result of `vae_origin`.

    Raises:
        DataError: files cannot be read.
    """
    pictures = examples.pictures
    paths = [picture.path for picture in pictures]
    own = {one.mask: None for one in pictures if one.mask is not None}
    rows = {mask: len(paths) + row for row, mask in enumerate(own)}
    files, keys = picture_facts([*paths, *own], Known.DIGEST).check(), []
    for row in range(len(examples.owners)):
        index, variant = examples.of_row(row)
        picture = pictures[index]
        origin = {**vae, **examples.origin(index, variant), "file": files.digest(index)}
        if examples.has_masks:
            mask, source = picture.mask, examples.masks(index).source
            origin["mask"] = source if mask is None else files.digest(rows[mask])
        keys.append(key_of("latents", origin))
    return keys
