"""Configs and options of other trainers are named, and their counterparts exist."""

import json
from pathlib import Path

import pytest

from inference.recipe.foreign import CONFIGS, OPTIONS, counterpart
from inference.recipe.layers import RecipeError
from inference.recipe.loader import load_recipe
from inference.recipe.schema import all_keys, fields_of
from train.config.objectives import OBJECTIVE_CONFIGS
from train.config.schema import recipe_class, train_schema

KEYS = {key for kind in OBJECTIVE_CONFIGS.values() for key in all_keys(recipe_class(kind))}


def reported(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, train_schema, overrides)
    return str(error.value)


def test_counterparts_exist_and_are_needed() -> None:
    """Each is a key of a recipe; none of the options is a key at the top of a recipe itself."""
    rows = [(name, key) for options in OPTIONS.values() for name, key in options.items()]
    assert len(rows) >= 100
    assert [row for row in rows if row[1] not in KEYS] == []
    top = fields_of(recipe_class(OBJECTIVE_CONFIGS["lora"]))
    assert [name for name, _ in rows if name in top] == []


def test_options_of_other_trainers_are_named(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nobjective: {type: lora, network_dim: 8}\ndata: {path: .}\n")
    overrides = ("lr=1", "data.flip_aug=true", "nonsense_of_nobody=1", "lora_rank=8")
    lines = reported(recipe, *overrides).splitlines()
    for line in (
        "Key 'network_dim' not in 'LoraConfig'; kohya's network_dim is objective.rank here",
        "Key 'lr' not in 'TrainRecipe'; ai-toolkit's lr is optimizer.learning_rate here",
        "Key 'flip_aug' not in 'DataConfig'; kohya's flip_aug is data.flip here",
        "Key 'lora_rank' not in 'TrainRecipe'; OneTrainer's lora_rank is objective.rank here",
    ):
        assert any(one.endswith(line) for one in lines)
    assert counterpart("nonsense_of_nobody", KEYS) == ""
    assert counterpart("network_dim", {"images"}) == ""


FILES = {
    "set.toml": (
        '[general]\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\n',
        r"is a dataset config of kohya's sd-scripts .* name it in a recipe: data\.kohya_config$",
    ),
    "flat.toml": (
        'pretrained_model_name_or_path = "m"\nnetwork_dim = 8\noutput_name = "x"\n',
        r"is a config of kohya's sd-scripts, .*; begin with a recipe such as configs/lora\.yaml; "
        r"pretrained_model_name_or_path is base_model\.path, network_dim is objective\.rank, "
        r"output_name is name$",
    ),
    "sections.toml": (
        '[additional_network_arguments]\nnetwork_module = "networks.lora"\nnetwork_dim = 8\n',
        r"is a config of kohya's sd-scripts, .*network_dim is objective\.rank$",
    ),
    "own.toml": ("a = 1\n", r"is TOML, and a recipe is YAML"),
    "gui.json": (
        json.dumps({"LoRA_type": "Standard", "pretrained_model_name_or_path": "m", "epoch": 1}),
        r"is a config of the kohya_ss GUI, .*epoch is max_train_steps",
    ),
    "finetune.json": (
        json.dumps({"model_list": "custom", "pretrained_model_name_or_path": "m"}),
        r"is a config of the kohya_ss GUI, ",
    ),
    "onetrainer.json": (
        json.dumps({"training_method": "LORA", "model_type": "X", "lora_rank": 16}, indent="\t"),
        r"is a config of OneTrainer, .*lora_rank is objective\.rank",
    ),
    "toolkit.yaml": (
        "job: extension\nconfig:\n  process:\n  - network: {linear: 16}\n    train: {lr: 1}\n",
        r"is a config of ai-toolkit, .*linear is objective\.rank, lr is optimizer\.learning_rate$",
    ),
    "db_config.json": (
        json.dumps({"model_name": "x", "concepts_list": [], "lifetime_revision": 1}),
        r"is a db_config\.json of A1111's DreamBooth extension, .*data\.concepts_list of a recipe$",
    ),
    "textual_inversion-1.json": (
        json.dumps({"data_root": "x", "learn_rate": "0.005", "steps": 10}),
        r"is settings that A1111's Train tab has saved, .*data_root is data\.path",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_configs_of_other_trainers_are_named(name: str, tmp_path: Path) -> None:
    """As a recipe, and as a base of one."""
    text, expected = FILES[name]
    (tmp_path / name).write_text(text)
    (tmp_path / "own.yaml").write_text(f"base: {name}\nname: x\n")
    for file in (name, "own.yaml"):
        with pytest.raises(RecipeError, match=expected):
            load_recipe(tmp_path / file, train_schema)


def test_every_config_has_a_case() -> None:
    said = " ".join(expected for _, expected in FILES.values()).replace("\\", "")
    assert {one.words.split(",")[0].split(" (")[0] for one in CONFIGS} == {
        words for one in CONFIGS if (words := one.words.split(",")[0].split(" (")[0]) in said
    }


def test_several_folders_are_subsets(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nobjective: {type: lora}\ndata: {path: [a, b]}\n")
    assert "data.path: is one folder; several are data.subsets" in reported(recipe)
