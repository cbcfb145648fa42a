"""Output files of an animation: run folder, videos, subtitles, contact sheets."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.deforum.products.finishing import Products, check_products, finish
    from inference.deforum.products.run_folder import (
        SETTINGS,
        RunFolder,
        latest_run,
        new_run,
        run_of_settings,
        run_of_timestring,
        runs_without_state,
    )
    from inference.deforum.products.subtitles import chosen_fields

__all__ = [
    "SETTINGS", "Products", "RunFolder", "check_products", "chosen_fields", "finish", "latest_run",
    "new_run", "run_of_settings", "run_of_timestring", "runs_without_state",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
