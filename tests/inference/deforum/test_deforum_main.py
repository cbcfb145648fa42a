"""`python -m inference settings.txt` with the tiny base model, and what ends it."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from inference.__main__ import main
from inference.deforum import stitch
from inference.deforum.loop.generator import RecordGenerator, SeededGenerator

ROOT = Path(__file__).parents[3]

SETTINGS = {
    "W": 16,
    "H": 16,
    "max_frames": 4,
    "seed": 5,
    "steps": 4,
    "sampler": "DPM++ 2M Karras",
    "zoom": "0:(1.1)",
    "strength_schedule": "0:(0.5)",
    "diffusion_cadence": 2,
    "prompts": {"0": "a cat --neg dog"},
    "batch_name": "run_{seed}",
}


@pytest.fixture
def command(tmp_path, tiny_base_folder, monkeypatch):
    """The arguments that draw the settings into tmp_path/out/run_5."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.txt").write_text(json.dumps(SETTINGS))
    shutil.copytree(tiny_base_folder, "base")
    weights = load_file("base/text_encoder/model.safetensors")
    bias = next(name for name in weights if name.endswith("final_layer_norm.bias"))
    weights[bias] += 0.1  # weights of words are levelled by the mean, which must not be 0
    save_file(weights, "base/text_encoder/model.safetensors", {"format": "pt"})
    return ["settings.txt", "base_model.path=base", "output_dir=out", "preset=fast"]


def frames(folder):
    files = sorted(
        path for path in folder.iterdir() if re.fullmatch(r"\d{14}_\d{9}.png", path.name)
    )
    return np.stack([np.asarray(Image.open(path)) for path in files])


def test_settings_file_becomes_a_video(command, tmp_path, capsys):
    assert main(command) == 0
    out = tmp_path / "out" / "run_5"
    output = capsys.readouterr().out
    assert "warp error" in output
    found = re.search(r"video: +(.*)", output)
    assert found
    video = Path(found[1])
    with av.open(str(video)) as file:
        assert file.streams.video[0].frames == 4
        assert file.streams.subtitles
    drawn = frames(out)
    assert drawn.shape == (4, 16, 16, 3)
    written = next(out.glob("*_settings.txt"))
    recipe = next(out.glob("*_recipe.yaml"))
    assert main([str(recipe), "output_dir=again"]) == 0
    assert np.array_equal(frames(tmp_path / "again" / "run_5"), drawn)
    capsys.readouterr()
    assert stitch.main([str(written), "fps=24", "make_gif=true", "preset=ultrafast"]) == 0
    assert next(out.glob("*.gif")).is_file()
    with av.open(str(video)) as file:
        assert file.streams.video[0].average_rate == 24


def test_each_mode_draws_with_a_model(command, tmp_path, capsys):
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save("init.png")
    base = [*command, "skip_video_creation=true", "max_frames=2", "diffusion_cadence=1"]
    for mode, more in {
        "3D": ["depth_model=cues", "rotation_3d_y=0:(3)", "freeu_enabled=true"],
        "Interpolation": ['prompts={"0": "a cat", "2": "a dog"}'],
        "embedding": [
            "animation_mode=Interpolation", "interpolation_blend=embedding", "max_frames=3",
            'prompts={"0": "a cat", "2": "a dog"}',
        ],
        "Video Input": ["video_init_path=init.png", "use_mask=true", "mask_file=mask.png",
                        "mask_overlay_blur=0", "enable_clipskip_scheduling=true",
                        "enable_subseed_scheduling=true", "subseed_strength_schedule=0:(0.3)"],
    }.items():  # fmt: skip
        named = [f"animation_mode={mode}"] if mode != "embedding" else []
        name = [f"batch_name={mode.replace(' ', '_')}"]
        assert main([*base, *named, *more, *name]) == 0, capsys.readouterr().err
    video = frames(tmp_path / "out" / "Video_Input")
    assert (video[:, :, :8] == 90).all()
    assert not (video[:, :, 8:] == 90).all()
    mixed = frames(tmp_path / "out" / "embedding")
    assert len({frame.tobytes() for frame in mixed}) == 3


def test_check_draws_nothing(command, tmp_path, capsys):
    assert main([*command, "--check"]) == 0
    output = capsys.readouterr().out
    assert "4 frames" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("zoom=0:(1.0", "zoom"),
        ("cn_1_enabled=true", "cn_1_enabled: ControlNet"),
        ("optical_flow_cadence=RAFT", "optical_flow_cadence: RAFT"),
        ("sampler=Eulr", "sampler"),
        ("zooom=0:(1)", "zooom: no such setting; the nearest is zoom"),
        ("use_init=true", "init_image: https://.* is not downloaded"),
        ("base_model.pth=x", "base_model.pth"),
        ('network_schedules={"x": "0:(1)"}', "network_schedules.x"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(
    command, tmp_path, capsys, more, message
):
    assert main([*command, more]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


RUN = """
import json, os, sys
from inference.config.recipes import AnimationRecipe
from inference.deforum.animation import Animation
from inference.deforum.loop.generator import SeededGenerator
from inference.runtime.signals import Interrupted

class Struck(SeededGenerator):
    def generate(self, request):
        if request.frame == 6:
            os.kill(os.getpid(), int(sys.argv[2]))
        return super().generate(request)

animation = Animation(AnimationRecipe(**json.loads(sys.argv[1])))
animation.prepare()
try:
    animation.draw(Struck(), log=lambda text: None)
except Interrupted as stop:
    sys.exit(128 + stop.number)
"""


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        pytest.param(signal.SIGTERM, [9], marks=pytest.mark.slow),
        (signal.SIGKILL, [6, 9]),
    ],
)
def test_signals_end_a_run_that_goes_on_the_same(animate, tmp_path, kind, left):
    settings = {
        "max_frames": 12, "diffusion_cadence": 3, "noise_schedule": "0:(0.1)", "zoom": "0:(1.1)",
        "color_coherence": "RGB", "strength_schedule": "0:(0.5)",
    }  # fmt: skip
    whole = animate(SeededGenerator(), "whole", **settings)
    recipe = dataclasses.asdict(animate.last.recipe) | {"output_dir": str(tmp_path / "stopped")}
    del recipe["base_model"]
    stopped = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(recipe), str(int(kind))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert stopped.returncode == (143 if kind == signal.SIGTERM else -9)
    generator = RecordGenerator(SeededGenerator())
    resumed = animate(generator, "stopped", recipe={"resume": True}, **settings)
    assert [request.frame for request in generator.requests] == left
    assert np.array_equal(resumed, whole)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (['prompts={"0": "a", "3": "b <lora:gone:1>"}'], "frame 3: .*gone.*no file of this name"),
        (["enable_checkpoint_scheduling=true", "checkpoint_schedule=0:(x.ckpt)"], "frame 0: .*x.c"),
        (["restore_faces=true"], "restore_faces"),
        (["sampler=DPM++ 2M Karras", "schedule_type=Karras"], "frame 0: sampler"),
    ],
)
def test_what_a_later_frame_needs_is_looked_for_before(command, capsys, more, message):
    assert main([*command, *more]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(Path("out").rglob("*_0*.png"))


@pytest.fixture
def lora(command, tmp_path):
    """A LoRA file that changes what the tiny base model draws."""
    weights = load_file("base/unet/diffusion_pytorch_model.safetensors")
    tensors, generator = {}, torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        path, found, _ = name.partition(".weight")
        if found and path.endswith(("attn2.to_k", "attn2.to_v")):
            key = f"lora_unet_{path.replace('.', '_')}"
            rows, columns = weight.shape
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
            tensors[f"{key}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "style.safetensors", {"ss_base_model_version": "sd_v1"})
    return tmp_path / "style.safetensors"


def test_strengths_of_networks_follow_their_schedules(command, lora, tmp_path):
    base = [
        *command, "skip_video_creation=true", "animation_mode=Interpolation", "max_frames=3",
        "seed_behavior=fixed", "artifact_dirs=[.]", 'network_schedules={"style": "0:(0), 2:(1)"}',
    ]  # fmt: skip
    assert main([*base, f"artifacts.style.path={lora}", "batch_name=recipe"]) == 0
    by_recipe = frames(tmp_path / "out" / "recipe")
    called = 'prompts={"0": "a cat<lora:style:0.1> --neg dog"}'
    assert main([*base, called, "batch_name=prompt"]) == 0
    by_prompt = frames(tmp_path / "out" / "prompt")
    assert main([*base[:-1], "batch_name=plain"]) == 0
    plain = frames(tmp_path / "out" / "plain")
    assert (plain == plain[0]).all()
    assert np.array_equal(by_recipe[0], plain[0])
    assert abs(by_recipe.astype(int) - by_prompt).max() <= 1
    distances = [abs(frame.astype(int) - plain[0]).mean() for frame in by_recipe]
    assert distances[0] < distances[1] < distances[2]


def test_checkpoints_follow_their_schedule(command, tmp_path):
    shutil.copytree("base", "models/other")
    weights = load_file("models/other/unet/diffusion_pytorch_model.safetensors")
    weights["conv_out.weight"] *= -1
    save_file(weights, "models/other/unet/diffusion_pytorch_model.safetensors", {"format": "pt"})
    shutil.copytree("base", "models/same")
    base = [*command, "skip_video_creation=true", "animation_mode=Interpolation", "max_frames=3",
            "seed_behavior=fixed", "artifact_dirs=[models]"]  # fmt: skip
    scheduled = ["enable_checkpoint_scheduling=true", "batch_name=changing",
                 'checkpoint_schedule=0:("same"), 1:("other [abc]"), 2:("base")']  # fmt: skip
    assert main([*base, *scheduled]) == 0
    assert main([*base, "batch_name=plain"]) == 0
    changing, plain = (frames(tmp_path / "out" / name) for name in ("changing", "plain"))
    assert np.array_equal(changing[[0, 2]], plain[[0, 2]])
    assert not np.array_equal(changing[1], plain[1])
