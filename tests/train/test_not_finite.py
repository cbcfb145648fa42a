"""Weights and previews that are no numbers: one message, and what was saved before stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import happens
from tests.train.runs.test_checkpoints import make_state
from train.monitoring.previews import reconstruction_grid

DECODE = "inference.models.stable_diffusion.model:BaseModel.decode_latents"


def test_an_artifact_that_its_precision_cannot_hold_is_not_written(
    commands: Any, tmp_path: Path
) -> None:
    """The first step has the learning rate 0, the second 7e4."""
    options = ["max_train_steps=2", "saving.save_every_n_steps=1", "optimizer.learning_rate=7e4"]
    options += ["lr_scheduler.warmup_steps=1"]
    done = commands.train(f"output_dir={tmp_path}", *options)
    run = tmp_path / "run"
    assert done.status == 1, done.err
    assert "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    artifact = run / "artifacts" / "step-000002.safetensors"
    assert last.startswith(f"train: {artifact} was not written: ")
    for part in ("tensors are not finite", "in fp16", "saving.save_precision", "learning rate"):
        assert part in last
    assert last.endswith(f"resume=true continues from {run / 'checkpoints' / 'step-000001'}")
    assert sorted(file.name for file in artifact.parent.iterdir()) == [
        "last.safetensors",
        "step-000001.safetensors",
    ]
    kept = load_file(artifact.parent / "last.safetensors")
    assert all(one.isfinite().all() for one in kept.values())
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["step-000001"]
    done = commands.train(
        f"output_dir={tmp_path}", *options, "resume=true", "saving.save_precision=fp32"
    )
    assert done.status == 0, done.err


def test_a_state_that_is_not_finite_is_known() -> None:
    state = make_state()
    assert state.is_trained_finite()
    assert state.ema is not None
    state.ema.shadow_params[0][0, 0] = float("inf")
    assert not state.is_trained_finite()


def test_a_run_goes_on_without_a_preview_that_is_not_finite(commands: Any, tmp_path: Path) -> None:
    options = ["sampling.sample_every_n_steps=2", "sampling.images.one.prompt=red"]
    stop = happens(DECODE, 1, {"nan": 99})
    done = commands.train(f"output_dir={tmp_path}", *options, stop=stop)
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    grids = [tmp_path / "run" / "samples" / f"step-00000{step}.png" for step in (2, 4)]
    for what in ("the base model's row", *grids):
        assert f"warning: {what} was not drawn: the picture is not finite" in done.err
    assert not list((tmp_path / "run" / "samples").rglob("*.png"))
    assert (tmp_path / "run" / "artifacts" / "step-000004.safetensors").is_file()


def test_a_reconstruction_that_is_not_finite_is_an_error(tiny_base: Any, tmp_path: Path) -> None:
    tiny_base.vae.decoder.conv_out.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the reconstruction is not finite"):
        reconstruction_grid(tiny_base, [lambda: torch.zeros(3, 16, 16)], tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_class_pictures_that_are_not_finite_are_one_message(
    commands: Any, pictures: Path, tmp_path: Path
) -> None:
    options = [
        "objective={type: dreambooth}",
        "data.path=null",
        f"data.concepts.it={{instance_data_dir: {pictures}, instance_token: x, "
        "class_token: number, class_prompt: number, class_infer_steps: 1, "
        "num_class_images_per: 1}",
        "loss.prior_weight=0.5",
    ]
    stop = happens(DECODE, 1, {"nan": 99})
    done = commands.train(f"output_dir={tmp_path}", *options, stop=stop)
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith(
        "train: class pictures of 'number' cannot be drawn: the picture is not finite"
    )
    assert "Traceback" not in done.err
