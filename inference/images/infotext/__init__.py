"""Infotext: how a picture was drawn, in A1111's words, written into its file and read back.

Format: A1111 1.10.1 (`create_infotext`, `parse_generation_parameters`)::

    a cat, noto style
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64, …

`text` writes and reads it, `pasted` adds what A1111 takes for granted, `describe` says it of a
drawing, `picture_files` puts it into picture files, `other_programs` translates what others write.
"""

from inference.artifacts.base import UsedArtifact
from inference.images.infotext.describe import describe_drawing
from inference.images.infotext.other_programs import read_other_programs
from inference.images.infotext.reading import find_infotext, read_infotext
from inference.images.infotext.redraw_keys import as_pasted
from inference.images.infotext.text import (
    Infotext,
    is_parameters,
    parse_infotext,
    quote,
    unquote,
    write_infotext,
)
from inference.media.pictures import encodable, fitting_format, save_picture, save_png
from inference.models.base import model_hash, model_name
from inference.runtime.text import number

__all__ = [
    "Infotext",
    "UsedArtifact",
    "as_pasted",
    "describe_drawing",
    "encodable",
    "find_infotext",
    "fitting_format",
    "is_parameters",
    "model_hash",
    "model_name",
    "number",
    "parse_infotext",
    "quote",
    "read_infotext",
    "read_other_programs",
    "save_picture",
    "save_png",
    "unquote",
    "write_infotext",
]
