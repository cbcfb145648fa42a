"""What users are told: errors that they can mend (exit status 2, no traceback), and warnings."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says where, what, expected, remedy."""


class DrawWarning(UserWarning):
    """Something is drawn otherwise than asked for."""
