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
        parsed_json,
        read_bytes,
        read_text,
    )
    from train.data.containers.folders import (
        HIDDEN,
        IN_HIDDEN_FOLDERS,
        MASKS,
        ROWS,
        by_folder,
        is_hidden,
        left_out_line,
        looks_like_data,
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
        READ_BY_EXTRA,
        SPLIT,
        SPLITS,
        chosen_split,
        expanded,
        nfc,
        picture_extensions,
        windows_parts,
    )
    from train.data.containers.tables import Parquet
    from train.data.containers.tars import Tar

__all__ = [
    "BRACES", "HIDDEN", "HUB", "IN_HIDDEN_FOLDERS", "KINDS", "MASKS", "METADATA", "METADATA_FILES",
    "METADATA_TABLE", "PICKLES", "PICTURE_EXTENSIONS", "READ_BY_EXTRA", "ROWS", "SPLIT", "SPLITS",
    "TABLES", "Container", "Parquet", "Streaming", "Tar", "by_folder", "chosen_split",
    "container_of", "exists", "expanded", "file_state", "file_status", "files_within",
    "holds_bytes", "holds_texts", "is_container", "is_hidden", "is_row", "left_out_line",
    "looks_like_data", "name_within", "nfc", "open_archive", "open_file", "open_table",
    "parsed_json", "picture_extensions", "read_bytes", "read_text", "register_streaming", "walk",
    "windows_parts",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
