"""Load YAML recipes into typed dataclasses."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.recipe.command import (
        find_recipe,
        shipped_recipes,
        warnings_reported,
    )
    from inference.recipe.imports import Imported, Reader
    from inference.recipe.json_schema import recipe_json_schema
    from inference.recipe.layers import (
        RecipeError,
        RecipeWarning,
        absolute,
        at_home,
        merged,
        override_layers,
        set_key,
        shown,
    )
    from inference.recipe.limits import NO_LIMIT
    from inference.recipe.loader import dump_recipe, load_mapping, load_recipe
    from inference.recipe.options import option_faults, takes, typed_options
    from inference.recipe.plugins import (
        DRAWING_GROUPS,
        PLUGIN_GROUPS,
        PLUGIN_VARIABLE,
        Moved,
        installed_plugins,
        load_consented,
        load_plugins,
        loading_error,
        named_plugins,
        old_names,
        resolve,
    )
    from inference.recipe.references import MISSING, reference
    from inference.recipe.schema import field_docs, fields_of, got, is_word, without_none
    from inference.recipe.yaml_nodes import cut

__all__ = [
    "DRAWING_GROUPS", "MISSING", "NO_LIMIT", "PLUGIN_GROUPS", "PLUGIN_VARIABLE", "Imported",
    "Moved", "Reader", "RecipeError", "RecipeWarning", "absolute", "at_home", "cut", "dump_recipe",
    "field_docs", "fields_of", "find_recipe", "got", "installed_plugins", "is_word",
    "load_consented", "load_mapping", "load_plugins", "load_recipe", "loading_error", "merged",
    "named_plugins", "old_names", "option_faults", "override_layers", "recipe_json_schema",
    "reference", "resolve", "set_key", "shipped_recipes", "shown", "takes", "typed_options",
    "warnings_reported", "without_none",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
