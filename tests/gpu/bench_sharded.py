# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a rank with whole weights and with shares: two ranks on mock devices.

    python -m scripts.bench.full_size sd15 /tmp/sd15
    python -m tests.gpu.bench_sharded /tmp/sd15 --size 256

A LoRA is trained for two steps of one image, on a base model in bf16. The ranks are processes of
this machine with the mock CUDA device of tests/gpu, which counts the bytes of a device while the
CPU computes: their peak is that of GPUs, their time is not. Two ranks of SD 1.5 take 12 GB of the
system's memory.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from inference.runtime import output

RANKS = 2
PEAK = re.compile(r"peak (\d+) MiB")
RECIPE = """
name: {name}
base_model: {{path: {base}}}
data: {{path: {pictures}, resolution: {size}}}
objective: {{type: lora, rank: 16}}
optimizer: {{learning_rate: 1.0e-4}}
mixed_precision: bf16
gradient_checkpointing: {checkpointing}
memory: {{offload: {offload}}}
max_train_steps: 2
train_batch_size: 1
sampling: {{sample_every_n_steps: 100}}
parallel: {name}
output_dir: {folder}
"""


def main() -> int:
    """Train with each strategy, and print the peaks of the ranks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="folder of a base model")
    parser.add_argument("--size", type=int, default=256, help="of the images, in pixels")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--offload", default="model_offload", help="memory.offload")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        for number in range(RANKS):
            colour = (80 * number, 40, 120)
            file = folder / "pictures" / f"{number}.png"
            Image.new("RGB", (arguments.size, arguments.size), colour).save(file)
            file.with_suffix(".txt").write_text(f"colour {number}")
        for strategy in ("ddp", "fsdp"):
            recipe = folder / f"{strategy}.yaml"
            values = {
                "name": strategy,
                "base": arguments.base,
                "pictures": folder / "pictures",
                "size": arguments.size,
                "checkpointing": str(not arguments.no_checkpointing).lower(),
                "offload": arguments.offload,
                "folder": folder / "runs",
            }
            recipe.write_text(RECIPE.format(**values))
            peaks = train(recipe, folder)
            output(f"{strategy}: {', '.join(f'{peak / 1024:.2f} GiB' for peak in peaks)} by rank")
    return 0


def train(recipe: Path, folder: Path) -> list[int]:
    """Train on mock devices; return each rank's peak in MiB.

    Raises:
        RuntimeError: a rank has failed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS)}
    shared |= {"MOCK_CUDA_DEVICES": str(RANKS), "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(RANKS):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "tests.gpu.run", "train", str(recipe)]
        with (folder / f"{rank}.err").open("w") as errors:
            ranks.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
            )
    statuses = [rank.wait() for rank in ranks]
    said = [(folder / f"{rank}.err").read_text() for rank in range(RANKS)]
    if any(statuses):
        raise RuntimeError(f"{recipe}: a rank has failed:\n" + "\n".join(said))
    return [int(PEAK.findall(one)[-1]) for one in said]


if __name__ == "__main__":
    sys.exit(main())
