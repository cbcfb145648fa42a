"""Libraries of the optional extras, imported when a feature needs them."""

from importlib import import_module
from typing import Any

from inference.runtime.errors import InputError


def require(module: str, feature: str, library: str, extra: str) -> Any:
    """Import a library of an extra and return its module.

    Args:
        module: the module's name, such as `cv2`.
        feature: what needs it, in the plural: "animations".
        library: the library's own name, such as OpenCV.
        extra: the extra of `pyproject.toml` that installs it.

    Raises:
        InputError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{feature} need {library}, which is not installed: pip install 'limner[{extra}]'"
        ) from error
