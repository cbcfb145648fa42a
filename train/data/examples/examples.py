"""Examples by sample index."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from train.common import DataError, derive_seed
from train.config import (
    FILEWORDS,
    CaptionConfig,
    DataConfig,
    MaskConfig,
    PictureBucketsConfig,
    Size,
    SubsetConfig,
)
from train.data.examples.layout import Layout, ResizeRule, assign_buckets, paired_class_images
from train.data.examples.masks import mask_pixels, mask_shares, mask_weights
from train.data.examples.picture_buckets import Place, SizeRule
from train.data.examples.stream import BucketStream, Pace, PairedStream, Stream
from train.data.examples.transforms import Crop, crop_image
from train.data.examples.variants import Variant, variants_of
from train.data.examples.windows import WindowStream, windows_of
from train.data.pictures import READING, random_mask
from train.data.sources import (
    Picture,
    StepInfo,
    Subset,
    all_captions,
    default_subset,
    has_countless,
    make_caption,
    slots_of,
)


class KeptLatents(Protocol):
    """The tensors that replace the pixels of each image: a list, files, or encoded on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Tensor]: ...


WHOLE = MaskConfig()
"""Settings of images without a mask, in a batch with masks."""


class Examples(Dataset[dict[str, Any]]):
    """The example at each sample index, as a function of (seed, epoch, slot).

    An image has one slot per repeat in an epoch; without repeats slot and index are the same. Class
    images have their own stream, with negative sample indices, and are at the end of `pictures` and
    `slots`.
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
        whole = default_subset(config, template)
        self.subsets = {subset.name: subset for subset in (whole, *subsets)}
        self.slots = slots_of(pictures, self.subsets, 0)
        """Index of the image in each slot of an epoch, int32."""
        self.num_own = len(pictures)
        """Number of images without class images."""
        self.stream: Stream | BucketStream | WindowStream = Stream(seed, len(self.slots))
        self.pace = Pace()
        """The steps of sample indices, for captions that depend on the step."""
        self.class_stream: Stream | PairedStream | None = None
        self.layout: Layout | None = None
        """Sizes of the images; None if all are square."""
        self.latents: KeptLatents | None = None
        """Cached tensors of every image's variants (`owners`), which replace its pixels."""
        self.inpainting_masks: Literal["random", "files"] | None = None
        """Where the masks of an inpainting model come from; None for other models."""
        self.takes_scores = False
        """Whether a refiner's aesthetic score replaces the last two numbers of `sizes`."""
        self.latent_factor = 8
        """Pixels per latent along each side; masks are scaled to the size of latents."""

    def add_class_pictures(self, pictures: Sequence[Picture]) -> None:
        """Add class images, one of which is paired with every example."""
        if self.layout is not None:
            pictures, layout = paired_class_images(pictures, self._size_groups())
            self.layout += layout
        own = slots_of(pictures, self.subsets, len(self.pictures))
        self.pictures += pictures
        self.slots = np.concatenate([self.slots, own])
        if isinstance(self.stream, BucketStream):
            assert self.layout is not None
            self.class_stream = PairedStream(self.seed, self.stream, self.layout.numbers[own])
        else:
            self.class_stream = Stream(derive_seed(self.seed, "class order"), len(own))

    def assign_buckets(self, size_step: int, batch_size: int, first_position: int = 0) -> None:
        """Assign a size to every image if the recipe has several; to be called before class images.

        A micro-batch then has one size.

        Args:
            size_step: multiple of the base model's sizes, in pixels.
            batch_size: examples of a micro-batch.
            first_position: sample index of the first micro-batch.

        Raises:
            InputError: the base model cannot take the recipe's sizes, or images are too small.
        """
        names = [picture.subset for picture in self.pictures]
        rules = {name: self._resize_rule(name, size_step) for name in dict.fromkeys(names)}
        square = SizeRule(None, self.resolution, size_step)
        paths, numbers = [picture.path for picture in self.pictures], None
        if not all(
            rule == replace(square, key=rule.key) and resize != "own_size"
            for rule, resize in rules.values()
        ):
            self.layout = assign_buckets(paths, names, rules)
            if len(self.layout.sizes) > 1:
                numbers = self.layout.numbers[self.slots]
                self.stream = BucketStream(self.seed, numbers, batch_size, first_position)
        if (streaming := self.config.streaming) is not None:
            windows = windows_of(paths, self.seed, streaming.window)
            if windows is not None:
                places = windows[self.slots], numbers, batch_size, first_position
                self.stream = WindowStream(self.seed, *places)

    def _resize_rule(self, name: str, size_step: int) -> ResizeRule:
        """Return how images of a subset are assigned to sizes."""
        own, whole = self.subsets[name].config, self.subsets[""].config
        is_own = (own.resolution, own.buckets) != (whole.resolution, whole.buckets)
        key = f"data.subsets.{name}" if is_own else "data"
        return SizeRule(own.buckets, own.resolution or self.resolution, size_step, key), own.resize

    def _size_groups(self) -> list[list[Size]]:
        """Return the sizes of each resolution and its buckets, shared ones with the first."""
        kinds: list[tuple[int, PictureBucketsConfig | None]] = []
        groups: list[list[Size]] = []
        seen: set[Size] = set()
        for index in range(self.num_own):
            if (size := self.size(index).size) in seen:
                continue
            seen.add(size)
            own = self.settings(index)
            kind = own.resolution or self.resolution, own.buckets
            if kind not in kinds:
                kinds.append(kind)
                groups.append([])
            groups[kinds.index(kind)].append(size)
        return [sorted(sizes) for sizes in groups]

    def __len__(self) -> int:
        return len(self.pictures)

    def subset(self, index: int) -> Subset:
        """Return the subset of an image; without subsets, that of all images."""
        return self.subsets[self.pictures[index].subset]

    def settings(self, index: int) -> SubsetConfig:
        """Return the settings by which an image becomes an example."""
        return self.subset(index).config

    def variants(self, index: int) -> list[Variant]:
        """Return the variants of an image that are cached."""
        return variants_of(self.settings(index), self.config.cached_crops)

    @cached_property
    def first_rows(self) -> np.ndarray:
        """Return the cache's row of each image's first variant, and behind them all rows' number.

        Class images must have been added.
        """
        counts = [len(self.variants(index)) for index in range(len(self))]
        return np.cumsum([0, *counts])

    @cached_property
    def owners(self) -> np.ndarray:
        """Return the index of the image of each row of the cache."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_rows))

    def of_row(self, row: int) -> tuple[int, Variant]:
        """Return the image and the variant of a row of the cache."""
        index = int(self.owners[row])
        return index, self.variants(index)[row - int(self.first_rows[index])]

    def content_of_row(self, row: int) -> dict[str, Tensor]:
        """Return the tensors of a variant, as `content`."""
        index, variant = self.of_row(row)
        return self.content(index, variant=variant)

    def row(self, position: int) -> int:
        """Return the row of the cache at a sample index."""
        epoch, slot = self.place(position)
        return self.row_in(int(self.slots[slot]), epoch, slot)

    def row_in(self, index: int, epoch: int, slot: int) -> int:
        """Return the cache's row of an image in an epoch, in one of its slots."""
        variants, first = self.variants(index), int(self.first_rows[index])
        if len(variants) == 1:
            return first
        return first + variants.index(self.variant(index, epoch, slot))

    def variant(self, index: int, epoch: int, slot: int) -> Variant:
        """Return the variant of an image in an epoch, in one of its slots.

        Without random crops it is mirrored whenever it is without the cache.
        """
        settings, draw = self.settings(index), self.draw_of(epoch, slot)
        crop = draw.randrange(self.config.cached_crops) if settings.crops_anywhere else 0
        return Variant(crop, draw.random() < settings.flip)

    def draw_of(self, epoch: int, slot: int) -> random.Random:
        """Return the source of random crops, flips and colours in an epoch and slot."""
        return random.Random(derive_seed(self.seed, "augmentation", epoch, slot))

    def crop_seed(self, index: int, variant: Variant) -> int:
        """Return the seed of the place of a crop that is cached."""
        return derive_seed(self.seed, "cached crop", index, variant.crop)

    def crop(
        self, index: int, epoch: int = 0, slot: int | None = None, variant: Variant | None = None
    ) -> Crop:
        """Return the crop of an image in an epoch, in one of its slots; or that of a variant."""
        settings, draw = self.settings(index), self.draw_of(epoch, index if slot is None else slot)
        if variant is not None:
            settings = variant.settings(settings)
            draw = random.Random(self.crop_seed(index, variant))
        return crop_image(self.pictures[index].path, settings, self.size(index), draw)

    def size(self, index: int) -> Place:
        """Return the size of an image's example, and of the scaled image."""
        if self.layout is None:
            return Place(Size(self.resolution, self.resolution))
        return self.layout.place(index)

    @property
    def kind(self) -> str:
        """Return what messages call the examples."""
        return "pictures" if self.config.clips is None else "clips"

    def place(self, position: int) -> tuple[int, int]:
        """Return (epoch, slot) of a sample index."""
        if position >= 0:
            return self.stream[position]
        assert self.class_stream is not None
        epoch, slot = self.class_stream[~position]
        return epoch, self.stream.num_pictures + slot

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of an example in pixels; clips have their frames first."""
        return self.size(index).size

    def origin(self, index: int, variant: Variant) -> dict[str, Any]:
        """Return what determines the pixels of a variant, besides its file."""
        settings, scaled = self.settings(index), self.size(index).scaled
        place = {"place": self.crop_seed(index, variant)} if settings.crops_anywhere else {}
        return place | {
            "shape": list(self.shape(index)),
            "scaled": None if scaled is None else list(scaled),
            "resize": settings.resize,
            "resize_interpolation": settings.resize_interpolation,
            "crop": settings.crop,
            "flip": float(variant.is_mirrored),
            "background": settings.background,
            "reading": READING,
        }

    def content(
        self, index: int, epoch: int = 0, slot: int | None = None, variant: Variant | None = None
    ) -> dict[str, Tensor]:
        """Return the tensors of an image in an epoch, or of a variant: `pixels` and `sizes`.

        With masks also `mask`, before loss weights are computed.
        """
        return self.content_of(index, self.crop(index, epoch, slot, variant))

    def content_of(self, index: int, crop: Crop) -> dict[str, Tensor]:
        """Return the tensors of a crop of an image; see `content`."""
        content = {"pixels": crop.pixels, "sizes": crop.sizes}
        if self.has_masks:
            picture, factor = self.pictures[index], self.latent_factor
            content["mask"] = mask_shares(picture, crop, self.masks(index), factor)
        return content

    @property
    def has_masks(self) -> bool:
        """Return whether batches have masks; subsets without them have full weight."""
        return any(subset.config.masks is not None for subset in self.subsets.values())

    def masks(self, index: int) -> MaskConfig:
        """Return the mask settings of an image."""
        return self.settings(index).masks or WHOLE

    def pixels(self, index: int, epoch: int = 0) -> Tensor:
        """Return the pixels (3, height, width) of an image in an epoch."""
        return self.content(index, epoch)["pixels"]

    def prompt(self, index: int, epoch: int, step: int = 0, slot: int | None = None) -> str:
        """Return the caption of an image in an epoch, at a step, in one of its slots."""
        captions = self.pictures[index].captions or ("",)
        slot = index if slot is None else slot
        draw = random.Random(derive_seed(self.seed, "caption", epoch, slot))
        moment = StepInfo(epoch, step, self.pace.max_steps)
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
        kept = None if self.latents is None else self.latents[self.row_in(index, epoch, slot)]
        if self.inpainting_masks is None:
            example |= self.content(index, epoch, slot) if kept is None else kept
        else:
            variant = None if kept is None else self.variant(index, epoch, slot)
            crop = self.crop(index, epoch, slot, variant)
            example |= self.content_of(index, crop) if kept is None else kept
            example |= self.inpainting(position, index, crop)
        if self.takes_scores:
            score = torch.tensor([self.settings(index).aesthetic_score])
            example["sizes"] = torch.cat([example["sizes"][:4], score])
        if self.has_masks:
            example["mask"] = self.weights(example["mask"], position, self.masks(index))
        return example

    def inpainting(self, position: int, index: int, crop: Crop) -> dict[str, Tensor]:
        """Return an inpainting model's mask at a sample index, and the pixels that it leaves.

        As diffusers' training scripts and pipelines make them: masked pixels become grey, and the
        mask at the size of latents has the nearest pixels.
        """
        height, width = crop.pixels.shape[1:]
        if self.inpainting_masks == "random":
            seed = derive_seed(self.seed, "inpainting mask", position)
            mask = random_mask(random.Random(seed), height, width)
        else:
            mask = (mask_pixels(self.pictures[index], crop, self.masks(index)) >= 0.5).float()
        small = height // self.latent_factor, width // self.latent_factor
        return {
            "masked_pixels": crop.pixels * (1 - mask),
            "inpainting_mask": interpolate(mask[None], size=small)[0],
        }

    def weights(self, mask: Tensor, position: int, config: MaskConfig) -> Tensor:
        """Return the loss weights of a mask at a sample index."""
        draw = random.Random(derive_seed(self.seed, "unmasked", position))
        if draw.random() < config.unmasked_probability:
            return torch.ones_like(mask)
        return mask_weights(mask, config)

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]] | DataError:
        """Return the examples of a micro-batch, or the error of one of them.

        The error is a value, since an exception would leave a loader's worker as the text of a
        traceback.
        """
        try:
            return [self[position] for position in positions]
        except DataError as error:
            return error

    @property
    def changes_words(self) -> bool:
        """Return whether there are more captions than `all_prompts` can list."""
        return has_countless(
            (picture.captions or ("",), *self._caption_rules(picture)) for picture in self.pictures
        )

    def _caption_rules(self, picture: Picture) -> tuple[tuple[str, ...], CaptionConfig]:
        subset = self.subsets[picture.subset]
        return subset.template, subset.config.captions

    def all_prompts(self) -> list[str]:
        """Return every caption that can occur, sorted; not with `changes_words`."""
        texts = {
            text
            for picture in self.pictures
            for text in all_captions(picture.captions or ("",), *self._caption_rules(picture))
        }
        used = (self.subsets[name].config for name in {one.subset for one in self.pictures})
        if any(settings.captions.drops_captions for settings in used):
            texts.add("")
        return sorted(texts)
