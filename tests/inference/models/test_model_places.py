"""Which paths of base models are accepted before anything of them is read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from inference.models.names import check_place
from inference.runtime.errors import BaseModelError

SPELLINGS: dict[str, Callable[[Path], str]] = {
    "absolute": str,
    "here": lambda path: path.name,
    "up": lambda path: f"../{path.parent.name}/{path.name}",
    "deeper": lambda path: f"./a/../../{path.parent.name}/{path.name}",
    "home": lambda path: f"~/{path.name}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["sd15.safetensors", "sd15.SAFETENSORS", "sd15.ckpt", "folder"])
def test_every_spelling_of_a_path_is_accepted(
    spelling: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"")
    check_place(SPELLINGS[spelling](path))


@pytest.mark.parametrize("path", ["picto", "owner/model", "owner/model-1.5"])
def test_embedded_models_and_hub_ids_are_accepted(path: str) -> None:
    check_place(path)


@pytest.mark.parametrize("path", ["none.safetensors", "a/none.ckpt", "/a/b/none.safetensors"])
def test_a_missing_file_is_named(path: str) -> None:
    with pytest.raises(BaseModelError, match=r"base_model\.path: no such file: "):
        check_place(path)


@pytest.mark.parametrize("path", ["none", "/a/b/none", "a/b/c"])
def test_so_is_a_missing_folder(path: str) -> None:
    with pytest.raises(BaseModelError, match="is neither an embedded model"):
        check_place(path)
