"""Commands beside other packages called `train` or `inference`: refused before those run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOREIGN = "import pathlib\npathlib.Path('ran').touch()\n"

OF_TRAIN = {
    "train": "train",
    "train.plan": "plan",
    "train.diff": "diff",
    "train.rerun": "rerun",
    "train.cli": "limner",
}
OF_INFERENCE = {
    "inference": "draw",
    "inference.inspect": "inspect",
    "inference.convert": "convert",
    "inference.deforum.stitch": "stitch",
}
QUICK = ("train", "train.cli", "inference", "inference.deforum.stitch")
"""The main commands, and one of the others of each package."""


def command(
    folder: Path, *arguments: str, path: str = str(ROOT)
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def foreign(folder: Path, package: str, is_module: bool) -> Path:
    file = folder / (f"{package}.py" if is_module else f"{package}/__init__.py")
    file.parent.mkdir(exist_ok=True)
    file.write_text(FOREIGN)
    return file


@pytest.mark.parametrize("is_module", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("module", "package"),
    [
        pytest.param(one, package, marks=() if one in QUICK else pytest.mark.slow)
        for package, modules in (("inference", OF_TRAIN), ("train", OF_INFERENCE))
        for one in modules
    ],
)
def test_foreign_package_is_refused_with_both_paths(
    module: str, package: str, is_module: bool, tmp_path: Path
) -> None:
    """`python -m` looks in the working folder first; that package is not even imported."""
    file = foreign(tmp_path, package, is_module)
    done = command(tmp_path, "-m", module, "recipe.yaml")
    program = (OF_TRAIN | OF_INFERENCE)[module]
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"{program}: Python finds {file} as the package `{package}`, which hides Limner's "
        f"{ROOT / package}; rename it, or run the command where it is not on Python's path\n"
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("arguments", [["train", "none.yaml"], ["draw", "none.yaml"]])
def test_console_command_ignores_the_working_folder(arguments: list[str], tmp_path: Path) -> None:
    """As pip writes it, the folder of the script comes first, not that of the user."""
    scripts, work = tmp_path / "bin", tmp_path / "work"
    scripts.mkdir()
    work.mkdir()
    script = scripts / "limner"
    script.write_text("import sys\nfrom train.cli import main\nsys.exit(main())\n")
    for package in ("train", "inference"):
        foreign(work, package, is_module=True)
    done = command(work, str(script), *arguments)
    assert done.returncode == 2
    assert f"{arguments[0]}: none.yaml: no such file" in done.stderr
    assert not (work / "ran").exists()
    path = f"{tmp_path / 'first'}{os.pathsep}{ROOT}"
    (tmp_path / "first").mkdir()
    foreign(tmp_path / "first", "inference", is_module=True)
    done = command(work, str(script), *arguments, path=path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"limner: Python finds {tmp_path / 'first' / 'inference.py'} as")


def test_folder_without_code_hides_nothing(tmp_path: Path) -> None:
    """A folder `train/` of pictures is no package while there is a real one."""
    for package in ("train", "inference"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "cat.txt").touch()
    for module in ("train.plan", "inference"):
        done = command(tmp_path, "-m", module, "--help")
        assert done.returncode == 0
        assert "usage" in done.stdout


def test_inference_works_without_train(tmp_path: Path) -> None:
    (tmp_path / "inference").symlink_to(ROOT / "inference")
    done = command(
        tmp_path, "-P", "-S", "-c",
        "from inference.shadowing import foreign_train; print(foreign_train())",
        path=str(tmp_path),
    )  # fmt: skip
    assert done.stdout == "None\n"


def test_train_says_that_inference_is_missing(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("__init__.py", "cli.py", "shadowing.py"):
        (tmp_path / "train" / name).write_text((ROOT / "train" / name).read_text("utf-8"))
    done = command(tmp_path, "-S", "-m", "train.cli", "plan", path="")
    assert done.returncode == 2
    expected = tmp_path / "inference"
    assert done.stderr == f"limner: Limner's package `inference` is missing: expected {expected}\n"
