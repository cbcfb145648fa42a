"""What is wrong with a dataset."""

from inference.errors import InputError


class DataError(InputError):
    """The pictures or captions cannot be used."""


class FetchError(DataError):
    """A shard cannot be fetched: of the pictures in it nothing is known."""
