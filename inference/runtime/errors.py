"""What users are told: errors that they can mend (exit status 2, no traceback), and warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class InputError(ValueError):
    """What the user gave cannot be used; the message says where, what, expected, remedy."""


class DrawWarning(UserWarning):
    """Something is drawn otherwise than asked for."""


class BaseModelError(InputError):
    """The base model named in the recipe cannot be used; says what was found and what helps."""


class ArtifactError(InputError):
    """An artifact cannot be read or does not fit; says what was found, expected, and what helps."""
