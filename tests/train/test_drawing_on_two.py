"""Two processes draw a recipe together: the same files as one alone."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inference.images.infotext.reading import read_infotext
from inference.images.infotext.text import parse_infotext


@pytest.fixture
def recipe(tiny_base_folder: Path, tmp_path: Path) -> Path:
    """Three pictures, the last one in a batch of its own, and their grid."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base_model: {{path: {tiny_base_folder}}}\n"
        "settings: {steps: 2, seed: 5, width: 16, height: 16}\n"
        "images: {cat: {prompt: cat, count: 2}, dog: {prompt: dog, sampler: Euler a}}\n"
    )
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_give_the_files_of_one(commands: Any, recipe: Path, tmp_path: Path) -> None:
    one = commands.draw(recipe, f"output_dir={tmp_path}/one")
    assert one.status == 0, one.err
    two = commands.draw_on_two(recipe, f"output_dir={tmp_path}/two")
    assert [rank.status for rank in two] == [0, 0], two
    assert two[0].out.replace("/two/", "/one/") == one.out
    assert (two[1].out, two[1].err) == ("", "")
    assert len(contents(tmp_path / "one")) == 4
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_random_seeds_are_those_of_one_process(commands: Any, recipe: Path, tmp_path: Path) -> None:
    options = ["settings.seed=-1", "images.dog=null", "images.cat.count=3", "grid=false"]
    two = commands.draw_on_two(recipe, f"output_dir={tmp_path}/out", *options)
    assert [rank.status for rank in two] == [0, 0], two
    texts = [read_infotext(Path(path)) for path in two[0].out.split()]
    first, *others = [int(parse_infotext(text or "").parameters["Seed"]) for text in texts]
    assert others == [first + 1, first + 2]


def test_an_error_in_one_ends_both(commands: Any, recipe: Path, tmp_path: Path) -> None:
    """Each reports what any of them finds: the tests' launcher has no store to agree by."""
    Image.new("RGB", (16, 16)).save(tmp_path / "init.png")
    options = [
        f"images.dog.img2img.init_image={tmp_path}/init.png",
        "images.cat.count=1",
        f"output_dir={tmp_path}/out",
    ]
    damaged = (tmp_path / "init.png").read_bytes()[:-30]
    (tmp_path / "init.png").write_bytes(damaged)
    two = commands.draw_on_two(recipe, *options)
    assert [rank.status for rank in two] == [2, 2], two
    for rank in two:
        assert rank.err.count("draw: ") == 1
        assert "cannot be read as a picture" in rank.err


def test_what_all_find_out_keeps_none_waiting(commands: Any, recipe: Path, tmp_path: Path) -> None:
    """Where the launcher has a store it is printed once, see runtime/test_failures.py."""
    (tmp_path / "file").write_text("x")
    for option in (f"output_dir={tmp_path}/file", "images.cat.width=18"):
        two = commands.draw_on_two(recipe, option)
        assert [rank.status for rank in two] == [2, 2], two
        assert [rank.err.count("draw: ") for rank in two] == [1, 1]
