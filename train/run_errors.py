"""What can be wrong with the folder of a run."""

from inference.errors import InputError


class RunDirectoryError(InputError):
    """The run's folder does not allow what is asked."""


class SavingError(RuntimeError):
    """A checkpoint or artifact could not be written; nothing saved before is lost."""
