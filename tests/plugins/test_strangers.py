"""A stranger's objective, sampler and optimizer: loaded with consent, refused without."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inference.__main__ import main as draw
from inference.images import read_infotext
from inference.recipe import PLUGIN_VARIABLE, plugins
from train import cli, rerun
from train.__main__ import main as train

ROOT = Path(__file__).parents[2]
WAYS = ("entry point", "command line", "environment")


@dataclass(frozen=True)
class Stranger:
    """A plug-in, and what a recipe says to use it."""

    module: str
    group: str
    recipe: str


PLAIN = Stranger("my_optimizer", "limner.optimizers", "objective: {type: lora, rank: 2}\n")


STRANGERS = {
    "objective": Stranger("my_objective", "limner.objectives", "objective: {type: biases}\n"),
    "optimizer": Stranger(
        "my_optimizer",
        "limner.optimizers",
        "objective: {type: lora, rank: 2}\n"
        "optimizer: {type: 'my_optimizer:Momentum', options: {momentum: 0.5}}\n",
    ),
    "sampler": Stranger(
        "my_sampler", "limner.samplers", "settings: {steps: 2, sampler: Midpoint}\n"
    ),
}


@pytest.fixture
def run(
    tmp_path: Path, tiny_base_folder: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Train or draw a stranger's recipe; the exit status."""
    monkeypatch.chdir(tmp_path)

    def start(one: Stranger, *overrides: str, extra: str = "", based: str = "") -> int:
        is_drawing = one.module == "my_sampler"
        head = f"base: {recipe_file}\nmax_train_steps: 2\noutput_dir: runs\n"
        if is_drawing:
            head = f"base_model: {{path: {tiny_base_folder}}}\nimages: {{cat: {{prompt: a}}}}\n"
        (tmp_path / "base.yaml").write_text(head + based)
        path = tmp_path / "recipe.yaml"
        path.write_text(f"base: base.yaml\n{one.recipe}{extra}")
        return (draw if is_drawing else train)([str(path), *overrides])

    return start


def install(folder: Path, one: Stranger) -> None:
    """Lay down what pip writes of a package with an entry point."""
    about = folder / "stranger-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{one.group}]\nmine = {one.module}\n")


def consent(
    way: str, one: Stranger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Sequence[str]:
    """Consent in one of the three ways; return what the command line says of it."""
    if way == "entry point":
        install(folder, one)
    if way == "environment":
        monkeypatch.setenv(PLUGIN_VARIABLE, one.module)
    return [f"plugins=[{one.module}]"] if way == "command line" else []


def assert_used(kind: str) -> None:
    """The run or picture is the plug-in's work."""
    if kind == "sampler":
        (picture,) = Path("outputs").rglob("0*.png")
        assert "Sampler: Midpoint" in (read_infotext(picture) or "")
        return
    state = torch.load(Path("runs/run/checkpoints/step-000002/optimizer.pt"), weights_only=True)[
        "optimizer"
    ]
    if kind == "optimizer":
        assert {name for one in state["state"].values() for name in one} == {"mean"}
        assert state["param_groups"][0]["momentum"] == 0.5
    else:
        assert [group["name"] for group in state["param_groups"]] == ["biases"]


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        pytest.param(kind, way, marks=() if row == column else pytest.mark.slow)
        for row, kind in enumerate(STRANGERS)
        for column, way in enumerate(WAYS)
    ],
)
def test_plugin_is_loaded_with_consent(
    kind: str,
    way: str,
    run: Callable[..., int],
    outside: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = consent(way, STRANGERS[kind], outside, monkeypatch)
    assert run(STRANGERS[kind], *overrides) == 0, capsys.readouterr().err
    assert_used(kind)


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("place", ["extra", "based"])
def test_plugin_is_refused_without_consent(
    kind: str,
    place: str,
    run: Callable[..., int],
    outside: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether the file or its base names it; nothing of it runs, and the option to add is named."""
    one = STRANGERS[kind]
    (outside / f"{one.module}.py").write_text("raise SystemExit('code of a stranger ran')\n")
    line = f"plugins: [{one.module}]\n"
    assert run(one, **{place: line}) == 2
    said = capsys.readouterr().err
    assert f"add plugins=[{one.module}] to the command line" in said
    assert f"set {PLUGIN_VARIABLE}={one.module}" in said
    assert len(said.splitlines()) == 1
    assert one.module not in sys.modules


def test_option_that_the_refusal_names_is_enough(
    run: Callable[..., int], outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a recipe names several modules in several places."""
    one = STRANGERS["optimizer"]
    extra = "plugins: [my_objective]\nlr_scheduler: {type: 'my_optimizer:halving'}\n"
    assert run(one, extra=extra) == 2
    said = capsys.readouterr().err
    option = said.partition("add ")[2].partition(" to the command line")[0]
    assert option == "plugins=[my_objective, my_optimizer]"
    assert run(one, option, extra=extra) == 0


def test_class_on_the_command_line_is_consent(run: Callable[..., int], outside: Path) -> None:
    options = "optimizer.options={momentum: 0.5}"
    assert run(PLAIN, "optimizer.type=my_optimizer:Momentum", options) == 0
    assert_used("optimizer")


def test_run_folder_is_no_consent(
    run: Callable[..., int],
    outside: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither for `limner rerun` nor to go on with its recipe.yaml; with consent both work."""
    one = STRANGERS["optimizer"]
    assert run(one, "plugins=[my_optimizer]") == 0
    monkeypatch.setattr(plugins, "_consented", set())
    capsys.readouterr()
    recipe = "runs/run/recipe.yaml"
    for refused in (
        lambda: rerun.main(["runs/run"]),
        lambda: train([recipe, "resume=true", "max_train_steps=3"]),
        lambda: cli.main(["plan", recipe]),
    ):
        assert refused() == 2
        assert "add plugins=[my_optimizer] to the command line" in capsys.readouterr().err
    assert train([recipe, "resume=true", "max_train_steps=3", "plugins=[my_optimizer]"]) == 0
    assert rerun.main(["runs/run", "plugins=[my_optimizer]"]) == 0


def test_module_beside_a_run_is_never_imported(
    run: Callable[..., int],
    outside: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A downloaded run folder with a module beside it, which its recipe names in either way."""
    assert run(PLAIN) == 0
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Path("runs/run/recipe.yaml")
    sound = recipe.read_text()
    names = {
        "plugins: []": "plugins: [evil]",
        "type: adamw": "type: evil:X",
        "type: constant": "type: evil:X",
    }
    for old, new in names.items():
        assert old in sound
        shutil.rmtree("other", ignore_errors=True)
        shutil.copytree("runs/run", "other/run")
        Path("other/run/recipe.yaml").write_text(sound.replace(old, new, 1))
        capsys.readouterr()
        for command, status in (
            (["diff", "other/run", "runs/run"], 0),
            (["plan", "other/run/recipe.yaml"], 2),
            (["train", "other/run/recipe.yaml", "output_dir=other", "resume=true"], 2),
            (["train", "other/run/recipe.yaml", "name=anew"], 2),
            (["rerun", "other/run"], 2),
            (["inspect", "other/run/artifacts/last.safetensors"], 0),
        ):
            assert cli.main(command) == status, (command, capsys.readouterr().err)
            said = capsys.readouterr().err
            assert status == 0 or "add plugins=[evil] to the command line" in said
            assert "evil" not in sys.modules and not ran.exists(), command


def test_what_is_loaded_by_consent_is_printed(
    run: Callable[..., int],
    outside: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line for each plug-in, with its file and who consented; none without plug-ins."""
    one, file = STRANGERS["optimizer"], outside / "my_optimizer.py"

    def lines(*overrides: str) -> list[str]:
        for name in ("_announced", "_loaded", "_consented"):
            monkeypatch.setattr(plugins, name, set())
        capsys.readouterr()
        run(one, "max_train_steps=0", *overrides)
        return [line for line in capsys.readouterr().err.splitlines() if "plug-in" in line]

    first = f"plug-in my_optimizer loaded from {file} "
    assert lines("plugins=[my_optimizer]") == [f"{first}(named by plugins=[…])"]
    assert lines("optimizer.type=my_optimizer:Momentum") == [f"{first}(named by type)"]
    monkeypatch.setenv(PLUGIN_VARIABLE, "my_optimizer")
    assert lines() == [f"{first}(named by {PLUGIN_VARIABLE})"]
    monkeypatch.delenv(PLUGIN_VARIABLE)
    install(outside, one)
    assert lines() == [f"plug-in mine loaded from {file} (installed, limner.optimizers)"]


def test_sampler_draws_by_its_own_steps(run: Callable[..., int], outside: Path) -> None:
    one = STRANGERS["sampler"]
    drawn = []
    for name in ("Midpoint", "Euler", "Midpoint"):
        folder = f"out{len(drawn)}"
        settings = f"settings.sampler={name}"
        assert run(one, "plugins=[my_sampler]", settings, f"output_dir={folder}") == 0
        (picture,) = Path(folder).rglob("0*.png")
        drawn.append(np.asarray(Image.open(picture)))
    assert np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])


def test_plan_measures_a_strangers_optimizer(
    run: Callable[..., int], outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = []
    for one in (STRANGERS["optimizer"], PLAIN):
        assert run(one, "plugins=[my_optimizer]", "overwrite=true") == 0
        capsys.readouterr()
        assert cli.main(["plan", "recipe.yaml", "--json", "plugins=[my_optimizer]"]) == 0
        planned.append(json.loads(capsys.readouterr().out)["memory"]["optimizer"])
    assert planned[1] == 2 * planned[0] > 0  # one mean of the gradient; AdamW keeps two


def test_installed_plugin_that_does_not_load_is_a_warning(
    run: Callable[..., int], outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(outside, Stranger("no_such_module", "limner.samplers", ""))
    assert run(PLAIN) == 0
    said = capsys.readouterr().err
    assert "train: plug-in mine (limner.samplers) does not load: ModuleNotFoundError" in said


@pytest.mark.parametrize("way", WAYS)
def test_lists_and_schemas_hold_plugins(
    way: str,
    outside: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for kind, name in (
        ("objective", "biases"),
        ("optimizer", "my_momentum"),
        ("sampler", "Midpoint"),
    ):
        with monkeypatch.context() as patch:
            arguments = consent(way, STRANGERS[kind], outside, patch)
            assert cli.main(["list", f"{kind}s", *arguments]) == 0
            assert name in capsys.readouterr().out
            if kind == "objective":
                assert cli.main(["schema", "train", *arguments]) == 0
                assert '"const": "biases"' in capsys.readouterr().out
        shutil.rmtree(outside / "stranger-1.0.dist-info", ignore_errors=True)


def test_wrong_plugin_is_one_message(
    outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (outside / "my_objective.py").write_text("1 / 0\n")
    cases = {
        "plugins=[my_objective]": "'my_objective' cannot be imported: ZeroDivisionError",
        "plugins=[none_such]": "'none_such' cannot be imported: No module named 'none_such'",
        "plugins=my_objective": "plugins: expected a list ([a, b]), got 'my_objective'",
    }
    for option, message in cases.items():
        assert cli.main(["list", "objectives", option]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv(PLUGIN_VARIABLE, "none_such")
    assert cli.main(["list", "objectives"]) == 2
    assert "LIMNER_PLUGINS: 'none_such' cannot be imported" in capsys.readouterr().err


def test_refusal_by_the_command_itself(outside: Path, tmp_path: Path) -> None:
    """In a process of its own, which nothing has prepared; `limner` finds the working folder."""
    (tmp_path / "recipe.yaml").write_text("plugins: [my_objective]\nobjective: {type: biases}\n")
    for options, message in (
        ([], "add plugins=[my_objective] to the command line"),
        (["plugins=[my_objective]"], "name: must be given"),
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "train.cli", "train", "../recipe.yaml", *options],
            cwd=outside,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert "Traceback" not in done.stderr
