"""The typed recipe of data: where pictures and captions are, and how they become examples."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from inference.runtime import InputError
from train.config.clips import ClipDataConfig
from train.config.concepts import ConceptConfig, read_concepts_list
from train.config.containers import ContainerConfig, is_address
from train.config.examples import CaptionConfig, ColorJitterConfig, MaskConfig, PictureBucketsConfig
from train.config.rules import Faults, at_least, fraction

if TYPE_CHECKING:
    pass


MOST_REPEATS = 100_000
"""Each takes 4 bytes of memory for every picture."""


@dataclass
class ExampleConfig(ContainerConfig):
    """How a picture and its caption become an example."""

    captions: CaptionConfig = field(default_factory=CaptionConfig)
    resolution: int | None = None
    """Side of the square examples in pixels; without it the base model's own size. With buckets,
    the root of their area. Subsets may differ; a micro-batch is of one size."""
    buckets: PictureBucketsConfig | None = None
    """Given, pictures keep their proportions and are learned at several sizes (`buckets: {}` for
    kohya's). A micro-batch is of one size; each size's last one of an epoch is filled up with
    pictures that come twice."""
    resize: Literal["cover", "none", "stretch", "fill", "own_size"] = "cover"
    """How a picture comes to the size of its example. `cover` scales it until it covers it (A1111:
    crop and resize); `none` cuts the size out of it as it is. Of pictures only: `stretch` does not
    keep proportions (just resize), `fill` scales it to fit in and repeats its edges around it
    (resize and fill), `own_size` leaves each at its own size, cut to the model's multiple (do not
    resize images)."""
    resize_interpolation: Literal["lanczos", "bicubic", "bilinear", "area", "nearest"] = "lanczos"
    """How pictures are scaled (kohya: resize_interpolation)."""
    crop: Literal["center", "random"] = "center"
    """Which part is cut out; the same of all frames of a clip."""
    flip: float = 0.0
    """Share of examples that are mirrored left to right, clips as a whole."""
    background: Literal["white", "black", "gray", "random"] = "white"
    """What transparent pictures are laid on; `random` takes a colour for every example."""
    color_jitter: ColorJitterConfig | None = None
    """Given, colours are changed a little, anew for every example (kohya: color_aug)."""
    masks: MaskConfig | None = None
    """Given, the loss looks at parts of the pictures only (`masks: {}` for masks beside them)."""

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
        """Whether one picture can get different pixels."""
        jitters = self.color_jitter is not None and self.color_jitter.is_random
        return jitters or (
            self.crop == "random" or 0 < self.flip < 1 or self.background == "random"
        )


@dataclass
class SubsetConfig(ExampleConfig):
    """A part of the pictures, with settings of its own."""

    path: str | None = None
    """Its pictures: a folder, a container or a dataset, as data.path."""
    metadata_file: str | None = None
    """kohya's metadata json: pictures, relative to `path`, with their `caption` and `tags`. The
    subset has just these pictures; without `path` they are named from the working folder."""
    repeats: int = 1
    """How often an epoch has each picture, cut, mirrored and captioned anew each time (kohya:
    num_repeats)."""
    is_reg: bool = False
    """Pictures of a class rather than of what is learned: they come along with the others, one with
    each example and at its size, and their loss counts loss.prior_weight (kohya: regularisation
    images)."""
    loss_weight: float = 1.0
    """What the loss of its pictures counts."""

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
    """Where the pictures are."""

    path: str | None = None
    """Folder of pictures; folders within it are searched too. Or a .tar (webdataset), .zip or
    .parquet, a folder of such, a pattern of them (`{000..012}.tar`), a dataset saved by Hugging
    Face's `datasets`, or one on the hub (`hf://owner/name`). One of path, subsets, concepts and
    concepts_list must be given."""
    subsets: dict[str, SubsetConfig | None] = field(default_factory=dict)
    """Several folders, by names of your choice, each with repeats and settings of its own."""
    kohya_config: str | None = None
    """A dataset_config.toml of kohya's sd-scripts, as it is. It counts as a base of the recipe:
    what it says becomes data.subsets, data.resolution, data.buckets and train_batch_size, over
    which the recipe has the last word. Folders in it are taken from the working folder, as kohya
    does."""
    kohya_folders: str | None = None
    """A folder of folders `REPEATS_class tokens`, as kohya's train_data_dir: each becomes a subset,
    whose class tokens are the caption of pictures without one."""
    kohya_reg_folders: str | None = None
    """The same of regularisation pictures, as kohya's reg_data_dir."""
    concepts: dict[str, ConceptConfig | None] = field(default_factory=dict)
    """Subjects to learn, by names of your choice: pictures of each, and of its class (DreamBooth,
    Ruiz et al. 2022, arXiv 2208.12242)."""
    concepts_list: str | None = None
    """The same as a concepts_list.json of A1111's DreamBooth extension; folders in it are taken
    relative to the file."""

    def source_faults(self) -> Faults:
        """What is wrong with where the pictures come from."""
        given = {
            "path": self.path is not None,
            "subsets": bool(self.subsets),
            "kohya_config": self.kohya_config is not None,  # it could not be read
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
            yield "subsets", "all are is_reg; at least one must hold what is learned"
        if self.concepts_list is not None:
            try:
                read_concepts_list(self.concepts_list)
            except InputError as error:
                yield from (("concepts_list", line) for line in str(error).splitlines())

    def _nested(self) -> Faults:
        """Subsets whose folder lies within another's, which is searched through."""
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
                        f"lies within that of {other}, which is searched too, so that its pictures "
                        "would come twice; take folders side by side",
                    )

    def source_idle(self) -> Faults:
        """What has no effect of where the pictures come from."""
        if self.concepts_list is not None:
            with suppress(InputError):  # told above
                told = read_concepts_list(self.concepts_list).told
                yield from (("concepts_list", line) for line in told)

    @property
    def named_subsets(self) -> dict[str, SubsetConfig]:
        """The subsets of the recipe; none where it has another source."""
        return {name: one for name, one in self.subsets.items() if one is not None}

    @property
    def has_concepts(self) -> bool:
        """Whether subjects are learned, by `concepts` or `concepts_list`."""
        return bool(self.concepts) or self.concepts_list is not None

    @property
    def named_concepts(self) -> dict[str, ConceptConfig]:
        """The concepts of the recipe, or of the file that it names.

        Raises:
            InputError: the file cannot be used.
        """
        if self.concepts_list is not None:
            return read_concepts_list(self.concepts_list).concepts
        return {name: one for name, one in self.concepts.items() if one is not None}

    @property
    def has_prior(self) -> bool:
        """Whether pictures of classes are learned along."""
        if any(one.is_reg for one in self.named_subsets.values()):
            return True
        try:
            return any(concept.has_prior for concept in self.named_concepts.values())
        except InputError:  # what is wrong with the file is told by `source_faults`
            return False


__all__ = ["CaptionConfig", "DataConfig"]


@dataclass
class DataConfig(ExampleConfig, SourceConfig):
    """Where the pictures are, and how they become examples."""

    inherits: ClassVar[dict[str, type]] = {"subsets": ExampleConfig}

    clips: ClipDataConfig | None = None
    """Given, `path` holds videos for a video model (CogVideoX) in place of pictures."""
    broken_pictures: Literal["refuse", "skip"] = "refuse"
    """What becomes of pictures that cannot be read: told by name before the first step, all
    together, or left out with a count. `skip` decodes every picture before the run begins."""
    cache: Literal["auto", "disk", "off"] = "auto"
    """`auto` encodes pictures, clips and captions once, before training, wherever nothing random
    stands before the encoder, and keeps them in memory; `disk` keeps them in files, which other
    runs on the same files and weights find there too."""
    cache_dir: str | None = None
    """Folder of `cache: disk`; without it `cache` in the folder of all runs. Several runs may use
    it at once."""
    latent_sampling: Literal["once", "deterministic", "random"] = "once"
    """A1111's Latent sampling method: draw the latent once per picture, take the distribution's
    mode, or draw anew every time."""
    num_workers: int = 0
    """Processes that prepare examples. The result does not depend on it."""

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
                    "is one for all subsets: say it in data.captions",
                )
        yield from self._size_faults()
        yield from at_least(0, num_workers=self.num_workers)

    def _size_faults(self) -> Faults:
        parts = {"": self} | {f"subsets.{name}.": one for name, one in self.named_subsets.items()}
        for key, one in parts.items():
            if self.clips is not None and one.resize not in ("cover", "none"):
                yield f"{key}resize", f"{one.resize} is of pictures; clips take cover or none"
            if self.clips is not None and one.color_jitter is not None:
                yield f"{key}color_jitter", "is of pictures, not of clips"
            if self.clips is not None and one.resize_interpolation != "lanczos":
                yield f"{key}resize_interpolation", "is of pictures; clips take lanczos"
            if one.buckets is not None and one.resize in ("none", "own_size"):
                yield f"{key}resize", f"{one.resize} excludes buckets, which say the sizes"
        if self.buckets is not None and self.clips is not None:
            yield "buckets", "are of pictures; of clips say data.clips.buckets"

    def idle(self) -> Faults:
        yield from super().idle()
        yield from self.source_idle()
        if self.cache_dir is not None and self.cache != "disk":
            yield "cache_dir", "has no effect without cache: disk"
        if self.cache == "disk" and self.is_random:
            yield (
                "cache",
                "disk keeps captions only: crop, flip, background, color_jitter or clips.part is "
                "random",
            )
        if self.clips is not None and self.broken_pictures == "skip":
            yield "broken_pictures", "has no effect: broken clips are refused"
        if self.clips is not None and self.resolution is not None:
            yield "resolution", "has no effect: clips have a height and a width (data.clips)"
        for name, one in self.named_subsets.items():
            sizes = (one.resolution, one.buckets), (self.resolution, self.buckets)
            if one.is_reg and sizes[0] != sizes[1]:
                key = "resolution" if sizes[0][0] != sizes[1][0] else "buckets"
                yield (
                    f"subsets.{name}.{key}",
                    "has no effect: pictures of classes come at the size of those they come with",
                )
        if self.streaming is not None and not (has_streamed(self) or self.has_concepts):
            yield "streaming", "has no effect: the pictures are on this disk"
        if self.clips is not None or self.has_concepts:
            yield from self.container_idle("clips and concepts are read from folders")
        if self.has_concepts:
            captions, unset = self.captions, CaptionConfig()
            for name, value, default in (
                ("template", captions.template, unset.template),
                ("prefix", captions.prefix, unset.prefix),
                ("suffix", captions.suffix, unset.suffix),
                ("fallback", captions.fallback, unset.fallback),
            ):
                if value != default:
                    yield f"captions.{name}", "has no effect: concepts have instance_prompt"

    @property
    def packs_clips(self) -> bool:
        """Whether the clips of a micro-batch share a row of the transformer."""
        return self.clips is not None and self.clips.pack

    @property
    def has_masks(self) -> bool:
        """Whether the loss looks at parts of some pictures only."""
        return any(one.masks is not None for one in (self, *self.named_subsets.values()))

    @property
    def is_random(self) -> bool:
        """Whether one picture can get different pixels."""
        if self.clips is not None and self.clips.is_random:
            return True
        return any(one.is_random for one in self.named_subsets.values()) or (
            not self.subsets and super().is_random
        )


def has_streamed(data: DataConfig) -> bool:
    """Whether any shards are fetched as they are needed."""
    return any(
        one.streaming is not None and is_address(one.path)
        for one in (data, *data.named_subsets.values())
    )
