"""The run directory: checkpoints, manifests, comparison."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.runs.checkpoint_files import PROGRESS, CheckpointWriter, HashedFile
    from train.runs.comparison import (
        Comparison,
        compare_environments,
        compare_files,
        compare_runs,
        different_lines,
        environment_of,
        open_run,
        show,
        speeds,
    )
    from train.runs.data_manifest import (
        CLASS_PICTURE,
        HELD_BACK,
        PICTURE,
        Row,
        data_changes,
        first,
        rows_of,
    )
    from train.runs.disk import check_writable, existing, megabytes, room, size_of
    from train.runs.environments import data_sizes, is_of_earlier_start
    from train.runs.manifests import describe_environment, run_metadata
    from train.runs.resume_checks import keep_batch, stored_recipe
    from train.runs.run_directory import RunDirectory

__all__ = [
    "CLASS_PICTURE", "HELD_BACK", "PICTURE", "PROGRESS", "CheckpointWriter", "Comparison",
    "HashedFile", "Row", "RunDirectory", "check_writable", "compare_environments", "compare_files",
    "compare_runs", "data_changes", "data_sizes", "describe_environment", "different_lines",
    "environment_of", "existing", "first", "is_of_earlier_start", "keep_batch", "megabytes",
    "open_run", "room", "rows_of", "run_metadata", "show", "size_of", "speeds", "stored_recipe",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
