"""As test_resume, of clips: the same bytes, wherever a run was stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.run_tools import (
    Straight,
    check_killed_run_goes_on,
    check_stopped_run_goes_on,
    straight_runs,
    with_slow,
)

OPTIONS = [
    "max_train_steps=6",
    "gradient_accumulation_steps=2",
    "saving.save_every_n_steps=2",
    "data.captions.dropout_rate=0.3",
    "lr_scheduler={type: cosine, warmup_steps: 3}",
    "ema={decay: 0.8}",
    "sampling.clips.one={prompt: red}",
]
LORA = "objective={type: lora, rank: 2, dropout: 0.2, comfyui_twin: true}"
STAGES = [
    "stages.pictures={steps: 3, frames: 1, height: 16, train_batch_size: 3, "
    "gradient_accumulation_steps: 1}",
    "stages.clips={steps: 3}",
    "saving.save_every_n_steps=1",
]
RUNS = {
    "lora": [
        LORA,
        "data={flip: 0.5, latent_sampling: random}",
        "data.clips.part=random",
        "sampling.sample_every_n_steps=3",
    ],
    "stages": [LORA, *STAGES],
    "packed": [
        LORA,
        "data.clips={frames: 49, height: null, width: null, buckets: [9x32x32, 17x32x32]}",
        "data.clips.pack=true",
        "train_batch_size=3",
    ],
    "image_to_video": [
        LORA,
        "image_condition={dropout_rate: 0.3, latent_scale: raw}",
        "sampling.clips.one.image={picture}",
        "base_model.path={image_to_video}",
    ],
    "text_to_image on disk": ["objective={type: text_to_image}", "data.cache=disk"],
}


@pytest.fixture(scope="session")
def options(image_to_video_folder: Path, pictures: Path) -> Callable[[str], list[str]]:
    """The overrides of a run."""
    folders = {
        "{picture}": str(pictures / "0-red.png"),
        "{image_to_video}": str(image_to_video_folder),
    }

    def of(name: str) -> list[str]:
        overrides = [*OPTIONS, *RUNS[name]]
        for word, path in folders.items():
            overrides = [override.replace(word, path) for override in overrides]
        return overrides

    return of


@pytest.fixture(scope="session")
def straight(
    clip_commands: Any,
    options: Callable[[str], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Straight]:
    """A run without a stop, once."""
    return straight_runs(clip_commands, options, tmp_path_factory)


def test_straight_run_leaves_what_it_should(straight: Callable[[str], Straight]) -> None:
    found = straight("lora").contents
    steps = ["last", "step-000002", "step-000004", "step-000006"]
    artifacts = [f"artifacts/{s}{kind}.safetensors" for s in steps for kind in (".comfyui", "")]
    grids = [
        f"samples/step-00000{s}{kind}" for s in (3, 6) for kind in (".png", ".webp", "/000.webp")
    ]
    assert sorted(found) == sorted([*artifacts, *grids, "samples/base/000.webp"])
    last = found["artifacts/last.comfyui.safetensors"]
    assert last == found["artifacts/step-000006.comfyui.safetensors"]
    assert last != found["artifacts/last.safetensors"]


STOPS = {
    "before the first step": (
        "lora",
        "train.monitoring.clip_previews:ClipGrid.keep_base_row",
        1,
        True,
    ),
    "between the twins": ("lora", "inference.artifacts.adapters.lora:Lora._write", 3, True),
    "while a grid is written": ("lora", "pathlib:Path.write_bytes", 5, True),
    "in the first stage": ("stages", "train.trainer:Trainer.forward_backward", 3, False),
    "between the stages": ("stages", "train.trainer:Trainer.enter", 2, False),
    "in the last stage": ("stages", "train.trainer:Trainer.forward_backward", 3 + 3, False),
}


LESS_TELLING = (
    "before the first step",
    "while a grid is written",
    "in the first stage",
    "in the last stage",
)


@pytest.mark.parametrize("place", with_slow(STOPS, LESS_TELLING))
def test_killed_run_goes_on(
    place: str,
    straight: Callable[[str], Straight],
    clip_commands: Any,
    stop_at: Callable[..., dict[str, object]],
    tmp_path: Path,
) -> None:
    name, function, call, after = STOPS[place]
    stop = stop_at(function, call, "KILL", after)
    done = check_killed_run_goes_on(clip_commands, straight(name), stop, tmp_path)
    reported = [line.split(": ")[0] for line in done.err.splitlines() if line.startswith("stage ")]
    if name == "stages":
        assert reported == ["stage pictures", "stage clips"][place != "in the first stage" :]


@pytest.mark.parametrize(
    ("name", "signal_name"),
    [
        pytest.param("packed", "INT", marks=pytest.mark.slow),
        pytest.param("image_to_video", "TERM", marks=pytest.mark.slow),
        pytest.param("text_to_image on disk", "INT", marks=pytest.mark.slow),
    ],
)
def test_stopped_run_saves_its_state_and_goes_on(
    name: str,
    signal_name: str,
    straight: Callable[[str], Straight],
    clip_commands: Any,
    stop_at: Callable[..., dict[str, object]],
    tmp_path: Path,
) -> None:
    stop = stop_at("train.trainer:Trainer.forward_backward", 6, signal_name)
    check_stopped_run_goes_on(clip_commands, straight(name), stop, signal_name, tmp_path)
