"""What can be wrong with the folder of a run."""

from __future__ import annotations

import warnings
from functools import cache

from inference.recipe import RecipeWarning
from inference.runtime import InputError


@cache
def tell_once(message: str) -> None:
    """Warns, the first time that this is told."""
    warnings.warn(message, RecipeWarning, stacklevel=3)


class RunDirectoryError(InputError):
    """The run's folder does not allow what is asked."""


class SavingError(RuntimeError):
    """A checkpoint or artifact could not be written; nothing saved before is lost."""


RESERVE = 16 * 2**20
"""Bytes that are left free: for logs, grids, and what else is on the disk."""


class DataError(InputError):
    """The pictures or captions cannot be used."""


class FetchError(DataError):
    """A shard cannot be fetched: of the pictures in it nothing is known."""


class NonFiniteError(FloatingPointError):
    """Losses or gradients of a step are not finite; no weight was changed by it."""
