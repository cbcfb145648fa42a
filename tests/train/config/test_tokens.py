"""Words that prompts cannot spell."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inference.prompts.spelling import misread
from inference.recipe.layers import RecipeError, RecipeWarning
from inference.recipe.loader import load_mapping
from train.config.concepts import ConceptConfig
from train.config.data import DataConfig
from train.config.examples import CaptionConfig
from train.config.schema import train_schema
from train.data.sources.folder import find_pictures

LITERAL = [
    "mizu", "my-style", "<cat-toy>", "sks dog", "10:30 in", "a: b", "SAND", "BREAKING", "v1.5",
    "*", "ü", "{x}", "a,b", "and", "<a", ">", "",
]  # fmt: skip
MISREAD = [
    "[v]", "(sks)", "((x", "x)", "]", "AND", "a AND b", "BREAK", "x BREAK", "a:1.5", "x:2", ":1",
    "<lora:x:1>", "<x:y>", "a|b", "|", "a\\b", "\\(", "a\\", "[a:b:3]", "foo_(bar)", "(a:1.2)",
    "x :0.5",
]  # fmt: skip


@pytest.mark.parametrize("word", LITERAL)
def test_literal_words(word: str) -> None:
    assert misread(word) is None


@pytest.mark.parametrize("word", MISREAD)
def test_words_with_a_meaning_of_their_own(word: str) -> None:
    assert misread(word)


def recipe(objective: dict[str, Any]) -> object:
    mapping = {"name": "x", "objective": objective, "data": {"path": "."}, "output_dir": "/o"}
    return load_mapping(mapping, "recipe", train_schema)


@pytest.mark.parametrize("token", ["[v]", "(sks)", "AND", "BREAK", "a:1"])
def test_tokens_that_prompts_cannot_spell_are_refused(token: str) -> None:
    own = {"type": "textual_inversion", "token": token}
    reported = r"token: .* cannot be written in a prompt, where .*; take a word such as my-style"
    with pytest.raises(RecipeError, match=reported):
        recipe(own)
    members = {"a": {"objective": own}, "b": {"objective": {"type": "lora"}}}
    with pytest.raises(RecipeError, match=rf"members\.a\.objective\.{reported}"):
        recipe({"type": "combined", "members": members})


def test_tokens_of_subjects_are_noted() -> None:
    concept = ConceptConfig("x", instance_token="(sks)", class_token="dog")
    assert list(concept.idle()) == [
        ("instance_token", "is learned as it is written, while in prompts ( and ) set weights")
    ]


def test_captions_are_noted_once(tmp_path: Path) -> None:
    for number, text in enumerate(["saber (fate)", "a (dog)", "plain", "10:30 in rain"]):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(text)
    reported = (
        r"^data\.captions: captions of 2 of 4 pictures are learned as they are written, while in "
        r"prompts \( and \) set weights; there write \\ before such signs: 'saber \(fate\)'$"
    )
    with pytest.warns(RecipeWarning, match=reported):
        find_pictures(DataConfig(path=str(tmp_path)), True)
    (tmp_path / "0.txt").write_text("a {red|blue} cat ||| b")
    (tmp_path / "1.txt").write_text("b")
    captions = CaptionConfig(wildcards=True, keep_tokens_separator="|||")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_pictures(DataConfig(path=str(tmp_path), captions=captions), True)
