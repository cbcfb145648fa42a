"""Convert settings files of Deforum and its relatives to typed settings."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.deforum.settings.coercion import sampler_name
    from inference.deforum.settings.compat import DEFORUM, FIXED, Compat
    from inference.deforum.settings.expressions import (
        FormulaError,
        Values,
        compute,
        evaluated,
        is_number,
        number_of,
    )
    from inference.deforum.settings.keys import (
        GATES,
        INT_SCHEDULES,
        KEYS,
        KOHYA,
        SCHEDULE,
        TEXT_SCHEDULES,
    )
    from inference.deforum.settings.parseq import managed_prompts, managed_values
    from inference.deforum.settings.settings import Settings
    from inference.deforum.settings.settings_recipe import (
        load_settings,
        load_settings_recipe,
        recipe_settings,
    )

__all__ = [
    "DEFORUM", "FIXED", "GATES", "INT_SCHEDULES", "KEYS", "KOHYA", "SCHEDULE", "TEXT_SCHEDULES",
    "Compat", "FormulaError", "Settings", "Values", "compute", "evaluated", "is_number",
    "load_settings", "load_settings_recipe", "managed_prompts", "managed_values", "number_of",
    "recipe_settings", "sampler_name",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
