"""Examples by position, their caches, and the loader of batches."""

import os
import random
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from inference.diffusion_model import DiffusionModel
from train.caption_config import CaptionConfig
from train.data.ahead import THREADS, ahead, behind
from train.data.captions import FILEWORDS, Moment, all_captions, has_countless, make_caption
from train.data.companions import CompanionStream
from train.data.content_cache import (
    ContentCache,
    StoredLatents,
    key_of,
    latents_kept,
    vae_origin,
)
from train.data.folder import DataError, Picture
from train.data.index import Known, picture_facts
from train.data.layout import Layout, companions, lay_out
from train.data.masks import mask_shares, mask_weights
from train.data.picture_buckets import Place, SizeRule
from train.data.pictures import READING
from train.data.prompt_states import Track
from train.data.soundness import Broken
from train.data.stream import BucketStream, Pace, Stream
from train.data.subsets import Subset, slots_of, the_whole
from train.data.transforms import Piece, cut_piece
from train.data_config import DataConfig
from train.mask_config import MaskConfig
from train.picture_bucket_config import Size
from train.randomness import derive_seed
from train.subset_config import SubsetConfig

PIXELS_AT_ONCE = 2**22
"""Clips of more pixels than this together are not encoded at once."""

WHOLE = MaskConfig()
"""That of pictures which count everywhere, beside others with masks."""


class Examples(Dataset[dict[str, Any]]):
    """The example at each position of the stream, as a function of (seed, epoch, slot).

    A picture has as many slots as an epoch has it; without repeats slot and index are the same.
    Class pictures have a stream of their own, at the positions below 0, and stand behind all
    others in `pictures` and `slots`.
    """

    def __init__(
        self,
        pictures: list[Picture],
        config: DataConfig,
        resolution: int,
        seed: int,
        template: Sequence[str] = (FILEWORDS,),
        subsets: Sequence[Subset] = (),
    ) -> None:
        self.pictures = list(pictures)
        self.config = config
        self.resolution = resolution
        self.seed = seed
        whole = the_whole(config, template)
        self.subsets = {subset.name: subset for subset in (whole, *subsets)}
        self.slots = slots_of(pictures, self.subsets, 0)
        """Index of the picture in each place of an epoch, int32."""
        self.num_own = len(pictures)
        """Pictures without those of classes."""
        self.stream: Stream | BucketStream = Stream(seed, len(self.slots))
        self.pace = Pace()
        """Which step of the run a position belongs to, where captions follow it."""
        self.class_stream: Stream | CompanionStream | None = None
        self.layout: Layout | None = None
        """Sizes of the pictures; None where all are squares."""
        self.latents: list[dict[str, Tensor]] | StoredLatents | None = None
        """What is cached of every picture, in the place of its pixels."""
        self.latent_factor = 8
        """Pixels per latent along each side; masks are brought to the size of latents."""

    def add_class_pictures(self, pictures: Sequence[Picture]) -> None:
        """Pictures of the subjects' classes, to come along with every example."""
        if self.layout is not None:
            pictures, layout = companions(pictures, self.layout.sizes)
            self.layout += layout
        own = slots_of(pictures, self.subsets, len(self.pictures))
        self.pictures += pictures
        self.slots = np.concatenate([self.slots, own])
        if isinstance(self.stream, BucketStream):
            assert self.layout is not None
            self.class_stream = CompanionStream(self.seed, self.stream, self.layout.numbers[own])
        else:
            self.class_stream = Stream(derive_seed(self.seed, "class order"), len(own))

    def lay_out(self, size_step: int, batch_size: int, first_position: int = 0) -> None:
        """Gives every picture its size, where the recipe asks for several; before class pictures.

        A micro-batch is then of one size.

        Args:
            size_step: pixels that the base model's sizes are multiples of.
            batch_size: of the micro-batches.
            first_position: where they begin in the stream.

        Raises:
            InputError: the base model cannot take the recipe's sizes, or pictures are too small.
        """
        resizes = [self.settings(index).resize for index in range(len(self))]
        if self.config.buckets is None and "own_size" not in resizes:
            return
        rule = SizeRule(self.config.buckets, self.resolution, size_step)
        self.layout = lay_out([picture.path for picture in self.pictures], resizes, rule)
        if len(self.layout.sizes) > 1:
            numbers = self.layout.numbers[self.slots]
            self.stream = BucketStream(self.seed, numbers, batch_size, first_position)

    def __len__(self) -> int:
        return len(self.pictures)

    def subset(self, index: int) -> Subset:
        """The subset of a picture; without subsets, what stands for all pictures."""
        return self.subsets[self.pictures[index].subset]

    def settings(self, index: int) -> SubsetConfig:
        """How a picture becomes an example."""
        return self.subset(index).config

    def piece(self, index: int, epoch: int = 0, slot: int | None = None) -> Piece:
        """What is cut out of a picture in an epoch, in one of its slots."""
        slot = index if slot is None else slot
        draw = random.Random(derive_seed(self.seed, "augmentation", epoch, slot))
        path, settings = self.pictures[index].path, self.settings(index)
        return cut_piece(path, settings, self.size(index), draw)

    def size(self, index: int) -> Place:
        """The size of a picture's example, and how it is scaled for that."""
        if self.layout is None:
            return Place(Size(self.resolution, self.resolution))
        return self.layout.place(index)

    @property
    def kind(self) -> str:
        """What messages call them."""
        return "pictures" if self.config.clips is None else "clips"

    def place(self, position: int) -> tuple[int, int]:
        """(epoch, slot) at a position of the stream."""
        if position >= 0:
            return self.stream[position]
        assert self.class_stream is not None
        epoch, slot = self.class_stream[~position]
        return epoch, self.stream.num_pictures + slot

    def shape(self, index: int) -> tuple[int, ...]:
        """Pixels of an example along its sides; of a clip with its frames before them."""
        return self.size(index).size

    def origin(self, index: int) -> dict[str, Any]:
        """What the pixels of an example that is not random follow from, besides its file."""
        settings, scaled = self.settings(index), self.size(index).scaled
        return {
            "shape": list(self.shape(index)),
            "scaled": None if scaled is None else list(scaled),
            "resize": settings.resize,
            "resize_interpolation": settings.resize_interpolation,
            "crop": settings.crop,
            "flip": settings.flip,
            "background": settings.background,
            "reading": READING,
        }

    def content(self, index: int, epoch: int = 0, slot: int | None = None) -> dict[str, Tensor]:
        """What a batch holds of a picture in an epoch: `pixels`, and with them `sizes`.

        With masks also `mask`, as white as it is.
        """
        piece = self.piece(index, epoch, slot)
        content = {"pixels": piece.pixels, "sizes": piece.sizes}
        if self.has_masks:
            picture, factor = self.pictures[index], self.latent_factor
            content["mask"] = mask_shares(picture, piece, self.masks(index), factor)
        return content

    @property
    def has_masks(self) -> bool:
        """Whether batches have masks: where only some subsets have them, others count as whole."""
        return any(subset.config.masks is not None for subset in self.subsets.values())

    def masks(self, index: int) -> MaskConfig:
        """What a picture's mask is, and what its places count."""
        return self.settings(index).masks or WHOLE

    def pixels(self, index: int, epoch: int = 0) -> Tensor:
        """(3, height, width) of a picture in an epoch."""
        return self.content(index, epoch)["pixels"]

    def prompt(self, index: int, epoch: int, step: int = 0, slot: int | None = None) -> str:
        """The caption of a picture in an epoch, at a step, in one of its slots."""
        captions = self.pictures[index].captions or ("",)
        slot = index if slot is None else slot
        draw = random.Random(derive_seed(self.seed, "caption", epoch, slot))
        moment = Moment(epoch, step, self.pace.max_steps)
        subset = self.subset(index)
        return make_caption(captions, subset.config.captions, draw, subset.template, moment)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, slot = self.place(position)
        index = int(self.slots[slot])
        example: dict[str, Any] = {
            "positions": position,
            "indices": index,
            "names": str(self.pictures[index].path),
            "weight": torch.tensor(self.settings(index).loss_weight),
            "prompts": self.prompt(index, epoch, self.pace.step(position), slot),
        }
        kept = self.latents
        example |= self.content(index, epoch, slot) if kept is None else kept[index]
        if self.has_masks:
            example["mask"] = self.weights(example["mask"], position, self.masks(index))
        return example

    def weights(self, mask: Tensor, position: int, config: MaskConfig) -> Tensor:
        """What each place of a mask counts at a position of the stream."""
        draw = random.Random(derive_seed(self.seed, "unmasked", position))
        if draw.random() < config.unmasked_probability:
            return torch.ones_like(mask)
        return mask_weights(mask, config)

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]] | DataError:
        """The examples of a micro-batch, or what is wrong with one of them.

        As a value, since an exception would leave a loader's worker as the text of a traceback.
        """
        try:
            return [self[position] for position in positions]
        except DataError as error:
            return error

    @property
    def changes_words(self) -> bool:
        """Whether there are more captions than `all_prompts` could list."""
        return has_countless(
            (picture.captions or ("",), *self._caption_rules(picture)) for picture in self.pictures
        )

    def _caption_rules(self, picture: Picture) -> tuple[tuple[str, ...], CaptionConfig]:
        subset = self.subsets[picture.subset]
        return subset.template, subset.config.captions

    def all_prompts(self) -> list[str]:
        """Every caption that can come up, sorted; unless `changes_words`."""
        texts = {
            text
            for picture in self.pictures
            for text in all_captions(picture.captions or ("",), *self._caption_rules(picture))
        }
        used = (self.subsets[name].config for name in {one.subset for one in self.pictures})
        if any(settings.captions.drops_captions for settings in used):
            texts.add("")
        return sorted(texts)


def open_cache(config: DataConfig, output_dir: str) -> ContentCache | None:
    """The folder of `cache: disk`; None where nothing is kept in files."""
    if config.cache != "disk":
        return None
    return ContentCache(Path(config.cache_dir or Path(output_dir) / "cache"))


def cache_latents(
    examples: Examples,
    base: DiffusionModel,
    batch_size: int,
    track: Track,
    cache: ContentCache | None = None,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Encodes every picture or clip once, if nothing random stands before the encoder.

    Args:
        examples: given what is cached; later they have it in the place of pixels.
        base: whose VAE encodes.
        batch_size: so many of one shape are encoded at once in memory, large ones one at a time.
        track: shows progress.
        cache: with `cache: disk`, the folder from `open_cache`.
        share: (rank, processes): with a folder, each process encodes a share of what is not there
            yet; all must wait for each other before the first example is asked for.
    """
    if examples.config.cache == "off" or examples.config.is_random:
        return
    if examples.config.cache == "disk":
        assert cache is not None
        examples.latents = _latents_on_disk(examples, base, cache, track, share)
    else:
        examples.latents = _latents_in_memory(examples, base, batch_size, track)


@torch.no_grad()
def _latents_in_memory(
    examples: Examples, base: DiffusionModel, batch_size: int, track: Track
) -> list[dict[str, Tensor]]:
    kept: dict[int, dict[str, Tensor]] = {}
    broken = Broken(len(examples), what=examples.kind)
    chunks = list(_alike(examples, batch_size))
    order = [index for chunk in chunks for index in chunk]
    with ahead(examples.content, order, _depth(examples)) as prepared:
        for chunk in track(chunks, "encoding pictures"):
            contents = []
            for _ in chunk:
                with broken.gathered():
                    contents.append(next(prepared).result())
            if broken.messages:  # only looks for more
                continue
            mean, std = base.encode_images(torch.stack([one.pop("pixels") for one in contents]))
            sampling = examples.config.latent_sampling
            encoded = latents_kept(mean, std, sampling, examples.seed, chunk)
            for row, (index, content) in enumerate(zip(chunk, contents, strict=True)):
                kept[index] = content | {name: value[row] for name, value in encoded.items()}
    broken.refuse()
    return [kept[index] for index in range(len(examples))]


def _depth(examples: Examples) -> int:
    """How many examples are decoded in advance: clips take much memory."""
    return 2 if len(examples.shape(0)) > 2 else 2 * THREADS


def _alike(examples: Examples, batch_size: int) -> Iterator[list[int]]:
    """Examples of one shape that are encoded at once, each chunk in their order."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index in range(len(examples)):
        shapes.setdefault(examples.shape(index), []).append(index)
    for shape, indices in shapes.items():
        is_clip = len(shape) > 2
        size = max(1, min(batch_size, PIXELS_AT_ONCE // prod(shape))) if is_clip else batch_size
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


@torch.no_grad()
def _latents_on_disk(
    examples: Examples,
    base: DiffusionModel,
    cache: ContentCache,
    track: Track,
    share: tuple[int, int],
) -> StoredLatents:
    """One at a time, so that what is kept does not depend on what it was encoded with.

    What another run has encoded meanwhile is left as it is; each run begins at another place.
    """
    vae = vae_origin(base)
    cache.remember("vae", base, vae)
    keys = latents_keys(examples, vae)
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    rank, processes = share
    missing = [key for key in sorted(first)[rank::processes] if not cache.has(key)]
    start = os.getpid() * 7919 % max(len(missing), 1)
    missing = missing[start:] + missing[:start]
    broken = Broken(len(missing), what=examples.kind)

    def prepare(key: str) -> dict[str, Tensor] | None:
        return None if cache.has(key) else examples.content(first[key])

    with ahead(prepare, missing, _depth(examples)) as prepared, behind(cache.write) as write:
        for key in track(missing, "encoding pictures"):
            content = None
            with broken.gathered():
                content = next(prepared).result()
            if content is None or broken.messages:  # with a broken one it only looks for more
                continue
            mean, std = base.encode_images(content.pop("pixels")[None])
            write(key, content | {"mean": mean[0].cpu(), "std": std[0].cpu()})
    broken.refuse()
    return StoredLatents(cache, keys, examples.config.latent_sampling, examples.seed)


def latents_keys(examples: Examples, vae: dict[str, Any]) -> list[str]:
    """The names under which a cache keeps the examples' latents, by what `vae_origin` says.

    Raises:
        DataError: files that cannot be read.
    """
    pictures = examples.pictures
    paths = [picture.path for picture in pictures]
    own = {one.mask: None for one in pictures if one.mask is not None}
    rows = {mask: len(paths) + row for row, mask in enumerate(own)}
    files, keys = picture_facts([*paths, *own], Known.DIGEST).check(), []
    for index, picture in enumerate(pictures):
        origin = {**vae, **examples.origin(index), "file": files.digest(index)}
        if examples.has_masks:
            mask, source = picture.mask, examples.masks(index).source
            origin["mask"] = source if mask is None else files.digest(rows[mask])
        keys.append(key_of("latents", origin))
    return keys
