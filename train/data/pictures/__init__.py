"""Read, probe and index image files."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.data.pictures.index import Facts, Known, picture_facts
    from train.data.pictures.index_file import add_root
    from train.data.pictures.random_masks import random_mask
    from train.data.pictures.reading import (
        MAX_PIXELS,
        READING,
        READING_ERRORS,
        quiet,
        read_picture,
        shown,
    )
    from train.data.pictures.soundness import CorruptImages, Policy, sound_paths

__all__ = [
    "MAX_PIXELS", "READING", "READING_ERRORS", "CorruptImages", "Facts", "Known", "Policy",
    "add_root", "picture_facts", "quiet", "random_mask", "read_picture", "shown", "sound_paths",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
