"""The one class of errors that users can mend: a message, exit status 2, no traceback."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says where, what, expected, remedy."""
