"""FSDP2 on two CPU ranks: shares of the weights, the result of DDP, and portable checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import free_port, happens
from tests.train.run_tools import contents, succeed

ROOT = Path(__file__).parents[2]

OPTIONS = [
    "max_train_steps=4",
    "saving={save_every_n_steps: 2}",
    "sampling.sample_every_n_steps=2",
    "sampling.images.one.prompt=red",
    "ema={decay: 0.8}",
    "optimizer.epsilon=1e-4",
    "data.captions.dropout_rate=0.3",
]
LORA = "objective={type: lora, rank: 3, dropout: 0.2, train_text_encoder: true}"
EMBEDDING = "objective={type: textual_inversion, token: number, num_vectors_per_token: 1}"
HYPERNETWORK = "objective={type: hypernetwork, dropout_structure: [0, 0.2, 0]}"
COMBINED = (
    "objective={type: combined, members: {word: {objective: {type: textual_inversion, token: "
    "number}, stop_step: 2}, net: {objective: {type: lora, rank: 2}}}}"
)
TEXT_TO_IMAGE = "objective={type: text_to_image, train_text_encoder: true}"
OBJECTIVES = {
    "lora": [LORA, "gradient_accumulation_steps=2"],
    "textual_inversion": [EMBEDDING],
    "hypernetwork": [HYPERNETWORK],
    "combined": [COMBINED],
    "text_to_image": [TEXT_TO_IMAGE, "gradient_checkpointing=true", "max_grad_value=0.01"],
    "bf16": [TEXT_TO_IMAGE, "mixed_precision=bf16"],
}

ROUNDING = 2e-6
"""Of sums in another order, through four steps; the weights are up to 1, the steps 0.01 each."""
BF16_ROUNDING = 2e-2
"""The same where the loss is computed in bf16: a few steps of the other sign."""


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's artifacts."""
    found = {}
    for file in sorted((run / "artifacts").rglob("*.*")):
        name = str(file.relative_to(run))
        if file.suffix == ".safetensors":
            found |= {f"{name}/{key}": one for key, one in load_file(file).items()}
        elif file.suffix == ".pt":
            found |= tensors_of(torch.load(file, weights_only=True), name)
    assert found
    return found


def tensors_of(value: Any, name: str) -> dict[str, torch.Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    found: dict[str, torch.Tensor] = {}
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found |= tensors_of(inner, f"{name}/{key}")
    return found


def difference(one: Path, two: Path) -> float:
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    return max(float((ours[key].float() - theirs[key].float()).abs().max()) for key in ours)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_result_is_that_of_whole_weights(kind: str, commands: Any, tmp_path: Path) -> None:
    """By artifacts, and previews of all ranks together, which only the first one writes."""
    options = [f"output_dir={tmp_path}", *OPTIONS, *OBJECTIVES[kind], "saving.save_precision=fp32"]
    succeed(commands.train_on_two(*options, "name=whole"))
    sharded = commands.train_on_two(*options, "name=sharded", "parallel=fsdp")
    succeed(sharded)
    assert (sharded[1].out, sharded[1].err) == ("", "")
    found = difference(tmp_path / "whole", tmp_path / "sharded")
    print(f"largest difference: {found:.1e}")
    assert found < (BF16_ROUNDING if kind == "bf16" else ROUNDING)
    assert contents(tmp_path / "whole").keys() == contents(tmp_path / "sharded").keys()
    shards = (tmp_path / "sharded" / "checkpoints" / "step-000004").glob("*.safetensors")
    assert [shard.name for shard in sorted(shards)] == [
        "shard-00001-of-00002.safetensors",
        "shard-00002-of-00002.safetensors",
    ]


@pytest.mark.slow
def test_clips(commands: Any, clip_recipe_file: Path, tmp_path: Path) -> None:
    own = commands.of(clip_recipe_file)
    options = [
        f"output_dir={tmp_path}",
        "objective={type: lora, rank: 2}",
        "saving.save_precision=fp32",
        "sampling.clips.one.prompt=red",
        "sampling.sample_every_n_steps=4",
        "optimizer.epsilon=1e-4",
        "gradient_checkpointing=true",
    ]
    succeed(own.train_on_two(*options, "name=whole"))
    succeed(own.train_on_two(*options, "name=sharded", "parallel=fsdp"))
    assert difference(tmp_path / "whole", tmp_path / "sharded") < ROUNDING


@pytest.mark.slow
def test_class_pictures_and_a_stop_of_the_text_encoder(
    pictures: Path, commands: Any, tmp_path: Path
) -> None:
    """DreamBooth: all ranks draw the class pictures together, and a part is done half way."""
    options = [
        f"output_dir={tmp_path}",
        *OPTIONS,
        "saving.save_precision=fp32",
        "objective={type: dreambooth, train_text_encoder: true, stop_text_encoder_training: 0.5}",
        "loss={prior_weight: 0.5, prior_weight_min: 0.1}",
        "data.path=null",
        "sampling.batch_size=2",
        "validation={split: 0.3, num_timesteps: 1}",
    ]

    def concept(folder: str) -> str:
        return (
            f"data.concepts.it={{instance_data_dir: {pictures}, class_data_dir: {tmp_path}/"
            f"{folder}, instance_token: x, class_token: number, class_prompt: number, "
            "class_infer_steps: 1, num_class_images_per: 1}"
        )

    succeed(commands.train_on_two(*options, concept("one"), "name=whole"))
    succeed(commands.train_on_two(*options, concept("two"), "name=sharded", "parallel=fsdp"))
    drawn = [sorted((tmp_path / one).glob("*.png")) for one in ("one", "two")]
    assert [file.name for file in drawn[0]] == [file.name for file in drawn[1]]
    assert len(drawn[0]) >= 6
    assert difference(tmp_path / "whole", tmp_path / "sharded") < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "text_to_image"])
def test_a_killed_run_resumes_with_the_same_bytes(
    kind: str, commands: Any, stop_at: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    """One rank is killed while the second checkpoint is written: the first one is there."""
    options = [*OPTIONS, *OBJECTIVES[kind], "parallel=fsdp"]
    straight, killed = tmp_path / "straight" / "run", tmp_path / "killed" / "run"
    succeed(commands.train_on_two(*options, f"output_dir={straight.parent}"))
    kill = stop_at("train.runs.checkpoint_files:HashedFile.finish", 2, "KILL", rank=1)
    options.append(f"output_dir={killed.parent}")
    assert commands.train_on_two(*options, stop=kill)[1].status == -9
    saved = sorted((killed / "checkpoints").glob("step-*"))
    assert [one.name for one in saved] == ["step-000002"]
    succeed(commands.train_on_two(*options, "resume=true"))
    assert contents(straight) == contents(killed)
    ours, theirs = (
        {
            file.name: file.read_bytes()
            for file in (run / "checkpoints" / "step-000004").iterdir()
            if file.name != "manifest.json"
        }
        for run in (straight, killed)
    )
    assert ours == theirs


@pytest.mark.slow
def test_a_stopped_run_saves_its_shares(
    commands: Any, stop_at: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    """One rank gets the signal; both save, stop, and end as the straight run."""
    straight, stopped = tmp_path / "straight" / "run", tmp_path / "stopped" / "run"
    options = [*OPTIONS, LORA, "parallel=fsdp"]
    succeed(commands.train_on_two(*options, f"output_dir={straight.parent}"))
    stop = stop_at("train.trainer:Trainer.forward_backward", 3, "TERM", rank=1)
    options.append(f"output_dir={stopped.parent}")
    ranks = commands.train_on_two(*options, stop=stop)
    assert [rank.status for rank in ranks] == [143, 143], ranks
    assert len(list((stopped / "checkpoints" / "step-000003").glob("shard-*"))) == 2
    succeed(commands.train_on_two(*options, "resume=true"))
    assert contents(straight) == contents(stopped)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_ranks(commands: Any, tmp_path: Path) -> None:
    """That of one rank; the state before is saved in shards, and the run goes on from it."""
    options = [f"output_dir={tmp_path}", *OPTIONS, LORA, "parallel=fsdp"]
    fault = happens("train.optimization.optimization:Optimization.losses", 4, {"nan": 1}, rank=1)
    ranks = commands.train_on_two(*options, stop=fault)
    assert [rank.status for rank in ranks] == [1, 1]
    assert "loss is not finite at step 4" in ranks[0].err
    assert "the state before it is saved" in ranks[0].err
    assert len(list((tmp_path / "run/checkpoints/step-000003").glob("shard-*"))) == 2
    succeed(commands.train_on_two(*options, "resume=true"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_one_rank_ends_all(rank: int, commands: Any, tmp_path: Path) -> None:
    """What was saved before is intact, no other folder is left, and the run goes on."""
    options = [f"output_dir={tmp_path}", *OPTIONS, TEXT_TO_IMAGE, "parallel=fsdp"]
    full = happens(
        "train.runs.checkpoint_folder:Checkpoints.write", 2, {"file_size": 1000}, rank=rank
    )
    ranks = commands.train_on_two(*options, stop=full)
    assert [one.status for one in ranks] == [1, 1], ranks
    assert all("could not be written" in one.err for one in ranks)
    folder = tmp_path / "run" / "checkpoints"
    assert [one.name for one in folder.iterdir()] == ["step-000002"]
    succeed(commands.train_on_two(*options, "resume=true"))


@pytest.mark.slow
def test_a_damaged_shard_is_put_aside(commands: Any, tmp_path: Path) -> None:
    options = [f"output_dir={tmp_path}", *OPTIONS, LORA, "parallel=fsdp"]
    succeed(commands.train_on_two(*options))
    run = tmp_path / "run"
    shard = run / "checkpoints" / "step-000004" / "shard-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    before = contents(run)
    done = commands.train_on_two(*options, "resume=true")
    succeed(done)
    assert f"{shard.name}: its content is not what was written" in done[0].err
    assert (run / "checkpoints" / "damaged-step-000004").is_dir()
    assert contents(run) == before


@pytest.mark.slow
def test_ranks_and_strategies_come_and_go(commands: Any, tmp_path: Path) -> None:
    """Two ranks with shares, one with all, four with shares, two with all: one batch throughout."""
    options = [f"output_dir={tmp_path}", *OPTIONS, LORA, "saving={save_every_n_steps: 1}"]
    options += ["saving.save_precision=fp32", "sampling.sample_every_n_steps=99"]
    options += ["train_batch_size=1", "saving.keep_last_n_checkpoints=9"]

    def go(name: str, ranks: int, step: int, *more: str) -> None:
        accumulation = f"gradient_accumulation_steps={4 // ranks}"
        steps = [f"max_train_steps={step}", f"name={name}", accumulation, *more]
        if step > 1:
            steps.append("resume=true")
        succeed(commands.train_on(ranks, *options, *steps))

    for step in (1, 2, 3, 4):
        go("straight", 1, step)
    go("moved", 2, 1, "parallel=fsdp")
    go("moved", 1, 2, "parallel=fsdp")
    go("moved", 4, 3, "parallel=fsdp")
    go("moved", 2, 4)
    assert difference(tmp_path / "straight", tmp_path / "moved") < ROUNDING
    kinds = {
        one.name: "sharded" if list(one.glob("shard-*")) else "whole"
        for one in (tmp_path / "moved" / "checkpoints").glob("step-*")
    }
    assert kinds == {
        "step-000001": "sharded",
        "step-000002": "whole",
        "step-000003": "sharded",
        "step-000004": "whole",
    }


@pytest.mark.slow
def test_torchrun_and_the_bytes_that_a_rank_holds(recipe_file: Path, tmp_path: Path) -> None:
    """Real launcher; parameters are DTensors, and a rank has half of the bytes of the denoiser."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    command = [str(Path(__file__).with_name("sharded_facts.py")), str(recipe_file), str(tmp_path)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    command += [f"output_dir={tmp_path}", TEXT_TO_IMAGE, "parallel=fsdp", *OPTIONS]
    done = subprocess.run(
        [sys.executable, *launcher, str(free_port()), *command], cwd=ROOT, env=environment
    )
    assert done.returncode == 0
    for rank in range(2):
        facts = json.loads((tmp_path / f"{rank}.json").read_text())
        assert facts["plain"] == []
        assert facts["divided"] > 50
        for part in ("weights", "state", "averages"):
            held, whole = facts[part]
            assert whole > 10_000
            assert abs(held / whole - 0.5) < 0.02, part
