"""Every objective, killed five times over: at random moments and in the middle of what is written.

After each kill every checkpoint that is there can be read; the run that goes on ends with the
artifacts, grids and class pictures of the run that was never stopped, byte for byte.
"""

import hashlib
import json
import pkgutil
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

KILLS = 5
"""Of each run."""

PICTURES = [
    "max_train_steps=6",
    "gradient_accumulation_steps=2",
    "saving={save_every_n_steps: 2}",
    "sampling.sample_every_n_steps=3",
    "sampling.images.one.prompt=red",
    "data={resize: none, resolution: 8, crop: random, flip: 0.5, latent_sampling: random}",
    "data.captions={dropout_rate: 0.3, shuffle_tags: true, tag_dropout_rate: 0.2}",
    "lr_scheduler={type: cosine, warmup_steps: 3}",
    "ema={decay: 0.8}",
]
ON_DISK = [*PICTURES[:5], "data={cache: disk}", "data.captions.dropout_rate=0.3"]
CLIPS = [
    *PICTURES[:4],
    "sampling.clips.one.prompt=red",
    "data={flip: 0.5, latent_sampling: random}",
    "data.clips.part=random",
    "data.captions.dropout_rate=0.3",
    "ema={decay: 0.8}",
]
VALIDATION = "validation={path: {validation}, every_n_steps: 2, num_timesteps: 1}"
LORA = "objective={type: lora, rank: 2, dropout: 0.2}"
EMBEDDING = "objective={type: textual_inversion, token: xyz, num_vectors_per_token: 2}"
HYPERNETWORK = "objective={type: hypernetwork, dropout_structure: [0, 0.2, 0]}"
COMBINED = (
    "objective={type: combined, members: {word: {objective: {type: textual_inversion, token: xyz}, "
    "stop_step: 3}, look: {objective: {type: lora, rank: 2, dropout: 0.2}}}}"
)
DREAMBOOTH = [
    "objective={type: dreambooth, train_text_encoder: true, stop_text_encoder_training: 0.5}",
    "loss.prior_weight=0.5",
    "sampling.batch_size=2",
    "data.path=null",
    "data.concepts.it={instance_data_dir: {pictures}, instance_token: x, class_token: number, "
    "class_prompt: number, class_infer_steps: 1, num_class_images_per: 1}",
]

RUNS: dict[str, tuple[int, list[str]]] = {
    "textual_inversion": (1, [*PICTURES, EMBEDDING, "data.num_workers=2"]),
    "hypernetwork": (1, [*ON_DISK, HYPERNETWORK, "ema={decay: 0.8}"]),
    "dreambooth": (1, [*PICTURES, *DREAMBOOTH, "data.num_workers=4"]),
    "lora": (1, [*PICTURES, LORA, "data.num_workers=4", VALIDATION]),
    "text_to_image": (1, [*PICTURES, "objective={type: text_to_image}", "data.num_workers=2"]),
    "autoencoder": (1, [*PICTURES[:6], PICTURES[8], "objective={type: autoencoder}"]),
    "combined": (1, [*PICTURES, COMBINED, VALIDATION]),
    "clips": (1, [*CLIPS, LORA, "data.num_workers=2"]),
    "lora on two": (2, [*PICTURES, LORA, "data.num_workers=2"]),
    "dreambooth on two": (2, [*PICTURES, *DREAMBOOTH]),
    "text_to_image on two": (2, [*ON_DISK, "objective={type: text_to_image}"]),
}

PLACES = (
    ("train.optimization.training_state:TrainingState.write", 2),
    ("torch:save", 2),
    ("os:fsync", 8),
    ("pathlib:Path.rename", 2),
    ("pathlib:Path.replace", 4),
    ("pathlib:Path.symlink_to", 2),
    ("pathlib:Path.write_bytes", 2),
    ("PIL.Image:Image.save", 2),
    ("os:unlink", 3),
    ("os:rmdir", 1),
    ("train.monitoring.reports:Previews.draw", 1),
    ("train.caches:Caches.fill", 1),
)
"""Functions that write, and in how many of their first calls a run may be killed."""


def places(name: str) -> Iterator[dict[str, Any]]:
    """Where and when a run is killed, in this order."""
    rng = random.Random(name)
    for number in range(2 * KILLS):
        if number % 2:  # some time after a micro-batch began
            call = rng.randint(1, 4)
            stop = {"function": "train.trainer:Trainer.forward_backward", "call": call}
            stop |= {"after": True, "delay": rng.uniform(0.001, 0.2)}
        else:
            function, most = rng.choice(PLACES)
            stop = {"function": function, "call": rng.randint(1, most), "after": rng.random() < 0.5}
        rank = rng.randrange(RUNS[name][0])
        yield {**stop, "rank": rank if number % 2 else 0}  # the first one writes


def everything(run: Path) -> dict[str, str]:
    """Hashes of all that a run leaves to use, its class pictures too."""
    folders = "artifacts", "samples", "class_images"
    files = sorted(file for name in folders for file in (run / name).rglob("*") if file.is_file())
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def check_checkpoints(run: Path) -> None:
    """Whatever is called a checkpoint is whole."""
    for folder in (run / "checkpoints").glob("step-*"):
        assert {"progress.json", "trained.safetensors", "optimizer.pt"} <= set(names(folder))
        for file in folder.glob("*.json"):
            assert json.loads(file.read_text())
        for file in folder.glob("*.safetensors"):
            assert load_file(file)
        for file in folder.glob("*.pt"):
            assert torch.load(file, weights_only=True)


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def test_the_places_are_there() -> None:
    """A function that is renamed would be killed in no more."""
    for function, _ in PLACES:
        owner, _, name = function.rpartition("." if "." in function.split(":")[1] else ":")
        assert callable(getattr(pkgutil.resolve_name(owner), name))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_runs_end_as_if_they_had_not_been(
    name: str,
    commands: Any,
    clip_commands: Any,
    stop_at: Callable[..., dict[str, object]],
    pictures: Path,
    tmp_path: Path,
) -> None:
    ranks, overrides = RUNS[name]
    validation = shutil.copytree(pictures, tmp_path / "validation")
    overrides = [
        one.replace("{pictures}", str(pictures)).replace("{validation}", str(validation))
        for one in overrides
    ]
    given = clip_commands if name == "clips" else commands

    def train(folder: str, stop: dict[str, object] | None = None) -> list[Any]:
        arguments = [f"output_dir={tmp_path / folder}", "resume=true", *overrides]
        if ranks == 2:
            return given.train_on_two(*arguments, stop=stop)
        return [given.train(*arguments, stop=stop)]

    def succeeds(folder: str) -> None:
        for done in train(folder):
            assert done.status == 0, done.err

    start = time.perf_counter()
    succeeds("straight")
    expected = everything(tmp_path / "straight" / "run")
    assert any("samples" in file for file in expected)
    killed = []
    for place in places(name):
        done = train("killed", stop_at(name="KILL", **place))
        statuses = [one.status for one in done]
        if -9 in statuses:
            killed.append(place)
        else:  # there was nothing left to do that leads there
            assert statuses == [0] * ranks, done[0].err
            assert everything(tmp_path / "killed" / "run") == expected
            shutil.rmtree(tmp_path / "killed")
        check_checkpoints(tmp_path / "killed" / "run")
        if len(killed) == KILLS:
            break
    succeeds("killed")
    seconds = time.perf_counter() - start
    where = [place["function"] for place in killed]
    print(f"{name}: {seconds:.0f} s, killed {len(killed)} times: {where}")
    assert len(killed) == KILLS
    assert everything(tmp_path / "killed" / "run") == expected
    assert not [file for file in (tmp_path / "killed").rglob(".*") if file.name != ".last"]
