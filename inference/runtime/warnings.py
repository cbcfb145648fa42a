"""Keep the libraries' progress bars and notices out of our output."""

import logging
import os


def quiet_libraries() -> None:
    """Set environment variables that silence the libraries. Call before importing them.

    Variables that the user has set stay as they are.
    """
    settings = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP's warning about unused parameters
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
