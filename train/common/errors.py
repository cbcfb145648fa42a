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


class RunEndedError(Exception):
    """The run has ended before its last step; the message says what is saved."""

    of_all_processes = False
    """Whether all processes raise it together, so that one of them says it."""


class SavingError(RunEndedError, RuntimeError):
    """A checkpoint or artifact could not be written; earlier ones are intact."""


RESERVE = 16 * 2**20
"""Bytes that are left free: for logs, preview grids, and other data on the disk."""


class DataError(InputError):
    """The images or captions cannot be used."""


class FetchError(DataError):
    """A shard cannot be downloaded: nothing is known about its images."""


class NonFiniteError(RunEndedError, FloatingPointError):
    """Losses or gradients of a step are not finite; the message says what it has changed, if so."""

    of_all_processes = True
