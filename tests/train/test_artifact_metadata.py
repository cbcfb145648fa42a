"""What artifacts say about the run that made them, and the names of their files."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inference.artifacts.base import load_artifact
from inference.artifacts.embedding import Embedding
from inference.artifacts.metadata import base_facts
from inference.files.hashes import old_hash, read_header, sha256
from inference.models.families import family_named
from inference.models.folder import write_base_model
from inference.models.stable_diffusion.model import BaseModel
from tests.inference.artifacts.conftest import build_base
from train import __main__ as train_main
from train import diff
from train.artifact_metadata import (
    MOST_TAGS,
    ArtifactMetadata,
    count_tags,
    data_url,
    image_facts,
    said_by_user,
)
from train.common.errors import DataError
from train.config.recipe import MetadataConfig, TrainRecipe
from train.data.sources.folder import Picture
from train.data.sources.sources import find_sources
from train.places import check_places
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]

SHORT = ("max_train_steps=2", "sampling={images: {}}")
NAMED = (*SHORT, "saving={save_every_n_steps: 1, output_name: mine}")
BLOCK = (
    "metadata={author: Ann, license: CC0-1.0, tags: [style, icons], description: Line icons, "
    "trigger_phrase: line icon, usage_hint: strength 0.8, comment: second try, thumbnail: PATH}"
)


def metadata(path: Path) -> dict[str, str]:
    return read_header(path)["__metadata__"]


@pytest.fixture
def named_run(make_recipe: MakeRecipe, pictures: Path, tmp_path: Path) -> Path:
    """A run of two steps with an output name, metadata of its own and buckets."""
    Image.new("RGB", (600, 300), "red").save(tmp_path / "thumbnail.png")
    block = BLOCK.replace("PATH", str(tmp_path / "thumbnail.png"))
    Trainer(make_recipe(*NAMED, block, "data.resolution=16")).train()
    return tmp_path / "run"


def test_a_named_run_and_what_its_artifacts_say(
    named_run: Path, pictures: Path, tiny_base_folder: Path, make_recipe: MakeRecipe
) -> None:
    artifacts = named_run / "artifacts"
    assert sorted(path.name for path in artifacts.iterdir()) == [
        "mine-000001.safetensors", "mine-000002.safetensors", "mine.safetensors",
    ]  # fmt: skip
    newest = artifacts / "mine.safetensors"
    assert newest.read_bytes() == (artifacts / "mine-000002.safetensors").read_bytes()
    listed = json.loads((named_run / "artifacts.json").read_text())
    assert listed["output_name"] == "mine"
    assert sorted(listed["files"]) == [f"artifacts/mine-00000{step}.safetensors" for step in (1, 2)]

    said = metadata(newest)
    unet = tiny_base_folder / "unet" / "diffusion_pytorch_model.safetensors"
    expected = {
        "ss_output_name": "mine",
        "ss_sd_model_name": tiny_base_folder.name,
        "ss_sd_model_hash": old_hash(unet),
        "ss_new_sd_model_hash": sha256(unet),
        "ss_num_epochs": "1",  # 2 steps of 2 of the 8 pictures
        "ss_resolution": "(16, 16)",
        "ss_training_comment": "second try",
        "modelspec.title": "mine",
        "modelspec.resolution": "16x16",
        "modelspec.author": "Ann",
        "modelspec.license": "CC0-1.0",
        "modelspec.tags": "style, icons",
        "modelspec.description": "Line icons",
        "modelspec.trigger_phrase": "line icon",
        "modelspec.usage_hint": "strength 0.8",
    }
    assert {key: said.get(key) for key in expected} == expected
    dirs = json.loads(said["ss_dataset_dirs"])
    assert dirs == {pictures.name: {"n_repeats": 1, "img_count": 8}}
    tags = json.loads(said["ss_tag_frequency"])
    assert list(tags) == [pictures.name]
    assert tags[pictures.name]["number 3"] == 1
    assert tags[pictures.name]["red"] == 1
    buckets = json.loads(said["ss_bucket_info"])
    assert buckets == {"buckets": {"0": {"resolution": [16, 16], "count": 8}}}
    assert said["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert not [key for key in said if "_at" in key and key.startswith("ss_training")]
    assert "modelspec.date" not in said

    # The name may change when the run is resumed; artifacts that exist keep theirs.
    other = "saving={save_every_n_steps: 1, output_name: other}"
    changed = make_recipe(*NAMED, "data.resolution=16", other, "resume=true", "max_train_steps=3")
    Trainer(changed).train()
    assert (artifacts / "other-000003.safetensors").is_file()
    assert metadata(artifacts / "other.safetensors")["modelspec.title"] == "other"
    listed = json.loads((named_run / "artifacts.json").read_text())
    assert listed["output_name"] == "other"
    assert "artifacts/mine-000001.safetensors" in listed["files"]


def test_runs_are_compared_whatever_their_artifacts_are_called(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    Trainer(make_recipe(*NAMED, "max_train_steps=1")).train()
    Trainer(make_recipe(*SHORT, "max_train_steps=1", f"output_dir={plain}")).train()
    capsys.readouterr()
    assert diff.main([str(tmp_path / "run"), str(plain / "run")]) == 0
    printed = capsys.readouterr().out
    assert "artifacts/step-000001.safetensors: the same tensors with other metadata" in printed
    assert "only in" not in printed


def test_an_embedding_of_a_named_run_is_called_by_its_word_in_the_runs_folder_only(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    objective = "objective={type: textual_inversion, token: mizu}"
    Trainer(make_recipe(*NAMED, objective)).train()
    artifacts = tmp_path / "run" / "artifacts"
    for name in ("mine", "mine-000001"):
        found = load_artifact(artifacts / f"{name}.safetensors")
        assert isinstance(found, Embedding)
        assert found.name == "mizu"
    shutil.copyfile(artifacts / "mine.safetensors", tmp_path / "mine.safetensors")
    assert load_artifact(tmp_path / "mine.safetensors").name == "mine"
    shutil.copyfile(artifacts / "mine.safetensors", artifacts / "renamed.safetensors")
    assert load_artifact(artifacts / "renamed.safetensors").name == "renamed"


def test_members_have_titles_of_their_own(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    members = "{word: {objective: {type: textual_inversion, token: mizu}}, " + (
        "look: {objective: {type: lora, rank: 1}}, net: {objective: "
        "{type: hypernetwork, save_as: safetensors}}}"
    )
    trainer = Trainer(make_recipe(*NAMED, "objective={type: combined, members: " + members + "}"))
    assert trainer.train() == tmp_path / "run" / "artifacts"
    for member in ("word", "look", "net"):
        path = tmp_path / "run" / "artifacts" / member / "mine.safetensors"
        assert metadata(path)["modelspec.title"] == f"mine_{member}"
        assert metadata(path)["ss_output_name"] == f"mine_{member}"
        load_artifact(path)
    word = tmp_path / "run" / "artifacts" / "word" / "mine-000002.safetensors"
    assert load_artifact(word).name == "mizu"


def test_the_end_of_a_run_says_what_diffusers_needs_for_sd2(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, folder = build_base(linear=True), tmp_path / "sd2"
    folder.mkdir()
    write_base_model(folder, base, (), torch.float32, {})
    recipe = make_recipe(f"base_model.path={folder}", *SHORT, "max_train_steps=1")
    assert train_main.run(recipe) == 0
    printed = capsys.readouterr().out
    assert "note:     diffusers does not load this file" in printed
    assert "--to diffusers" in printed
    tensors = load_file(tmp_path / "run" / "artifacts" / "last.safetensors")
    assert tensors["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"].dim() == 4


def test_dates_are_stored_if_asked_for(make_recipe: MakeRecipe, tiny_base: BaseModel) -> None:
    recipe = make_recipe("metadata.dates=true")
    sources = find_sources(recipe)
    said = ArtifactMetadata(recipe, sources, tiny_base, 1).dates()
    started, finished = (float(said[f"ss_training_{word}_at"]) for word in ("started", "finished"))
    assert 0 < finished - started < 600
    assert datetime.fromisoformat(said["modelspec.date"]) == datetime.fromtimestamp(int(finished))
    assert ArtifactMetadata(make_recipe(), sources, tiny_base, 1).dates() == {}


def test_what_each_kind_of_source_says(make_recipe: MakeRecipe, pictures: Path) -> None:
    subsets = (
        "data.path=null",
        f"data.subsets={{one: {{path: {pictures}, repeats: 3}}, two: {{path: {pictures}}}, "
        f"reg: {{path: {pictures}, is_reg: true}}}}",
    )
    said = image_facts(find_sources(make_recipe(*subsets)), counts_tags=True)
    name = pictures.name
    assert json.loads(said["ss_dataset_dirs"]) == {
        name: {"n_repeats": 3, "img_count": 8}, f"{name} (two)": {"n_repeats": 1, "img_count": 8},
    }  # fmt: skip
    assert json.loads(said["ss_reg_dataset_dirs"]) == {name: {"n_repeats": 1, "img_count": 8}}
    assert list(json.loads(said["ss_tag_frequency"])) == [name, f"{name} (two)"]
    concepts = (
        "data.path=null",
        "objective={type: dreambooth}",
        f"data.concepts={{dog: {{instance_data_dir: {pictures}, instance_token: xyz}}}}",
    )
    said = image_facts(find_sources(make_recipe(*concepts)), counts_tags=False)
    assert json.loads(said["ss_dataset_dirs"]) == {name: {"n_repeats": 1, "img_count": 8}}
    assert "ss_tag_frequency" not in said


def test_tags_are_counted_as_kohya_counts_them() -> None:
    images = [
        Picture(Path("a.png"), ("1girl, Red Hair ,, smile",)),
        Picture(Path("b.png"), ("1girl,red hair", "smile")),
        Picture(Path("c.png"), ()),
    ]
    assert list(count_tags(images).items()) == [("1girl", 2), ("red hair", 2), ("smile", 2)]
    many = [Picture(Path("d.png"), (",".join(f"tag{n}" for n in range(MOST_TAGS + 5)) + ",tag7",))]
    counts = count_tags(many)
    assert len(counts) == MOST_TAGS
    assert next(iter(counts.items())) == ("tag7", 2)


def test_a_thumbnail_is_small_and_must_be_a_picture(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    Image.new("RGBA", (1024, 512), "blue").save(tmp_path / "wide.png")
    text = data_url(tmp_path / "wide.png").removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert (image.size, image.mode) == ((256, 128), "RGB")
    assert said_by_user(MetadataConfig()) == {}
    (tmp_path / "text.png").write_text("none")
    with pytest.raises(DataError, match=r"metadata\.thumbnail: .*text\.png: cannot be read"):
        said_by_user(MetadataConfig(thumbnail=str(tmp_path / "text.png")))
    with pytest.raises(DataError, match=r"metadata\.thumbnail: no such file: .*none\.png"):
        check_places(make_recipe(f"metadata.thumbnail={tmp_path}/none.png"))


def test_licences_of_the_published_models(tiny_base: BaseModel) -> None:
    image, video = family_named("stable_diffusion"), family_named("cogvideox")
    assert image.licenses.keys() == image.architectures.keys()
    assert video.licenses.keys() == video.architectures.keys()
    assert video.licenses["cogvideox-2b"] == "Apache-2.0"
    assert {video.licenses[name] for name in video.licenses if "5b" in name} == {
        "CogVideoX License"
    }
    assert image.licenses["sd_v1"] == "CreativeML Open RAIL-M"
    assert image.licenses["sdxl_base_v1-0"] == "CreativeML Open RAIL++-M"
    assert "modelspec.license" not in base_facts(tiny_base)
    tiny_base.unet.register_to_config(cross_attention_dim=768)
    assert base_facts(tiny_base)["modelspec.license"] == "CreativeML Open RAIL-M"
