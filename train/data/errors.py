"""What is wrong with a dataset."""

from inference.errors import InputError


class DataError(InputError):
    """The pictures or captions cannot be used."""
