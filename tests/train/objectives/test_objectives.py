"""Each objective: what it trains, that it learns, and what it does when it fails."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference.artifacts.base import load_artifact
from inference.config.models import BaseModelConfig
from inference.images.drawing import draw
from inference.media.grid import grid_cells
from inference.models.base import DiffusionModel
from inference.models.folder import weights_of
from inference.models.stable_diffusion.loading import load_base_model
from inference.recipe.loader import RecipeWarning
from tests.train.run_tools import watched, with_slow
from train.config.objectives import OBJECTIVE_CONFIGS, LoraConfig
from train.config.recipe import TrainRecipe
from train.data.examples.loader import collate
from train.objectives.base import Objective
from train.objectives.loading import load_objective
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]

OBJECTIVES = {  # overrides, and how the names of those tensors begin that are trained
    "lora": (["objective={type: lora, rank: 4}"], []),
    "lora_text": (["objective={type: lora, rank: 4, train_text_encoder: true}"], []),
    "textual_inversion": (
        ["objective={type: textual_inversion, token: xyz}", "data.captions.template=subject"],
        [],
    ),
    "hypernetwork": (["objective={type: hypernetwork, activation_func: mish}"], []),
    "combined": (
        [
            "objective={type: combined, members: {word: {objective: {type: textual_inversion, "
            "token: number}}, look: {objective: {type: lora}}}}"
        ],
        [],
    ),
    "text_to_image": (["objective={type: text_to_image}"], ["unet."]),
    "text_to_image_text": (
        ["objective={type: text_to_image, train_text_encoder: true}"],
        ["unet.", "text_encoder."],
    ),
    "autoencoder": (["objective={type: autoencoder}"], ["vae."]),
    "decoder": (
        ["objective={type: autoencoder, part: decoder}"],
        ["vae.decoder.", "vae.post_quant_conv."],
    ),
}


def train(recipe: TrainRecipe) -> tuple[Trainer, list[float]]:
    """The trainer after its run, and the loss of every step."""
    trainer = Trainer(recipe)
    trainer.train()
    board = EventAccumulator(str(trainer.run.folder.logs)).Reload()
    return trainer, [event.value for event in board.Scalars("loss")]


def moved(base: DiffusionModel, before: DiffusionModel) -> set[str]:
    """Names of the base model's tensors that differ."""
    return {
        f"{part}.{name}"
        for part in base.parts
        for name, value in weights_of(base.parts[part]).items()
        if not torch.equal(value, weights_of(before.parts[part])[name])
    }


@pytest.mark.parametrize(
    "name", with_slow(OBJECTIVES, ("lora_text", "text_to_image_text", "decoder"))
)
def test_only_its_own_tensors_move(name: str, make_recipe: MakeRecipe) -> None:
    overrides, beginnings = OBJECTIVES[name]
    recipe = make_recipe(*overrides, "max_train_steps=2")
    untouched = load_base_model(recipe.base_model)
    objective = load_objective(recipe, torch.device("cpu"))
    start = {key: value.clone() for key, value in objective.named_parameters()}
    trainer, _ = train(recipe)
    names = [
        f"{part}.{key}" for part in untouched.parts for key in untouched.parts[part].state_dict()
    ]
    expected = {name for name in names if name.startswith(tuple(beginnings))}
    assert moved(trainer.base, untouched) == expected
    now = dict(trainer.objective.named_parameters())
    assert now.keys() == start.keys()
    assert all(not torch.equal(now[key], value) for key, value in start.items())


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("lora", ["unet"]),
        ("lora_text", ["unet", "text_encoder"]),
        ("textual_inversion", ["embedding"]),
        ("hypernetwork", ["hypernetwork"]),
        ("combined", ["word", "look"]),
        ("text_to_image", ["unet"]),
        ("text_to_image_text", ["unet", "text_encoder"]),
        ("autoencoder", ["vae"]),
        ("decoder", ["vae"]),
    ],
)
def test_children_are_the_parameter_groups(
    name: str, groups: list[str], make_recipe: MakeRecipe
) -> None:
    objective = load_objective(make_recipe(*OBJECTIVES[name][0]), torch.device("cpu"))
    assert [child for child, _ in objective.named_children()] == groups
    assert all(parameter.requires_grad for parameter in objective.parameters())
    trained = {id(parameter) for parameter in objective.parameters()}
    for part in objective.base.parts.values():
        assert all(id(p) in trained for p in part.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("overrides", "falls_to"),
    [
        (["objective={type: lora, rank: 8}", "optimizer.learning_rate=2e-2"], 0.95),
        pytest.param(
            ["objective={type: hypernetwork}", "optimizer.learning_rate=3e-2"],
            0.98,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["objective={type: text_to_image}", "optimizer.learning_rate=1e-2"],
            0.7,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["objective={type: autoencoder, gradient_weight: 0.0}", "optimizer.learning_rate=3e-2"],
            0.75,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_loss_of_known_pictures_falls(
    overrides: list[str], falls_to: float, make_recipe: MakeRecipe
) -> None:
    """On the same noise before and after. A LoRA on random weights can do little."""
    trainer = Trainer(
        make_recipe(
            *overrides,
            "max_train_steps=40",
            "train_batch_size=8",
            "lr_scheduler={type: cosine, warmup_steps: 3}",
            "loss.min_timestep=900",
            "log_every_n_steps=40",
        )
    )
    batch: Any = collate([trainer.examples[position] for position in range(8)])

    @torch.no_grad()
    def loss() -> float:
        return float(trainer.objective.eval()(batch).mean())

    before = loss()
    trainer.train()
    assert loss() < falls_to * before


@pytest.mark.parametrize(
    "name",
    with_slow(
        ["lora", "textual_inversion", "hypernetwork", "text_to_image", "autoencoder"],
        ["textual_inversion", "hypernetwork", "text_to_image"],
    ),
)
def test_loss_that_is_not_finite_ends_the_run(
    name: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Naming the step and the pictures; what was saved before is left alone."""
    recipe = make_recipe(*OBJECTIVES[name][0], "saving.save_every_n_steps=2", "data.num_workers=0")

    def poison(batch: Any, *_: object) -> None:
        if batch["step"] == 2:
            next(trainer.objective.parameters()).data.fill_(float("nan"))

    trainer = Trainer(recipe, watched(poison))
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    pictures = [trainer.examples[position]["names"] for position in (4, 5)]
    assert "not finite at step 3" in str(error.value)
    assert all(f"{picture} (nan)" in str(error.value) for picture in pictures)
    assert trainer.run.folder.newest_checkpoint() == trainer.run.folder.checkpoint(2)
    assert trainer.run.folder.artifact(2, trainer.objective.artifact().suffix).exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective={type: lora, rank: 4, dropout: 0.3, train_text_encoder: true}"],
        pytest.param(
            ["objective={type: hypernetwork, dropout_structure: [0, 0.3, 0]}"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["objective={type: text_to_image, train_text_encoder: true}"], marks=pytest.mark.slow
        ),
        pytest.param(["objective={type: autoencoder}"], marks=pytest.mark.slow),
    ],
)
def test_gradient_checkpointing_changes_no_number(
    overrides: list[str], make_recipe: MakeRecipe
) -> None:
    runs = [
        train(
            make_recipe(
                *overrides,
                "max_train_steps=2",
                f"name={switch}",
                f"gradient_checkpointing={switch}",
            )
        )
        for switch in ("false", "true")
    ]
    (plain, losses), (checkpointed, same_losses) = runs
    assert losses == same_losses
    for one, two in zip(
        plain.objective.parameters(), checkpointed.objective.parameters(), strict=True
    ):
        assert torch.equal(one, two)


def test_autoencoder_measures_the_scale_of_its_latents(make_recipe: MakeRecipe) -> None:
    """The factor that makes their variance 1 is in the artifact's VAE."""
    recipe = make_recipe("objective={type: autoencoder}", "max_train_steps=3")
    trainer, _ = train(recipe)
    objective: Any = trainer.objective
    saved = load_base_model(BaseModelConfig(path=str(trainer.run.folder.artifact(3, ""))))
    factor = saved.vae.config.scaling_factor
    assert factor == pytest.approx(float(objective.latent_variance) ** -0.5)
    assert factor != 0.5


def test_decoder_leaves_the_scale_of_the_latents(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("objective={type: autoencoder, part: decoder}", "max_train_steps=2")
    trainer = Trainer(recipe)
    trainer.base.vae.register_to_config(scaling_factor=0.18215)
    trainer.train()
    saved = load_base_model(BaseModelConfig(path=str(trainer.run.folder.artifact(2, ""))))
    assert saved.vae.config.scaling_factor == 0.18215


def test_autoencoder_terms(make_recipe: MakeRecipe) -> None:
    """Each weight brings its own term: their sum is the loss of all."""
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    batch: Any = {"positions": [0, 1], "pixels": pixels}

    def loss(**weights: float) -> torch.Tensor:
        names = ("l1_weight", "gradient_weight", "kl_weight")
        text = ", ".join(f"{name}: {weights.get(name, 0.0)}" for name in names)
        recipe = make_recipe("objective={type: autoencoder, " + text + "}")
        objective: Objective = load_objective(recipe, torch.device("cpu")).eval()
        with torch.no_grad():
            return objective(batch)

    l1, gradient = loss(l1_weight=1.0), loss(gradient_weight=1.0)
    both = loss(l1_weight=1.0, gradient_weight=2.0)
    assert l1.shape == (2,)
    assert torch.allclose(both, l1 + 2 * gradient)
    assert torch.allclose(loss(l1_weight=1.0, kl_weight=1e-3) - l1, 1e-3 * kl(make_recipe, pixels))


def kl(make_recipe: MakeRecipe, pixels: torch.Tensor) -> torch.Tensor:
    """As diffusers computes it."""
    base = load_base_model(make_recipe().base_model)
    with torch.no_grad():
        return base.vae.encode(pixels).latent_dist.kl()


BIASES = """
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from inference.artifacts.checkpoint import Checkpoint
from train.config import OBJECTIVE_CONFIGS, ObjectiveConfig
from train.families import build_denoising
from train.losses.denoising import Denoising
from train.objectives.base import Objective


class BiasObjective(Objective):
    def __init__(self, recipe, base):
        super().__init__(base)
        self.denoising = build_denoising(recipe, base)
        named = base.unet.named_parameters()
        biases = {name.replace(".", "_"): p for name, p in named if name.endswith("bias")}
        self.biases = nn.ParameterDict(biases).requires_grad_(True)

    def forward(self, batch):
        return self.denoising.loss(batch)

    def artifact(self):
        return Checkpoint.of(self.base)


@dataclass
class BiasConfig(ObjectiveConfig):
    target: ClassVar[str] = "only_biases:BiasObjective"
    type: Literal["biases"] = "biases"


OBJECTIVE_CONFIGS["biases"] = BiasConfig
"""


def test_a_new_objective_is_one_file(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checkpoints, EMA, and grids that show what is saved."""
    (tmp_path / "only_biases.py").write_text(BIASES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(OBJECTIVE_CONFIGS, "biases", LoraConfig)  # the plug-in's takes its place
    recipe = make_recipe(
        "plugins=[only_biases]",
        "objective={type: biases}",
        "ema={decay: 0.5}",
        "saving.save_precision=fp32",  # its artifact also holds what is frozen
        "sampling.settings.steps=2",
        "sampling.images.one.prompt=red",
    )
    untouched = load_base_model(recipe.base_model)
    trainer, _ = train(recipe)
    names = [f"unet.{name}" for name in untouched.unet.state_dict() if name.endswith("bias")]
    assert moved(trainer.base, untouched) == set(names)
    saved = load_base_model(BaseModelConfig(path=str(trainer.run.folder.artifact(4, ""))))
    grid: Any = trainer.previews.grid
    (drawing,) = draw(saved, grid.images)
    _, (shown,) = grid_cells(Image.open(trainer.run.folder.grid(4)))
    assert drawing.image.tobytes() == shown.tobytes()


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ("activation_func: relu, weight_initialization: KaimingUniform", True),
        (
            "activation_func: relu, weight_initialization: KaimingUniform, add_layer_norm: true, "
            "activate_output: true",
            False,
        ),
        ("activation_func: relu", False),
    ],
)
def test_a_hypernetwork_that_begins_far_from_nothing_is_told(
    options: str, warned: bool, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe("objective={type: hypernetwork, " + options + "}")
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always", RecipeWarning)
        load_objective(recipe, torch.device("cpu"))
    assert [w.category for w in reported] == [RecipeWarning] * warned
    assert not warned or "add_layer_norm: true" in str(reported[0].message)


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ("activation_func: softshrink", "ComfyUI does not apply .* softshrink"),
        ("activation_func: mish, add_layer_norm: true", "applies mish after the last layer too"),
        ("activation_func: softshrink, save_as: safetensors", None),
        ("activation_func: mish, add_layer_norm: true, activate_output: true", None),
        ("add_layer_norm: true", None),
    ],
)
def test_a_hypernetwork_that_comfyui_applies_otherwise_is_reported(
    options: str, reported: str | None, make_recipe: MakeRecipe
) -> None:
    """By the objective, and so in plans and when a run starts."""
    recipe = make_recipe("objective={type: hypernetwork, " + options + "}")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", RecipeWarning)
        load_objective(recipe, torch.device("cpu"))
    assert len(found) == (reported is not None)
    assert reported is None or re.search(reported, str(found[0].message))


@pytest.mark.parametrize("ema", ["null", "{decay: 0.5}"])
def test_each_member_has_its_own_rate_end_and_file(ema: str, make_recipe: MakeRecipe) -> None:
    """The average of what has stopped stays what it was, too."""
    recipe = make_recipe(
        f"ema={ema}",
        "objective={type: combined, members: {word: {objective: {type: textual_inversion, token: "
        "number}, learning_rate: 0.5, weight_decay: 0, stop_step: 2}, look: {objective: {type: "
        "lora, train_text_encoder: true}, learning_rates: {text_encoder: 0.03}, lr_scheduler: "
        "{type: linear}}}}",
        "saving.save_every_n_steps=2",
    )
    trainer, _ = train(recipe)
    groups = {group["name"]: group for group in trainer.optimization.optimizer.param_groups}
    assert {name: group["initial_lr"] for name, group in groups.items()} == {
        "word.embedding": 0.5,
        "look.unet": 0.01,
        "look.text_encoder": 0.03,
    }
    assert [groups[name]["weight_decay"] for name in groups] == [0, 0.01, 0.01]
    assert trainer.optimization.rates == {  # of the fourth step of four
        "word.embedding": 0.5,
        "look.unet": pytest.approx(0.0025),
        "look.text_encoder": pytest.approx(0.0075),
    }
    saved = {
        name: [
            load_artifact(trainer.run.folder.artifact(step, ".safetensors", name))
            for step in (2, 4)
        ]
        for name in ("word", "look")
    }
    words = [embedding.learned.vectors for embedding in saved["word"]]  # type: ignore[attr-defined]
    assert torch.equal(*words)
    assert trainer.optimization.members["word"].objective.embedding.vectors.grad is None  # type: ignore[union-attr]
    loras = [lora.modules_by_part()["unet"].state_dict() for lora in saved["look"]]  # type: ignore[attr-defined]
    assert not any(
        torch.equal(one, two) for one, two in zip(*(x.values() for x in loras), strict=True)
    )


def test_vectors_are_held_to_a_length(make_recipe: MakeRecipe) -> None:
    """Those below it are left alone."""
    options = "token: number, num_vectors_per_token: 2, initialization_text: '', max_norm: 0.25"
    recipe = make_recipe("objective={type: textual_inversion, " + options + "}")
    objective: Any = load_objective(recipe, torch.device("cpu"))
    vectors = objective.embedding.vectors
    with torch.no_grad():
        vectors[0, :2] = torch.tensor([0.3, -0.4])
        vectors[1, :2] = torch.tensor([0.06, 0.08])
    objective.after_step()
    assert vectors[:, :2].flatten().tolist() == pytest.approx([0.15, -0.2, 0.06, 0.08])
    learned: Any = train(recipe)[0].objective
    trained = learned.embedding.vectors
    assert (trained.norm(dim=1) <= 0.25 + 1e-6).all()
    assert (trained.norm(dim=1) > 0).all()
