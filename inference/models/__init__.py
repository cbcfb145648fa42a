"""What every model family must answer, and the families."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.models.base import DTYPES, DiffusionModel, model_hash, model_name
    from inference.models.cogvideox import FrameRule, check_size
    from inference.models.conditions import Conditions
    from inference.models.families import load_model
    from inference.models.folder import (
        FACTS,
        PARTS,
        cast,
        compact,
        read_part,
        weights_of,
        write_base_model,
    )
    from inference.models.names import (
        ARTIFACTS,
        file_model_name,
        files_in,
        find_model,
        find_named,
        is_single_file,
        models_in,
        output_name,
        path_of,
        resolve_path,
    )
    from inference.models.parametrization import add_noise, velocity
    from inference.models.size_rules import FrameArithmetic, SizeRules

__all__ = [
    "ARTIFACTS",
    "DTYPES",
    "FACTS",
    "PARTS",
    "Conditions",
    "DiffusionModel",
    "FrameArithmetic",
    "FrameRule",
    "SizeRules",
    "add_noise",
    "cast",
    "check_size",
    "compact",
    "file_model_name",
    "files_in",
    "find_model",
    "find_named",
    "is_single_file",
    "load_model",
    "model_hash",
    "model_name",
    "models_in",
    "output_name",
    "path_of",
    "read_part",
    "resolve_path",
    "velocity",
    "weights_of",
    "write_base_model",
]

__getattr__ = lazy(__name__, __file__)
