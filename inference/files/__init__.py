"""Files on disk: atomic writes, hashes, tensors, file name patterns."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.files.atomic import (
        HeldFile,
        hold_file,
        name_new,
        one_at_a_time,
        remove_left_overs,
        sync,
        write_atomically,
        write_once,
    )
    from inference.files.hash_cache import cache_file
    from inference.files.hashes import (
        ADAPTER_FILES,
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
    from inference.files.pickles import write_pickle
    from inference.files.temporary import process_space, unfinished
    from inference.files.tensor_checks import (
        NotFiniteError,
        are_finite,
        is_finite,
        refuse_not_finite,
        sound,
    )
    from inference.files.tensors import (
        EMBEDDING_PICTURES,
        PICKLES,
        UNREADABLE,
        TensorFile,
        framed_header,
        header_entries,
        load_data,
        open_tensors,
        read_pickle,
        read_tensors,
        reason_of,
        serialize,
        tensor_bytes,
        unreadable,
        write_folder,
        write_tensors,
    )

__all__ = [
    "ADAPTER_FILES", "EMBEDDING_PICTURES", "PICKLES", "UNREADABLE", "HeldFile", "Naming",
    "NotFiniteError", "TensorFile", "are_finite", "artifact_hash", "cache_file", "fill_in",
    "fitting", "framed_header", "header_entries", "hold_file", "is_finite", "load_data",
    "lora_hash", "lora_legacy_hash", "name_new", "old_hash", "one_at_a_time", "open_tensors",
    "pattern_faults", "process_space", "read_header", "read_json", "read_pickle", "read_tensors",
    "reason_of", "refuse_not_finite", "remove_left_overs", "serialize", "sha256", "sound", "sync",
    "tensor_bytes", "unfinished", "unreadable", "weights_file", "write_atomically", "write_folder",
    "write_once", "write_pickle", "write_tensors",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
