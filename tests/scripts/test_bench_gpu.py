"""The benchmark for a first GPU: what it asks before it starts, limits, and what a cut leaves."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.bench import gpu
from scripts.bench.full_size import random_base

PART = """
import sys, time
from pathlib import Path
from scripts.bench.gpu import Results, read_arguments
options = read_arguments(sys.argv[1:])
Results(options.output).add(options.part, "measured", step_ms=1.5)
if options.part == "sd15":
    sys.exit("it broke")
if options.part == "sdxl":
    time.sleep(60)
"""


def test_parts_that_fail_or_hang_do_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a process with a limit; the table has what they measured before."""
    (tmp_path / "part_of_bench.py").write_text(PART)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    monkeypatch.setitem(gpu.PARTS, "sdxl", 1.5)
    options = gpu.read_arguments(["--output", str(tmp_path / "out"), "--seconds", "400"])
    start = time.monotonic()
    assert gpu.run_parts(options, "part_of_bench") == 1
    assert time.monotonic() - start < 40
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    measured = [row["part"] for row in rows if row["what"] == "measured"]
    assert measured == ["tests", "sd15", "sdxl", "cogvideox-2b"]
    failed = {row["part"]: row["reason"] for row in rows if row["what"] == "failed"}
    assert failed == {"sd15": "status 1", "sdxl": "its time was used up"}
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| sd15 | measured | step_ms 1.5 |" in table and "it broke" in table


def test_no_part_starts_without_time(tmp_path: Path) -> None:
    options = gpu.read_arguments(["--output", str(tmp_path), "--seconds", "5"])
    assert gpu.run_parts(options, "no_such_module") == 1
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["what"] for row in rows] == ["not run"] * len(gpu.PARTS)


def test_missing_packages_are_named_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec

    def find(name: str) -> Any:
        return None if name in ("peft", "diffusers") else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(gpu, "version", lambda _: "2.5.1+cu124")
    assert gpu.main([]) == 2
    told = capsys.readouterr().err
    assert "diffusers: is not installed\npeft: is not installed\ntorch: 2.5.1" in told
    assert "Remedy:" in told


def test_the_check_imports_nothing_heavy() -> None:
    """So that it answers in the first second."""
    code = "from scripts.bench import gpu; gpu.missing(); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl", "cogvideox-2b"])
def test_models_of_published_sizes_are_whole(name: str) -> None:
    """Every weight and buffer is on the device; none takes memory here (fake tensors)."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        base = random_base(name, "bf16", "cpu", vae_precision="fp32")
    tensors = [one for part in base.parts.values() for one in (*part.parameters(), *part.buffers())]
    assert {one.device.type for one in tensors} == {"cpu"}
    count = sum(one.numel() for part in base.parts.values() for one in part.parameters())
    expected = {"sd15": 1.066e9, "sdxl": 3.469e9, "cogvideox-2b": 6.672e9}[name]
    assert count == pytest.approx(expected, rel=1e-3)
    assert base.vae.dtype == torch.float32 and base.denoiser.dtype == torch.bfloat16
    assert base.tokenizers[0]("a cat")["input_ids"]


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_the_mock_device(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "tests.gpu.run_bench", "--output", str(tmp_path)]
    command += ["--only", "tests", "sd15", "--model", "sd15=picto", "--tests", "refuse"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["what"] for row in rows if row["part"] == "tests"][-1] == "finished"
    assert not any("step_ms" in row and row["step_ms"] for row in rows)
    assert sum("waits" in row for row in rows) == 2
