"""Two processes keep equal weights, and equal one process with twice the accumulation."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.run_tools import largest_difference, succeed

ROOT = Path(__file__).parents[2]

OPTIONS = [
    "max_train_steps=4",
    "saving={save_every_n_steps: 2}",
    "sampling.sample_every_n_steps=1",
    "sampling.images.one.prompt=red",
    "data={flip: 0.5}",
    "data.captions.dropout_rate=0.3",
    "ema={decay: 0.8}",
    "optimizer.epsilon=1e-4",
]
LORA = "objective={type: lora, rank: 2, dropout: 0.2}"
EMBEDDING = "objective={type: textual_inversion, token: number, num_vectors_per_token: 3}"
HYPERNETWORK = "objective={type: hypernetwork, dropout_structure: [0, 0.2, 0]}"
COMBINED = (
    "objective={type: combined, members: {word: {objective: {type: textual_inversion, token: "
    "number}, stop_step: 2}, net: {objective: {type: hypernetwork}}}}"
)
TEXT_TO_IMAGE = "objective={type: text_to_image, train_text_encoder: true}"
DREAMBOOTH = [
    "objective={type: dreambooth, train_text_encoder: true, stop_text_encoder_training: 0.5}",
    "loss={prior_weight: 0.5, prior_weight_min: 0.1}",
    "data.path=null",
]

ROUNDING = 2e-6
"""Of sums in another order, through four steps; the weights are up to 1, the steps 0.01 each."""


@pytest.mark.parametrize(
    ("objective", "accumulation"),
    [
        pytest.param(LORA, 2, marks=pytest.mark.slow),
        pytest.param(EMBEDDING, 1, marks=pytest.mark.slow),
        pytest.param(HYPERNETWORK, 1, marks=pytest.mark.slow),
        (COMBINED, 1),
        pytest.param(TEXT_TO_IMAGE, 1, marks=pytest.mark.slow),
    ],
    ids=["lora", "textual_inversion", "hypernetwork", "combined", "text_to_image"],
)
def test_two_processes_equal_twice_the_accumulation(
    objective: str, accumulation: int, commands: Any, tmp_path: Path
) -> None:
    def steps(number: int) -> str:
        return f"gradient_accumulation_steps={number}"

    options = [f"output_dir={tmp_path}", objective, *OPTIONS]
    two = commands.train_on_two(*options, "name=two", steps(accumulation))
    succeed(two)
    assert (two[1].out, two[1].err) == ("", "")  # only the first one speaks
    one = commands.train(*options, "name=one", steps(2 * accumulation))
    assert one.status == 0, one.err
    difference = largest_difference(tmp_path / "one", tmp_path / "two")
    print(f"largest difference: {difference:.1e}")
    assert difference < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_two_processes_round_and_average_alike(kind: str, commands: Any, tmp_path: Path) -> None:
    """Stopped and resumed from the first one's state, they end in the same bytes: none diverged."""
    options = [
        f"output_dir={tmp_path}",
        TEXT_TO_IMAGE,
        *OPTIONS,
        "mixed_precision=bf16",
        "memory={trained_weights: bf16, optimizer_on_cpu: true, ema_on_cpu: true}",
        f"optimizer.type={kind}",
    ]
    succeed(commands.train_on_two(*options, "name=straight"))
    succeed(commands.train_on_two(*options, "name=resumed", "max_train_steps=2"))
    succeed(commands.train_on_two(*options, "name=resumed", "resume=true"))
    for name in ("trained.safetensors", "optimizer.pt", "ema.safetensors"):
        one, two = (
            (tmp_path / run / "checkpoints" / "step-000004" / name).read_bytes()
            for run in ("straight", "resumed")
        )
        assert one == two, name


@pytest.mark.slow
def test_fused_backward_is_for_one_process(commands: Any, tmp_path: Path) -> None:
    options = [f"output_dir={tmp_path}", LORA, "max_grad_norm=null", "memory.fused_backward=true"]
    first, second = commands.train_on_two(*options)
    assert (first.status, second.status) == (2, 2)
    message = "train: memory.fused_backward: is for one process, got 2: weights would change"
    assert message in first.err + second.err


@pytest.mark.slow
def test_class_pictures_and_a_stop_of_the_text_encoder_on_two_processes(
    pictures: Path, commands: Any, tmp_path: Path
) -> None:
    """Each draws half of the class pictures; its share of the loss is that of one process."""
    concept = (
        f"data.concepts.it={{instance_data_dir: {pictures}, class_data_dir: {tmp_path}/class, "
        "instance_token: x, class_token: number, class_prompt: number, class_infer_steps: 1, "
        "num_class_images_per: 1}"
    )
    options = [f"output_dir={tmp_path}", *OPTIONS, *DREAMBOOTH, concept, "sampling.batch_size=2"]
    succeed(commands.train_on_two(*options, "name=two"))
    assert len(list((tmp_path / "class").glob("*.png"))) == 8
    one = commands.train(*options, "name=one", "gradient_accumulation_steps=2")
    assert one.status == 0, one.err
    assert largest_difference(tmp_path / "one", tmp_path / "two") < ROUNDING


def test_both_processes_keep_equal_weights(
    commands: Any, stop_at: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    """Each resumes from its own weights in memory: had they differed, so would what follows.

    One process is stopped, and both stop; the run that goes on ends as the straight one.
    """
    straight = [f"output_dir={tmp_path}", LORA, *OPTIONS]
    succeed(commands.train_on_two(*straight, "name=straight"))
    stop = stop_at("train.trainer:Trainer.forward_backward", 3, "TERM")
    stopped = commands.train_on_two(*straight, "name=stopped", stop=stop)
    assert [rank.status for rank in stopped] == [143, 143], stopped
    assert (tmp_path / "stopped" / "checkpoints" / "step-000003").is_dir()
    succeed(commands.train_on_two(*straight, "name=stopped", "resume=true"))
    assert largest_difference(tmp_path / "straight", tmp_path / "stopped") == 0


def test_layers_that_clip_skip_leaves_without_gradient(commands: Any, tmp_path: Path) -> None:
    """Drawing and saving in bf16 in between cut no process off from the other."""
    options = [*OPTIONS, "base_model.clip_skip=2", "mixed_precision=bf16", "max_train_steps=3"]
    succeed(commands.train_on_two(f"output_dir={tmp_path}", TEXT_TO_IMAGE, *options))


@pytest.mark.slow
def test_a_run_continues_on_another_number_of_processes_with_the_same_batch(
    commands: Any, tmp_path: Path
) -> None:
    """With half the accumulation by itself; its sums alone are in another order."""
    options = [f"output_dir={tmp_path}", LORA, *OPTIONS, "sampling.sample_every_n_steps=99"]
    straight = commands.train(*options, "name=straight", "gradient_accumulation_steps=2")
    assert straight.status == 0, straight.err
    shutil.copytree(tmp_path / "straight", tmp_path / "moved", symlinks=True)
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "step-000004")
    options += ["name=moved", "resume=true"]
    two = commands.train_on_two(*options, "gradient_accumulation_steps=2")
    succeed(two)
    said = "2 processes with gradient_accumulation_steps=1 take as many examples a step"
    assert two[0].err.count(said) == 1
    assert two[0].err.count("warning") == 1
    assert "processes: 1 became 2" in two[0].err
    assert largest_difference(tmp_path / "straight", tmp_path / "moved") < ROUNDING


@pytest.mark.slow
def test_torchrun(recipe_file: Path, commands: Any, tmp_path: Path) -> None:
    """The real launcher does the same as the processes above."""
    arguments = [f"output_dir={tmp_path}", LORA, *OPTIONS]
    succeed(commands.train_on_two(*arguments, "name=here"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = ["-m", "train", str(recipe_file), *arguments, "name=there"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, *launcher, *command], cwd=ROOT, env=environment)
    assert done.returncode == 0
    assert largest_difference(tmp_path / "here", tmp_path / "there") == 0


@pytest.mark.slow
def test_accelerate_launch(recipe_file: Path, commands: Any, tmp_path: Path) -> None:
    """The contract's other command, with the configuration that comes with Limner."""
    arguments = [f"output_dir={tmp_path}", LORA, *OPTIONS]
    assert commands.train(*arguments, "name=here").status == 0
    launcher = ["accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml"]
    command = ["-m", "train", str(recipe_file), *arguments, "name=there"]
    done = subprocess.run([sys.executable, "-m", *launcher, *command], cwd=ROOT)
    assert done.returncode == 0
    assert largest_difference(tmp_path / "here", tmp_path / "there") == 0
