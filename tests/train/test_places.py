"""Files that are not there are reported at once: before torch is imported."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from train.config import TrainRecipe
from train.places import check_places, data_places

ROOT = Path(__file__).parents[2]
LORA = ["configs/lora.yaml", "name=x"]
LONG = "a" * 300
MAINS = {
    "train": "train.__main__",
    "plan": "train.plan.__main__",
    "draw": "inference.__main__",
}
IMAGES, CLIP = ["configs/inference/images.yaml"], ["configs/inference/clip.yaml"]
MODEL = "base_model.path: 'no' is neither an embedded model (picto, picto-motion) nor a folder"
CASES = [
    ("train", [*LORA, "data.path=/no/such"], "data.path: '/no/such' is not a folder\n"),
    ("train", [*LORA, "base_model.path=no"], MODEL),
    ("train", [*LORA, "base_model.path=x.ckpt"], "base_model.path: no such file: 'x.ckpt'\n"),
    ("train", [*LORA, f"base_model.path={LONG}"], f"base_model.path: '{LONG}'"),
    ("plan", [*LORA, "data.path=/no/such"], "data.path: '/no/such' is not a folder\n"),
    ("plan", [*LORA, "data.path=docs", "base_model.path=no"], MODEL),
    ("draw", [*IMAGES, "base_model.path=no"], MODEL),
    (
        "draw",
        [*IMAGES, "artifacts.a.path=no.safetensors"],
        "artifacts.a.path: no.safetensors: no",
    ),
    ("draw", [*CLIP, "base_model.path=no"], MODEL),
]
CODE = """
import contextlib, importlib, io, json, sys
mains, cases = map(json.loads, sys.argv[1:])
for program, arguments, _ in cases:
    caught = io.StringIO()
    with contextlib.redirect_stderr(caught):
        status = importlib.import_module(mains[program]).main(arguments)
    heavy = sorted({"torch", "diffusers", "transformers", "numpy"} & set(sys.modules))
    print(json.dumps([status, caught.getvalue(), heavy]))
"""


def test_they_are_reported_before_torch_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(MAINS), json.dumps(CASES)],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for (program, _, message), line in zip(CASES, done.stdout.splitlines(), strict=True):
        status, said, heavy = json.loads(line)
        assert said.startswith(f"{program}: {message}")
        assert (status, said.count("\n"), heavy) == (2, 1, [])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.path=no", "data.path"),
        ("validation={path: no}", "validation.path"),
        ("data={path: null, subsets: {a: {path: no}}}", "data.subsets.a.path"),
        (
            "data={path: null, concepts: {a: {instance_data_dir: no, instance_prompt: x}}}",
            "data.concepts.a.instance_data_dir",
        ),
    ],
)
def test_every_place_has_its_key(
    override: str, key: str, make_recipe: Callable[..., TrainRecipe], tmp_path: Path
) -> None:
    recipe = make_recipe(override)
    assert (key, "no") in list(data_places(recipe))
    with pytest.raises(ValueError, match=f"^{key}: 'no' is not a folder$"):
        check_places(recipe)
    (place := tmp_path / "place").mkdir()
    override = override.replace(": no", f": {place}").replace("=no", f"={place}")
    check_places(make_recipe(override))


def test_what_is_elsewhere_is_left_to_its_reader(make_recipe: Callable[..., TrainRecipe]) -> None:
    for path in ("hf://owner/name", "https://host/{000..012}.tar", "'{000..012}.tar'"):
        check_places(make_recipe(f"data.path={path}"))
    check_places(make_recipe("base_model.path=owner/name"))
