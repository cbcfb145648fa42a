"""The typed recipe of masked loss: which parts of a picture count, and how much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from train.faults import Faults, fraction

if TYPE_CHECKING:
    from train.config import TrainRecipe

USUAL_SUFFIX = "-masklabel"
"""OneTrainer's, of masks beside their pictures."""


@dataclass
class MaskConfig:
    """What each place of a picture counts in the loss (white or opaque: all of it)."""

    source: Literal["files", "alpha"] = "files"
    """`files`: pictures in shades of gray, beside their pictures (`suffix`) or in a folder (`path`)
    and upright as they are; `alpha`: the opacity of the pictures themselves, whose colours where
    they are transparent are data.background's."""
    path: str | None = None
    """A folder with the mask of each picture under the picture's name and folder, in any format
    (kohya: conditioning_data_dir); without it masks lie beside their pictures."""
    suffix: str | None = None
    """What stands in a mask's name between the picture's name and the ending: `-masklabel` (as in
    OneTrainer) beside pictures, and nothing in a folder of their own, unless given here."""
    missing: Literal["error", "whole"] = "error"
    """What a picture without a mask file is: an error, or one that counts everywhere."""
    unmasked_weight: float = 0.0
    """What black places count: weights below it are raised to it (OneTrainer: unmasked weight)."""
    unmasked_probability: float = 0.0
    """Share of examples that count everywhere, drawn anew in every epoch (OneTrainer: unmasked
    probability)."""
    normalize: bool = False
    """Divide by the mean weight, so that a picture counts the same whatever its mask's area
    (OneTrainer: normalize masked area loss). Otherwise errors are averaged over all places (as in
    kohya), and a small mask makes a small loss."""
    formula: Literal["weight", "a1111"] = "weight"
    """`weight` takes the mask as it is; `a1111` subtracts its lowest value and divides by the mean,
    as A1111's "Use PNG alpha channel as loss weight"; where it is even, all counts 1."""

    def faults(self) -> Faults:
        yield from fraction(
            unmasked_weight=self.unmasked_weight, unmasked_probability=self.unmasked_probability
        )
        if self.source == "files" and not (self.path or self.ending):
            yield "suffix", "must not be empty beside pictures: masks need names of their own"
        if Path(self.ending).suffix or "/" in self.ending:
            yield (
                "suffix",
                f"stands before the file's ending, as in {USUAL_SUFFIX}; got {self.ending!r}",
            )

    def idle(self) -> Faults:
        if self.source == "alpha":
            given = {"path": self.path, "suffix": self.suffix, "missing": self.missing != "error"}
            for name in (name for name, value in given.items() if value):
                yield name, "has no effect with source: alpha"
        if self.formula == "a1111":
            for name in ("unmasked_weight", "normalize"):
                if vars(self)[name]:
                    yield name, "has no effect with formula: a1111"

    @property
    def ending(self) -> str:
        """What a mask's name has behind its picture's."""
        return self.suffix if self.suffix is not None else "" if self.path else USUAL_SUFFIX

    def is_mask(self, path: Path) -> bool:
        """Whether a file that lies among pictures is no picture, but a mask of one."""
        if self.source == "alpha":
            return False
        if self.path is None:
            return path.stem.endswith(self.ending)
        return path.absolute().is_relative_to(Path(self.path).absolute())


def mask_faults(recipe: TrainRecipe) -> Faults:
    """What masks cannot go with."""
    if not recipe.data.has_masks:
        return
    if recipe.data.clips is not None:
        yield "data.masks", "are of pictures; clips (data.clips) count as a whole"
    if not recipe.objective.learns_from_captions:
        kind = recipe.objective.type
        yield "data.masks", f"weigh the error of latents, which objective.type: {kind} has none of"
