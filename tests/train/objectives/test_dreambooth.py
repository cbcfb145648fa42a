"""DreamBooth: every objective with class pictures, the text encoder's stop, exact resume."""

import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference.runtime.signals import Interrupted
from tests.train.run_tools import watched, with_slow
from train.common.errors import RunDirectoryError
from train.config.recipe import TrainRecipe
from train.run_data import Data
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]
Options = Callable[..., list[str]]

OBJECTIVES = {
    "dreambooth": "{type: dreambooth, train_text_encoder: true, stop_text_encoder_training: 0.5}",
    "text_to_image": "{type: text_to_image}",
    "lora": "{type: lora, rank: 2, dropout: 0.2}",
    "textual_inversion": "{type: textual_inversion, token: sks}",
    "hypernetwork": "{type: hypernetwork}",
}


@pytest.fixture(scope="session")
def class_folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight class pictures that the user has, upside down, so that they are others."""
    folder = tmp_path_factory.mktemp("class")
    for file in sorted(pictures.glob("*.png")):
        with Image.open(file) as image:
            ImageOps.flip(image).save(folder / file.name)
        (folder / f"{file.stem}.txt").write_text("number")
    return folder


def concept(pictures: Path, class_folder: Path) -> list[str]:
    return [
        "data.path=null",
        f"data.concepts.it={{instance_data_dir: {pictures}, class_data_dir: {class_folder}, "
        "instance_token: sks, class_token: number, num_class_images_per: 1, class_infer_steps: 1}",
    ]


@pytest.fixture
def options(pictures: Path, class_folder: Path) -> Options:
    def make(objective: str, *more: str) -> list[str]:
        return [f"objective={OBJECTIVES[objective]}", *concept(pictures, class_folder), *more]

    return make


def scalars(trainer: Trainer) -> dict[str, list[float]]:
    board = EventAccumulator(str(trainer.run.folder.logs)).Reload()
    return {
        name: [event.value for event in board.Scalars(name)]
        for name in board.Tags()["scalars"]
        if name.startswith("loss")
    }


@pytest.mark.parametrize("name", with_slow(OBJECTIVES, ("text_to_image", "hypernetwork")))
def test_every_objective_learns_with_class_pictures(
    name: str, make_recipe: MakeRecipe, options: Options
) -> None:
    """The loss is that of the subject and the weighted one of the class, at each of two steps."""
    weights = "loss={prior_weight: 0.75, prior_weight_min: 0.25, prior_weight_target: 2}"
    trainer = Trainer(make_recipe(*options(name, weights, "max_train_steps=2")))
    path = trainer.train()
    assert path.exists()
    logged = scalars(trainer)
    pairs = zip(logged["loss/instance"], logged["loss/prior"], (0.75, 0.5), strict=True)
    expected = [instance + weight * prior for instance, prior, weight in pairs]
    assert logged["loss"] == pytest.approx(expected, rel=1e-5)
    assert logged["loss/prior"] != pytest.approx(logged["loss/instance"])


def test_metadata_tells_of_class_pictures(make_recipe: MakeRecipe, options: Options) -> None:
    from safetensors import safe_open

    path = Trainer(make_recipe(*options("lora", "max_train_steps=1"))).train()
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    assert facts["ss_num_train_images"] == facts["ss_num_reg_images"] == "8"
    assert facts["ss_prior_loss_weight"] == "1.0"


def text_encoder(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = trainer.objective.state_dict()
    return {key: value.clone() for key, value in state.items() if key.startswith("text_encoder.")}


@pytest.mark.parametrize("checkpointing", [pytest.param("false", marks=pytest.mark.slow), "true"])
def test_text_encoder_stops_bit_for_bit(
    checkpointing: str, make_recipe: MakeRecipe, options: Options
) -> None:
    """After two of four steps: no gradient, no weight decay, nothing computed for one."""
    more = ["optimizer.weight_decay=0.5", f"gradient_checkpointing={checkpointing}"]
    seen: list[dict[str, torch.Tensor]] = []
    states: list[Any] = []
    recipe = make_recipe(*options("dreambooth", *more))
    trainer = Trainer(recipe, watched(lambda *_: seen.append(text_encoder(trainer))))
    encode = trainer.base.encode_prompts

    def watched_encode(prompts: Any) -> Any:
        states.append(encode(prompts))
        return states[-1]

    trainer.base.encode_prompts = watched_encode  # type: ignore[method-assign]
    trainer.train()
    seen.append(text_encoder(trainer))
    changed = [
        any(not torch.equal(one[key], two[key]) for key in one)
        for one, two in itertools.pairwise(seen)
    ]
    assert changed == [True, True, False, False]
    assert [state.states.requires_grad for state in states] == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("dreambooth", [3]),
        pytest.param("dreambooth", [1], marks=pytest.mark.slow),
        pytest.param("textual_inversion", [2], marks=pytest.mark.slow),
    ],
)
def test_resume_is_exact(
    name: str, cuts: list[int], make_recipe: MakeRecipe, options: Options, tmp_path: Path
) -> None:
    """Before and after the text encoder's stop, with class pictures and their weight on its way."""
    more = [
        "loss={prior_weight_min: 0.1}",
        "gradient_accumulation_steps=2",
        "ema={decay: 0.8}",
        "data.captions={dropout_rate: 0.3, shuffle_tags: true}",
        "data.flip=0.5",
    ]

    def state(run: str) -> dict[str, torch.Tensor]:
        folder = tmp_path / run / "checkpoints" / "step-000004"
        return load_file(folder / "trained.safetensors") | {
            f"ema {key}": value for key, value in load_file(folder / "ema.safetensors").items()
        }

    Trainer(make_recipe(*options(name, *more, "name=straight"))).train()
    straight = state("straight")
    for cut in cuts:
        run = f"name=cut{cut}"
        stopped = Trainer(make_recipe(*options(name, *more, run)), stops_in(cut))
        with pytest.raises(Interrupted):
            stopped.train()
        Trainer(make_recipe(*options(name, *more, run, "resume=true"))).train()
        resumed = state(f"cut{cut}")
        assert resumed.keys() == straight.keys()
        assert [key for key in resumed if not torch.equal(resumed[key], straight[key])] == []


def stops_in(step: int) -> Callable[[TrainRecipe], Data]:
    """Data with which SIGTERM comes in the last micro-batch of a step."""

    def stop(batch: Any, *_: object) -> None:
        if batch["step"] == step - 1 and batch["completes_step"]:
            signal.raise_signal(signal.SIGTERM)

    return watched(stop)


def test_other_class_pictures_are_refused_when_resuming(
    make_recipe: MakeRecipe, pictures: Path, tmp_path: Path
) -> None:
    options = ["objective={type: lora, rank: 2}", *concept(pictures, tmp_path / "class")]
    Trainer(make_recipe(*options, "max_train_steps=1")).train()
    for file in pictures.glob("0-*"):
        (tmp_path / "class" / f"new{file.suffix}").write_bytes(file.read_bytes())
    again = Trainer(make_recipe(*options, "max_train_steps=2", "resume=true"))
    with pytest.raises(RunDirectoryError, match=r"other class pictures or captions:\n  \d added: "):
        again.train()


def test_an_edited_concepts_list_is_refused_when_resuming(
    make_recipe: MakeRecipe, pictures: Path, tmp_path: Path
) -> None:
    def recipe(*overrides: str, **said: Any) -> TrainRecipe:
        concept = {"instance_data_dir": str(pictures), "instance_token": "sks"} | said
        (tmp_path / "list.json").write_text(json.dumps([concept]))
        return make_recipe("data.path=null", f"data.concepts_list={tmp_path}/list.json", *overrides)

    Trainer(recipe("max_train_steps=1")).train()
    more = ["max_train_steps=2", "resume=true"]
    with pytest.raises(RunDirectoryError, match="other pictures or captions:\n  8 other captions"):
        Trainer(recipe(*more, class_token="number", num_class_images_per=1))
    Trainer(recipe(*more)).train()


def test_signal_while_class_pictures_are_drawn(
    commands: Any, stop_at: Callable[..., dict[str, object]], pictures: Path, tmp_path: Path
) -> None:
    to = [f"output_dir={tmp_path}", "sampling.batch_size=2", "max_train_steps=1"]
    to += concept(pictures, tmp_path / "class")
    done = commands.train(*to, stop=stop_at("train.class_images:keep", 3, "TERM"))
    assert done.status == 143, done.err
    last = (
        "train: stopped by SIGTERM; saved the class pictures that are drawn; resume=true continues"
    )
    assert done.err.splitlines()[-1] == last
    assert len(list((tmp_path / "class").glob("*.png"))) == 4
    done = commands.train(*to, "resume=true")
    assert done.status == 0, done.err
    assert len(list((tmp_path / "class").glob("*.png"))) == 8
