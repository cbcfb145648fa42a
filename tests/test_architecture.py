"""The architecture: floors, circles, doors, folders, small files, type switches (decision 14).

Each rule is applied to the code, and proved by a small tree that keeps it and one that breaks it.
"""

import subprocess
import tomllib
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import pytest

from scripts.architecture.__main__ import main, report
from scripts.architecture.graphs import circles, feedback, longest_paths
from scripts.architecture.rules import (
    FLOORS,
    MOST_FILES,
    MOST_FLOORS,
    SMALL,
    SMALL_FILES,
    circle_faults,
    door_faults,
    file_circles,
    floor_faults,
    folder_faults,
    inner_floor_faults,
    small_file_faults,
    wing_of,
)
from scripts.architecture.tree import PACKAGES, Tree, is_door, is_root, module_of, top_folder
from scripts.architecture.type_switches import type_switches

ROOT = Path(__file__).parents[1]
TREE = Tree.of_folder(ROOT)

TYPE_SWITCHES = 0
"""Lines that ask for the type of a model: only ever fewer, until none is left."""

RULES = (
    floor_faults,
    inner_floor_faults,
    circle_faults,
    door_faults,
    folder_faults,
    small_file_faults,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_code_keeps(rule):
    found = sorted(rule(TREE))
    assert not found, "\n".join([f"{len(found)} findings", *map(str, found)])


def test_nobody_asks_for_the_type_of_a_model():
    found = sorted(type_switches(TREE))
    assert len(found) == TYPE_SWITCHES, "\n".join([str(len(found)), *map(str, found)])


def test_there_are_few_floors_and_a_wing_is_on_one():
    wings = [wing for floor in FLOORS for wing in floor]
    assert len(FLOORS) <= MOST_FLOORS
    assert len(wings) == len(set(wings))


def test_the_tables_name_what_exists():
    wings = {wing for floor in FLOORS for wing in floor}
    assert wings - {wing_of(path) for path in TREE.sources} == set()
    assert sorted(path for path in SMALL_FILES if path not in TREE.sources) == []


def test_every_import_of_our_own_is_found():
    lost = [one for one in TREE.imports if TREE.target(one) is None]
    assert not lost, "\n".join(map(str, lost))


def test_ruff_bounds_the_complexity_of_functions():
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert {"C901", "PLR0912", "PLR0913", "PLR0915"} <= set(ruff["select"])
    assert ruff["mccabe"] == {"max-complexity": 10}
    assert ruff["pylint"] == {"max-branches": 12, "max-args": 7, "max-statements": 50}


# Small trees


LONG = "x = 1\n" * SMALL
DOOR = "from train.data.containers.tars import Tar\n__all__ = ['Tar']\n"
GOOD = {
    "inference/__init__.py": "__version__ = '1'\n",
    "inference/runtime/__init__.py": (
        "from inference.runtime.errors import InputError\n__all__ = ['InputError']\n"
    ),
    "inference/runtime/errors.py": f"class InputError(Exception): ...\n{LONG}",
    "train/__init__.py": "",
    "train/trainer.py": (
        "from train import __version__\n"
        "from inference.runtime import InputError\n"
        "def f():\n    from train.data import Source\n"
    ),
    "train/data/__init__.py": (
        "from train.data.sources import Source\n__all__: list[str] = ['Source']\n"
    ),
    "train/data/containers/__init__.py": DOOR,
    "train/data/containers/tars.py": (
        f"from inference.runtime import InputError\nfrom . import headers\nclass Tar: ...\n{LONG}"
    ),
    "train/data/containers/headers.py": LONG,
    "train/data/sources/__init__.py": (
        "from train.data.sources.folder import Source\n__all__ = ['Source']\n"
    ),
    "train/data/sources/folder.py": (
        f"from train.data.containers import Tar\nclass Source: ...\n{LONG}"
    ),
    "scripts/bench/step.py": "from train.data import Source\nfrom train.trainer import f\n",
}


@pytest.fixture
def tree(tmp_path):
    """Return a function that reads the good tree with other files beside and in place of it."""

    def read(files: dict[str, str]) -> Tree:
        for path, source in {**GOOD, **files}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(source, "utf-8")
        return Tree.of_folder(tmp_path)

    return read


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_tree_keeps(rule, tree):
    assert list(rule(tree({}))) == []


FOLDER = GOOD["train/data/sources/folder.py"]
FAMILY = {
    "inference/models/__init__.py": "__all__ = []\n",
    "inference/models/flux/__init__.py": (
        "from inference.models.flux.model import Flux\n__all__ = ['Flux']\n"
    ),
    "inference/models/flux/model.py": "class Flux: ...\n",
}
VIOLATIONS = [
    (
        "a wing that no floor knows",
        floor_faults,
        {"train/attic.py": ""},
        ["train/attic.py:1: on no floor"],
    ),
    (
        "an import upwards",
        floor_faults,
        {"train/data/sources/folder.py": f"{FOLDER}import train.trainer\n"},
        [f"folder.py:{SMALL + 3}: train/data/ (floor 6) imports train/trainer.py (floor 11)"],
    ),
    (
        "a lazy import upwards",
        floor_faults,
        {"inference/runtime/errors.py": "def f():\n    from train.data import Source\n"},
        ["errors.py:2: inference/runtime/ (floor 1) imports train/data/ (floor 6)"],
    ),
    (
        "an import of a type upwards",
        floor_faults,
        {
            "inference/runtime/errors.py": (
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import train.data\n"
            )
        },
        ["errors.py:3: inference/runtime/ (floor 1) imports train/data/ (floor 6)"],
    ),
    (
        "an import by name upwards",
        floor_faults,
        {"inference/runtime/errors.py": "import importlib\nimportlib.import_module('train.data')"},
        ["errors.py:2: inference/runtime/ (floor 1) imports train/data/ (floor 6)"],
    ),
    (
        "an import on the same floor",
        floor_faults,
        {
            "inference/files/__init__.py": "__all__ = []\n",
            "inference/recipe/__init__.py": "from inference.files import x\n__all__ = []\n",
        },
        ["recipe/__init__.py:1: inference/recipe/ (floor 2) imports inference/files/ (floor 2)"],
    ),
    (
        "an import of scripts",
        floor_faults,
        {"train/trainer.py": "import scripts.bench.step\n"},
        ["trainer.py:1: train/trainer.py (floor 11) imports scripts/ (floor 13)"],
    ),
    (
        "an import by a package's own __init__",
        floor_faults,
        {"train/__init__.py": "from inference import __version__\n"},
        ["train/__init__.py:1: imports inference: it imports none of ours"],
    ),
    (
        "an import upwards inside a wing",
        inner_floor_faults,
        {"train/data/containers/headers.py": "from train.data.sources import Source\n"},
        ["headers.py:1: imports train/data/sources/folder.py, which is not below it"],
    ),
    (
        "a room inside a wing that no floor knows",
        inner_floor_faults,
        {
            "train/data/attic/__init__.py": "__all__ = []\n",
            "train/data/attic/old.py": "from train.data.sources import Source\n",
        },
        ["old.py:1: train/data/attic/ is on no floor"],
    ),
    (
        "a circle of two files",
        circle_faults,
        {
            "train/trainer.py": "import train.saving\n",
            "train/saving.py": "def f():\n    import train.trainer\n",
        },
        ["saving.py:2: imports train/trainer.py", "trainer.py:1: imports train/saving.py"],
    ),
    (
        "a circle of types",
        circle_faults,
        {
            "train/trainer.py": "from train.saving import x\n",
            "train/saving.py": "if TYPE_CHECKING:\n    from train.trainer import y\n",
        },
        ["saving.py:2: imports train/trainer.py", "trainer.py:1: imports train/saving.py"],
    ),
    (
        "a circle of files through a door, and of the rooms",
        circle_faults,
        {"train/data/containers/tars.py": "from train.data.sources import Source\nclass Tar: ..."},
        [
            "tars.py:1: imports train/data/sources/folder.py: a circle of 2 files",
            "folder.py:1: imports train/data/containers/tars.py: a circle of 2 files",
            "tars.py:1: train/data/containers/ imports train/data/sources/: a circle of",
            "folder.py:1: train/data/sources/ imports train/data/containers/: a circle of",
        ],
    ),
    (
        "a circle of rooms but of no files",
        circle_faults,
        {
            "train/data/containers/headers.py": "from train.data.sources import NAME\n",
            "train/data/sources/names.py": "NAME = 1\n",
            "train/data/sources/__init__.py": (
                "from train.data.sources.folder import Source\n"
                "from train.data.sources.names import NAME\n__all__ = ['NAME', 'Source']\n"
            ),
        },
        [
            "headers.py:1: train/data/containers/ imports train/data/sources/: a circle of",
            "folder.py:1: train/data/sources/ imports train/data/containers/: a circle of",
        ],
    ),
    (
        "an import past a door",
        door_faults,
        {"train/trainer.py": "from inference.runtime.errors import InputError\n"},
        ["trainer.py:1: imports inference.runtime.errors.InputError past the door"],
    ),
    (
        "an import past a door by a script",
        door_faults,
        {"scripts/bench/step.py": "import inference.runtime.errors\n"},
        ["step.py:1: imports inference.runtime.errors past the door"],
    ),
    (
        "an import of a file through the door",
        door_faults,
        {"train/trainer.py": "from inference.runtime import errors\n"},
        ["trainer.py:1: errors is not in inference.runtime.__all__"],
    ),
    (
        "an import of a whole room",
        door_faults,
        {"train/trainer.py": "import inference.runtime\nfrom inference import runtime\n"},
        [
            "trainer.py:1: imports inference.runtime past the door",
            "trainer.py:2: imports inference.runtime past the door",
        ],
    ),
    (
        "a public name that a file hides",
        door_faults,
        {"train/data/__init__.py": "__all__ = ['Source', 'sources']\n"},
        ["__init__.py:1: sources is also a file of the room"],
    ),
    (
        "a name that a door does not list",
        door_faults,
        {"train/trainer.py": "from train.data import Source, Tar\n"},
        ["trainer.py:1: Tar is not in train.data.__all__"],
    ),
    (
        "a room inside a room from outside",
        door_faults,
        {"train/trainer.py": "from train.data.sources import Source\n"},
        ["trainer.py:1: imports train.data.sources.Source past the door: from train.data import"],
    ),
    (
        "a sibling room past its door",
        door_faults,
        {"train/data/sources/folder.py": "from train.data.containers.tars import Tar\n"},
        ["folder.py:1: imports train.data.containers.tars.Tar past the door"],
    ),
    (
        "a family from outside",
        door_faults,
        {
            **FAMILY,
            "train/trainer.py": "from inference.models.flux import Flux\n",
            "train/families/__init__.py": "__all__ = []\n",
            "train/families/flux.py": "from inference.models.flux.model import Flux\n",
        },
        [
            "trainer.py:1: imports inference.models.flux.Flux past the door: from inference.models",
            "flux.py:1: imports inference.models.flux.model.Flux past the door: from inference.mod",
        ],
    ),
    (
        "the door of one's own room",
        door_faults,
        {"train/data/containers/headers.py": "from train.data import Source\n"},
        ["headers.py:1: imports from the door of its own room train.data"],
    ),
    (
        "a relative import past a door",
        door_faults,
        {"train/data/sources/folder.py": "from ..containers.tars import Tar\n"},
        ["folder.py:1: imports train.data.containers.tars.Tar past the door"],
    ),
    (
        "a room without a door, and one that lists nothing",
        door_faults,
        {"train/runs/disk.py": "", "train/plan/__init__.py": "", "train/plan/plan.py": ""},
        ["plan/__init__.py:1: no __all__", "runs/__init__.py:1: is missing"],
    ),
    (
        "a crowded folder",
        folder_faults,
        {f"train/data/sources/a{number}.py": "" for number in range(MOST_FILES)},
        [f"train/data/sources/:1: {MOST_FILES + 1} Python files, at most {MOST_FILES}"],
    ),
    (
        "a splinter",
        small_file_faults,
        {"train/data/containers/headers.py": "x = 1\n" * (SMALL - 1)},
        [f"headers.py:1: {SMALL - 1} lines of code that only train/data/containers/tars.py"],
    ),
    (
        "a splinter that is imported through the door",
        small_file_faults,
        {"train/data/containers/tars.py": "class Tar: ...\n"},
        ["tars.py:1: 1 lines of code that only train/data/sources/folder.py imports"],
    ),
]


@pytest.mark.parametrize(
    ("rule", "files", "expected"),
    [row[1:] for row in VIOLATIONS],
    ids=[row[0] for row in VIOLATIONS],
)
def test_violation_is_found(rule, files, expected, tree):
    found = list(map(str, rule(tree(files))))
    assert len(found) == len(expected), found
    for one in expected:
        assert any(one in finding for finding in found), (one, found)


ALLOWED = [
    ("a full folder", folder_faults, {f"train/data/sources/a{n}.py": "" for n in range(13)}),
    (
        "a small file with two importers",
        small_file_faults,
        {
            "train/data/containers/headers.py": "x = 1\n",
            "train/data/containers/zips.py": "import train.data.containers.headers\n",
        },
    ),
    (
        "a small file that only a script imports",
        small_file_faults,
        {"train/diff.py": "x = 1\n", "scripts/bench/diff.py": "import train.diff\n"},
    ),
    (
        "a small command",
        small_file_faults,
        {"train/__main__.py": "x = 1\n", "train/rerun.py": "import train.__main__\n"},
    ),
    (
        "the two halves of a family",
        door_faults,
        {
            **FAMILY,
            "train/families/__init__.py": "__all__ = []\n",
            "train/families/flux.py": (
                "from inference.models import x\nfrom inference.models.flux import Flux\n"
            ),
            "inference/models/__init__.py": "x = 1\n__all__ = ['x']\n",
        },
    ),
    (
        "a door that imports a room for what it registers",
        door_faults,
        {"train/data/__init__.py": "import train.data.sources\n__all__ = ['Source']\n"},
    ),
    (
        "a module named in a registry",
        floor_faults,
        {"inference/runtime/errors.py": "FAMILIES = {'sd': 'train.data'}\n"},
    ),
    (
        "a door that imports its rooms, which import their neighbours",
        circle_faults,
        {"train/data/__init__.py": "from train.data.sources import Source\n" + DOOR},
    ),
]


@pytest.mark.parametrize(
    ("rule", "files"), [row[1:] for row in ALLOWED], ids=[row[0] for row in ALLOWED]
)
def test_good_code_is_left_alone(rule, files, tree):
    assert list(rule(tree(files))) == []


def test_a_row_lets_a_small_file_be(tree):
    path = "train/data/containers/headers.py"
    assert list(small_file_faults(tree({path: ""}), allowed={path})) == []


LAZY = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from train.data.sources.folder import Source
_HOMES = {"Late": "train.data.sources.late", "Later": ".late", "Last": "late"}
__all__ = ["Last", "Late", "Later", "Source"]
"""


@pytest.mark.parametrize("name", ["Source", "Late", "Later", "Last"])
def test_a_lazy_door_is_looked_through(name, tree):
    source = f"from train.data.sources import {name}\nclass Tar: ...\n"
    files = {
        "train/data/sources/__init__.py": LAZY,
        "train/data/sources/late.py": "from train.data.containers import Tar\n",
        "train/data/containers/tars.py": source,
    }
    file = "folder" if name == "Source" else "late"
    expected = ["train/data/containers/tars.py", f"train/data/sources/{file}.py"]
    assert file_circles(tree(files)) == [expected]


# Type switches


MODELS = {
    "inference/models/base.py": (
        "class Answers: ...\nclass DiffusionModel(ABC):\n    def is_small(self): ...\n"
    ),
    "inference/models/flux/model.py": (
        "class Flux(DiffusionModel, Answers):\n    is_square: bool\n    size: int\n"
    ),
    "inference/models/flux/detect.py": "isinstance(base, Flux) and model.prediction_type == 'v'\n",
    "train/families/flux.py": "isinstance(base, Flux)\n",
}

SWITCHES = [
    "isinstance(base, Flux)",
    "isinstance(base, Flux | Other)",
    "isinstance(base, (Other, models.Flux))",
    "isinstance(base, Answers)",
    "isinstance(base, ModelFamily)",
    "issubclass(kind, DiffusionModel)",
    "type(base) is Flux",
    "match base:\n    case Flux(): ...",
    "match base:\n    case Other() | models.Flux(size=3): ...",
    "base.is_small",
    "self.base.is_square",
    "base.is_video",
    "if is_sdxl: ...",
    "is_video_model(config)",
    "config.is_for_video",
    "base.has_two_text_encoders",
    "base.prediction_type == 'epsilon'",
    "'v_prediction' != prediction_type",
    "prediction in ('epsilon', 'v_prediction')",
    "self.prediction_type not in (None, base.prediction_type)",
    "schedule['prediction_type'] == said",
    "schedule.get('prediction_type', 'epsilon') == said",
    "match base.prediction_type:\n    case _: ...",
    "base.denoiser_name == 'unet'",
    "family.key == 'sd2'",
    "base.family.name in ('sd', 'flux')",
    "base.family is FLUX",
    "'text_encoder_2' in base.parts",
]


@pytest.mark.parametrize("source", SWITCHES)
def test_type_switch_is_found(source, tree):
    found = list(type_switches(tree({**MODELS, "train/trainer.py": f"\n{source}\n"})))
    assert [one.path for one in found] == ["train/trainer.py"]


NO_SWITCHES = [
    "isinstance(base, Other)",
    "match base:\n    case Other(): ...",
    "base.size == 3",
    "base.is_main",
    "def is_video(self): ...",
    "base.prediction_type is None",
    "config.prediction_type",
    "Model(prediction_type=schedule.get('prediction_type', 'epsilon'))",
    "TARGETS[base.prediction_type]",
    "config.preset == 'sdxl'",
    "part == base.denoiser_name",
    "base.family is None",
    "base.family.answers(config)",
    "for part in ('text_encoder', 'text_encoder_2'): ...",
]


@pytest.mark.parametrize("source", NO_SWITCHES)
def test_what_is_no_type_switch_is_left_alone(source, tree):
    assert list(type_switches(tree({**MODELS, "train/trainer.py": source}))) == []


# Graphs and the report


def test_circles_are_the_strongly_connected_components():
    edges = [*zip("abcde", "bcadf", strict=True), ("g", "h"), ("h", "g"), ("d", "g"), ("x", "x")]
    assert circles(edges) == [["a", "b", "c"], ["g", "h"]]


def test_floors_are_longest_paths():
    edges = [("a", "b"), ("b", "c"), ("a", "c"), ("d", "c"), ("e", "f"), ("f", "e"), ("f", "a")]
    assert longest_paths("abcdefg", edges) == dict(
        zip("abcdefg", (3, 2, 1, 2, 4, 4, 1), strict=True)
    )


def test_few_edges_open_a_circle():
    edges = [("a", "b"), ("a", "c"), ("b", "c"), ("c", "a")]
    assert feedback("abc", edges) == {("c", "a")}


def test_a_report_counts(tree):
    lines = list(report(tree({})))
    assert "    6     3    191    1    2  train/data/" in lines
    assert "wings                  3, and scripts/" in lines
    assert "floors                 3 (by the table FLOORS)" in lines
    assert "arrows between wings   3" in lines
    assert "arrows back            0" in lines
    assert "circles between files  0, of 0 together" in lines
    assert "type switches          0 in 0 files" in lines


def test_a_report_of_a_tree_without_known_floors_names_the_arrows_back(tree):
    files = {"train/old.py": "import train.older\n", "train/older.py": "\nimport train.old\n"}
    lines = list(report(tree(files)))
    assert "arrows back            1" in lines
    assert "  train/older.py -> train/old.py: train/older.py:2" in lines
    assert "  2: train/old.py train/older.py" in lines
    assert any("by the longest path" in line for line in lines)


def test_a_revision_is_read_and_the_working_tree_is_left_alone(tmp_path):
    def git(*words: str) -> None:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *author, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "train").mkdir()
    file = tmp_path / "train" / "trainer.py"
    file.write_text("x = 1\n", "utf-8")
    git("add", ".")
    git("commit", "-m", "one")
    file.write_text("x = 2\n", "utf-8")
    (tmp_path / "train" / "new.py").write_text("", "utf-8")
    assert Tree.of_revision("HEAD", tmp_path).sources == {"train/trainer.py": "x = 1\n"}
    assert file.read_text("utf-8") == "x = 2\n"


def test_an_unknown_revision_is_one_message(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--at", "no-such-revision"])
    assert stop.value.code == 2
    assert "--at no-such-revision: git cannot read this revision" in capsys.readouterr().err


def load_public_names(packages: list[str]) -> list[str]:
    """Return the faults of doors, as text."""
    faults = []
    for package in packages:
        door = import_module(package)
        for name in door.__all__:
            try:
                getattr(door, name)
            except (AttributeError, ImportError) as error:
                faults.append(f"{package}.{name}: {error}")
    return faults


def test_every_public_name_loads():
    """Doors are lazy, so that a wrong entry shows only where its name is used."""
    doors = [path for path in TREE.sources if is_door(path) and not is_root(path)]
    packages = [module_of(path) for path in doors if top_folder(path) in PACKAGES]
    with get_context("fork").Pool(1) as other:  # the doors of this process stay lazy
        assert other.apply(load_public_names, (packages,)) == []
