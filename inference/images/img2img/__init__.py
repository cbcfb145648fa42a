"""Operations between images and latents: img2img, inpainting, hires fix, tiling.

Pure operations, after A1111 1.10.1 (`modules/img2img.py`, `processing.py`, `masking.py`,
`images.py`), whose option names they keep. Images are Pillow's; masks have mode "L" and are white
(255) where the image is repainted; latent masks are 1 there.
"""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.images.img2img.color_correction import (
        TO_XYZ,
        WHITE,
        correct_colors,
        match_histogram,
    )
    from inference.images.img2img.conditioning import (
        blend_latents,
        circular_padding,
        whole_picture_conditioning,
    )
    from inference.images.img2img.hires import HiresSize, hires_size
    from inference.images.img2img.init import (
        InitImage,
        Start,
        encode,
        encode_start,
        open_init,
        prepare_init,
    )
    from inference.images.img2img.opening import (
        background_color,
        floor_to_images,
        open_init_image,
        picture_size,
        read_image,
    )
    from inference.images.img2img.resize import scale_to
    from inference.images.img2img.upscalers import (
        CODEFORMER_WEIGHT,
        check_upscaler,
        face_restorer,
        image_upscaler,
        is_latent_upscaler,
        upscale_latents,
        upscaler,
        upscaler_names,
    )

__all__ = [
    "CODEFORMER_WEIGHT", "TO_XYZ", "WHITE", "HiresSize", "InitImage", "Start", "background_color",
    "blend_latents", "check_upscaler", "circular_padding", "correct_colors", "encode",
    "encode_start", "face_restorer", "floor_to_images", "hires_size", "image_upscaler",
    "is_latent_upscaler", "match_histogram", "open_init", "open_init_image", "picture_size",
    "prepare_init", "read_image", "scale_to", "upscale_latents", "upscaler",
    "upscaler_names", "whole_picture_conditioning",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
