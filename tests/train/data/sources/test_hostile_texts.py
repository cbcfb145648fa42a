"""Captions and tables of others: what they contain, and where they lead."""

from pathlib import Path

import pytest
from PIL import Image

from inference.recipe import RecipeWarning
from train.common import DataError, errors
from train.config import CaptionConfig, ContainerConfig
from train.data.sources.caption_files import CaptionFiles
from train.data.sources.metadata import read_metadata

TEXTS = {
    "half a character": ('{"file_name": "a.png", "text": "\\ud800"}', "half of a character"),
    "one in a list": (
        '{"file_name": "a.png", "text": ["x", "\\udfff y"]}', "contains half of a character",
    ),
    "great depth": ('{"file_name": "a.png", "text": ' + "[" * 100_000, "nested too deep"),
    "many digits": ('{"file_name": "a.png", "text": ' + "9" * 5000 + "}", "not JSON: "),
    "great length": (
        '{"file_name": "a.png", "text": "' + "x" * 100_001 + '"}', "a caption of 100001 characters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_odd_texts_are_one_message(kind: str, tmp_path: Path) -> None:
    line, message = TEXTS[kind]
    table = tmp_path / "metadata.jsonl"
    table.write_text(line)
    with pytest.raises(DataError) as caught:
        read_metadata(tmp_path, ContainerConfig())
    assert str(caught.value).startswith(f"{table}: line 1: ")
    assert message in str(caught.value) and len(str(caught.value)) < 400
    file = tmp_path / "a.json"
    file.write_text(line.replace("file_name", "name"))
    with pytest.raises(DataError) as caught:
        CaptionFiles(CaptionConfig(extensions=[".json"])).captions(tmp_path / "a.png")
    assert message in str(caught.value) and str(caught.value).startswith(str(file))


OUTSIDE = ["../b.png", "/etc/passwd", "a/../../b.png", "..\\b.png", "a\\..\\..\\b.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_table_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    escaped = name.replace("\\", "\\\\")
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "{escaped}", "text": "x"}}')
    with pytest.raises(DataError, match="leads out of the folder of the table"):
        read_metadata(folder, ContainerConfig())


def test_table_names_files_below(tmp_path: Path) -> None:
    names = ["a.png", "sub/a.png", "./c.png", "a..b.png", str(tmp_path / "d.png"), "x: y.png"]
    lines = [f'{{"file_name": "{name}", "text": "x"}}' for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert set(read_metadata(tmp_path, ContainerConfig())) == {tmp_path / name for name in names}


def test_links_out_of_the_data_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors.tell_once.cache_clear()
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    (elsewhere / "secret.txt").write_text("the password")
    (elsewhere / "shared.txt").write_text("a cat")
    Image.new("RGB", (8, 8)).save(elsewhere / "shared.png")
    (data / "own.txt").write_text("a dog")
    (data / "a.txt").symlink_to(elsewhere / "secret.txt")
    (data / "b.txt").symlink_to(elsewhere / "shared.txt")
    (data / "b.png").symlink_to(elsewhere / "shared.png")
    (data / "c.txt").symlink_to("own.txt")
    found = CaptionFiles(CaptionConfig())
    with pytest.warns(RecipeWarning, match=r"a\.txt: a link out of the data is not followed"):
        assert found.captions(data / "a.png") == ()
    assert found.captions(data / "b.png") == ("a cat",)
    assert found.captions(data / "c.png") == ("a dog",)
