"""Files on disk: atomic writes, hashes, tensors, file name patterns."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.files.atomic import remove_left_overs, sync, write_atomically
    from inference.files.hash_cache import cache_file
    from inference.files.hashes import (
        artifact_hash,
        lora_hash,
        lora_legacy_hash,
        old_hash,
        read_header,
        read_json,
        sha256,
        weights_file,
    )
    from inference.files.name_patterns import Naming, fill_in, fitting, pattern_faults
    from inference.files.regular import check_regular
    from inference.files.tensors import (
        EMBEDDING_PICTURES,
        PICKLES,
        UNREADABLE,
        TensorFile,
        check_tensors,
        load_data,
        open_tensors,
        read_pickle,
        read_tensors,
        reason_of,
        serialize,
        unreadable,
        write_folder,
        write_tensors,
    )

__all__ = [
    "EMBEDDING_PICTURES",
    "PICKLES",
    "UNREADABLE",
    "Naming",
    "TensorFile",
    "artifact_hash",
    "cache_file",
    "check_regular",
    "check_tensors",
    "fill_in",
    "fitting",
    "load_data",
    "lora_hash",
    "lora_legacy_hash",
    "old_hash",
    "open_tensors",
    "pattern_faults",
    "read_header",
    "read_json",
    "read_pickle",
    "read_tensors",
    "reason_of",
    "remove_left_overs",
    "serialize",
    "sha256",
    "sync",
    "unreadable",
    "weights_file",
    "write_atomically",
    "write_folder",
    "write_tensors",
]

__getattr__ = lazy(__name__, __file__)
