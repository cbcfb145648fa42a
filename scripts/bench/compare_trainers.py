"""Limner against the training loops of kohya's sd-scripts and of diffusers' examples, in turns.

    python -m scripts.bench.full_size sd15 /tmp/sd15
    python -m scripts.bench.compare_trainers --base /tmp/sd15 --objective lora \
        --kohya ~/sd-scripts --kohya-site /tmp/site_kohya \
        --diffusers ~/diffusers --diffusers-site /tmp/site

The peers' code runs unchanged from their checkouts; packages that only they need are in folders of
their own (`pip install --target`). All train on the same weights, pictures, seed, batch and
precision, with one thread. Each takes 8 steps while the others wait, so that all meet the same
noise of the machine. The first turn of each is not counted, since Limner encodes the pictures in
it; it shows the time from the command to the first step. Two trainers of SD 1.5 take 14 GB
together: name one peer at a time where memory is short, or run them one by one (`--alone`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from inference.runtime import output

RANK, TOKEN, SEED, MOST_STEPS = 16, "mything", 1, 1000
STEPWISE = Path(__file__).with_name("stepwise.py")


@dataclass
class Command:
    """How a trainer is started."""

    name: str
    target: str
    """A script's path, or a module's name."""
    arguments: list[str]
    folder: Path
    """Where it runs."""
    packages: str = ""
    """Value of PYTHONPATH."""


@dataclass
class Job:
    """A trainer that takes its steps when it is asked to."""

    command: Command
    steps: int
    root: Path
    """Folder of its log."""
    process: subprocess.Popen[bytes] | None = None
    seconds: tuple[float, float] = (0.0, 0.0)
    """Wall and user CPU seconds from the command to the end of the first step."""
    taken: list[dict[str, float]] = field(default_factory=list)
    """The steps after the first turn."""
    peak: float = 0.0

    @property
    def log(self) -> Path:
        return self.root / f"{self.command.name}.log"

    def start(self) -> None:
        """Start it, and wait for its first turn."""
        (self.reads, report), (go, self.writes) = os.pipe(), os.pipe()
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": self.command.packages,
            "STEPWISE_REPORT": str(report),
            "STEPWISE_GO": str(go),
            "STEPWISE_STEPS": str(self.steps),
        }
        command = [sys.executable, str(STEPWISE), self.command.target, *self.command.arguments]
        start = time.perf_counter()
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=self.command.folder,
                env=environment,
                pass_fds=(report, go),
                stdout=file,
                stderr=file,
            )
        os.close(report)
        os.close(go)
        self.lines = os.fdopen(self.reads, encoding="ascii")
        first = self.next_step()
        self.seconds = time.perf_counter() - start, first["total_cpu"]
        for _ in range(self.steps - 1):
            self.next_step()

    def turn(self) -> None:
        """Let it take a turn."""
        os.write(self.writes, b"1")
        self.taken += [self.next_step() for _ in range(self.steps)]

    def next_step(self) -> dict[str, float]:
        """Wait for a step.

        Raises:
            SystemExit: the trainer has ended.
        """
        line = self.lines.readline()
        if not line:
            end = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise SystemExit(f"{self.command.name} ended:\n{end}")
        step = json.loads(line)
        self.peak = step["peak"]
        return step

    def stop(self) -> None:
        """End the process, wherever it is."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.lines.close()
            os.close(self.writes)


def main() -> None:
    """Compare, print the table, and write it as JSON."""
    options = read_arguments()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        root = Path(folder)
        make_data(root, options.size, options.pictures)
        commands = [ours(root, options)]
        if options.kohya:
            commands.append(kohyas(root, options))
        if options.diffusers:
            commands.append(diffusers(root, options))
        jobs = [Job(command, options.steps, root) for command in commands]
        for group in [[job] for job in jobs] if options.alone else [jobs]:
            take_turns(group, options.turns)
        rows = [summary(job) for job in jobs]
        output(table(rows))
        if options.output:
            facts = {"objective": options.objective, "size": options.size, "rows": rows}
            options.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def take_turns(jobs: Sequence[Job], turns: int) -> None:
    """Start trainers one after the other, and let each take its turns."""
    try:
        for job in jobs:
            job.start()
            output(f"{job.command.name}: first step after {job.seconds[0]:.1f} s")
        for _ in range(turns):
            for job in jobs:
                job.turn()
    finally:
        for job in jobs:
            job.stop()


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Compares trainers in turns.")
    parser.add_argument("--base", type=Path, required=True, help="a diffusers folder of SD 1.x")
    parser.add_argument("--objective", choices=["lora", "textual_inversion"], default="lora")
    parser.add_argument("--kohya", type=Path, help="a checkout of kohya-ss/sd-scripts")
    parser.add_argument("--kohya-site", default="", help="folder of packages that it needs")
    parser.add_argument("--diffusers", type=Path, help="a checkout of huggingface/diffusers")
    parser.add_argument("--diffusers-site", default="", help="folder of packages that it needs")
    parser.add_argument("--size", type=int, default=256, help="of the pictures (default: 256)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a turn (default: 8)")
    parser.add_argument("--turns", type=int, default=5, help="turns that count (default: 5)")
    parser.add_argument("--pictures", type=int, default=8, help="how many (default: 8)")
    parser.add_argument(
        "--alone", action="store_true", help="one trainer after the other, where memory is short"
    )
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    return parser.parse_args()


def make_data(root: Path, size: int, count: int) -> None:
    """Write the same pictures and captions as each trainer reads them."""
    noise, rows = np.random.default_rng(SEED), []
    folders = [root / name for name in ("ours", "kohya/1_things", "diffusers", "plain")]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(count):
        picture = Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        caption = f"a photo of {TOKEN}, number {number}"
        for folder in folders:
            picture.save(folder / f"{number}.png")
        for folder in folders[:2]:
            (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
    (root / "diffusers" / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")


def ours(root: Path, options: argparse.Namespace) -> Command:
    """Return the command of Limner, with the code of this tree."""
    objectives: dict[str, dict[str, Any]] = {
        "lora": {"type": "lora", "rank": RANK, "alpha": RANK},
        "textual_inversion": {
            "type": "textual_inversion",
            "token": TOKEN,
            "initialization_text": "thing",
        },
    }
    recipe = {
        "name": "ours",
        "output_dir": str(root / "runs"),
        "objective": objectives[options.objective],
        "base_model": {"path": str(options.base.resolve())},
        "data": {"path": str(root / "ours"), "resolution": options.size},
        "seed": SEED,
        "max_train_steps": MOST_STEPS,
        "train_batch_size": 1,
        "mixed_precision": "fp32",
        "log_every_n_steps": 10,
        "saving": {"save_every_n_steps": MOST_STEPS},
    }
    path = root / "ours.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    here = Path(__file__).resolve().parents[2]
    return Command("Limner", "train", [str(path)], here, str(here))


def kohyas(root: Path, options: argparse.Namespace) -> Command:
    """Return kohya's command: latents cached, PyTorch's attention, no text encoder trained."""
    tokenizers = root / "tokenizers"
    shutil.copytree(options.base / "tokenizer", tokenizers / "openai_clip-vit-large-patch14")
    arguments = {
        "pretrained_model_name_or_path": options.base.resolve(),
        "tokenizer_cache_dir": tokenizers,
        "train_data_dir": root / "kohya",
        "caption_extension": ".txt",
        "resolution": options.size,
        "output_dir": root / "kohya_runs",
        "output_name": "kohya",
        "max_train_steps": MOST_STEPS,
        "train_batch_size": 1,
        "mixed_precision": "no",
        "optimizer_type": "AdamW",
        "learning_rate": 1e-4,
        "seed": SEED,
        "max_data_loader_n_workers": 0,
        "save_model_as": "safetensors",
    }
    flags = ["--cache_latents", "--sdpa"]
    script = "train_textual_inversion.py"
    if options.objective == "lora":
        script = "train_network.py"
        arguments |= {"network_module": "networks.lora", "network_dim": RANK}
        arguments |= {"network_alpha": RANK}
        flags.append("--network_train_unet_only")
    else:
        arguments |= {"token_string": TOKEN, "init_word": "thing", "num_vectors_per_token": 1}
    listed = [f"--{name}={value}" for name, value in arguments.items()]
    folder = options.kohya.resolve()
    return Command("kohya", str(folder / script), [*listed, *flags], folder, options.kohya_site)


def diffusers(root: Path, options: argparse.Namespace) -> Command:
    """Return the command of diffusers' example."""
    arguments = {
        "pretrained_model_name_or_path": options.base.resolve(),
        "resolution": options.size,
        "output_dir": root / "diffusers_runs",
        "max_train_steps": MOST_STEPS,
        "train_batch_size": 1,
        "mixed_precision": "no",
        "learning_rate": 1e-4,
        "seed": SEED,
        "dataloader_num_workers": 0,
        "checkpointing_steps": 10 * MOST_STEPS,
    }
    if options.objective == "lora":
        name = "text_to_image/train_text_to_image_lora.py"
        arguments |= {"train_data_dir": root / "diffusers", "rank": RANK}
        arguments |= {"cache_dir": root / "datasets"}
    else:
        name = "textual_inversion/textual_inversion.py"
        arguments |= {"train_data_dir": root / "plain", "initializer_token": "thing"}
        arguments |= {"placeholder_token": TOKEN, "save_steps": 10 * MOST_STEPS}
    listed = [f"--{key}={value}" for key, value in arguments.items()]
    script = options.diffusers.resolve() / "examples" / name
    return Command("diffusers", str(script), listed, script.parent, options.diffusers_site)


def summary(job: Job) -> dict[str, Any]:
    """Return the figures of a trainer."""
    return {
        "trainer": job.command.name,
        "steps": len(job.taken),
        "cpu": statistics.median(step["cpu"] for step in job.taken),
        "system": statistics.median(step["system"] for step in job.taken),
        "wall": statistics.median(step["wall"] for step in job.taken),
        "peak_gib": job.peak / 2**30,
        "first_step": job.seconds[0],
        "first_step_cpu": job.seconds[1],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as a table in Markdown, with Limner's share of each peer's."""
    lines = [
        "| trainer | user CPU a step | system | wall | peak GiB | first step | its user CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = ("cpu", "system", "wall", "peak_gib", "first_step", "first_step_cpu")
    first = rows[0]
    for row in rows:
        cells = [f"{row[key]:.2f}" for key in keys]
        if row is not first:
            shares = [first[key] / row[key] if row[key] else 0.0 for key in keys]
            cells = [f"{cell} ({share:.2f})" for cell, share in zip(cells, shares, strict=True)]
        lines.append(f"| {row['trainer']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
