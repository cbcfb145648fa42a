"""Quantized weights are named in infotext, and a redraw takes them over."""

from __future__ import annotations

import pytest

from inference.config import BaseModelConfig, ImageConfig
from inference.images.infotext.describe import describe_drawing
from inference.images.infotext.text import parse_infotext
from inference.images.redraw import recipe_from_infotext
from inference.models.stable_diffusion.model import BaseModel

KINDS = {"fp8": "float8-e4m3fn", "int8": "int8", "nf4": "bnb-nf4"}


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_what_is_written_is_taken_over(tiny_base: BaseModel, kind: str | None) -> None:
    tiny_base.source = BaseModelConfig(path="picto", quantization=kind)  # type: ignore[arg-type]
    request = ImageConfig(prompt="red", seed=1, width=64, height=64, steps=2)
    infotext = parse_infotext(describe_drawing(request, tiny_base))
    assert infotext.parameters.get("Diffusion in Low Bits") == (KINDS[kind] if kind else None)
    made = recipe_from_infotext(infotext, base_model="picto")
    assert made.recipe["base_model"].get("quantization") == kind
    assert not any("Low Bits" in note for note in made.notes)


def test_those_of_other_programs_are_noted(tiny_base: BaseModel) -> None:
    tiny_base.source = BaseModelConfig(path="picto", quantization="nf4")
    request = ImageConfig(prompt="red", seed=1, width=64, height=64, steps=2)
    infotext = parse_infotext(describe_drawing(request, tiny_base, extra={"Version": "f2.0.1"}))
    made = recipe_from_infotext(infotext, base_model="picto")
    assert "quantization" not in made.recipe["base_model"]
    assert [note for note in made.notes if note.startswith("Diffusion in Low Bits: bnb-nf4: ")]
