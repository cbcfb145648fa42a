"""Numbers that are not finite change no weight; what they came of is named, and counted."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.train.run_tools import watched
from train.common.errors import DataError, NonFiniteError
from train.config.optimization import GuardConfig
from train.config.recipe import TrainRecipe
from train.data.examples.latents import check_latents, shown
from train.objectives.loading import load_objective
from train.optimization.accelerator import build_accelerator
from train.optimization.guards import Guard
from train.optimization.optimization import Optimization
from train.trainer import Trainer

INF, NAN = float("inf"), float("nan")
FINE = torch.tensor(1.0)


class OneOfTwo:
    """A process beside another one, in which a loss is not finite."""

    num_processes = 2
    device = torch.device("cpu")
    scaler = None

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value, torch.ones_like(value)])


def guard(non_finite: Any = "skip", limit: int = 2, accelerator: Any = None) -> tuple[Guard, list]:
    reported: list[str] = []
    alone: Any = SimpleNamespace(num_processes=1, scaler=None)
    config = GuardConfig(non_finite=non_finite, max_skips_in_a_row=limit)
    return Guard(config, accelerator or alone, reported.append), reported


def watch(one: Guard, **losses: float) -> None:
    batch: Any = {"names": list(losses)}
    one.watch(torch.tensor([*losses.values()]), batch)


def test_finite_steps_are_allowed() -> None:
    one, reported = guard("stop")
    watch(one, a=1.0, b=2.0)
    assert one.allows(FINE, 1)
    assert set(one.counts.values()) == {0} and reported == []


def test_losses_name_their_pictures_of_all_micro_batches() -> None:
    one, _ = guard("stop")
    watch(one, a=1.0, b=NAN)
    watch(one, c=INF, d=0.5)
    with pytest.raises(NonFiniteError) as error:
        one.allows(FINE, 7)
    assert str(error.value) == "loss is not finite at step 7: b (nan), c (inf)"


@pytest.mark.parametrize("norm", [NAN, INF])
def test_gradients_name_all_pictures_of_the_step(norm: float) -> None:
    one, _ = guard("stop")
    watch(one, a=1.0)
    watch(one, b=1.0)
    with pytest.raises(NonFiniteError, match=r"^gradients are not finite at step 3, .*: a, b$"):
        one.allows(torch.tensor(norm), 3)


def test_skipped_steps_are_told_and_counted_and_end_in_a_row() -> None:
    one, reported = guard(limit=2)
    for step, loss in enumerate((NAN, NAN, 1.0, NAN, NAN), 1):
        watch(one, **{f"p{step}": loss})
        assert one.allows(FINE, step) == (loss == 1.0)
    assert (one.counts["skipped"], one.counts["skipped_in_a_row"]) == (4, 2)
    assert reported[1] == "warning: skipped, 2 so far: loss is not finite at step 2: p2 (nan)"
    watch(one, p6=NAN)
    before = dict(one.counts)
    with pytest.raises(NonFiniteError, match=r"More than 2 steps in a row .*max_skips_in_a_row"):
        one.allows(FINE, 6)
    assert one.counts == before


def test_all_processes_decide_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is finite here; another process reports its own, with its pictures."""
    monkeypatch.setattr("train.optimization.guards.of_all", lambda _, own: [*own, "theirs (nan)"])
    one, reported = guard(accelerator=OneOfTwo())
    watch(one, a=1.0)
    assert not one.allows(FINE, 1)
    assert reported == ["warning: skipped, 1 so far: loss is not finite at step 1: theirs (nan)"]


def test_what_a_loss_scaler_skips_is_counted_apart() -> None:
    accelerator: Any = SimpleNamespace(num_processes=1, scaler=object())
    one, reported = guard("stop", accelerator=accelerator)
    for norm in (INF, NAN, 1.0):
        watch(one, a=1.0)
        assert one.allows(torch.tensor(norm), 1)
    assert (one.counts["scaler_skipped"], one.counts["scaler_row"]) == (2, 0)
    assert one.counts["skipped"] == 0 and reported == []
    with pytest.raises(NonFiniteError, match=r"overflow at any scale .*=bf16"):
        for _ in range(60):
            one.allows(torch.tensor(INF), 2)


def test_many_names_are_counted() -> None:
    assert shown(list("abc")) == "a, b, c"
    assert shown(list("abcdefghij")) == "a, b, c, d, e, f, g, h, … 10 together"


def test_latents_name_their_pictures() -> None:
    mean, std = torch.zeros(3, 4, 2, 2), torch.ones(3, 4, 2, 2)
    paths = [Path("a.png"), Path("b.png"), Path("c.png")]
    check_latents(mean, std, paths)
    mean[1, 2, 0, 1], std[2, 0, 0, 0] = NAN, INF
    with pytest.raises(DataError, match=r"^latents are not finite: b\.png, c\.png\. "):
        check_latents(mean, std, paths)


@pytest.mark.filterwarnings("error")
def test_a_skipped_step_leaves_weights_and_moments(
    make_recipe: Callable[..., TrainRecipe],
) -> None:
    """Also the first one; the learning rate goes on, the average towards the weights."""
    schedule = "lr_scheduler={type: schedule, schedule: '0.1:1, 0.05'}"
    recipe = make_recipe(
        "objective={type: lora, rank: 2}", "guards.non_finite=skip", "ema.decay=0.5", schedule
    )
    accelerator = build_accelerator(recipe)
    objective = load_objective(recipe, accelerator.device)
    reported: list[str] = []
    optimization = Optimization(recipe, objective, accelerator, reported.append)
    parameters, ema = optimization.parameters, optimization.ema
    before = [one.detach().clone() for one in parameters]

    def take_step(number: int, factor: float) -> None:
        with optimization.accumulating(completes_step=True):
            accelerator.backward(sum((one.sum() for one in parameters), FINE * 0) * factor)
        optimization.step(number)

    take_step(1, NAN)
    assert len(reported) == 1 and reported[0].startswith(
        "warning: skipped, 1 so far: gradients are not"
    )
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert not optimization.optimizer.state and all(one.grad is None for one in parameters)
    assert optimization.rates == {"unet": pytest.approx(0.1)}
    assert optimization.lr_scheduler.get_last_lr() == [pytest.approx(0.05)]
    assert ema is not None and ema.optimization_step == 1
    take_step(2, 1.0)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def poison(batch: Any, *_: object) -> None:
    """Make an example of step 2 count infinitely: its loss is finite, its gradient is not."""
    if batch["step"] == 1:
        batch["weight"] = batch["weight"] * INF


def test_run_stops_with_the_state_before_and_goes_on_with_skip(
    make_recipe: Callable[..., TrainRecipe],
) -> None:
    """It ends in the bytes of a run that skipped the step at once; resumed after it as well."""
    options = ["objective={type: lora, rank: 2}", "max_train_steps=3", "train_batch_size=1"]
    stopped = Trainer(make_recipe(*options, "name=stopped"), watched(poison))
    with pytest.raises(NonFiniteError, match=r"gradients are not finite at step 2, .*\.png"):
        stopped.train()
    assert stopped.run.folder.newest_checkpoint() == stopped.run.folder.checkpoint(1)
    skipping = [*options, "guards.non_finite=skip"]
    ends = []
    for more in (["name=stopped", "resume=true"], ["name=straight"]):
        trainer = Trainer(make_recipe(*skipping, *more), watched(poison))
        trainer.train()
        assert trainer.optimization.guard.counts["skipped"] == 1
        ends.append(trainer.run.folder.checkpoint(3))
    for name in ("trained.safetensors", "optimizer.pt", "progress.json"):
        one, two = ((end / name).read_bytes() for end in ends)
        assert one == two, name
    before = stopped.run.folder.checkpoint(1) / "trained.safetensors"
    assert before.read_bytes() != (ends[0] / "trained.safetensors").read_bytes()
