"""Plug-ins of docs/extending.md as files outside the repository, forgotten after each test."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.config import ADAPTERS
from inference.recipe import plugins
from inference.sampling import SAMPLERS
from tests.train.conftest import make_recipe, no_accelerator_left, pictures, recipe_file
from train.config import LR_SCHEDULES, OBJECTIVE_CONFIGS, OPTIMIZERS

__all__ = ["make_recipe", "no_accelerator_left", "pictures", "recipe_file"]

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"
FILES = {
    match[1]: match[0]
    for block in re.findall(r"^```python\n(.*?)^```$", DOCS.read_text("utf-8"), re.M | re.S)
    if (match := re.match(r"# (\w+)\.py\n(?s:.*)", block))
}
"""Module -> source, as the page shows it."""

MODULES = ("my_objective", "my_sampler", "my_optimizer", "my_adapter")
REGISTRIES = (OBJECTIVE_CONFIGS, OPTIMIZERS, LR_SCHEDULES, SAMPLERS, ADAPTERS)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the plug-ins, on Python's path; what they register is forgotten."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name, source in FILES.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(plugins, "_consented", set())
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.setattr(plugins, "_announced", set())
    monkeypatch.delenv(plugins.PLUGIN_VARIABLE, raising=False)
    before = [dict(registry) for registry in REGISTRIES]
    yield folder
    for registry, known in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(known)  # type: ignore[arg-type]
    for name in MODULES:
        sys.modules.pop(name, None)
