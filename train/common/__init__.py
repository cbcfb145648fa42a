"""Batches, counter-based randomness, distributed helpers and training errors."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.common.batch import Batch, send
    from train.common.distributed import (
        StopSignals,
        lost_processes_reported,
        of_all,
        of_first,
        uses_gpu,
    )
    from train.common.encoding import encode_in_parts, encoded_at_once
    from train.common.errors import (
        RESERVE,
        DataError,
        FetchError,
        NonFiniteError,
        RunDirectoryError,
        RunEndedError,
        SavingError,
        tell_once,
    )
    from train.common.randomness import derive_seed, generator, normal, seeded
    from train.common.sharing import ALONE, Share
    from train.common.weights import on_the_host, own_rows, replaced_parameters

__all__ = [
    "ALONE", "RESERVE", "Batch", "DataError", "FetchError", "NonFiniteError", "RunDirectoryError",
    "RunEndedError", "SavingError", "Share", "StopSignals", "derive_seed", "encode_in_parts",
    "encoded_at_once", "generator", "lost_processes_reported", "normal", "of_all", "of_first",
    "on_the_host", "own_rows", "replaced_parameters", "seeded", "send", "tell_once", "uses_gpu",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
