"""Typed options of data: where images and captions are, and how they become examples."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from inference.config import MOST_PIXELS
from inference.runtime import InputError
from train.config.clips import ClipDataConfig
from train.config.concepts import ConceptConfig, read_concepts_list
from train.config.containers import ContainerConfig, is_address
from train.config.examples import CaptionConfig, ColorJitterConfig, MaskConfig, PictureBucketsConfig
from train.config.rules import Faults, at_least, fraction

MOST_REPEATS = 100_000
"""Each repeat takes 4 bytes of memory per image."""


@dataclass
class ExampleConfig(ContainerConfig):
    """How an image and its caption become an example."""

    limits: ClassVar[dict[str, float]] = {"resolution": MOST_PIXELS}

    captions: CaptionConfig = field(default_factory=CaptionConfig)
    resolution: int | None = None
    """Side of the square examples in pixels; default: the base model's own size. With buckets, the
    square root of their area. Subsets may differ; a micro-batch has one size."""
    buckets: PictureBucketsConfig | None = None
    """If set, images keep their aspect ratios and are trained at several sizes (`buckets: {}` for
    kohya's). A micro-batch has one size; the last one of each size in an epoch is filled up with
    repeated images."""
    resize: Literal["cover", "none", "stretch", "fill", "own_size"] = "cover"
    """How an image is fitted to the size of its example. `cover` scales it until it covers the size
    (A1111: crop and resize); `none` crops without scaling. For images only: `stretch` changes the
    aspect ratio (just resize), `fill` scales the image to fit inside and repeats its edges around
    it (resize and fill), `own_size` keeps each image's own size, cropped to the model's multiple
    (do not resize images)."""
    resize_interpolation: Literal["lanczos", "bicubic", "bilinear", "area", "nearest"] = "lanczos"
    """Interpolation of scaled images (kohya: resize_interpolation)."""
    crop: Literal["center", "random"] = "center"
    """Position of the crop; the same for all frames of a clip."""
    flip: float = 0.0
    """Fraction of examples that are mirrored horizontally, clips as a whole."""
    background: Literal["white", "black", "gray", "random"] = "white"
    """Colour behind transparent images; `random` draws one for every example."""
    color_jitter: ColorJitterConfig | None = None
    """If set, colours are changed at random for every example (kohya: color_aug)."""
    masks: MaskConfig | None = None
    """If set, the loss is weighted by masks (`masks: {}` for mask files beside the images)."""
    aesthetic_score: float = 6.0
    """For SDXL's refiner, which is conditioned on it: the score of the images, about 1 … 10.
    Pictures are drawn at a score of 6, and away from 2.5."""

    def faults(self) -> Faults:
        yield from fraction(flip=self.flip)
        yield from at_least(8, resolution=self.resolution)

    def idle(self) -> Faults:
        if self.resize in ("stretch", "fill") and self.crop == "random":
            yield "crop", f"random has no effect with resize: {self.resize}: nothing is cut off"
        if self.resize in ("none", "own_size") and self.resize_interpolation != "lanczos":
            yield "resize_interpolation", f"has no effect with resize: {self.resize}"
        if self.color_jitter is not None and not self.color_jitter.is_random:
            yield "color_jitter", "has no effect: all of its amounts are 0"

    @property
    def is_random(self) -> bool:
        """Return whether the same image can give different pixels."""
        return self.varies

    @property
    def varies(self) -> bool:
        """Return whether these settings can give different pixels of the same image."""
        return self.draws_colours or self.crop == "random" or 0 < self.flip < 1

    @property
    def draws_colours(self) -> bool:
        """Return whether each example has colours of its own."""
        jitters = self.color_jitter is not None and self.color_jitter.is_random
        return jitters or self.background == "random"

    @property
    def crops_anywhere(self) -> bool:
        """Return whether crops are at random places."""
        return self.crop == "random" and self.resize not in ("stretch", "fill")


@dataclass
class SubsetConfig(ExampleConfig):
    """A subset of the images with its own settings."""

    paths: ClassVar[tuple[str, ...]] = ("path", "metadata_file")

    path: str | None = None
    """Images of the subset: a folder, a container or a dataset, as data.path."""
    metadata_file: str | None = None
    """kohya's metadata json: images, relative to `path`, with their `caption` and `tags`. The
    subset has exactly these images; without `path` they are relative to the working directory."""
    repeats: int = 1
    """How often each image occurs in an epoch, with new crop, flip and caption each time (kohya:
    num_repeats)."""
    is_reg: bool = False
    """Class images: one is paired with each example, at the same size, and their loss is weighted
    by loss.prior_weight (kohya: regularisation images)."""
    loss_weight: float = 1.0
    """Loss weight of these images."""

    def faults(self) -> Faults:
        yield from super().faults()
        yield from at_least(1, repeats=self.repeats)
        yield from at_least(0, loss_weight=self.loss_weight)
        if self.repeats > MOST_REPEATS:
            yield "repeats", f"must be at most {MOST_REPEATS}, got {self.repeats}"
        if not (self.path or self.metadata_file):
            yield "path", "must be given (a folder of pictures), or metadata_file"

    def idle(self) -> Faults:
        yield from super().idle()
        if self.loss_weight == 0:
            yield "loss_weight", "0 makes its pictures count nothing; null leaves a subset out"


@dataclass
class SourceConfig:
    """Where the images are."""

    paths: ClassVar[tuple[str, ...]] = (
        "path",
        "kohya_config",
        "kohya_folders",
        "kohya_reg_folders",
        "concepts_list",
    )

    path: str | None = None
    """Folder of images, searched recursively. Or a .tar (webdataset), .zip or .parquet, a folder of
    such, a pattern (`{000..012}.tar`), a dataset saved by Hugging Face's `datasets`, or one on the
    hub (`hf://owner/name`). One of path, subsets, concepts and concepts_list must be given."""
    subsets: dict[str, SubsetConfig | None] = field(default_factory=dict)
    """Several folders, by names of your choice, each with repeats and settings of its own."""
    kohya_config: str | None = None
    """A dataset_config.toml of kohya's sd-scripts, unchanged. It is a base of the recipe: its
    options become data.subsets, data.resolution, data.buckets and train_batch_size, and keys of the
    recipe override them. Its folders are relative to the working directory, as in kohya."""
    kohya_folders: str | None = None
    """A folder of folders `REPEATS_class tokens`, as kohya's train_data_dir: each becomes a subset,
    whose class tokens are the caption of images without one."""
    kohya_reg_folders: str | None = None
    """The same for regularisation images, as kohya's reg_data_dir."""
    concepts: dict[str, ConceptConfig | None] = field(default_factory=dict)
    """Subjects to learn, by names of your choice: instance images and class images of each
    (DreamBooth, Ruiz et al. 2022, arXiv 2208.12242)."""
    concepts_list: str | None = None
    """The same as a concepts_list.json of A1111's DreamBooth extension; folders in it are relative
    to the file."""

    def source_faults(self) -> Faults:
        """Yield the errors in where the images come from."""
        given = {
            "path": self.path is not None,
            "subsets": bool(self.subsets),
            "kohya_config": self.kohya_config is not None,  # still set: it could not be read
            "kohya_folders": self.kohya_folders is not None,
            "concepts": bool(self.concepts),
            "concepts_list": self.concepts_list is not None,
        }
        named = [name for name, is_given in given.items() if is_given]
        if not named:
            yield (
                "path",
                "must be given (a folder of pictures with captions), or data.subsets (several), or "
                "data.concepts or data.concepts_list (subjects with pictures of their class)",
            )
        elif len(named) > 1:
            yield named[1], f"{' and '.join(named)} exclude each other; give one of them"
        for name in self.concepts:
            if "/" in name or name.startswith("."):
                yield f"concepts.{name}", "names a folder of class pictures: no / and no . in front"
        yield from self._nested()
        if self.subsets and all(one.is_reg for one in self.named_subsets.values()):
            yield "subsets", "all are is_reg; at least one must have training images"
        if self.concepts_list is not None:
            try:
                read_concepts_list(self.concepts_list)
            except InputError as error:
                yield from (("concepts_list", line) for line in str(error).splitlines())

    def _nested(self) -> Faults:
        """Yield subsets whose folder lies within another's, which is searched recursively."""
        roots = {
            name: Path(one.path).absolute()
            for name, one in self.named_subsets.items()
            if one.path and not one.metadata_file
        }
        for name, root in roots.items():
            for other, outer in roots.items():
                if root != outer and root.is_relative_to(outer):
                    yield (
                        f"subsets.{name}.path",
                        f"lies within that of {other}, which is searched too, so that its images "
                        "would occur twice; use separate folders",
                    )

    def source_idle(self) -> Faults:
        """Yield options of where the images come from that have no effect."""
        if self.concepts_list is not None:
            with suppress(InputError):  # reported by `source_faults`
                notes = read_concepts_list(self.concepts_list).notes
                yield from (("concepts_list", line) for line in notes)

    @property
    def named_subsets(self) -> dict[str, SubsetConfig]:
        """Return the subsets of the recipe; none if it has another source."""
        return {name: one for name, one in self.subsets.items() if one is not None}

    @property
    def has_concepts(self) -> bool:
        """Return whether the run trains on subjects, by `concepts` or `concepts_list`."""
        return bool(self.concepts) or self.concepts_list is not None

    @property
    def named_concepts(self) -> dict[str, ConceptConfig]:
        """Return the concepts of the recipe, or of the file that it names.

        Raises:
            InputError: the file cannot be used.
        """
        if self.concepts_list is not None:
            return read_concepts_list(self.concepts_list).concepts
        return {name: one for name, one in self.concepts.items() if one is not None}

    @property
    def has_prior(self) -> bool:
        """Return whether class images are used."""
        if any(one.is_reg for one in self.named_subsets.values()):
            return True
        try:
            return any(concept.has_prior for concept in self.named_concepts.values())
        except InputError:  # `source_faults` reports what is wrong with the file
            return False


__all__ = ["CaptionConfig", "DataConfig"]


@dataclass
class DataConfig(ExampleConfig, SourceConfig):
    """Where the images are, and how they become examples."""

    paths: ClassVar[tuple[str, ...]] = ("cache_dir",)
    limits: ClassVar[dict[str, float]] = {"num_workers": 1024}

    inherits: ClassVar[dict[str, type]] = {"subsets": ExampleConfig}

    clips: ClipDataConfig | None = None
    """If set, `path` holds videos for a video model (CogVideoX) instead of images."""
    broken_pictures: Literal["refuse", "skip"] = "refuse"
    """What to do with corrupt images: reject them before the first step, with a list of all of
    them, or skip and count them. `skip` decodes every image before the run begins."""
    cache: Literal["auto", "disk", "off"] = "auto"
    """`auto` encodes images, clips and captions once, before training, wherever random colours and
    parts of clips do not precede the encoder, and keeps the results in memory (on a CPU when a step
    first needs them, with the same result); `disk` keeps them in files, which other runs with the
    same files and weights use too."""
    cached_crops: int = 4
    """Crops of each image or clip that are encoded once, with `crop: random`: every example has one
    of them, drawn by (seed, epoch, image). With a `flip` between 0 and 1 the mirror image of each
    is encoded too. 0: random crops and flips are not cached, so that every example has a crop of
    its own, and is encoded in its step."""
    cache_dir: str | None = None
    """Folder of `cache: disk`; default: `cache` in the folder of all runs. Several runs may share
    it at the same time."""
    latent_sampling: Literal["once", "deterministic", "random"] = "once"
    """A1111's Latent sampling method: draw the latent once per image, take the mode of the
    distribution, or draw a new one each time."""
    num_workers: int = 0
    """Processes that prepare examples; with 0, this process prepares them itself: on a GPU in
    threads, while the GPU computes. The result does not depend on it."""
    inpainting_masks: Literal["random", "files"] | None = None
    """For inpainting models (9 channels), which also read a mask and the image without the masked
    part: `random` (the default) masks a quarter of the examples as a whole, the others by
    rectangles or brush strokes, anew in every epoch; `files` are the masks of data.masks, whose
    white part is to be repainted."""

    def faults(self) -> Faults:
        yield from self.source_faults()
        yield from super().faults()
        if self.clips is not None and self.path is None and (self.subsets or self.has_concepts):
            other = "subsets" if self.subsets else "concepts"
            yield "clips", f"go with data.path, a folder of clips, not with {other}"
        for name, subset in self.named_subsets.items():
            if subset.captions.dropout_mode != self.captions.dropout_mode:
                yield (
                    f"subsets.{name}.captions.dropout_mode",
                    "is the same for all subsets: set data.captions",
                )
        yield from self._size_faults()
        yield from at_least(0, num_workers=self.num_workers, cached_crops=self.cached_crops)
        if self.inpainting_masks == "files" and not self.has_masks:
            yield "inpainting_masks", "files are those of data.masks; set data.masks too"

    def _size_faults(self) -> Faults:
        parts = {"": self} | {f"subsets.{name}.": one for name, one in self.named_subsets.items()}
        for key, one in parts.items():
            if self.clips is not None and one.resize not in ("cover", "none"):
                yield f"{key}resize", f"{one.resize} is for images; clips need cover or none"
            if self.clips is not None and one.color_jitter is not None:
                yield f"{key}color_jitter", "is for images, not for clips"
            if self.clips is not None and one.resize_interpolation != "lanczos":
                yield f"{key}resize_interpolation", "is for images; clips need lanczos"
            if one.buckets is not None and one.resize in ("none", "own_size"):
                yield f"{key}resize", f"{one.resize} excludes buckets, which set the sizes"
        if self.buckets is not None and self.clips is not None:
            yield "buckets", "are for images; for clips set data.clips.buckets"

    def idle(self) -> Faults:
        yield from super().idle()
        yield from self.source_idle()
        if self.cache_dir is not None and self.cache != "disk":
            yield "cache_dir", "has no effect without cache: disk"
        if self.cache == "disk" and not self.caches_latents:
            yield (
                "cache",
                "disk keeps captions only: background, color_jitter or clips.part is random, or "
                "crop or flip is, with cached_crops: 0",
            )
        if self.cached_crops != type(self).cached_crops:
            yield from self._idle_crops()
        if self.clips is not None:
            yield from self._idle_for_clips()
        yield from self._idle_sizes()
        if self.streaming is not None and not (has_streamed(self) or self.has_concepts):
            yield "streaming", "has no effect: the images are on this disk"
        if self.clips is not None or self.has_concepts:
            yield from self.container_idle("clips and concepts are read from folders")
        if self.has_concepts:
            yield from self._idle_captions()

    def _idle_crops(self) -> Faults:
        """Yield a number of cached crops that nothing asks for."""
        if self.cache == "off":
            yield "cached_crops", "has no effect with cache: off"
        elif not self.is_random:
            yield "cached_crops", "has no effect: neither crop nor flip is random"
        elif self.cached_crops and not any(one.crops_anywhere for one in self._parts):
            yield "cached_crops", "is the number of random crops, and crop is not random"

    def _idle_for_clips(self) -> Faults:
        if self.broken_pictures == "skip":
            yield "broken_pictures", "has no effect: corrupt clips are rejected"
        if self.resolution is not None:
            yield "resolution", "has no effect: clips have a height and a width (data.clips)"
        if self.inpainting_masks is not None:
            yield "inpainting_masks", "has no effect: video models read no masks"
        if self.aesthetic_score != DataConfig.aesthetic_score:
            yield "aesthetic_score", "has no effect: it is for SDXL's refiner"

    def _idle_sizes(self) -> Faults:
        """Yield sizes of class images, which have those of the images they are paired with."""
        for name, one in self.named_subsets.items():
            sizes = (one.resolution, one.buckets), (self.resolution, self.buckets)
            if one.is_reg and sizes[0] != sizes[1]:
                key = "resolution" if sizes[0][0] != sizes[1][0] else "buckets"
                yield (
                    f"subsets.{name}.{key}",
                    "has no effect: class images have the size of those they are paired with",
                )

    def _idle_captions(self) -> Faults:
        unset = CaptionConfig()
        for name in ("template", "prefix", "suffix", "fallback"):
            if getattr(self.captions, name) != getattr(unset, name):
                yield f"captions.{name}", "has no effect: concepts have instance_prompt"

    @property
    def packs_clips(self) -> bool:
        """Return whether the clips of a micro-batch share a row of the transformer."""
        return self.clips is not None and self.clips.pack

    @property
    def has_masks(self) -> bool:
        """Return whether the loss of any image is weighted by a mask."""
        return any(one.masks is not None for one in (self, *self.named_subsets.values()))

    @property
    def is_random(self) -> bool:
        """Return whether the same image can give different pixels."""
        if self.clips is not None and self.clips.is_random:
            return True
        return any(one.varies for one in self._parts)

    @property
    def caches_latents(self) -> bool:
        """Return whether images or clips are encoded once: as many as they can give, or crops."""
        if self.cache == "off" or (self.clips is not None and self.clips.is_random):
            return False
        has_countless = any(one.draws_colours for one in self._parts)
        return not has_countless and (self.cached_crops > 0 or not self.is_random)

    @property
    def _parts(self) -> list[ExampleConfig]:
        """Return the settings of all images: those of the subsets, if there are any."""
        return [*self.named_subsets.values()] if self.subsets else [self]


def has_streamed(data: DataConfig) -> bool:
    """Return whether any shards are streamed."""
    return any(
        one.streaming is not None and is_address(one.path)
        for one in (data, *data.named_subsets.values())
    )
