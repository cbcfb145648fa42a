"""Find data: folders, captions, masks, concepts, subsets."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.data.sources.captions import (
        Moment,
        all_captions,
        has_countless,
        longest_choice,
        make_caption,
        parts_of,
        plain_caption,
        read_lines,
        split_tags,
    )
    from train.data.sources.clip_folder import Clip, short_clips, usable
    from train.data.sources.concepts import (
        ClassFolder,
        ClassPicture,
        Concept,
        class_facts,
        class_folders,
        class_pictures,
        pictures_there,
    )
    from train.data.sources.folder import FALLBACK, Picture, size_on_disk
    from train.data.sources.sources import Sources, at_commits, find_sources
    from train.data.sources.subsets import Subset, at_resolution, slots_of, the_whole

__all__ = [
    "FALLBACK",
    "ClassFolder",
    "ClassPicture",
    "Clip",
    "Concept",
    "Moment",
    "Picture",
    "Sources",
    "Subset",
    "all_captions",
    "at_commits",
    "at_resolution",
    "class_facts",
    "class_folders",
    "class_pictures",
    "find_sources",
    "has_countless",
    "longest_choice",
    "make_caption",
    "parts_of",
    "pictures_there",
    "plain_caption",
    "read_lines",
    "short_clips",
    "size_on_disk",
    "slots_of",
    "split_tags",
    "the_whole",
    "usable",
]

__getattr__ = lazy(__name__, __file__)
