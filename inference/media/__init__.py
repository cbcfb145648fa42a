"""Read and write images, image grids and videos."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.media.grid import image_grid, save_grid, write_new_grid
    from inference.media.outputs import (
        PictureForm,
        prepare_folder,
        text_writer,
        write_files,
        write_new,
        write_picture,
    )
    from inference.media.pictures import (
        PICTURES,
        SUFFIXES,
        encodable,
        image_writer,
        pictures_in,
        read_user_comment,
        save_png,
        user_comment,
    )
    from inference.media.video_reading import (
        DEFAULT_FPS,
        PICTURE_EXTENSIONS,
        PILLOW_ERRORS,
        VIDEO_EXTENSIONS,
        ClipFacts,
        is_animated,
        probe,
        read_clip,
        read_frames,
        sequence_files,
    )
    from inference.media.video_writing import (
        Mp4Options,
        has_sound,
        iter_frames,
        pyav,
        read_pictures,
        video_facts,
        write_gif,
        write_mp4,
    )
    from inference.media.webp import LARGEST_SIDE, animated_webp

__all__ = [
    "DEFAULT_FPS", "LARGEST_SIDE", "PICTURES", "PICTURE_EXTENSIONS", "PILLOW_ERRORS", "SUFFIXES",
    "VIDEO_EXTENSIONS", "ClipFacts", "Mp4Options", "PictureForm", "animated_webp", "encodable",
    "has_sound", "image_grid", "image_writer", "is_animated", "iter_frames", "pictures_in",
    "prepare_folder", "probe", "pyav", "read_clip", "read_frames", "read_pictures",
    "read_user_comment", "save_grid", "save_png", "sequence_files", "text_writer", "user_comment",
    "video_facts", "write_files", "write_gif", "write_mp4", "write_new", "write_new_grid",
    "write_picture",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
