"""Load YAML recipes into typed dataclasses."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.recipe.command import (
        find_recipe,
        is_first_process,
        print_text,
        report,
        shipped_recipes,
        warnings_reported,
    )
    from inference.recipe.imports import Imported, Reader
    from inference.recipe.json_schema import recipe_json_schema
    from inference.recipe.layers import RecipeError, absolute, merged, override_layers, shown
    from inference.recipe.loader import RecipeWarning, dump_recipe, load_mapping, load_recipe
    from inference.recipe.schema import field_docs, fields_of, got, is_word, without_none
    from inference.recipe.yaml_nodes import cut

__all__ = [
    "Imported",
    "Reader",
    "RecipeError",
    "RecipeWarning",
    "absolute",
    "cut",
    "dump_recipe",
    "field_docs",
    "fields_of",
    "find_recipe",
    "got",
    "is_first_process",
    "is_word",
    "load_mapping",
    "load_recipe",
    "merged",
    "override_layers",
    "print_text",
    "recipe_json_schema",
    "report",
    "shipped_recipes",
    "shown",
    "warnings_reported",
    "without_none",
]

__getattr__ = lazy(__name__, __file__)
