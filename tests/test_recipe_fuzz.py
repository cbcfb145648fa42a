"""Thousands of mutated recipes: each is accepted unchanged, or rejected with a message and place.

An accepted recipe is the same after it is written and read again, and has every value of its file.
A rejected one causes messages line by line, with the file or the command line first. A mutation
that adds an unknown key never goes unnoticed.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference.config.recipes import DRAWING_RECIPES, draw_schema
from inference.recipe.loader import RecipeWarning, dump_recipe, load_recipe
from inference.runtime.errors import InputError
from tests.recipe_mutations import Case, mutated
from train.config.schema import train_schema

ROOT = Path(__file__).parents[1]
CONFIGS = [
    "lora", "hypernetwork", "textual_inversion", "dreambooth", "text_to_image", "combined",
    "cogvideox_lora", "pretrain/picto_unet_start", "pretrain/picto_motion_vae", "inference/images",
    "inference/animation", "inference/animation_3d", "inference/clip", "inference/images",
]  # fmt: skip
SECONDS = 12.0
"""Processor time of a case at most; OmegaConf takes 7 s for a list of 5,000 values."""
MEGABYTES = 400
"""Growth of the process at most, over all cases."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipes, and beside them files that a base may wrongly be."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for inner in (folder / "configs").glob("*/"):
        inner = inner if inner.name in ("inference", "pretrain") else folder / "configs"
        (inner / "loop1.yaml").write_text("base: loop2.yaml")
        (inner / "loop2.yaml").write_text("base: loop1.yaml")
        (inner / "picture.png").write_bytes(b"\x89PNG")
        if not (inner / "fifo.yaml").exists():
            os.mkfifo(inner / "fifo.yaml")
        for level in range(30):
            below = f"doubling{level + 1}.yaml"
            text = f"base: [{below}, {below}]" if level < 29 else "name: x"
            (inner / f"doubling{level}.yaml").write_text(text)
        for level in range(300):
            text = f"base: chain{level + 1}.yaml" if level < 299 else "name: x"
            (inner / f"chain{level}.yaml").write_text(text)
        (inner / "diamond.yaml").write_text("base: [loop3.yaml, loop4.yaml]")
        for name in ("loop3.yaml", "loop4.yaml"):
            (inner / name).write_text("base: loop5.yaml")
        (inner / "loop5.yaml").write_text("{}")
    return folder


def shipped() -> list[tuple[str, str, type, Any, list[str]]]:
    """Path, text, dataclass, schema and needed overrides of recipes; long ones are shortened."""
    found = []
    for name in CONFIGS:
        path = f"configs/{name}.yaml"
        untyped = yaml.safe_load((ROOT / path).read_text("utf-8"))
        for mapping in (untyped, untyped.get("sampling", {})):
            if "images" in mapping:
                mapping["images"] = dict(list(mapping["images"].items())[:2])
        draws = name.startswith("inference/")
        kind = DRAWING_RECIPES[untyped.get("type", "animation")] if draws else None
        schema = draw_schema if draws else train_schema
        needs = not draws and not {"path", "concepts"} & set(untyped.get("data", {}))
        needed = ["name=x", "data.path=x"] if needs else []
        kind = kind or train_schema(untyped)
        text = yaml.safe_dump(untyped, sort_keys=False, allow_unicode=True)
        found.append((path, text, kind, schema, needed))
    return found


SHIPPED = shipped()
MUTABLE = [(text, kind, needed) for _, text, kind, _, needed in SHIPPED]


def said(root: Any) -> list[tuple[tuple[str, ...], str]]:
    """Where every plain value of a file stands, and as what; merges are left to their own tests."""
    found = []

    def walk(node: Any, key: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value != "<<" and (key or name.value != "base"):
                    walk(value, (*key, name.value))
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                walk(value, (*key, str(number)))
        else:
            found.append((key, node.value))

    if root is not None:
        walk(root, ())
    return found


MISSING = object()


def found_at(recipe: Any, key: tuple[str, ...]) -> Any:
    for name in key:
        if is_dataclass(recipe):
            recipe = getattr(recipe, name, MISSING)
        elif isinstance(recipe, dict):
            recipe = recipe.get(name, MISSING)
        elif isinstance(recipe, list | tuple) and int(name) < len(recipe):
            recipe = recipe[int(name)]
        else:
            return MISSING
    return recipe


def is_said(value: Any, text: str) -> bool:
    """Whether a recipe's value is what stands in the file."""
    if "${" in text or "\\" in text:
        return value is not MISSING
    if value is None:
        return text in ("", "~", "null", "Null", "NULL", "x")
    if isinstance(value, bool):
        return text.lower() in (("yes", "on", "true") if value else ("no", "off", "false"))
    if isinstance(value, int | float):
        number = yaml.safe_load(text) if ":" not in text else None
        return number is not None and float(number) == float(value)
    return value in (text, os.path.expanduser(text))  # noqa: PTH111 (as text, whatever it is)


def ignored(case: Case, recipe: Any) -> list[str]:
    """What the file says and the recipe does not hold."""
    given = [override.partition("=")[0].split(".") for override in case.overrides]
    return [
        f"{'.'.join(key)}: {text!r}, the recipe has {found_at(recipe, key)!r}"
        for key, text in said(yaml.compose(case.text.decode("utf-8-sig"), yaml.BaseLoader))
        if not any(list(key[: len(other)]) == other for other in given)
        and not is_said(found_at(recipe, key), text)
    ]


def is_plain(value: Any) -> bool:
    if is_dataclass(value):
        return all(is_plain(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return all(map(is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    # OmegaConf's own kind of str stands for the text ???
    return isinstance(value, str) or type(value) in (int, float, bool, type(None))


def fault_of(path: Path, case: Case, schema: Any) -> str | None:
    """What is wrong with how a recipe was answered."""
    path.write_bytes(case.text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            recipe = load_recipe(path, schema, case.overrides)
        except InputError as error:
            return fault_of_refusal(str(error), path, case)
    messages = [str(one.message) for one in caught]
    if others := [one for one in caught if not issubclass(one.category, RecipeWarning)]:
        return f"a warning of another kind: {others[0].message}"
    if not is_plain(recipe):
        return "not plain"
    there = f"{case.text.decode('utf-8-sig')} {' '.join(case.overrides)}"
    new_keys = [
        key for key in case.new_keys if key in there
    ]  # another mutation may have dropped it
    if unheard := [key for key in new_keys if not any(key in line for line in messages)]:
        return f"nothing said of {unheard}"
    if left := [
        one
        for one in ignored(case, recipe)
        if not any(one.partition(":")[0] in t for t in messages)
    ]:
        return f"ignored: {left[:3]}"
    return fault_of_snapshot(path, recipe, schema)


def fault_of_snapshot(path: Path, recipe: Any, schema: Any) -> str | None:
    snapshot = path.with_name("snapshot.yaml")
    snapshot.write_text(dump_recipe(recipe), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            again = load_recipe(snapshot, schema)
        except InputError as error:
            return f"the snapshot is refused: {error}"
    return None if again == recipe else "the snapshot is another recipe"


def fault_of_refusal(message: str, path: Path, case: Case) -> str | None:
    lines = message.splitlines()
    places = ("command line: ", "configs/", "'", '"')
    if not lines or len(lines) > 101 or len(message) > 200_000:
        return f"{len(lines)} lines, {len(message)} characters"
    for line in lines:
        if len(line) > 4000 or not line.isprintable():
            return f"not to be read: {line[:100]!r}, {len(line)} characters"
        if not line.startswith(places) and "more" not in line:
            return f"no place: {line!r}"
    if case.what == ["misspell_key"] and not any(key.strip() in message for key in case.new_keys):
        return f"nothing said of {case.new_keys}: {message}" if case.new_keys else None
    return None


def faults(numbers: range) -> list[str]:
    """What is wrong with the answers to the cases of these numbers."""
    found = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        place, case = mutated(
            number, [(text, kind, needed) for _, text, kind, _, needed in SHIPPED]
        )
        path, _, _, schema, _ = SHIPPED[place]
        file = Path(path).with_name("r.yaml")
        start = time.process_time()
        try:
            fault = fault_of(file, case, schema)
        except Exception as error:
            fault = f"{type(error).__name__}: {str(error)[:300]}"
        if (seconds := time.process_time() - start) > SECONDS:
            fault = f"{fault}; {seconds:.1f} s"
        if fault is not None:
            found.append(f"case {number} ({path}; {'; '.join(case.what)}): {fault}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    return [*found, f"grown by {grown:.0f} MB"] if grown > MEGABYTES else found


IN_SUITE, ALL, CHUNK = 50, 5000, 50


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=[pytest.mark.slow] if first >= IN_SUITE else [])
        for first in range(0, ALL, CHUNK)
    ],
)
def test_mutated_recipes_are_taken_whole_or_refused(
    first: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = faults(range(first, first + CHUNK))
    assert not found, "\n".join(found)


def refused(numbers: range) -> list[tuple[str, str, Case]]:
    """Those of the cases that are not taken: package, file and case."""
    found = []
    for number in numbers:
        place, case = mutated(number, MUTABLE)
        path, _, _, schema, _ = SHIPPED[place]
        file = Path(path).with_name("r.yaml")
        file.write_bytes(case.text)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_recipe(file, schema, case.overrides)
        except InputError:
            found.append(("inference" if schema is draw_schema else "train", str(file), case))
    return found


@pytest.mark.parametrize(
    "count", [pytest.param(4, id="some"), pytest.param(30, id="more", marks=pytest.mark.slow)]
)
def test_commands_refuse_in_words(
    count: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 2, nothing on standard output, no traceback; without a heavy library."""
    monkeypatch.chdir(folder)
    found = refused(range(6000, 6000 + 2 * count))[:count]
    assert len(found) == count
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for package, file, case in found:
        Path(file).write_bytes(case.text)
        command = [sys.executable, "-m", package, file, *case.overrides]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        program = "train: " if package == "train" else "draw: "
        lines = done.stderr.decode().splitlines()
        assert (done.returncode, done.stdout) == (2, b""), (case.what, lines)
        assert lines and all(line.startswith(program) for line in lines), (case.what, lines)
