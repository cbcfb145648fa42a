"""Generate images: requests become images with infotext."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.images.command import draw_images
    from inference.images.drawing import (
        Drawer,
        Drawing,
        check_finite,
        draw,
        draw_batch,
        evaluation,
    )
    from inference.images.img2img import (
        TO_XYZ,
        WHITE,
        InitImage,
        correct_colors,
        face_restorer,
        image_upscaler,
        match_histogram,
        open_init_image,
        prepare_init,
        read_image,
        scale_to,
        upscaler,
    )
    from inference.images.infotext import (
        TAGS,
        hash_list,
        parse_infotext,
        read_infotext,
        read_other_programs,
        tag_of,
        write_infotext,
    )
    from inference.images.memory import Levers, picture_needs, place_for_drawing
    from inference.images.redraw import is_picture, load_picture
    from inference.images.requests import RANDOM_SEEDS, expand, group

__all__ = [
    "RANDOM_SEEDS", "TAGS", "TO_XYZ", "WHITE", "Drawer", "Drawing", "InitImage", "Levers",
    "check_finite", "correct_colors", "draw", "draw_batch", "draw_images", "evaluation", "expand",
    "face_restorer", "group", "hash_list", "image_upscaler", "is_picture", "load_picture",
    "match_histogram", "open_init_image", "parse_infotext", "picture_needs", "place_for_drawing",
    "prepare_init", "read_image", "read_infotext", "read_other_programs", "scale_to", "tag_of",
    "upscaler", "write_infotext",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
