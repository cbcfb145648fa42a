"""What holds for every run: grids show what is saved, nothing disturbs training, errors help."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inference.media.grid import grid_cells
from train.common.randomness import seeded
from train.config.recipe import TrainRecipe
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]

ROOT = Path(__file__).parents[2]

IMAGES = [
    'sampling.images.one={prompt: "red, no 0, x", seed: 3, cfg_scale: 3, negative_prompt: blue}',
    "sampling.images.two={prompt: cyan x, seed: 4, count: 2}",
    "sampling.images.three={prompt: lime x, sampler: Euler a, width: 24}",
    "sampling.settings={steps: 3, schedule_type: Karras, cfg_scale: 1.5}",
]

DRAWING = """
base_model: {{path: {base}}}
settings: {{steps: 3, schedule_type: Karras, cfg_scale: 1.5}}
images:
  one: {{prompt: "red, no 0, x", seed: 3, cfg_scale: 3, negative_prompt: blue}}
  two: {{prompt: cyan x, seed: 4, count: 2}}
  three: {{prompt: lime x, sampler: Euler a, width: 24}}
grid: false
batch_size: 8
"""

EMBEDDING = "objective={type: textual_inversion, token: x, num_vectors_per_token: 2}"
HYPERNETWORK = (
    "objective={type: hypernetwork, activation_func: relu, add_layer_norm: true, "
    "dropout_structure: [0, 0.1, 0]}"
)
COMBINED = (
    "objective={type: combined, members: {word: {objective: {type: textual_inversion, token: x}}, "
    "net: {objective: {type: hypernetwork}}, look: {objective: {type: lora, rank: 2, "
    "train_text_encoder: true}, stop_step: 2}}}"
)
TEXT_TO_IMAGE = "objective={type: text_to_image, train_text_encoder: true}"
ONE_FILE = "objective={type: text_to_image, train_text_encoder: true, save_as: safetensors}"


def pixels(images: list[Image.Image]) -> list[tuple[tuple[int, int], bytes]]:
    return [(image.size, image.convert("RGB").tobytes()) for image in images]


def drawn(done: Any) -> list[tuple[tuple[int, int], bytes]]:
    assert done.status == 0, done.err
    return pixels([Image.open(path) for path in done.out.split()])


def drawn_by_the_real_command(*arguments: str) -> list[tuple[tuple[int, int], bytes]]:
    command = [sys.executable, "-m", "inference", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return pixels([Image.open(path) for path in done.stdout.split()])


def artifact_of(folder: Path, suffix: str) -> Path:
    return folder / "run" / "artifacts" / f"last{suffix}"


def drawn_with(folder: Path) -> list[str]:
    """The overrides that draw with what a run has learned, to one file or several."""
    artifacts = folder / "run" / "artifacts"
    last = [*artifacts.glob("last*")] or sorted(artifacts.glob("*/last*"))
    return [f"artifacts.number{number}.path={path}" for number, path in enumerate(last)]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Those of an artifact's file, or of all files of its folder."""
    if path.is_file():
        return load_file(path)
    files = sorted(path.rglob("*.safetensors"))
    return {f"{file.parent.name}.{k}": v for file in files for k, v in load_file(file).items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


# What you see is what you save


@pytest.fixture(scope="session")
def drawing_recipe(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawing") / "images.yaml"
    path.write_text(DRAWING.format(base=tiny_base_folder))
    return path


BF16 = "mixed_precision=bf16"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["objective={type: lora, rank: 4, alpha: 8, dropout: 0.1}"], id="lora"),
        pytest.param([EMBEDDING], id="textual_inversion", marks=pytest.mark.slow),
        pytest.param([HYPERNETWORK], id="hypernetwork", marks=pytest.mark.slow),
        pytest.param([COMBINED], id="combined", marks=pytest.mark.slow),
        pytest.param([COMBINED, "ema={decay: 0.5}", BF16], id="combined ema bf16"),
        pytest.param([TEXT_TO_IMAGE], id="text_to_image", marks=pytest.mark.slow),
        pytest.param(
            [TEXT_TO_IMAGE, "ema={decay: 0.5}"], id="text_to_image ema", marks=pytest.mark.slow
        ),
        pytest.param([ONE_FILE, BF16], id="text_to_image in one file bf16", marks=pytest.mark.slow),
        pytest.param(
            ["objective={type: lora, rank: 4, train_text_encoder: true}", BF16],
            id="lora bf16",
            marks=pytest.mark.slow,
        ),
        pytest.param([EMBEDDING, BF16], id="textual_inversion bf16", marks=pytest.mark.slow),
        pytest.param([HYPERNETWORK, BF16], id="hypernetwork bf16", marks=pytest.mark.slow),
        pytest.param(
            [TEXT_TO_IMAGE, "ema={decay: 0.5}", BF16],
            id="text_to_image ema bf16",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_last_grid_is_what_a_new_process_draws(
    options: list[str], commands: Any, drawing_recipe: Path, tmp_path: Path
) -> None:
    """Pixel for pixel; and above it stands what the base model draws."""
    done = commands.train(f"output_dir={tmp_path}", *options, *IMAGES)
    assert done.status == 0, done.err
    base_row, last_row = grid_cells(Image.open(tmp_path / "run" / "samples" / "step-000004.png"))
    precision = "precision=bf16" if BF16 in options else "precision=fp32"
    to = f"output_dir={tmp_path / 'out'}"
    with_artifacts = commands.draw(drawing_recipe, precision, to, *drawn_with(tmp_path))
    assert drawn(with_artifacts) == pixels(last_row)
    assert drawn(commands.draw(drawing_recipe, precision, to)) == pixels(base_row)
    assert not set(pixels(base_row)) & set(pixels(last_row))


@pytest.mark.slow
def test_the_real_command_draws_the_last_grid(
    commands: Any, drawing_recipe: Path, tmp_path: Path
) -> None:
    """In a process that shares nothing with the one that trained."""
    done = commands.train(f"output_dir={tmp_path}", *IMAGES, "objective={type: lora, rank: 4}")
    assert done.status == 0, done.err
    _, last_row = grid_cells(Image.open(tmp_path / "run" / "samples" / "step-000004.png"))
    options = [str(drawing_recipe), "precision=fp32", f"output_dir={tmp_path / 'out'}"]
    assert drawn_by_the_real_command(*options, *drawn_with(tmp_path)) == pixels(last_row)


def test_a_trained_folder_is_a_base_model(
    commands: Any, drawing_recipe: Path, tmp_path: Path
) -> None:
    done = commands.train(f"output_dir={tmp_path}", TEXT_TO_IMAGE, *IMAGES)
    assert done.status == 0, done.err
    grid = Image.open(tmp_path / "run" / "samples" / "step-000004.png")
    path = f"base_model.path={artifact_of(tmp_path, '')}"
    assert drawn(commands.draw(drawing_recipe, path, f"output_dir={tmp_path}/out")) == pixels(
        grid_cells(grid)[1]
    )


def test_artifacts_are_not_rounded_to_mixed_precision(
    make_recipe: MakeRecipe,
) -> None:
    for objective in ("objective={type: lora, rank: 2}", "objective={type: text_to_image}"):
        recipe = make_recipe(
            objective, "mixed_precision=bf16", "saving.save_precision=fp32", "max_train_steps=2"
        )
        recipe.name = recipe.objective.type
        saved = tensors(Trainer(recipe).train())
        trained = {key: value for key, value in saved.items() if "lora_up" in key or "unet." in key}
        assert any(not torch.equal(value, value.bfloat16().float()) for value in trained.values())


# Nothing but the recipe decides


def test_seeing_and_saving_changes_nothing(make_recipe: MakeRecipe) -> None:
    busy = make_recipe(
        "name=busy",
        "objective={type: lora, rank: 2, dropout: 0.2}",
        "sampling.sample_every_n_steps=1",
        "saving.save_every_n_steps=1",
        "ema={decay: 0.5}",
        *IMAGES,
    )
    quiet = make_recipe(
        "name=quiet",
        "objective={type: lora, rank: 2, dropout: 0.2}",
        "ema={decay: 0.5}",
        "log_every_n_steps=100",
    )
    torch.manual_seed(1)
    one = tensors(Trainer(busy).train())
    torch.manual_seed(2)
    assert same(one, tensors(Trainer(quiet).train()))


@pytest.mark.slow
def test_accumulation_is_a_larger_batch(make_recipe: MakeRecipe) -> None:
    """Up to rounding: the largest weight is about 0.3."""
    results = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        recipe = make_recipe(
            f"name=b{batch}",
            f"train_batch_size={batch}",
            f"gradient_accumulation_steps={accumulation}",
            "optimizer.epsilon=1e-4",
        )
        Trainer(recipe).train()
        results.append(tensors(Path(recipe.output_dir) / recipe.name / "checkpoints/step-000004"))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.allclose(value, other[name], atol=1e-5), name


def test_cache_of_captions_and_latents_changes_rounding_only(make_recipe: MakeRecipe) -> None:
    results = []
    for cache in ("auto", "off"):
        recipe = make_recipe(f"name={cache}", f"data.cache={cache}", "optimizer.epsilon=1e-4")
        trainer = Trainer(recipe)
        trainer.train()
        assert bool(trainer.caches.prompt_states and trainer.caches.prompt_states.known) == (
            cache == "auto"
        )
        results.append(trainer.objective.state_dict())
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-5), name


def test_an_autoencoder_asks_no_text_encoder(make_recipe: MakeRecipe) -> None:
    trainer = Trainer(make_recipe("objective={type: autoencoder}"))
    trainer.base.encode_prompts = None  # type: ignore[method-assign, assignment]
    trainer.train()
    assert trainer.run.folder.grid(4).is_file()


def test_snapshot_trains_again(make_recipe: MakeRecipe, commands: Any, tmp_path: Path) -> None:
    """Also that of a run which was resumed; and its own folder is in use."""
    recipe = make_recipe("max_train_steps=2", "seed=5", "data.flip=0.5", "resume=true")
    expected = tensors(Trainer(recipe).train())
    snapshot = tmp_path / "run" / "recipe.yaml"
    again = commands.run("train", [str(snapshot), "name=again"], [{}], None)[0]
    assert again.status == 0, again.err
    assert same(tensors(tmp_path / "again" / "artifacts" / "last.safetensors"), expected)
    assert commands.run("train", [str(snapshot)], [{}], None)[0].status == 2


@pytest.mark.parametrize(
    ("options", "norm_after"),
    [
        (["max_grad_norm=1.0"], 1.0),
        (["max_grad_norm=null"], None),
        (["max_grad_norm=null", "max_grad_value=0.01"], "values"),
    ],
)
def test_clipping(make_recipe: MakeRecipe, options: list[str], norm_after: Any) -> None:
    trainer = Trainer(make_recipe(*options))
    for parameter in trainer.optimization.parameters:
        parameter.grad = torch.full_like(parameter, -0.5)
    count = sum(parameter.numel() for parameter in trainer.optimization.parameters)
    before = 0.5 * count**0.5
    assert float(trainer.optimization.clip_gradients()) == pytest.approx(before, rel=1e-4)
    gradients = torch.cat(
        [p.grad.flatten() for p in trainer.optimization.parameters if p.grad is not None]
    )
    if norm_after == "values":
        assert gradients.unique().tolist() == pytest.approx([-0.01])
    else:
        assert float(gradients.norm()) == pytest.approx(norm_after or before, rel=1e-4)


def test_base_row_is_left_out_when_other_pictures_are_asked_for(make_recipe: MakeRecipe) -> None:
    def rows(*overrides: str) -> int:
        recipe = make_recipe("sampling.settings.steps=1", *overrides)
        trainer = Trainer(recipe)
        trainer.train()
        return len(grid_cells(Image.open(trainer.run.folder.grid(recipe.max_train_steps))))

    assert rows("max_train_steps=1", "sampling.images.a.prompt=red") == 2
    more = ["resume=true", "max_train_steps=2"]
    assert rows(*more, "sampling.images.a.prompt=blue") == 1
    assert rows("resume=true", "max_train_steps=3", "sampling.images.a.prompt=red") == 2


# Errors of the command


def test_used_folder_is_refused(commands: Any, tmp_path: Path) -> None:
    to = f"output_dir={tmp_path}"
    assert commands.train(to, "max_train_steps=1").status == 0
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    again = commands.train(to, "max_train_steps=1")
    assert (again.status, again.out) == (2, "")
    assert again.err == (
        f"train: {tmp_path}/run contains a run already: resume=true continues it, another name=… "
        "starts a new one, overwrite=true renames it\n"
    )
    changed = commands.train(to, "max_train_steps=2", "resume=true", "optimizer.learning_rate=0.5")
    assert changed.status == 2
    assert "optimizer.learning_rate: 0.01 became 0.5" in changed.err
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before


@pytest.mark.parametrize("options", [["data.cache=off", "data.num_workers=1"], []])
def test_broken_picture_ends_the_run(
    options: list[str], commands: Any, pictures: Path, tmp_path: Path
) -> None:
    for file in pictures.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "4-magenta.png").write_bytes(b"no picture")
    done = commands.train(f"output_dir={tmp_path}/.runs", f"data.path={tmp_path}", *options)
    assert done.status == 2
    errors = [line for line in done.err.splitlines() if line.startswith("train: ")]
    assert len(errors) == 3
    assert errors[0] == "train: 1 of 8 pictures cannot be used:"
    assert "4-magenta.png: cannot be read as a picture" in errors[1]
    assert "broken_pictures: skip" in errors[2]
    assert "Traceback" not in done.err


def test_empty_folder_and_wrong_part_are_wrong_input(commands: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = commands.train(f"output_dir={tmp_path}", f"data.path={tmp_path}/empty")
    assert empty.status == 2
    assert empty.err.startswith("train: data.path: no pictures in")
    part = commands.train(f"output_dir={tmp_path}", "optimizer.learning_rates={text_encoder: 0.1}")
    assert part.status == 2
    assert "text_encoder is not trained; this objective trains unet" in part.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ("/proc/limner", "/proc cannot be written to (No such file or directory)"),
        ("{file}", "{file} is a file; a run needs a folder here"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_wrong_input(
    place: str, fault: str, commands: Any, tmp_path: Path
) -> None:
    (file := tmp_path / "file").write_text("")
    done = commands.train(f"output_dir={place.format(file=file)}")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"train: {fault.format(file=file)}")
    assert len(done.err.splitlines()) == 1


def test_loss_that_explodes_is_a_failure(commands: Any, tmp_path: Path) -> None:
    done = commands.train(f"output_dir={tmp_path}", "optimizer.learning_rate=1e12")
    assert done.status == 1
    assert "train: loss is not finite at step 2: " in done.err
    assert "Traceback" not in done.err


def test_dropout_leaves_the_global_generator_alone(
    make_recipe: Callable[..., TrainRecipe],
) -> None:
    """It draws from the seeds of micro-batches; nothing else sees them."""
    recipe = make_recipe(
        "objective={type: lora, rank: 2, dropout: 0.5}",
        "max_train_steps=2",
        "gradient_checkpointing=true",
    )
    trainer = Trainer(recipe)
    before = torch.get_rng_state()
    trainer.train()
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_draws_are_those_of_the_seed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(6)
    outside = torch.rand(2)
    torch.manual_seed(6)
    found = [torch.rand(1)]
    with seeded(5, torch.device("cpu")):
        assert torch.equal(torch.rand(3), expected)
    found.append(torch.rand(1))
    assert torch.equal(torch.cat(found), outside)
