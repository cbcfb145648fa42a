# SPDX-License-Identifier: Apache-2.0
"""A VAE shared by processes on mock devices: the same bytes, in the memory that is planned."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import mock_nccl
from tests.train.conftest import free_port

ROOT = Path(__file__).parents[2]


def on_devices(processes: int) -> list[dict[str, Any]]:
    """Return what each process of `shared_vae` prints."""
    shared = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.shared_vae"],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, err) in zip(started, said, strict=True):
        assert process.returncode == 0, err
    return [json.loads(out) for out, _ in said]


@pytest.mark.slow
def test_each_device_takes_what_is_planned() -> None:
    """And less than one that does all; the first, which keeps halos, more than the others."""
    if not hasattr(mock_nccl.mock_cuda.ext, "mock_nccl"):
        pytest.skip("is for the mock device")
    (alone,) = on_devices(1)
    first, second = on_devices(2)
    for one in (alone, first, second):
        assert one["peaks"] == pytest.approx(one["plan"], rel=0.005)  # buffers of the exchange
        assert one["latents"] == alone["latents"]
    assert (first["frames"], second["frames"]) == (alone["frames"], None)
    for whole, kept, part in zip(alone["peaks"], first["peaks"], second["peaks"], strict=True):
        assert part < kept < whole
