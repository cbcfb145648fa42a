"""The interface of model families, and the families."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.models.base import (
        DTYPES,
        LOW_BITS,
        DiffusionModel,
        cast_part,
        low_bits,
        model_hash,
        model_name,
        quantization_savings,
        quantize_denoiser,
        savings_by_layer,
        vae_of,
        weight_dtype,
        weights_path,
    )
    from inference.models.clip_model import ClipModel, LatentScale
    from inference.models.cogvideox import FrameRule
    from inference.models.conditions import Conditions
    from inference.models.drawing_prompts import (
        DrawingConditions,
        Part,
        PromptSettings,
        Timeline,
        as_timelines,
        mixed,
        needs_negatives,
        read_text,
    )
    from inference.models.families import (
        FAMILIES,
        all_families,
        clip_skeleton,
        family_named,
        family_of,
        folder_family,
        load_clip_model,
        load_image_model,
        load_model,
        part_layout,
        part_names,
        register_family,
        single_file_format,
        single_file_of,
        skeleton,
    )
    from inference.models.family import KINDS, Match, ModelFamily, PartLayout, SingleFile
    from inference.models.finding import (
        ADAPTER_CONFIG,
        ARTIFACTS,
        artifact_name,
        artifacts_in,
        files_in,
        find_model,
        find_named,
        find_vae,
        is_vae,
        is_vae_folder,
        models_in,
        output_name,
        vae_form,
    )
    from inference.models.folder import (
        FACTS,
        cast,
        compact,
        live_weights,
        load_auto,
        packed_by_name,
        read_part,
        tokenizer_names,
        weight_shapes,
        weights_of,
        write_base_model,
    )
    from inference.models.image_model import ImageModel
    from inference.models.lora_layout import LoraLayout
    from inference.models.model_files import ModelFiles
    from inference.models.names import (
        base_name,
        check_place,
        check_vae,
        file_model_name,
        is_single_file,
        path_of,
        published_name,
        resolve_path,
        vae_file,
        vae_name,
    )
    from inference.models.parametrization import (
        DiscreteVP,
        Epsilon,
        Parametrization,
        Velocity,
        discrete_vp,
    )
    from inference.models.size_rules import (
        FrameArithmetic,
        RoundedSize,
        SizeRules,
        check_size,
        rounded_size,
    )
    from inference.models.stable_diffusion import config_path

__all__ = [
    "ADAPTER_CONFIG", "ARTIFACTS", "DTYPES", "FACTS", "FAMILIES", "KINDS", "LOW_BITS", "ClipModel",
    "Conditions", "DiffusionModel", "DiscreteVP", "DrawingConditions", "Epsilon", "FrameArithmetic",
    "FrameRule", "ImageModel", "LatentScale", "LoraLayout", "Match", "ModelFamily", "ModelFiles",
    "Parametrization", "Part", "PartLayout", "PromptSettings", "RoundedSize", "SingleFile",
    "SizeRules", "Timeline", "Velocity", "all_families", "artifact_name", "artifacts_in",
    "as_timelines", "base_name", "cast", "cast_part", "check_place", "check_size", "check_vae",
    "clip_skeleton", "compact", "config_path", "discrete_vp", "family_named", "family_of",
    "file_model_name", "files_in", "find_model", "find_named", "find_vae", "folder_family",
    "is_single_file", "is_vae", "is_vae_folder", "live_weights", "load_auto", "load_clip_model",
    "load_image_model", "load_model", "low_bits", "mixed", "model_hash", "model_name", "models_in",
    "needs_negatives", "output_name", "packed_by_name", "part_layout", "part_names", "path_of",
    "published_name", "quantization_savings", "quantize_denoiser", "read_part", "read_text",
    "register_family", "resolve_path", "rounded_size", "savings_by_layer", "single_file_format",
    "single_file_of", "skeleton", "tokenizer_names", "vae_file", "vae_form", "vae_name", "vae_of",
    "weight_dtype", "weight_shapes", "weights_of", "weights_path", "write_base_model",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
