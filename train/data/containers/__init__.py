"""Folders, tars, zips and tables that hold examples."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.data.containers.columns import holds_bytes, holds_texts
    from train.data.containers.containers import (
        KINDS,
        TABLES,
        Streaming,
        is_container,
        is_row,
        open_archive,
        open_table,
        register_streaming,
    )
    from train.data.containers.files import (
        container_of,
        exists,
        file_state,
        file_status,
        files_within,
        name_within,
        open_file,
        read_bytes,
        read_text,
        walk,
    )
    from train.data.containers.members import PICKLES, Container
    from train.data.containers.names import (
        BRACES,
        HUB,
        METADATA,
        METADATA_FILES,
        METADATA_TABLE,
        PICTURE_EXTENSIONS,
        SPLIT,
        SPLITS,
        chosen_split,
        expanded,
    )
    from train.data.containers.tables import Parquet
    from train.data.containers.tars import Tar

__all__ = [
    "BRACES", "HUB", "KINDS", "METADATA", "METADATA_FILES", "METADATA_TABLE", "PICKLES",
    "PICTURE_EXTENSIONS", "SPLIT", "SPLITS", "TABLES", "Container", "Parquet", "Streaming", "Tar",
    "chosen_split", "container_of", "exists", "expanded", "file_state", "file_status",
    "files_within", "holds_bytes", "holds_texts", "is_container", "is_row", "name_within",
    "open_archive", "open_file", "open_table", "read_bytes", "read_text", "register_streaming",
    "walk",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
