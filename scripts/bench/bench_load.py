"""Measure how long hostile or very large inputs take before anything is trained or drawn.

    python -m scripts.bench.bench_load [--only NAME ...]

Prints the seconds of each case, and what is wanted. Times are of one process; a machine that does
something else at the same time shows longer ones. The tests count operations instead.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from inference.runtime import InputError, output

ENTRIES = 8000
UNKNOWN = 300_000
LORAS = 500
LINES = 1_000_000
FRAMES = 3000
"""Of the animated image; its time is linear in the frames that are read."""


def refused(work: Callable[[], Any]) -> None:
    """Do something that ends in a message, or not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except InputError:
        return


def recipe_of_many_images(folder: Path) -> Callable[[], Any]:
    """Load a recipe of thousands of images."""
    from inference.config import draw_schema
    from inference.recipe import load_recipe

    rows = (f"  i{n}: {{prompt: 'a cat, number {n}', seed: {n}}}\n" for n in range(ENTRIES))
    path = folder / "images.yaml"
    path.write_text("settings: {steps: 3}\nimages:\n" + "".join(rows))
    return lambda: load_recipe(path, draw_schema)


def wrong_data_path(folder: Path) -> Callable[[], Any]:
    """Start `train` with a folder of data that does not exist."""
    return _command("train", "data.path=/no/such/folder")


def wrong_base_model(folder: Path) -> Callable[[], Any]:
    """Start `train` with a base model that does not exist."""
    return _command("train", "base_model.path=/no/such/model")


def _command(module: str, *overrides: str) -> Callable[[], Any]:
    command = [sys.executable, "-m", module, "configs/lora.yaml", "name=x", *overrides]
    return lambda: subprocess.run(command, capture_output=True, check=False)


def unknown_keys_of_infotext(folder: Path) -> Callable[[], Any]:
    """Read an infotext with hundreds of thousands of unknown keys."""
    recipe_from_infotext = resolve_name("inference.images.redraw:recipe_from_infotext")

    keys = ", ".join(f"K{n}: 1" for n in range(UNKNOWN))
    text = f"a cat\nSteps: 3, Seed: 1, Size: 8x8, {keys}"
    return lambda: recipe_from_infotext(text)


def tags_of_infotext(folder: Path) -> Callable[[], Any]:
    """Read an infotext with hundreds of thousands of tags."""
    recipe_from_infotext = resolve_name("inference.images.redraw:recipe_from_infotext")

    text = "".join(f"<lora:l{n}:1>" for n in range(UNKNOWN)) + "\nSteps: 3, Seed: 1, Size: 8x8"
    return lambda: recipe_from_infotext(text)


def unknown_keys_of_deforum(folder: Path) -> Callable[[], Any]:
    """Read a settings file of Deforum with hundreds of thousands of unknown keys."""
    import json

    from inference.deforum import load_settings_recipe, recipe_settings

    path = folder / "settings.txt"
    path.write_text(json.dumps({f"k{n}": 1 for n in range(UNKNOWN)} | {"W": 64, "H": 64}))
    return lambda: recipe_settings(load_settings_recipe(str(path)))


def unknown_keys_of_a_recipe(folder: Path) -> Callable[[], Any]:
    """Read a recipe with as many unknown keys as its size allows."""
    from inference.config import draw_schema
    from inference.recipe import load_recipe

    path = folder / "unknown.yaml"
    path.write_text("".join(f"k{n}: 1\n" for n in range(90_000)))
    return lambda: load_recipe(path, draw_schema)


def long_metadata(folder: Path) -> Callable[[], Any]:
    """Read the captions of a metadata.jsonl of a million lines."""
    from train.config import ContainerConfig

    read_metadata = resolve_name("train.data.sources.metadata:read_metadata")

    with (folder / "metadata.jsonl").open("w") as file:
        for number in range(LINES):
            file.write(f'{{"file_name": "{number}.png", "text": "a cat, number {number}"}}\n')
    return lambda: read_metadata(folder, ContainerConfig())


def long_animated_image(folder: Path) -> Callable[[], Any]:
    """Take 10 frames of an animated image of thousands."""
    from PIL import Image

    inner = "inference.deforum.schedules.sources"
    taken, frames_of = (resolve_name(f"{inner}:{name}") for name in ("Extraction", "VideoFrames"))

    frames = [Image.new("P", (16, 16), number % 250) for number in range(FRAMES)]
    path = folder / "long.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)
    size = (16, 16)
    return lambda: frames_of(path, "video_init_path", folder / "f", size, taken(most=10))


def many_loras(folder: Path) -> Callable[[], Any]:
    """Draw a prompt that calls hundreds of LoRAs."""
    import torch

    from inference.artifacts import Lora, LoraSpec
    from inference.config import BaseModelConfig, ImagesRecipe
    from inference.images import draw_images
    from inference.models import load_image_model
    from inference.recipe import load_mapping

    base = load_image_model(BaseModelConfig())
    lora = Lora.create(base, LoraSpec(1, 1.0, 0.0, ["attention"], False), seed=0)
    for layer in lora.layers.values():
        for parameter in layer.parameters():
            parameter.data.normal_(0, 0.01)
    for number in range(LORAS):
        lora.save(folder / f"l{number}.safetensors", torch.float16, {})
    prompt = "a cat " + " ".join(f"<lora:l{n}:0.01>" for n in range(LORAS))
    mapping = {
        "artifact_dirs": [str(folder)],
        "settings": {"steps": 1, "width": 64, "height": 64},
        "output_dir": str(folder / "out"),
        "grid": False,
        "images": {"a": {"prompt": prompt}},
    }
    recipe = load_mapping(mapping, "bench", lambda _: ImagesRecipe)
    return lambda: draw_images(recipe)


CASES: dict[Callable[[Path], Callable[[], Any]], str] = {
    recipe_of_many_images: f"{ENTRIES} entries, under {0.0002 * ENTRIES:g} s",
    wrong_data_path: "under 0.5 s",
    wrong_base_model: "under 0.5 s",
    unknown_keys_of_infotext: f"{UNKNOWN} keys, under 2 s",
    tags_of_infotext: f"{UNKNOWN} tags, under 2 s",
    unknown_keys_of_deforum: f"{UNKNOWN} keys, under 2 s",
    unknown_keys_of_a_recipe: "90000 keys, under 2 s",
    long_metadata: f"{LINES} lines, under 16 s",
    long_animated_image: f"10 of {FRAMES} frames",
    many_loras: f"{LORAS} LoRAs, under 10 s",
}
"""Case -> its size, and the time that is wanted."""


def main() -> None:
    """Print the time of each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="names of cases")
    options = parser.parse_args()
    for case, wanted in CASES.items():
        if options.only and case.__name__ not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            work = case(Path(folder))
            wall, used = time.perf_counter(), time.process_time()
            refused(work)
            wall, used = time.perf_counter() - wall, time.process_time() - used
        output(f"{case.__name__:26} {wall:7.2f} s ({used:.2f} s of CPU)  {wanted}")


if __name__ == "__main__":
    main()
