# SPDX-License-Identifier: Apache-2.0
"""FSDP2 on two mock GPUs through `accelerate launch` and its config, against DDP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.gpu import mock_nccl
from tests.train.conftest import free_port

ROOT = Path(__file__).parents[2]

FSDP2 = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": True,
    "fsdp_offload_params": False,
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    "fsdp_cpu_ram_efficient_loading": True,
}
OPTIONS = [
    "configs/demo/line_icons_lora.yaml",
    "objective.rank=4",
    "max_train_steps=2",
    "train_batch_size=1",
    "lr_scheduler.warmup_steps=0",
    "saving.save_every_n_steps=1",
    "saving.save_precision=fp32",
    "sampling.sample_every_n_steps=2",
    "sampling.settings.steps=2",
    "sampling.images={only: {prompt: cat}}",
    "ema.decay=0.9",
    "optimizer.epsilon=1e-4",
]
ROUNDING = 2e-6


def launch(folder: Path, kind: str, *overrides: str, **settings: object) -> str:
    """Train on two ranks; return what they said.

    Args:
        folder: of the runs.
        kind: `distributed_type` of accelerate's config.
        overrides: of the recipe.
        settings: of FSDP.
    """
    config: dict[str, object] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind,
        "machine_rank": 0,
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": 2,
    }
    if settings:
        config["fsdp_config"] = settings
    file = folder / "accelerate.yaml"
    file.write_text(yaml.safe_dump(config))
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(file)]
    launcher += ["--main_process_port", str(free_port()), "-m", "tests.gpu.run", "train"]
    environment = {**os.environ, "MOCK_CUDA_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launcher, *OPTIONS, f"output_dir={folder}", *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def difference(one: Path, two: Path) -> float:
    ours, theirs = (load_file(run / "artifacts" / "step-000002.safetensors") for run in (one, two))
    return max(float((ours[key] - theirs[key]).abs().max()) for key in ours)


@pytest.mark.slow
def test_fsdp2_by_accelerate_s_config_is_ddp(tmp_path: Path) -> None:
    if not hasattr(mock_nccl.mock_cuda.ext, "mock_nccl"):
        pytest.skip("is for the mock device")
    launch(tmp_path, "MULTI_GPU", "name=whole")
    said = launch(tmp_path, "FSDP", "name=sharded", **FSDP2)
    assert "_reduce_scatter_base" in said
    assert difference(tmp_path / "whole", tmp_path / "sharded") < ROUNDING
    shards = (tmp_path / "sharded" / "checkpoints" / "step-000002").glob("shard-*")
    assert len(list(shards)) == 2
    launch(tmp_path, "FSDP", "name=offloaded", **FSDP2 | {"fsdp_offload_params": True})
    assert difference(tmp_path / "whole", tmp_path / "offloaded") < ROUNDING
    kept = FSDP2 | {"fsdp_reshard_after_forward": False, "fsdp_auto_wrap_policy": "NO_WRAP"}
    launch(tmp_path, "FSDP", "name=kept", **kept)
    assert difference(tmp_path / "whole", tmp_path / "kept") < ROUNDING
