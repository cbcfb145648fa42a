"""Stable Diffusion 1.x, 2.x and XL: detect, load, write, encode prompts, key maps."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.models.stable_diffusion.detect import (
        FAMILIES,
        MODEL,
        TRAINED_PARTS,
        family_of,
        looks_like_checkpoint,
        prediction_type_of,
    )
    from inference.models.stable_diffusion.keys import SGM_OUTER, SGM_RESNET, sgm_path
    from inference.models.stable_diffusion.ldm_config import config_path
    from inference.models.stable_diffusion.loading import (
        check_layout,
        check_parts,
        frozen_dtype,
        load_base_model,
    )
    from inference.models.stable_diffusion.model import (
        AESTHETIC_SCORE,
        SIZE_CONDITIONS,
        BaseModel,
    )
    from inference.models.stable_diffusion.prompts import encode_drawing_prompts
    from inference.models.stable_diffusion.single_file import (
        parts_of,
        read_base_model,
        read_model,
    )
    from inference.models.stable_diffusion.single_file_writer import write_model

__all__ = [
    "AESTHETIC_SCORE", "FAMILIES", "MODEL", "SGM_OUTER", "SGM_RESNET", "SIZE_CONDITIONS",
    "TRAINED_PARTS", "BaseModel",
    "check_layout", "check_parts", "config_path", "encode_drawing_prompts", "family_of",
    "frozen_dtype", "load_base_model", "looks_like_checkpoint", "parts_of", "prediction_type_of",
    "read_base_model", "read_model", "sgm_path", "write_model",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
