"""The shipped recipes, the real schemas' messages, and how fast a wrong recipe is answered."""

import os
import re
import shlex
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from inference.config.recipes import DRAWING_RECIPES, draw_schema
from inference.recipe.layers import RecipeError
from inference.recipe.loader import dump_recipe, load_recipe
from inference.recipe.schema import all_keys
from scripts import write_recipe_reference
from scripts.write_recipe_reference import REFERENCE, reference
from train.config.checks import rule_sentences
from train.config.objectives import OBJECTIVE_CONFIGS, LoraConfig, WholePartsConfig
from train.config.schema import train_schema

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.relative_to(ROOT).parts[1] not in ("accelerate", "base", "cluster", "memory")
)
SOUND = "name: dog\nobjective: {type: lora}\ndata: {path: datasets/dog}\n"


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def schema_of(recipe: str) -> Any:
    draws = recipe.startswith(("configs/inference/", "configs/demo/animation_"))
    return draw_schema if draws else train_schema


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("recipe", SHIPPED)
def test_shipped_recipe_loads_by_the_command_in_its_header(recipe: str) -> None:
    """Its overrides included, and without a warning."""
    header = re.match(r"(#.*\n)+", Path(recipe).read_text(encoding="utf-8"))
    assert header, f"{recipe} opens without a comment"
    package = "inference" if schema_of(recipe) is draw_schema else "train"
    command = re.search(rf"-m {package} {re.escape(recipe)}(.*)", header[0])
    assert command, f"the header of {recipe} does not say how to run it"
    overrides = shlex.split(command[1], comments=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_recipe(recipe, schema_of(recipe), overrides)


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, marks=() if number % 3 == 0 else pytest.mark.slow)
        for number, recipe in enumerate(SHIPPED)
    ],
)
def test_snapshot_of_a_shipped_recipe_is_the_same_recipe(recipe: str, tmp_path: Path) -> None:
    complete = schema_of(recipe) is draw_schema or "concepts:" in Path(recipe).read_text("utf-8")
    needed = [] if complete else ["name=x", "data.path=x"]
    loaded = load_recipe(recipe, schema_of(recipe), needed)
    snapshot = tmp_path / "recipe.yaml"
    snapshot.write_text(dump_recipe(loaded), encoding="utf-8")
    assert load_recipe(snapshot, schema_of(recipe)) == loaded


def test_every_objective_has_a_recipe() -> None:
    texts = [(ROOT / recipe).read_text(encoding="utf-8") for recipe in SHIPPED]
    for name in OBJECTIVE_CONFIGS:
        assert any(f"type: {name}" in text for text in texts), f"no recipe for {name}"


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("recipe", SHIPPED)
def test_eight_bit_state_is_for_whole_networks(recipe: str) -> None:
    """For each tensor it waits for the GPU; what it saves of a LoRA's state is little."""
    if schema_of(recipe) is draw_schema:
        return
    text = Path(recipe).read_text("utf-8")
    needed = [] if "concepts:" in text else ["name=x", "data.path=x"]
    loaded: Any = load_recipe(recipe, train_schema, needed)
    is_whole = isinstance(loaded.objective, WholePartsConfig)
    assert loaded.optimizer.type == "adamw" or (is_whole and "configs/demo" not in recipe)


WRONG = {
    "nam: dog": "nam: Key 'nam' not in 'TrainRecipe'. Did you mean: 'name'?",
    "objective: {rnk: 3}": "objective.rnk: Key 'rnk' not in 'LoraConfig'. Did you mean: 'rank'?",
    "objective: {type: lorra}": "objective.type: expected one of "
    f"{', '.join(OBJECTIVE_CONFIGS)}; got 'lorra'",
    "objective: {type: [lora]}": "objective.type: expected one of "
    f"{', '.join(OBJECTIVE_CONFIGS)}; got ['lora']",
    "objective: lora": "objective: expected a mapping with keys of LoraConfig (type, algorithm, "
    "options, rank, alpha, dropout, dropout_on, targets, train_text_encoder, comfyui_twin), "
    "got 'lora'",
    "objective: null": f"objective.type: expected one of {', '.join(OBJECTIVE_CONFIGS)}; "
    "got nothing",
    "plugins: mine": "plugins: expected a list of any length ([a, b]), each text, got 'mine'",
    "plugins: [no_such_module]": "plugins: no_such_module: code outside Limner is not loaded "
    "because a recipe names it; if you trust it, add plugins=[no_such_module] to the command line, "
    "or set LIMNER_PLUGINS=no_such_module",
    "saving: {output_name: mine.pt}": "saving.output_name: is given without the suffix; got "
    "'mine.pt'",
    "objective: {rank: 0, alpha: 1}": "objective.rank: must be at least 1, got 0",
    "objective: {alpha: 0}": "objective.alpha: must be above 0, got 0.0: "
    "0 would switch the LoRA off",
    "optimizer: {learning_rte: 1}": "optimizer.learning_rte: Key 'learning_rte' not in "
    "'OptimizerConfig'. Did you mean one of: 'learning_rate', 'learning_rates'?",
    "learning_rate: 1e-4": "learning_rate: Key 'learning_rate' not in 'TrainRecipe'; "
    "'optimizer.learning_rate' exists",
    "optimizer: {betas: 0.9}": "optimizer.betas: expected a list of 2 values ([a, b]), "
    "each a number, got 0.9",
    "mixed_precision: bf17": "mixed_precision: Invalid value 'bf17', "
    "expected one of ['fp32', 'fp16', 'bf16']",
    "mixed_precision: no": "mixed_precision: YAML reads no as false; "
    "expected one of ['fp32', 'fp16', 'bf16']",
    "max_train_steps: 1e4": "max_train_steps: expected a whole number, got 10000.0; write 10000",
    "train_batch_size: 0": "train_batch_size: must be at least 1, got 0",
    "lr_scheduler: {warmup_steps: 1000}": "lr_scheduler.warmup_steps: must be below "
    "max_train_steps (1000)",
    "lr_scheduler: {type: cosin}": "lr_scheduler.type: expected one of constant, linear, cosine, "
    "cosine_with_restarts, polynomial, schedule or module:Class, got 'cosin'; did you mean cosine?",
    "optimizer: {type: adam}": "optimizer.type: expected one of adamw, adamw8bit or module:Class, "
    "got 'adam'; did you mean adamw?",
    "optimizer: {options: {amsgrad: true}}": "optimizer.options.amsgrad: type: adamw takes no "
    "options but the keys beside them",
    "optimizer: {type: 'torch.optim:Adagrd'}": "optimizer.type: 'torch.optim:Adagrd' cannot be "
    "loaded: AttributeError: module 'torch.optim' has no attribute 'Adagrd'",
    "optimizer: {type: 'torch.optim:Adagrad', options: {lr_dekay: 1}}": "optimizer.options."
    "lr_dekay: Adagrad takes no such option; did you mean lr_decay?",
    "optimizer: {type: 'torch.optim:Adagrad', options: {lr_decay: much}}": "optimizer.options."
    "lr_decay: expected a number, got 'much'",
    "optimizer: {type: 'torch.optim:Adagrad', options: {foreach: 3}}": "optimizer.options."
    "foreach: expected true or false or null, got 3",
    "optimizer: {type: 'torch.optim:LBFGS'}": "optimizer.type: torch.optim:LBFGS needs a closure "
    "in each step, which this trainer does not give",
    "optimizer: {type: 'torch.optim.lr_scheduler:StepLR'}": "optimizer.type: "
    "torch.optim.lr_scheduler:StepLR is no torch.optim.Optimizer",
    "optimizer: {type: 'os:system'}": "optimizer.type: os: code outside Limner is not loaded "
    "because a recipe names it; if you trust it, add plugins=[os] to the command line, or set "
    "LIMNER_PLUGINS=os",
    "optimizer: {type: '${output_dir}'}\noutput_dir: os:system": "optimizer.type: os: "
    "code outside Limner is not loaded because a recipe names it; if you trust it, add "
    "plugins=[os] to the command line, or set LIMNER_PLUGINS=os",
    "lr_scheduler: {type: 'torch.optim.lr_scheduler:StepLR'}": "lr_scheduler.options.step_size: "
    "must be given: StepLR has no default for it",
    "lr_scheduler: {type: 'torch.optim.lr_scheduler:ReduceLROnPlateau'}": "lr_scheduler.type: "
    "torch.optim.lr_scheduler:ReduceLROnPlateau needs a metric in each step, which this trainer "
    "does not give",
    "lr_scheduler: {schedule: '1e-3'}": "lr_scheduler.schedule: goes with type: schedule, "
    "and that with it",
    "lr_scheduler: {type: schedule, schedule: '1e-3:x'}": "lr_scheduler.schedule: cannot read "
    "'1e-3:x'; expected rates and steps as \"0.005:100, 1e-3:1000, 1e-5\"",
    "lr_scheduler: {type: schedule, schedule: '1e-3:200'}": "lr_scheduler.schedule: ends at step "
    "200, before max_train_steps (1000): give the last rate without a step, or "
    "max_train_steps=200",
    "data: {captions: {dropout_rate: 10}}": "data.captions.dropout_rate: "
    "must lie between 0 and 1, got 10.0",
    "data: {flip: true}": "data.flip: expected a number, got true",
    "data: {path: 007}": 'data.path: YAML reads 007 as 7; write "007"',
    "name: a/b": "name: must be the name of a folder, got 'a/b'",
    'name: "a\\nb"': "name: must not contain line breaks or other control characters, got 'a\\nb'",
    f"name: {'ü' * 101}": "name: is too long for the name of a folder: 202 bytes of at most 200",
    "saving: {output_name: a/b}": "saving.output_name: must be the name of a file, got 'a/b'",
    'saving: {output_name: "a\\nb"}': "saving.output_name: must not contain line breaks or other "
    "control characters, got 'a\\nb'",
    "saving: {output_name: 'a '}": "saving.output_name: must not begin or end with a space, "
    "nor end with a dot, got 'a '",
    "saving: {output_name: a.pt}": "saving.output_name: is given without the suffix; got 'a.pt'",
    "saving: {output_name: step-000500}": "saving.output_name: must not end like the artifact of a "
    "step, got 'step-000500': NAME-000500 is step 500 of NAME, and the newest artifact would "
    "replace it",
    f"saving: {{output_name: {'a' * 201}}}": "saving.output_name: is too long for the name of a "
    "file: 201 bytes of at most 200",
    "sampling: {images: {a: {seed: 1}}}": "sampling.images.a.prompt: "
    "must be given (What the image should show)",
    "sampling: {images: [a cat]}": "sampling.images: expected a mapping of names of your choice "
    "(`name: ...`, not `- ...`), got ['a cat']",
    "sampling: {images: {a: {prompt: [cat:dog:0.5]}}}": "sampling.images.a.prompt: "
    "YAML reads this as a list; put the text in quotes",
    "sampling: {images: {a: {prompt: '${x=1}'}}}": "sampling.images.a.prompt: ${x=1} stands for "
    "another value of the recipe (Interpolation key 'x=1' not found); for text write \\${x=1}",
    "ema: yes": "ema: expected a mapping with keys of EmaConfig (decay), got true",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_training_recipe_is_told(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sound.yaml").write_text(SOUND, encoding="utf-8")
    Path("wrong.yaml").write_text(f"base: sound.yaml\n{line}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("wrong.yaml", train_schema)
    assert str(caught.value).splitlines() == [f"wrong.yaml: {WRONG[line]}"]


WRONG_OBJECTIVES = {
    "textual_inversion": "objective.token: must be given (The new token)",
    "textual_inversion, token: ' a'": "objective.token: must be a word without spaces around it, "
    "got ' a'",
    "textual_inversion, token: a, max_norm: 0": "objective.max_norm: must be above 0, got 0.0",
    "hypernetwork, dropout_structure: [0, 0.05, 0.15]": (
        "objective.dropout_structure: the first and the last must be 0, got [0.0, 0.05, 0.15]: the "
        "last would drop what attention gets, and the first is never used. Take [0, 0.05, 0]"
    ),
    "hypernetwork, dropout_structure: [0, 0]": "objective.dropout_structure: expected as many "
    "numbers as layer_structure (3), got [0.0, 0.0]",
    "hypernetwork, layer_structure: [1, 2]": "objective.layer_structure: must begin and end with "
    "1, as [1, 2, 1]; got [1.0, 2.0]",
    "hypernetwork, activation_func: glu": "objective.activation_func: glu cannot be used: it "
    "halves the width",
    "hypernetwork, activation_func: relo": "objective.activation_func: no activation is called "
    "'relo'; did you mean relu?",
    "combined, members: {a: {objective: {type: lora}}}": "objective.members: expected two "
    "objectives or more; train a single one by itself",
    "combined, members: {a: {objective: {type: lora}}, b: {objective: {type: text_to_image}}}": (
        "objective.members.b.objective.type: text_to_image cannot be trained together with others; "
        "lora, textual_inversion, hypernetwork can"
    ),
    "combined, members: {a: {objective: {type: lora}}, b: {objective: {type: lorra}}}": (
        "objective.members.b.objective.type: expected one of lora, textual_inversion, "
        "hypernetwork; got 'lorra'"
    ),
    "combined, members: {a: {objective: {type: lora, rang: 3}}, b: {objective: {type: lora}}}": (
        "objective.members.a.objective.rang: Key 'rang' not in 'LoraConfig'. Did you mean: 'rank'?"
    ),
    "combined, members: {a: {objective: {type: lora}, stop_step: 9}, b: {objective: {type: lora}, "
    "stop_step: 5}}": "max_train_steps: is above the stop_step of all members; the last stops at 9",
    "combined, members: {a: {objective: {type: lora}, lr_scheduler: {type: cosine, warmup_steps: "
    "3}, stop_step: 2}, b: {objective: {type: lora}}}": (
        "objective.members.a.lr_scheduler.warmup_steps: must be below stop_step (2)"
    ),
    "combined, members: {a: {objective: {type: textual_inversion, token: x}}, b: {objective: "
    "{type: textual_inversion, token: x}}}": (
        "objective.members.b.objective.token: 'x' is trained by another already"
    ),
}


@pytest.mark.parametrize("objective", WRONG_OBJECTIVES)
def test_wrong_objective_is_told(objective: str, tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(f"name: x\ndata: {{path: x}}\nobjective: {{type: {objective}}}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, train_schema)
    assert str(caught.value).splitlines() == [f"{recipe}: {WRONG_OBJECTIVES[objective]}"]


def test_an_objective_of_another_type_begins_anew(tmp_path: Path) -> None:
    """But the same type is merged, and the command line may give its keys in any order."""
    base, recipe = tmp_path / "base.yaml", tmp_path / "recipe.yaml"
    base.write_text("name: x\ndata: {path: x}\nobjective: {type: lora, rank: 3}\n")
    recipe.write_text("base: base.yaml\nobjective: {type: hypernetwork, sizes: [320]}\n")
    assert load_recipe(recipe, train_schema).objective.sizes == [320]
    options = ["objective.dropout=0.5", "objective.type=lora", "objective.alpha=2"]
    assert load_recipe(recipe, train_schema, options).objective == LoraConfig(
        rank=16, alpha=2.0, dropout=0.5
    )
    recipe.write_text("base: base.yaml\nobjective: {type: lora, alpha: 2}\n")
    assert load_recipe(recipe, train_schema).objective.rank == 3
    with pytest.raises(RecipeError, match=r"command line: objective\.rank: Key 'rank' not in"):
        load_recipe(recipe, train_schema, ["objective.type=hypernetwork", "objective.rank=3"])


def test_wrong_drawing_recipe_is_told(tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text("type: [images]", encoding="utf-8")
    with pytest.raises(RecipeError, match="type: expected one of images"):
        load_recipe(recipe, draw_schema)
    recipe.write_text("settings: {sampler: Eular}\nimages: {a: {prompt: a}}", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, draw_schema)
    assert len(str(caught.value).splitlines()) == 1
    assert ": settings.sampler: expected one of Euler, " in str(caught.value)


def test_a_recipe_of_the_other_command_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "one.yaml"
    recipe.write_text(SOUND, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"is a recipe for training .*: python -m train reads it"):
        load_recipe(recipe, draw_schema)
    for text in ("images: {a: {prompt: a}}", *(f"type: {kind}" for kind in DRAWING_RECIPES)):
        recipe.write_text(text, encoding="utf-8")
        with pytest.raises(RecipeError, match=r"is a recipe for generating .* python -m inference"):
            load_recipe(recipe, train_schema)


def test_wrong_recipe_is_answered_at_once(tmp_path: Path) -> None:
    """In 0.5 s, before a heavy library is touched. Held to twice that of processor time, since a
    busy machine makes everything late."""
    (tmp_path / "wrong.yaml").write_text(SOUND + "objectve: {rank: 3}\nseed: one\n")
    command = [sys.executable, "-m", "train", "wrong.yaml", "objective.rnk=3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    clock, processor, done = [], [], None
    for _ in range(3):
        start, before = time.perf_counter(), os.times()
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        after = os.times()
        clock.append(time.perf_counter() - start)
        user, system = after.children_user, after.children_system
        processor.append(user - before.children_user + system - before.children_system)
    middle = statistics.median
    print(f"answered in {middle(clock):.2f} s, {middle(processor):.2f} s of processor time")
    assert done and done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "train: wrong.yaml: objectve: Key 'objectve' not in 'TrainRecipe'. "
        "Did you mean: 'objective'?",
        "train: wrong.yaml: seed: expected a whole number, got 'one'",
        "train: command line: objective.rnk: Key 'rnk' not in 'LoraConfig'. Did you mean: 'rank'?",
    ]
    assert middle(processor) < 1


def test_recipes_need_no_heavy_library() -> None:
    program = (
        "import sys, inference.recipe.loader, inference.config.recipes, train.config.recipe\n"
        "print({'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_reference_is_fresh() -> None:
    remedy = "run `python -m scripts.write_recipe_reference`"
    assert REFERENCE.read_text(encoding="utf-8") == reference(), remedy


def test_reference_names_every_key() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    kinds = [*OBJECTIVE_CONFIGS.values(), *DRAWING_RECIPES.values()]
    for key in (key for kind in kinds for key in all_keys(kind)):
        assert f"`{key.rpartition('.')[2]}`" in text


def test_reference_states_every_rule_beside_its_key() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert rule_sentences()
    for key, sentences in rule_sentences().items():
        mapping, _, name = key.rpartition(".")
        heading = f"### `{mapping}`" if mapping else "## Training: "
        section = re.search(
            rf"^{re.escape(heading)}[^`\n]*(`[^\n]*)?\n(.*?)(?=^##)", text, re.M | re.S
        )
        assert section, key
        lines = [
            line
            for line in section[2].splitlines()
            if line.startswith((f"| `{name}` |", f"- `{name}`: "))
        ]
        assert len(lines) == 1, key
        for sentence in sentences:
            assert sentence in lines[0], key


def test_rule_of_an_unknown_key_is_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"seed": ["Must be even."], "sead": ["Must be odd."]}
    monkeypatch.setattr(write_recipe_reference, "rule_sentences", lambda: rules)
    with pytest.raises(ValueError, match=r"rules of unknown keys: sead$"):
        reference()
