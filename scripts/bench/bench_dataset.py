"""Large datasets and the cache of latents: speed, memory per image, time to the first batch.

    python -m scripts.bench.bench_dataset
    python -m scripts.bench.bench_dataset --pictures 10000 --folder /fast/disk
    python -m scripts.bench.bench_dataset --only cache --base org/model --side 1024

Writes small images with captions, each file with unique bytes, and probes them in separate
processes: without an index and with the one that the first process has written, with 10 thousand
images and with all. Then it fills the cache of latents (`cache: disk`) with larger images, and runs
the bare VAE over the same pixels: filling should reach at least 0.9 of its speed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from inference.runtime import output

FEW = 10_000
KINDS = 200
"""Number of different images; bytes beside the pixels make each file unique."""
IN_A_FOLDER = 5_000
BATCHES = 100


def main() -> None:
    """Run the benchmark and print the results."""
    arguments = read_arguments()
    if arguments.measure:
        output(json.dumps(MEASURES[arguments.measure](arguments)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.only in (None, "dataset"):
            for count in sorted({min(FEW, arguments.pictures), arguments.pictures}):
                show_dataset(Path(folder) / str(count), count)
        if arguments.only in (None, "cache"):
            show_cache(Path(folder) / "cache", arguments)


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Times large datasets and the cache of latents.")
    parser.add_argument("--pictures", type=int, default=200_000, help="pictures (default: 200000)")
    parser.add_argument("--folder", help="where they are made for a while (default: the system's)")
    parser.add_argument("--only", choices=["dataset", "cache"], help="one half of it")
    parser.add_argument("--base", default="picto", help="whose VAE (default: picto)")
    parser.add_argument("--side", type=int, help="of cached pictures (default: the base model's)")
    parser.add_argument("--cached", type=int, default=48, help="pictures to cache (default: 48)")
    parser.add_argument("--turns", type=int, default=5, help="turns of the cache (default: 5)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def show_dataset(root: Path, count: int) -> None:
    """Measure a dataset of this many images."""
    start = time.perf_counter()
    make_pictures(root / "pictures", count)
    output(f"{count:,} pictures made in {time.perf_counter() - start:.0f} s")
    recipe = write_recipe(root / "recipe.yaml", root / "pictures", "picto", cache="off")
    time.sleep(3)  # files that have just changed are not indexed
    for title in ("first start, no index", "second start, with index"):
        found = measured("start", recipe)
        output(
            f"  {title}: {count / found['scan']:,.0f} files/s ({found['scan']:.2f} s); "
            f"first batch {found['first']:.2f} s later; {found['bytes'] / count:,.0f} bytes of "
            f"memory a picture, {found['peak'] / count:,.0f} at the peak",
        )
    output(f"  loader: {found['loaded']:,.0f} examples/s in one process of small pictures")
    for title in ("first digests", "digests with index"):
        found = measured("digests", recipe)
        output(f"  {title}: {count / found['scan']:,.0f} files/s")
    found = measured("plan", recipe)
    output(f"  plan: {found['seconds']:.1f} s")


def make_pictures(root: Path, count: int) -> None:
    """Write PNG and JPEG files of 64x48 pixels, each with a number in its comment, and captions."""
    chosen = np.random.default_rng(0)
    kinds: list[tuple[str, bytes]] = []
    for number in range(KINDS):
        rough = Image.fromarray(chosen.integers(0, 255, (6, 8, 3), np.uint8))
        image, file = rough.resize((64, 48), Image.Resampling.BICUBIC), io.BytesIO()
        kind = "png" if number % 2 else "jpg"
        image.save(file, "PNG" if kind == "png" else "JPEG")
        kinds.append((kind, file.getvalue()))
    for number in range(count):
        folder = root / f"{number // IN_A_FOLDER:03}"
        if number % IN_A_FOLDER == 0:
            folder.mkdir(parents=True)
        kind, content = kinds[number % KINDS]
        found = with_comment(kind, content, str(number).encode())
        (folder / f"{number:06}.{kind}").write_bytes(found)
        caption = f"picture number {number}, of colours that run into each other"
        (folder / f"{number:06}.txt").write_text(caption, encoding="utf-8")


def with_comment(kind: str, content: bytes, text: bytes) -> bytes:
    """Return an image file with a comment: JPEG's COM, PNG's tEXt."""
    if kind == "jpg":
        return content[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + content[2:]
    chunk = b"tEXtComment\0" + text
    whole = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return content[:33] + whole + content[33:]


def write_recipe(path: Path, pictures: Path, base: str, **data: Any) -> Path:
    """Write a recipe for a LoRA on these images."""
    recipe = {
        "name": "bench",
        "output_dir": str(path.parent / "runs"),
        "objective": {"type": "lora", "rank": 8},
        "base_model": {"path": base},
        "data": {"path": str(pictures), **data},
        "max_train_steps": BATCHES,
        "train_batch_size": 4,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def measured(what: str, recipe: Path, *options: str) -> dict[str, float]:
    """Return what a separate process measures."""
    command = [sys.executable, "-m", "scripts.bench.bench_dataset", "--measure", what]
    command += ["--recipe", str(recipe), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def measure_start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure finding images and captions, their memory, and the time to the first batches."""
    from train.data import MicroBatches, build_examples, build_loader, find_sources
    from train.plan import skeleton

    recipe = read_recipe(arguments.recipe)
    base = skeleton(recipe.base_model, "fp32")
    before = resident()
    start = time.perf_counter()
    sources = find_sources(recipe)
    found = time.perf_counter()
    examples = build_examples(recipe, sources, base)
    loader = iter(build_loader(examples, MicroBatches(4, 1, 0, 1, 0, BATCHES)))
    next(loader)
    first = time.perf_counter()
    after = resident()
    count = sum(1 for _ in loader) * recipe.train_batch_size
    loaded = count / (time.perf_counter() - first)
    peak = peak_resident() - before
    times = {"scan": found - start, "first": first - found, "loaded": loaded}
    return times | {"bytes": after - before, "peak": peak}


def measure_digests(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure hashing all images."""
    from train.data import Known, find_sources, picture_facts

    sources = find_sources(read_recipe(arguments.recipe))
    paths = [picture.path for picture in sources.pictures]
    start = time.perf_counter()
    picture_facts(paths, Known.DIGEST).check()
    return {"scan": time.perf_counter() - start}


def measure_plan(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure `python -m train.plan`, without the start of Python."""
    from train.plan import plan_run

    recipe = read_recipe(arguments.recipe)
    start = time.perf_counter()
    plan_run(recipe)
    return {"seconds": time.perf_counter() - start}


def read_recipe(path: Path) -> Any:
    """Load the recipe, without the libraries' messages."""
    from inference.recipe import load_recipe
    from inference.runtime import quiet_libraries
    from train.config import train_schema

    quiet_libraries()
    return load_recipe(path, train_schema)


def resident() -> int:
    """Return this process's memory in bytes, after returning freed memory to the system."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak_resident() -> int:
    """Return the maximum so far, in bytes."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def show_cache(root: Path, arguments: argparse.Namespace) -> None:
    """Measure the cache of latents."""
    from inference.config import BaseModelConfig
    from inference.models.stable_diffusion import load_base_model

    base = load_base_model(BaseModelConfig(path=arguments.base))
    side = arguments.side or base.resolution
    make_large(root / "pictures", arguments.cached, side)
    fill: list[float] = []
    read: list[float] = []
    bare: list[float] = []
    for turn in range(arguments.turns + 1):
        data = {"cache": "disk", "cache_dir": str(root / f"kept{turn}"), "resolution": side}
        recipe = read_recipe(
            write_recipe(root / "r.yaml", root / "pictures", arguments.base, **data)
        )
        times = cache_turn(recipe, base)
        for kept, seconds in zip((fill, read, bare), times, strict=True):
            kept += [seconds] if turn else []  # the first turn warms up
    count, middle = arguments.cached, statistics.median
    ratio = middle(b / f for b, f in zip(bare, fill, strict=True))
    output(
        f"cache of {count} pictures of {side}x{side}, VAE of {arguments.base}: filled at "
        f"{count / middle(fill):.1f}/s, the bare VAE {count / middle(bare):.1f}/s; ratio "
        f"{ratio:.3f}, at least 0.9 wanted; read back at {count / middle(read):,.0f}/s"
    )


def make_large(root: Path, count: int, side: int) -> None:
    """Write JPEG files somewhat larger than the crops, as users have them."""
    root.mkdir(parents=True)
    chosen = np.random.default_rng(1)
    for number in range(count):
        rough = Image.fromarray(chosen.integers(0, 255, (12, 16, 3), np.uint8))
        image = rough.resize((side * 3 // 2, side * 5 // 4), Image.Resampling.BICUBIC)
        image.save(root / f"{number}.jpg", quality=92)
        (root / f"{number}.txt").write_text(f"number {number}", encoding="utf-8")


def cache_turn(recipe: Any, base: Any) -> tuple[float, float, float]:
    """Return seconds for filling the cache, for reading it, and for the bare VAE, image by image.

    Filling includes the weights' hash (`vae_origin`) and decoding the images; the bare forward pass
    starts from decoded pixels.
    """
    import torch

    from train.data import build_examples, cache_latents, find_sources, open_cache

    def track(values: Any, title: str) -> Any:
        return values

    examples = build_examples(recipe, find_sources(recipe), base)
    cache = open_cache(recipe.data, recipe.output_dir)
    filling = seconds(lambda: cache_latents(examples, base, 4, track, cache))
    kept = examples.latents
    assert kept is not None
    reading = seconds(lambda: [kept[index] for index in range(len(examples))])
    pixels = [examples.pixels(index)[None] for index in range(len(examples))]
    with torch.no_grad():
        bare = seconds(lambda: [base.encode_images(one) for one in pixels])
    return filling, reading, bare


def seconds(work: Callable[[], object]) -> float:
    """Return the time it takes, until the device has finished."""
    import torch

    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


MEASURES = {"start": measure_start, "digests": measure_digests, "plan": measure_plan}

if __name__ == "__main__":
    main()
