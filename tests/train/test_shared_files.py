"""What is passed on carries the base model's name, and no path of the disk it was made on."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from inference.config import ImagesRecipe
from inference.images import draw_images
from inference.models import base_name, model_name, published_name
from inference.recipe import load_mapping
from tests.inference.artifacts.conftest import build_base
from tests.train.run_tools import with_slow
from train.config import TrainRecipe
from train.trainer import Trainer

SECRET = "alice_and_client"
OBJECTIVES = {
    "lora": "objective={type: lora, rank: 1}",
    "embedding": "objective={type: textual_inversion, token: mizu}",
    "embedding as .pt": "objective={type: textual_inversion, token: mizu, save_as: pt}",
    "embedding in a picture": "objective={type: textual_inversion, token: mizu, save_as: png}",
    "hypernetwork": "objective={type: hypernetwork}",
    "folder": "objective={type: text_to_image}",
    "single file": "objective={type: text_to_image, save_as: safetensors}",
}


def test_names_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert published_name("picto") == "picto"
    assert published_name("owner/name") == "name"  # a folder here, not the hub's
    assert published_name("another/name") == "another/name"
    for path in (
        f"/home/{SECRET}/model.safetensors",
        f"{SECRET}/model.safetensors",
        f"../{SECRET}/model.safetensors",
        f"C:\\Users\\{SECRET}\\model.safetensors",
        f"..\\{SECRET}\\model.safetensors",
        f"\\\\server\\{SECRET}\\model.safetensors",
        f"D:/{SECRET}\\model.safetensors",
    ):
        assert published_name(path) == base_name(path) == "model.safetensors"
        base = build_base()
        base.path = path
        assert model_name(base) == "model"
    assert base_name(f"/home/{SECRET}/model/") == "model"
    for path in (".", "./", "owner/.."):
        assert base_name(path) == tmp_path.name


def texts_of(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


@pytest.mark.parametrize("kind", with_slow(OBJECTIVES, ("embedding", "embedding as .pt", "folder")))
def test_artifacts_hold_no_path(
    kind: str, make_recipe: Callable[..., TrainRecipe], tiny_base_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / SECRET / "my_model"
    shutil.copytree(tiny_base_folder, base)
    Trainer(make_recipe(f"base_model.path={base}", "max_train_steps=1", OBJECTIVES[kind])).train()
    run = tmp_path / "run"
    found = dict(texts_of(run / "artifacts"))
    assert found
    for path, content in (found | dict(texts_of(run / "samples"))).items():
        for word in (SECRET, str(tmp_path)):
            for coding in ("utf-8", "utf-16-le"):
                assert word.encode(coding) not in content, path
    if kind == "lora":
        assert any(b'"ss_sd_model_name":"my_model"' in content for content in found.values())


def test_pictures_hold_no_path(tiny_base_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / SECRET / "my_model"
    shutil.copytree(tiny_base_folder, base)
    Image.new("RGB", (16, 16), "red").save(tmp_path / SECRET / "start.png")
    mapping = {
        "base_model": {"path": str(base)},
        "output_dir": str(tmp_path / "out"),
        "settings": {"steps": 1, "width": 16, "height": 16},
        "images": {"a": {"prompt": "a", "img2img": {"init_image": str(base.parent / "start.png")}}},
    }
    draw_images(load_mapping(mapping, "test", lambda _: ImagesRecipe))
    found = dict(texts_of(tmp_path / "out"))
    assert any(b"Model: my_model" in content for content in found.values())
    assert not [path for path, content in found.items() if SECRET.encode() in content]
