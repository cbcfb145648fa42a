"""A step of every objective on a full-size model on the CPU: peak memory against the plan.

    python -m scripts.bench.full_size sd15 /tmp/sd15
    python -m scripts.bench.full_size_steps --base /tmp/sd15 --only lora textual_inversion

Each objective is trained by `python -m train` in a process of its own, one after the other, with
one thread, and ended after its first step. DreamBooth of SD 1.5 takes 15 GB, the others 5.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from inference.recipe import load_recipe
from inference.runtime import output, quiet_libraries
from scripts.bench.gpu_parts import write_pictures
from train.config import train_schema
from train.memory import memory_planned, outlined

GIB = 2**30
TOKEN = "mything"
OBJECTIVES: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 16, "alpha": 16},
    "textual_inversion": {
        "type": "textual_inversion",
        "token": TOKEN,
        "initialization_text": "thing",
    },
    "hypernetwork": {"type": "hypernetwork"},
    "dreambooth": {"type": "dreambooth"},
}


def main() -> None:
    """Take a step of each, and print the table as it grows."""
    options = read_arguments()
    quiet_libraries()
    output("| objective | loss | peak GiB | plan | difference | user CPU to the first step |")
    output("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        pictures = write_pictures(Path(folder) / "pictures", options.size)
        for name in options.only:
            path = write_recipe(Path(folder) / f"{name}.yaml", name, pictures, options)
            recipe = load_recipe(path, train_schema)
            planned = memory_planned(recipe, outlined(recipe)).process
            loss, peak, seconds = first_step(path)
            output(
                f"| {name} | {loss} | {peak / GIB:.2f} | {planned / GIB:.2f} | "
                f"{planned / peak - 1:+.0%} | {seconds:.1f} s |"
            )


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Takes a step of each objective at full size.")
    parser.add_argument("--base", type=Path, required=True, help="a diffusers folder of SD 1.x")
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--size", type=int, default=256, help="of the pictures (default: 256)")
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    return parser.parse_args()


def write_recipe(path: Path, name: str, pictures: Path, options: argparse.Namespace) -> Path:
    """Write the recipe of a run that saves and draws nothing before its last step."""
    data: dict[str, Any] = {"path": str(pictures), "resolution": options.size}
    if name == "textual_inversion":
        data["captions"] = {"template": "subject"}
    if name == "dreambooth":
        prompts = {"instance_prompt": f"a photo of {TOKEN}", "instance_token": TOKEN}
        concept = {"instance_data_dir": str(pictures), "class_token": "thing", **prompts}
        data = {"resolution": options.size, "concepts": {"it": concept}}
    content = {
        "name": name,
        "output_dir": str(path.parent / "runs"),
        "objective": OBJECTIVES[name],
        "base_model": {"path": str(options.base.resolve())},
        "data": data,
        "max_train_steps": 100,
        "train_batch_size": 1,
        "mixed_precision": "fp32",
        "log_every_n_steps": 1,
        "saving": {"save_every_n_steps": 100},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def first_step(recipe: Path) -> tuple[str, int, float]:
    """Return the loss of the first step, the peak in bytes, and user CPU seconds until then.

    Raises:
        SystemExit: the run ended before its first step.
    """
    command = [sys.executable, "-m", "train", str(recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told: list[str] = []
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stderr
        for line in process.stderr:
            told.append(line)
            if line.startswith("step 1/"):
                peak, seconds = resident_peak(process.pid), user_seconds(process.pid)
                process.kill()
                return line.split("loss ")[1].split()[0], peak, seconds
    raise SystemExit(f"{' '.join(command)} ended before its first step:\n{''.join(told)[-2000:]}")


def resident_peak(process: int) -> int:
    """Return the largest resident memory of a process in bytes."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def user_seconds(process: int) -> float:
    """Return the user CPU seconds of a process."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
