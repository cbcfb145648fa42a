"""Errors that users can fix (exit status 2, no traceback), and warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class InputError(ValueError):
    """Invalid input by the user; the message says where, what, expected, remedy."""


class DrawWarning(UserWarning):
    """Something is generated differently than requested."""


class BaseModelError(InputError):
    """The base model of the recipe cannot be used; says what was found, and the remedy."""


class ArtifactError(InputError):
    """An artifact cannot be read or does not fit; says what was found, expected, and the remedy."""


class LostError(RuntimeError):
    """Another process of the job has ended, or has not come, so that this one cannot continue."""
