"""Keeps the libraries' own bars and notices out of the way of what we say."""

import logging
import os


def quiet_libraries() -> None:
    """To be called before they are imported. Variables that the user has set stay as they are."""
    settings = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP, of parameters that take no part in a step
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
