"""Infotext: how an image was generated, in A1111's words, written into its file and read back.

Format: A1111 1.10.1 (`create_infotext`, `parse_generation_parameters`)::

    a cat, noto style
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64, …

`text` writes and reads it, `redraw_keys` adds A1111's defaults, `describe` makes it for a drawing,
`resources` lists the files it names, `json_programs` and `other_programs` translate other formats.
"""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.images.infotext.describe import TAGS, describe_drawing, hash_list, tag_of
    from inference.images.infotext.other_programs import read_other_programs
    from inference.images.infotext.reading import read_infotext
    from inference.images.infotext.redraw_keys import as_pasted, parse_version, sampler_and_schedule
    from inference.images.infotext.resources import Resources, resources_of
    from inference.images.infotext.text import (
        Infotext,
        entries_of,
        parse_infotext,
        write_infotext,
    )

__all__ = [
    "TAGS", "Infotext", "Resources", "as_pasted", "describe_drawing", "entries_of", "hash_list",
    "parse_infotext", "parse_version", "read_infotext", "read_other_programs", "resources_of",
    "sampler_and_schedule", "tag_of", "write_infotext",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
