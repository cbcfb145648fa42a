# SPDX-License-Identifier: Apache-2.0
"""Tests on a CUDA device, real or mock: left out where there is none (see README.md)."""

from __future__ import annotations

import torch

from tests.train.conftest import (
    clip_recipe_file,
    clips,
    make_clip_recipe,
    make_recipe,
    no_accelerator_left,
    pictures,
    recipe_file,
)

__all__ = [
    "clip_recipe_file",
    "clips",
    "make_clip_recipe",
    "make_recipe",
    "no_accelerator_left",
    "pictures",
    "recipe_file",
]

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
