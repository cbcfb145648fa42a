"""The levers of `memory` in whole runs: equal to the run without, resumed and stopped safely."""

import re
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inference.recipe.layers import RecipeWarning
from inference.runtime.errors import InputError
from tests.train.run_tools import watched
from train.common.errors import NonFiniteError
from train.config.recipe import TrainRecipe
from train.optimization import accelerator as accelerators
from train.run_data import Data
from train.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*ComfyUI applies mish after the last layer")

MakeRecipe = Callable[..., TrainRecipe]

OBJECTIVES = {
    "lora": "{type: lora, rank: 2, dropout: 0.1}",
    "embedding": "{type: textual_inversion, token: number, max_norm: 0.5}",
    "hypernetwork": "{type: hypernetwork, activation_func: mish, add_layer_norm: true, "
    "activate_output: true}",
    "whole": "{type: text_to_image, train_text_encoder: true}",
    "vae": "{type: autoencoder}",
    "combined": "{type: combined, members: {word: {objective: {type: textual_inversion, token: "
    "number}, stop_step: 2}, look: {objective: {type: lora}}, net: {objective: {type: "
    "hypernetwork}}}}",
}
PLAIN = [
    "max_grad_norm=null",
    "max_grad_value=0.02",
    "ema.decay=0.8",
    "max_train_steps=4",
    "train_batch_size=1",
    "saving.save_every_n_steps=2",
    "saving.keep_last_n_checkpoints=9",
]
FUSED = "memory.fused_backward=true"
BF16 = ["memory.trained_weights=bf16", "mixed_precision=bf16"]
EXACT = {
    "fused": [FUSED],
    "fused 8 bits": [FUSED, "optimizer.type=adamw8bit"],
    "fused bf16": [FUSED, *BF16],
    "on cpu": ["memory.ema_on_cpu=true", "memory.optimizer_on_cpu=true"],
}
"""Levers that change no byte -> the options, of which those of PLACES make the difference."""
PLACES = (FUSED, "memory.ema_on_cpu=true", "memory.optimizer_on_cpu=true")
FILES = ("trained.safetensors", "optimizer.pt", "ema.safetensors")


def train(recipe: TrainRecipe, data: Any = Data) -> tuple[Trainer, list[float]]:
    """Train; return the norm of the gradients of each step too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecipeWarning)
        trainer = Trainer(recipe, data)
    norms: list[float] = []
    log = trainer.log

    def noting(grad_norm: float) -> None:
        norms.append(grad_norm)
        log(grad_norm)

    trainer.log = noting  # type: ignore[method-assign]
    trainer.train()
    return trainer, norms


def saved(trainer: Trainer, step: int = 4) -> dict[str, bytes]:
    folder = trainer.run.folder.checkpoint(step)
    return {name: (folder / name).read_bytes() for name in FILES}


def check_resumed(make_recipe: MakeRecipe, straight: Trainer, options: list[str]) -> None:
    """Stop after step 2 and go on; the last checkpoint has the bytes of the straight run."""
    train(make_recipe(*options, "name=resumed", "max_train_steps=2"))
    resumed, _ = train(make_recipe(*options, "name=resumed", "resume=true"))
    assert saved(resumed) == saved(straight)


def quick(*one: str) -> list[Any]:
    """All objectives with all of EXACT, where all but one are slow."""
    pairs = product(OBJECTIVES, EXACT)
    return [pytest.param(*pair, marks=() if pair == one else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("objective", "lever"), quick("combined", "fused"))
def test_levers_that_change_no_byte(objective: str, lever: str, make_recipe: MakeRecipe) -> None:
    options = [f"objective={OBJECTIVES[objective]}", *PLAIN, *EXACT[lever]]
    ours, norms = train(make_recipe(*options, "name=lever"))
    plain = [one for one in options if one not in PLACES]
    theirs, expected = train(make_recipe(*plain, "name=plain"))
    assert saved(ours) == saved(theirs)
    # torch takes the norm of bf16 gradients in bf16.
    assert norms == pytest.approx(expected, rel=0.02 if lever == "fused bf16" else 0)
    assert len(norms) == 4 and min(norms) > 0
    check_resumed(make_recipe, ours, options)


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        pytest.param(
            objective,
            more,
            marks=() if objective == "lora" and not more else pytest.mark.slow,
        )
        for objective in OBJECTIVES
        for more in ([], ["memory.rounding=kahan"], [FUSED, "optimizer.type=adamw8bit"])
    ],
)
def test_runs_in_bf16_resume_and_follow_fp32(
    objective: str, more: list[str], make_recipe: MakeRecipe
) -> None:
    """The mean distance is below half a step of 0.01; checkpoints are bf16, artifacts not."""
    options = [f"objective={OBJECTIVES[objective]}", *PLAIN, *BF16, *more]
    options += ["saving.save_precision=fp32"]
    ours, _ = train(make_recipe(*options, "name=lever"))
    check_resumed(make_recipe, ours, options)
    folder = ours.run.folder.checkpoint(4)
    found = load_file(folder / "trained.safetensors")
    buffers = {name for name, _ in ours.objective.named_buffers()}
    assert {one.dtype for name, one in found.items() if name not in buffers} == {torch.bfloat16}
    assert {one.dtype for one in load_file(folder / "ema.safetensors").values()} == {torch.float32}
    for file in ours.run.folder.artifacts.glob("*-000004.safetensors"):
        assert {one.dtype for one in load_file(file).values()} == {torch.float32}
    exact = [one for one in options if one != BF16[0] and not one.startswith("memory.r")]
    theirs, _ = train(make_recipe(*exact, "name=exact"))
    expected = load_file(theirs.run.folder.checkpoint(4) / "trained.safetensors")
    apart = torch.cat([(one.float() - expected[name]).flatten() for name, one in found.items()])
    assert apart.abs().mean() < 0.005


def test_losses_that_are_not_finite_change_nothing(make_recipe: MakeRecipe) -> None:
    """The state before the step is saved, and the run goes on without it.

    The second time each loss is finite, and their weighted sum is not.
    """

    def poison(key: str) -> Any:
        def change(batch: Any, *_: object) -> None:
            if batch["step"] == 1:
                batch[key] = batch[key] * float("inf")

        return watched(change)

    options = ["objective={type: lora, rank: 2}", *PLAIN, FUSED, "name=run"]
    with pytest.raises(NonFiniteError, match=r"^loss is not finite at step 2: .*\. No weight was"):
        train(make_recipe(*options), poison("latents"))
    skipping = make_recipe(*options, "resume=true", "guards.non_finite=skip", "max_train_steps=2")
    trainer, norms = train(skipping, poison("weight"))
    assert trainer.optimization.guard.counts["skipped"] == 1
    assert norms == [float("inf")]
    before, after = (
        (trainer.run.folder.checkpoint(step) / "trained.safetensors").read_bytes()
        for step in (1, 2)
    )
    assert before == after


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_a_gradient_that_is_not_finite_ends_the_run(kind: str, make_recipe: MakeRecipe) -> None:
    """Of the UNet's input: nearly all tensors have changed by then, and none to NaN."""
    options = ["objective={type: text_to_image}", *PLAIN, FUSED, f"optimizer.type={kind}"]
    trainer = Trainer(make_recipe(*options, "guards.non_finite=skip"))
    unet: Any = trainer.base.parts["unet"]
    calls = []

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * float("inf") if len(calls) == 2 else gradient

    unet.conv_in.bias.register_hook(poison)
    unet.conv_in.weight.register_hook(poison)
    before = {name: one.detach().clone() for name, one in unet.named_parameters()}
    message = (
        r"^gradients are not finite at step 1, while its losses are: .*\.png\. With "
        r"memory\.fused_backward \d+ of \d+ tensors had been changed by this step, before the "
        r"gradient of unet\.conv_in\.(weight|bias)\. The state before it is gone with these "
        r"tensors, and was not saved; nothing is"
    )
    with pytest.raises(NonFiniteError, match=message) as error:
        trainer.train()
    count, whole = map(int, re.findall(r"(\d+) of (\d+) tensors", str(error.value))[0])
    after = dict(unet.named_parameters())
    changed = [name for name, one in before.items() if not torch.equal(one, after[name])]
    assert len(changed) == count < whole == len(before)
    assert all(one.isfinite().all() for one in after.values())
    assert not list((trainer.run.folder.path / "checkpoints").glob("step-*"))


def test_one_process_alone(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate

    class Two:
        num_processes = 2
        is_main_process = True
        device = torch.device("cpu")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "Accelerator", lambda **_: Two())
    with pytest.raises(InputError, match=r"^memory\.fused_backward: is for one process, got 2"):
        accelerators.build_accelerator(make_recipe("max_grad_norm=null", FUSED))


def test_what_lies_on_the_cpu_already(make_recipe: MakeRecipe) -> None:
    keys = ("ema_on_cpu", "optimizer_on_cpu", "activation_offload")
    recipe = make_recipe("ema.decay=0.9", *(f"memory.{key}=true" for key in keys))
    with pytest.warns(RecipeWarning) as found:
        trainer = Trainer(recipe)
    trainer.close()
    messages = {str(one.message) for one in found}
    assert {f"memory.{key}: has no effect on a CPU" for key in keys} <= messages


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("memory.ema_on_cpu=true", "memory.ema_on_cpu: has no effect without ema"),
        ("memory.rounding=kahan", "memory.rounding: has no effect with trained_weights: fp32"),
    ],
)
def test_keys_without_effect(override: str, message: str, make_recipe: MakeRecipe) -> None:
    with pytest.warns(RecipeWarning, match=message):
        make_recipe(override)
