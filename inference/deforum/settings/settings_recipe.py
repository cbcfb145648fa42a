"""Deforum's settings files as recipes, and the settings of a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from inference.config import AnimationRecipe, draw_schema
from inference.deforum.settings.parseq import with_manifest
from inference.deforum.settings.settings import Settings, read_settings
from inference.recipe import absolute, load_mapping, shown


def load_settings(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), origin: str = ""
) -> Settings:
    """Load settings and apply their Parseq manifest, if they name one.

    Nothing else that the settings point to is opened.

    Args:
        source: path of a settings file in any dialect, or settings by key.
        overrides: `key=value` each; the value is JSON, or else a text. `prompts.30=a cat` changes
            one prompt.
        origin: name of a mapping in messages.

    Raises:
        InputError: the file or its manifest cannot be read, or a value does not fit its key.
    """
    return with_manifest(read_settings(source, overrides, origin))


def load_settings_recipe(path: str, overrides: Sequence[str] = ()) -> AnimationRecipe:
    """Return the recipe that generates a settings file with the embedded model.

    Args:
        path: the file.
        overrides: `key=value` with keys of the recipe, or of Deforum, whose values are taken
            literally.

    Raises:
        RecipeError: an override of a recipe key is invalid.
    """
    known = {field.name for field in fields(AnimationRecipe)}
    own, deforum = [], {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or key.partition(".")[0] in known:
            own.append(override)
        else:
            deforum[key.strip()] = value
    mapping = {"type": "animation", "settings_file": path, "settings": deforum}
    return load_mapping(mapping, shown(absolute(path)), draw_schema, own)


def recipe_settings(recipe: AnimationRecipe) -> Settings:
    """Return the settings of a recipe: those of its file, then its own.

    Raises:
        InputError: the file cannot be read, or a value does not fit its key.
    """
    own = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in recipe.settings.items()
    ]
    if recipe.settings_file is not None:
        return load_settings(recipe.settings_file, own)
    return load_settings({}, own, "settings")
