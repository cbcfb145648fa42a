"""The typed recipe of data: where pictures and captions are, and how they become examples."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from inference.errors import InputError
from train.caption_config import CaptionConfig
from train.clip_config import ClipDataConfig
from train.concept_config import ConceptConfig, read_concepts_list
from train.faults import Faults, at_least, fraction
from train.mask_config import MaskConfig


@dataclass
class DataConfig:
    """Where the pictures are, and how they become examples."""

    path: str | None = None
    """Folder of pictures; folders within it are searched too. One of path, concepts and
    concepts_list must be given."""
    concepts: dict[str, ConceptConfig | None] = field(default_factory=dict)
    """Subjects to learn, by names of your choice: pictures of each, and of its class (DreamBooth,
    Ruiz et al. 2022, arXiv 2208.12242)."""
    concepts_list: str | None = None
    """The same as a concepts_list.json of A1111's DreamBooth extension; folders in it are taken
    relative to the file."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    clips: ClipDataConfig | None = None
    """Given, `path` holds videos for a video model (CogVideoX) in place of pictures."""
    resolution: int | None = None
    """Side of the square examples in pixels; without it the base model's own size."""
    resize: Literal["cover", "none"] = "cover"
    """`cover` scales the shorter side to the resolution; `none` cuts the square out as it is. The
    same of clips, whose size data.clips says."""
    crop: Literal["center", "random"] = "center"
    """Which part is cut out; the same of all frames of a clip."""
    flip: float = 0.0
    """Share of examples that are mirrored left to right, clips as a whole."""
    background: Literal["white", "black", "gray", "random"] = "white"
    """What transparent pictures are laid on; `random` takes a colour for every example."""
    masks: MaskConfig | None = None
    """Given, the loss looks at parts of the pictures only (`masks: {}` for masks beside them)."""
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
        given = {
            "path": self.path is not None,
            "concepts": bool(self.concepts),
            "concepts_list": self.concepts_list is not None,
        }
        named = [name for name, is_given in given.items() if is_given]
        if not named:
            yield (
                "path",
                "must be given (a folder of pictures with captions), or data.concepts or "
                "data.concepts_list in its place (subjects with pictures of their class)",
            )
        elif len(named) > 1:
            yield named[1], f"{' and '.join(named)} exclude each other; give one of them"
        for name in self.concepts:
            if "/" in name or name.startswith("."):
                yield f"concepts.{name}", "names a folder of class pictures: no / and no . in front"
        if self.concepts_list is not None:
            try:
                read_concepts_list(self.concepts_list)
            except InputError as error:
                yield from (("concepts_list", line) for line in str(error).splitlines())
        if self.clips is not None and self.path is None and named:
            yield "clips", f"go with data.path, a folder of clips, not with {named[0]}"
        yield from fraction(flip=self.flip)
        yield from at_least(8, resolution=self.resolution)
        yield from at_least(0, num_workers=self.num_workers)

    def idle(self) -> Faults:
        if self.concepts_list is not None:
            with suppress(InputError):  # told above
                told = read_concepts_list(self.concepts_list).told
                yield from (("concepts_list", line) for line in told)
        if self.cache_dir is not None and self.cache != "disk":
            yield "cache_dir", "has no effect without cache: disk"
        if self.cache == "disk" and self.is_random:
            yield (
                "cache",
                "disk keeps captions only: crop, flip, background or clips.part is random",
            )
        if self.clips is not None and self.broken_pictures == "skip":
            yield "broken_pictures", "has no effect: broken clips are refused"
        if self.clips is not None and self.resolution is not None:
            yield "resolution", "has no effect: clips have a height and a width (data.clips)"
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
        try:
            return any(concept.has_prior for concept in self.named_concepts.values())
        except InputError:  # what is wrong with the file is told by `faults`
            return False

    @property
    def packs_clips(self) -> bool:
        """Whether the clips of a micro-batch share a row of the transformer."""
        return self.clips is not None and self.clips.pack

    @property
    def is_random(self) -> bool:
        """Whether one picture can get different pixels."""
        if self.clips is not None and self.clips.is_random:
            return True
        return self.crop == "random" or 0 < self.flip < 1 or self.background == "random"
