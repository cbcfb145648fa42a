"""Optimizers and LR schedules by name and by `module:Class`."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from inference.recipe import RecipeWarning
from inference.runtime import InputError
from train.config import LR_SCHEDULES, OPTIMIZERS, LRSchedulerConfig, OptimizerConfig, TrainRecipe
from train.optimization import lr_schedule, optimizer, state_bytes
from train.optimization.lr_schedules import rate_course
from train.optimization.optimizers import parameter_groups
from train.optimization.registry import create_optimizer
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    known = [(registry, dict(registry)) for registry in (OPTIMIZERS, LR_SCHEDULES)]
    yield
    for registry, before in known:
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize("registry", [OPTIMIZERS, LR_SCHEDULES], ids=["optimizers", "schedules"])
def test_names_of_the_config_are_the_decorated_functions(registry: dict[str, str]) -> None:
    for name, target in registry.items():
        assert resolve_name(target).__name__ == name
    decorate = optimizer if registry is OPTIMIZERS else lr_schedule
    with pytest.raises(ValueError, match="is built in"):
        decorate(next(iter(registry)))(lambda groups, lr: None)


def two_parts() -> nn.Module:
    return nn.ModuleDict({"unet": nn.Linear(3, 5), "text_encoder": nn.Linear(2, 2)})


def test_class_takes_its_own_defaults_options_and_changed_keys() -> None:
    config = OptimizerConfig(
        type="torch.optim:Adam",
        learning_rate=0.1,
        learning_rates={"unet": 0.2},
        weight_decay=0.3,
        options={"betas": [0.5, 0.6], "eps": "1e-3", "amsgrad": True},
    )
    assert list(config.faults()) == []
    assert list(config.idle()) == []
    made = create_optimizer(config, parameter_groups(config, two_parts()))
    assert type(made) is torch.optim.Adam
    first, second = made.param_groups
    assert (first["lr"], second["lr"]) == (0.2, 0.1)
    for group in made.param_groups:
        assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.5, 0.6), 1e-3, True)
        assert group["weight_decay"] == 0.3
    usual = OptimizerConfig(type="torch.optim:Adam")
    made = create_optimizer(usual, parameter_groups(usual, two_parts()))
    assert made.param_groups[0]["weight_decay"] == 0


def test_keys_that_a_class_does_not_take_have_no_effect() -> None:
    config = OptimizerConfig(type="torch.optim:SGD", betas=(0.5, 0.5), epsilon=1.0)
    assert {key for key, _ in config.idle()} == {"betas", "epsilon"}
    config = OptimizerConfig(type="torch.optim:Adam", epsilon=1.0, options={"eps": 1e-3})
    assert {key for key, _ in config.idle()} == {"epsilon"}


def test_registered_function_is_known_by_its_name() -> None:
    @optimizer("plain")
    def plain(groups: list, lr: float, momentum: float = 0.0) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)

    config = OptimizerConfig(type="plain", options={"momentum": 0.5})
    assert list(config.faults()) == []
    made = create_optimizer(config, parameter_groups(config, two_parts()))
    assert made.param_groups[0]["momentum"] == 0.5
    wrong = OptimizerConfig(type="plain", options={"momentun": 1})
    assert list(wrong.faults()) == [
        ("options.momentun", "plain takes no such option; did you mean momentum?")
    ]


@pytest.mark.parametrize(
    ("kind", "options", "by_shape"),
    [
        ("torch.optim:SGD", {}, {(40, 50): 0}),
        ("torch.optim:SGD", {"momentum": 0.9}, {(40, 50): 4 * 2000, (7,): 4 * 7}),
        ("torch.optim:Adagrad", {}, {(40, 50): 4 * 2000 + 4}),
        ("torch.optim:Adam", {"amsgrad": True}, {(40, 50): 12 * 2000 + 4, (7,): 12 * 7 + 4}),
        ("torch.optim:Adafactor", {}, {(40, 50): 4 * 90 + 4}),
    ],
)
def test_state_bytes_are_those_after_a_step(
    kind: str, options: dict[str, object], by_shape: dict[tuple[int, ...], int]
) -> None:
    config = OptimizerConfig(type=kind, options=options)
    for shape, expected in by_shape.items():
        parameter = nn.Parameter(torch.ones(shape))
        parameter.grad = torch.ones(shape)
        made = create_optimizer(config, [{"params": [parameter]}])
        made.step()
        kept = made.state[parameter].values()
        measured = sum(one.nbytes for one in kept if isinstance(one, torch.Tensor))
        assert measured == expected
        assert state_bytes(config, [parameter]) == expected


def test_optimizer_that_cannot_step_is_refused() -> None:
    @optimizer("broken")
    class Broken(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            raise RuntimeError("no way")

    with pytest.raises(InputError, match=r"optimizer\.type: broken cannot take a step: .*no way"):
        state_bytes(OptimizerConfig(type="broken"), [torch.ones(3)])


def test_torch_scheduler_goes_as_by_itself() -> None:
    options = {"step_size": 3, "gamma": 0.5}
    config = LRSchedulerConfig(type="torch.optim.lr_scheduler:StepLR", options=options)
    course = rate_course(config, 0.4, 10)
    assert [course(step) for step in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert course(11) == course(10) == course(9) == 0.125
    warmed = LRSchedulerConfig(config.type, options=options, warmup_steps=2)
    assert [rate_course(warmed, 0.4, 10)(step) for step in range(4)] == [0, 0.5, 1, 0.5]


def test_torch_scheduler_that_changes_more_or_ends_too_early_is_refused() -> None:
    kind = "torch.optim.lr_scheduler:OneCycleLR"
    options = {"max_lr": 0.1, "total_steps": 10}
    with pytest.raises(InputError, match="momentum too"):
        rate_course(LRSchedulerConfig(kind, options=options), 0.1, 10)
    options["cycle_momentum"] = False
    assert rate_course(LRSchedulerConfig(kind, options=options), 0.1, 10)(0) < 1
    with pytest.raises(InputError, match="refuses them"):
        rate_course(LRSchedulerConfig(kind, options=options), 0.1, 20)


def test_registered_schedule_is_known_by_its_name() -> None:
    @lr_schedule("halves")
    def halves(steps: int, every: int = 1) -> Callable[[int], float]:
        return lambda step: 0.5 ** (step // every)

    config = LRSchedulerConfig("halves", options={"every": 2}, warmup_steps=2)
    assert list(config.faults()) == []
    assert [rate_course(config, 1.0, 5)(step) for step in range(5)] == [0, 0.5, 0.5, 0.5, 0.25]


DOTTED = (
    "optimizer.type=torch.optim:Adagrad",
    "optimizer.options={lr_decay: 0.1, initial_accumulator_value: 0.01}",
    "lr_scheduler.type=torch.optim.lr_scheduler:ExponentialLR",
    "lr_scheduler.options={gamma: 0.7}",
    "saving.save_every_n_steps=2",
)


def test_resumed_run_with_a_dotted_optimizer_is_the_uninterrupted_one(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    whole = Trainer(make_recipe("name=whole", *DOTTED))
    whole.train()
    assert type(whole.optimization.optimizer.optimizer) is torch.optim.Adagrad
    Trainer(make_recipe("name=parts", "max_train_steps=2", *DOTTED)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecipeWarning)
        resumed = Trainer(make_recipe("name=parts", "resume=true", *DOTTED))
    resumed.train()
    pairs = [
        load_file(trainer.run.folder.checkpoint(4) / "trained.safetensors")
        for trainer in (whole, resumed)
    ]
    assert all(torch.equal(pairs[0][name], pairs[1][name]) for name in pairs[0])
    states = [
        torch.load(trainer.run.folder.checkpoint(4) / "optimizer.pt", weights_only=True)
        for trainer in (whole, resumed)
    ]
    for key, state in states[0]["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, states[1]["optimizer"]["state"][key][name])
    assert whole.optimization.rates == resumed.optimization.rates
    assert whole.optimization.rates["unet"] == pytest.approx(0.01 * 0.7**3)
