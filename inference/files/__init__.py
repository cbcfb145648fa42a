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
__all__ = [
    "HeldFile", "Naming", "artifact_hash", "cache_file", "fill_in", "fitting", "hold_file",
    "lora_hash", "lora_legacy_hash", "name_new", "old_hash", "one_at_a_time", "pattern_faults",
    "read_header", "read_json", "remove_left_overs", "sha256", "sync", "weights_file",
    "write_atomically", "write_once",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
