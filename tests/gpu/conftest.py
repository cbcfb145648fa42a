# SPDX-License-Identifier: Apache-2.0
"""Tests on a CUDA device, real or mock: left out where there is none (see README.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
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

CHOICE = frozenset(Path(__file__).with_name("choice.txt").read_text("utf-8").splitlines())
"""Tests, by id or function, that `make test` runs on the mock device."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the files that the choice names, what it does not name is slow."""
    files = {entry.partition("::")[0] for entry in CHOICE}
    found = set[str]()
    for item in items:
        names = {item.nodeid, item.nodeid.partition("[")[0]} & CHOICE
        found |= names
        if not names and item.nodeid.partition("::")[0] in files:
            item.add_marker(pytest.mark.slow)
    collected = {item.nodeid.partition("::")[0] for item in items}
    lost = sorted(one for one in CHOICE - found if one.partition("::")[0] in collected)
    if lost and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"tests/gpu/choice.txt names no test: {', '.join(lost)}")
