"""Errors of training."""

from __future__ import annotations

import warnings
from functools import cache

from inference.recipe import RecipeWarning
from inference.runtime import InputError


@cache
def tell_once(message: str) -> None:
    """Warn the first time that this message occurs."""
    warnings.warn(message, RecipeWarning, stacklevel=3)


class RunDirectoryError(InputError):
    """The run's folder does not allow the requested operation."""


class SavingError(RuntimeError):
    """A checkpoint or artifact could not be written; earlier ones are intact."""


RESERVE = 16 * 2**20
"""Bytes that are left free: for logs, preview grids, and other data on the disk."""


class DataError(InputError):
    """The images or captions cannot be used."""


class FetchError(DataError):
    """A shard cannot be downloaded: nothing is known about its images."""


class NonFiniteError(FloatingPointError):
    """Losses or gradients of a step are not finite; no weight was changed by it."""
