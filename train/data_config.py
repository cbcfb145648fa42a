"""The typed recipe of data: where pictures and captions are, and how they become examples."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from train.caption_config import CaptionConfig
from train.clip_config import ClipDataConfig
from train.faults import Faults, at_least
from train.source_config import SourceConfig
from train.streaming_config import has_streamed
from train.subset_config import ExampleConfig

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
