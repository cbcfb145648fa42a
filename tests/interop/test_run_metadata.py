"""The metadata of a run's artifact, as A1111's cards read it.

A1111 (`extensions-builtin/Lora/ui_edit_user_metadata.py`) sums up `ss_tag_frequency` by folder,
shows `ss_bucket_info`'s sizes and counts, counts the images of `ss_dataset_dirs`, and shows
`ss_resolution` as it is. kohya writes `ss_sd_model_name` without folders, beside both hashes.
"""

import json
import re

import pytest

from tests.interop.files import must_fail, read
from tests.train.conftest import RECIPE


def check_run_metadata(said) -> None:
    folders = json.loads(said["ss_dataset_dirs"])
    assert folders
    for name, facts in folders.items():
        assert "/" not in name
        assert facts.keys() == {"n_repeats", "img_count"}
        assert all(type(value) is int for value in facts.values())
    for name, tags in json.loads(said["ss_tag_frequency"]).items():
        assert name in folders
        assert tags
        assert all(type(count) is int and count > 0 for count in tags.values())
    buckets = json.loads(said["ss_bucket_info"])["buckets"]
    sizes = [bucket["resolution"] for bucket in buckets.values()]
    assert all(type(side) is int for size in sizes for side in size)
    counts = sum(bucket["count"] for bucket in buckets.values())
    assert counts == sum(facts["img_count"] * facts["n_repeats"] for facts in folders.values())
    assert re.fullmatch(r"\(\d+, \d+\)", said["ss_resolution"])
    assert int(said["ss_num_epochs"]) > 0
    assert re.fullmatch(r"[^/\\]+", said["ss_sd_model_name"])
    assert re.fullmatch(r"[0-9a-f]{8}", said["ss_sd_model_hash"])
    assert re.fullmatch(r"[0-9a-f]{64}", said["ss_new_sd_model_hash"])
    assert said["modelspec.title"] == said["ss_output_name"] == "icons"
    assert re.fullmatch(r"\d+x\d+", said["modelspec.resolution"])


@pytest.fixture(scope="module")
def said(tiny_base_folder, tmp_path_factory):
    """The metadata of the artifact of two steps on two images."""
    from accelerate.state import AcceleratorState, GradientState
    from PIL import Image

    from inference.recipe.loader import load_recipe
    from train.config.schema import train_schema
    from train.trainer import Trainer

    folder = tmp_path_factory.mktemp("run")
    pictures = folder / "pictures"
    pictures.mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (16, 16), colour).save(pictures / f"{colour}.png")
        (pictures / f"{colour}.txt").write_text(f"{colour}, plain")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(base=tiny_base_folder, pictures=pictures))
    changes = ["objective={type: lora, rank: 2}", f"output_dir={folder}", "max_train_steps=2"]
    changes += ["saving={output_name: icons}", "sampling={images: {}}"]
    Trainer(load_recipe(recipe, train_schema, changes)).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return read(folder / "run" / "artifacts" / "icons.safetensors").metadata


def test_a1111s_cards_find_what_they_look_for(said):
    check_run_metadata(said)
    assert json.loads(said["ss_tag_frequency"])["pictures"] == {"plain": 2, "red": 1, "blue": 1}
    assert "ss_training_started_at" not in said  # dates only if asked for


CHANGES = {
    "a path for a name": ("ss_sd_model_name", "models/base.safetensors"),
    "short hash": ("ss_sd_model_hash", "0" * 10),
    "no new hash": ("ss_new_sd_model_hash", ""),
    "a path for a folder": ("ss_dataset_dirs", '{"/a/b": {"n_repeats": 1, "img_count": 2}}'),
    "no counts": ("ss_dataset_dirs", '{"pictures": {"n_repeats": 1}}'),
    "other folders": ("ss_tag_frequency", '{"elsewhere": {"red": 1}}'),
    "counts as texts": ("ss_tag_frequency", '{"pictures": {"red": "1"}}'),
    "buckets of fewer": ("ss_bucket_info",
                         '{"buckets": {"0": {"resolution": [16, 16], "count": 1}}}'),
    "one side": ("ss_resolution", "16"),
    "another title": ("modelspec.title", "last"),
    "side alone": ("modelspec.resolution", "16"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_found(key, value, said):
    must_fail(check_run_metadata, {**said, key: value})
