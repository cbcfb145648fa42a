"""The `limner` command: what it hands on, what it lists, and how fast it answers."""

import os
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoints
from pathlib import Path
from pkgutil import resolve_name

import pytest

import inference
import train
from inference.recipe import command, plugins
from inference.runtime import version
from inference.sampling import registry
from inference.sampling.schedules import SCHEDULES
from train import cli
from train.config import OBJECTIVE_CONFIGS, OPTIMIZERS
from train.runs import describe_environment

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def limner(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, from a folder where no package lies."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "train.cli", *arguments],
        cwd=ROOT / "docs",
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["trian"], ["plan", "--help"]])
def test_help_and_typos_are_answered_at_once(arguments: list[str]) -> None:
    """Within 0.5 s of processor time, without torch or a recipe's libraries."""
    times, done = [], None
    for _ in range(3):
        before = os.times()
        done = limner(*arguments)
        after = os.times()
        times.append(
            after.children_user
            - before.children_user
            + after.children_system
            - before.children_system
        )
    print(f"answered in {statistics.median(times):.2f} s of processor time")
    assert done and done.returncode == (2 if arguments == ["trian"] else 0)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "train.cli" in imported or "train" in imported
    assert not imported & {"torch", "numpy", "omegaconf", "yaml", "rich", "PIL"}
    assert statistics.median(times) < 0.5


def test_commands_are_those_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, one in cli.COMMANDS.items():
        assert one.example.startswith(f"limner {name}")
        assert one.summary.endswith(".")
        assert one.summary in text
        assert one.example in text
    assert cli.main([]) == 2
    assert capsys.readouterr().err == text
    assert PROJECT["scripts"]["limner"] == "train.cli:main"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_is_its_own_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = cli.main([name, "--help"])
    except SystemExit as end:  # argparse
        status = end.code
    assert status == 0
    reported = capsys.readouterr()
    assert cli.COMMANDS[name].example in reported.out
    assert "usage: " in reported.out
    assert reported.err == ""


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("trian", "no command is called 'trian'; did you mean train?"),
        ("Draw", "no command is called 'Draw'; did you mean draw?"),
        ("--check", "no command is called '--check'; expected one of train, draw, plan"),
        ("xyz", "no command is called 'xyz'; expected one of train, draw, plan"),
    ],
)
def test_unknown_command(name: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name]) == 2
    assert f"limner: {answer}" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_arguments_are_handed_on_and_the_status_back(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[list[str]] = []

    def plan(arguments: list[str]) -> int:
        got.append(arguments)
        return status

    module = resolve_name(cli.COMMANDS["plan"].main.partition(":")[0])
    monkeypatch.setattr(module, "main", plan)
    assert cli.main(["plan", "a.yaml", "b=1", "--json"]) == status
    assert got == [["a.yaml", "b=1", "--json"]]


WRONG = {
    "train": (["none.yaml"], "train: none.yaml: no such file"),
    "plan": (["none.yaml"], "plan: none.yaml: no such file"),
    "draw": (["none.yaml"], "draw: none.yaml: no such file"),
    "diff": (["none", "none"], "diff: none"),
    "rerun": (["none"], "rerun: none"),
    "inspect": (["none.png"], "inspect: none.png: no such file or folder"),
    "convert": (["none.pt", "b.pt", "--to", "a1111"], "convert: none.pt"),
    "stitch": (["none"], "stitch: none"),
    "list": (["objectve"], "list: expected one of objectives, samplers"),
    "schema": (["trian"], "schema: expected one of train, draw"),
    "plugins": (["now"], "usage: limner plugins"),
}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_refuses_wrong_input(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own main, which is reached through the table."""
    monkeypatch.chdir(tmp_path)
    arguments, answer = WRONG[name]
    assert cli.main([name, *arguments]) == 2
    assert answer in capsys.readouterr().err


def test_version_comes_from_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.__version__ == inference.__version__ == PROJECT["version"]
    assert describe_environment()["limner"] == PROJECT["version"]
    assert cli.main(["--version"]) == 0
    reported = capsys.readouterr().out
    assert reported.startswith(f"limner {PROJECT['version']} (")
    assert str(ROOT) in reported
    with pytest.raises(AttributeError):
        _ = train.nothing  # type: ignore[attr-defined]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The packages lie in another folder, and nothing is remembered of this one."""
    caches = (version.limner_version, version._pyproject_version)
    monkeypatch.setattr(version, "PACKAGES", tmp_path)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


def test_a_clone_has_its_own_version(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever version is installed; another project's pyproject.toml says nothing."""
    monkeypatch.setattr(version, "version", lambda name: {"limner": "3.2.1"}[name])
    project = elsewhere / "pyproject.toml"
    project.write_text('[project]\nname = "other"\nversion = "9.9.9"\n')
    assert version.limner_version() == "3.2.1"
    version.limner_version.cache_clear()
    version._pyproject_version.cache_clear()
    project.write_text('[project]\nname = "limner"\nversion = "7.0.0"\n')
    assert version.limner_version() == "7.0.0"
    assert version.describe_version() == f"7.0.0 ({elsewhere})"  # no git there
    assert command.shipped_recipes() == elsewhere / "configs"


def test_an_installed_limner_has_its_recipes_in_the_package(elsewhere: Path) -> None:
    """As pyproject.toml puts them into the wheel."""
    assert elsewhere.is_dir()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["force-include"]["configs"] == "train/configs"
    assert command.shipped_recipes() == ROOT / "train" / "configs"


def test_shipped_recipes_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe of the same name in the working folder comes first."""
    monkeypatch.chdir(tmp_path)
    assert command.find_recipe("configs/lora.yaml") == str(ROOT / "configs" / "lora.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "lora.yaml").touch()
    assert command.find_recipe("configs/lora.yaml") == "configs/lora.yaml"
    assert command.find_recipe("configs/none.yaml") == "configs/none.yaml"


def names_listed(kind: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert cli.main(["list", kind]) == 0
    lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    return {name: "".join(rest).strip() for name, *rest in lines}


def test_lists_are_the_registries(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(names_listed("objectives", capsys)) == list(OBJECTIVE_CONFIGS)
    assert names_listed("samplers", capsys) == {
        name: "of clips alone" if name in ("ddim", "dpm") else f"schedule: {sampler.automatic}"
        for name, sampler in registry.SAMPLERS.items()
    }
    schedules = names_listed("schedules", capsys)
    assert set(schedules) == {"Automatic", *SCHEDULES}
    assert "DPM++ 2M SDE" in schedules["Exponential"]
    assert list(names_listed("optimizers", capsys)) == list(OPTIMIZERS)
    families = names_listed("families", capsys)
    assert families["sdxl"] == "SDXL"
    assert families["cogvideox-5b"] == "CogVideoX-5B"


def test_listed_objective_is_one_that_a_plugin_adds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class MineConfig(OBJECTIVE_CONFIGS["lora"]):  # type: ignore[misc,name-defined]
        """Mine, in one sentence.

        And more.
        """

    monkeypatch.setitem(OBJECTIVE_CONFIGS, "mine", MineConfig)
    assert names_listed("objectives", capsys)["mine"] == "Mine, in one sentence."


def test_recipes_are_listed_with_their_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    listed = names_listed("recipes", capsys)
    shipped = {p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml")}
    others = ("/accelerate/", "/cluster/")
    assert set(listed) == {name for name in shipped if not any(one in name for one in others)}
    assert listed["configs/lora.yaml"] == "LoRA on SD 1.5."
    assert all(listed.values())
    assert not any("yaml-language-server" in line for line in listed.values())


def test_no_plugins(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", EntryPoints)
    monkeypatch.delenv(plugins.PLUGIN_VARIABLE, raising=False)
    assert cli.main(["plugins"]) == 0
    assert capsys.readouterr().out.startswith("no plug-ins: ")


def test_plugins_are_listed_and_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Installed ones by their distribution's metadata, named ones from the environment."""
    (tmp_path / "my_sampler.py").write_text("def walk():\n    return 1\n")
    (tmp_path / "my_exit.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "my_syntax.py").write_text("def\n")
    about = tmp_path / "my_plugins-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugins\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(
        "[limner.samplers]\nwalk = my_sampler:walk\nrun = my_sampler:run\n"
        "[limner.objectives]\nsyntax = my_syntax\n[limner.other]\nnone = my_sampler\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.PLUGIN_VARIABLE, "my_sampler, my_exit my_sampler:walk,no-name")
    assert cli.main(["plugins"]) == 1
    lines = capsys.readouterr().out.splitlines()
    ours = [line for line in lines if "my-plugins 1.2" in line or "environment" in line]
    assert [line.rpartition(" (my-plugins 1.2): ")[2] for line in ours[:3]] == [
        ours[0].rpartition("): ")[2],
        "AttributeError: module 'my_sampler' has no attribute 'run'",
        "loads",
    ]
    assert ours[0].startswith(
        "limner.objectives: syntax = my_syntax (my-plugins 1.2): SyntaxError: "
    )
    assert [line.partition("(environment): ")[2] for line in ours[3:]] == [
        "loads",
        "SystemExit: 3",
        "loads",
        "'no-name' is not of the form module or module:name",
    ]
    monkeypatch.setenv(plugins.PLUGIN_VARIABLE, "my_sampler")
    monkeypatch.setattr(plugins, "entry_points", EntryPoints)
    assert cli.main(["plugins"]) == 0


def test_reader_who_has_seen_enough_ends_it_quietly() -> None:
    """As `limner schema train | head` does; the schema is larger than a pipe holds."""
    started = subprocess.Popen(
        [sys.executable, "-m", "train.cli", "schema", "train"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert started.stdout is not None
    assert started.stderr is not None
    with started:
        assert started.stdout.readline() == b"{\n"
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 0


@pytest.mark.parametrize("command", ["train", "draw"])
def test_printed_schema_is_the_committed_one(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["schema", command]) == 0
    committed = ROOT / "docs" / "schema" / f"{command}.schema.json"
    assert capsys.readouterr().out == committed.read_text(encoding="utf-8")
