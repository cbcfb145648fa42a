# SPDX-License-Identifier: Apache-2.0
"""The benchmark for a first GPU, with tiny models: every part of it measures something."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench import gpu_parts
from scripts.bench.gpu import Results, read_arguments
from tests.gpu import mock_cuda
from tests.gpu.run_bench import MockWaits

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("part", ["sd15", "sdxl", "cogvideox-2b"])
def test_every_part_fills_its_rows(
    part: str,
    tmp_path: Path,
    tiny_base_folder: Path,
    tiny_sdxl_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mock_cuda.ext is not None:
        monkeypatch.setattr(gpu_parts, "waits_of", MockWaits)
    models = {"sd15": tiny_base_folder, "sdxl": tiny_sdxl_folder, "cogvideox-2b": "picto-motion"}
    options = read_arguments(
        ["--tiny", "--output", str(tmp_path), "--model", f"{part}={models[part]}"]
    )
    results = Results(tmp_path)
    results.start()
    assert gpu_parts.measure(part, results, options) == 0
    rows = results.rows()
    trained = [row for row in rows if "step_peak_gib" in row]
    assert len(trained) == len(gpu_parts.CASES[part])
    for row in trained:
        assert row["step_ms"] and row["step_peak_gib"] and row["plan_step_gib"], row
        assert isinstance(row["waits"], float)
    drawn = [row for row in rows if "share_of_diffusers" in row]
    assert len(drawn) == (2 if part in gpu_parts.DRAWINGS else 0)
    assert all(row["ours_peak_gib"] and row["diffusers_peak_gib"] for row in drawn)
    assert (tmp_path / "results.md").read_text().count("\n") == len(rows) + 2


def test_a_measurement_that_fails_is_a_row(tmp_path: Path) -> None:
    options = read_arguments(["--tiny", "--output", str(tmp_path), "--model", "sd15=no/model"])
    results = Results(tmp_path)
    results.start()
    assert gpu_parts.measure("sd15", results, options) == 1
    rows = results.rows()
    assert len(rows) == len(gpu_parts.CASES["sd15"]) + 1
    assert all("no/model" in str(row["failed"]) for row in rows)
