"""Find data: folders, captions, masks, concepts, subsets."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.data.sources.captions import (
        StepInfo,
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
    from train.data.sources.subsets import Subset, at_resolution, default_subset, slots_of

__all__ = [
    "FALLBACK", "ClassFolder", "ClassPicture", "Clip", "Concept", "Picture", "Sources", "StepInfo",
    "Subset", "all_captions", "at_commits", "at_resolution", "class_facts", "class_folders",
    "class_pictures", "default_subset", "find_sources", "has_countless", "longest_choice",
    "make_caption", "parts_of", "pictures_there", "plain_caption", "read_lines", "short_clips",
    "size_on_disk", "slots_of", "split_tags", "usable",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
