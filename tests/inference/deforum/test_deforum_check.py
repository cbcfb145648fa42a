"""The report before the first frame: features, problems, Parseq's values, loudness of sound."""

import json
import math
import wave

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inference.__main__ import main
from inference.artifacts import library
from inference.deforum.check import problems, settings_report
from inference.deforum.schedules.features import check, switched_on, without_effect
from inference.deforum.schedules.prompts import frame_prompts
from inference.deforum.schedules.schedule_table import Schedules
from inference.deforum.schedules.variables import RATE, audio_variables, measure
from inference.deforum.settings.settings_recipe import load_settings
from inference.models.finding import files_in
from inference.runtime.errors import InputError


def problems_of(settings):
    loaded = load_settings({"seed": 1, "max_frames": 4, **settings})
    return problems(loaded, Schedules.of(loaded))


def test_defaults_are_without_problems():
    assert problems_of({}) == []
    assert problems_of({"animation_mode": "3D", "diffusion_cadence": 3}) == []


NETWORK = "https://deforum.github.io/a1"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"cn_2_enabled": True}, "cn_2_enabled: ControlNet"),
        ({"optical_flow_cadence": "RAFT"}, "optical_flow_cadence: RAFT"),
        ({"optical_flow_cadence": "RAFT", "diffusion_cadence": 1}, None),
        ({"hybrid_flow_method": "RAFT"}, None),
        ({"optical_flow_redo_generation": "RAFT"}, "optical_flow_redo_generation: RAFT"),
        ({"kohya_hrfix_enabled": True}, "kohya_hrfix_enabled: is not supported"),
        ({"use_init": True}, f"init_image: {NETWORK}/I1.png is not downloaded"),
        ({"use_init": True, "init_image": None}, "init_image: is empty"),
        ({"use_init": True, "init_image": "no.png"}, "init_image: there is no file 'no.png'"),
        ({"use_mask": True}, f"mask_file: {NETWORK}/M1.jpg is not downloaded"),
        ({"use_mask": True, "use_alpha_as_mask": True}, None),
        ({"animation_mode": "Video Input"}, f"video_init_path: {NETWORK}/V1.mp4 is not"),
        (
            {"use_mask": True, "use_alpha_as_mask": True, "mask_schedule": "0:({tracked})"},
            f"video_init_path: {NETWORK}/V1.mp4 is not",
        ),
        (
            {
                "use_noise_mask": True,
                "noise_mask_schedule": "0:({tracked})",
                "tracked_box": "1,2",
                "video_init_path": __file__,
            },
            "tracked_box: expected [left, top, width, height], got [1, 2]",
        ),
        ({"mask_schedule": "0:({tracked})", "tracked_box": [1]}, None),
        ({"use_mask_video": True}, f"video_mask_path: {NETWORK}/VM1.mp4"),
        ({"add_soundtrack": "File"}, f"soundtrack_path: {NETWORK}/A1.mp3"),
        ({"add_soundtrack": "File", "skip_video_creation": True}, None),
        ({"color_coherence": "Image"}, "color_coherence_image_path: is empty"),
        ({"hybrid_generate_inputframes": True}, None),
        ({"hybrid_motion": "Affine"}, f"video_init_path: {NETWORK}/V1.mp4 is not"),
        ({"controlnet_enabled": True}, "cn_1_enabled: ControlNet units are not supported"),
        ({"controlnet_2_enabled": True}, "cn_2_enabled: ControlNet units are not supported"),
        ({"use_looper": True}, f"init_images, frame '0': {NETWORK}/Gi1.png"),
        ({"use_looper": True, "init_images": "x"}, "init_images: is not JSON"),
        ({"use_looper": True, "init_images": "[]"}, "init_images: expected frames and files"),
        ({"zoom": "0:(1), 2:(0)"}, "zoom, frame 2: must be above 0, got 0"),
        ({"zoom": "0:(0)", "animation_mode": "3D"}, None),
        (
            {"animation_mode": "3D", "fov_schedule": "0:(180)"},
            "fov_schedule, frame 0: must lie between 0 and 180",
        ),
        ({"enable_steps_scheduling": True, "steps_schedule": 0}, "steps_schedule, frame 0: must"),
        ({"steps_schedule": 0}, None),
        (
            {"kernel_schedule": "0:(3), 2:(0)"},
            "kernel_schedule, frame 2: 0 is not a valid blur size",
        ),
        ({"kernel_schedule": 0, "amount_schedule": 0}, None),
        ({"seed_schedule": "0:(2e19)"}, None),
        (
            {"seed_schedule": "0:(2e19)", "seed_behavior": "schedule"},
            "seed_schedule, frame 0: must be below 2^63, got 2e+19",
        ),
        ({"sampler_schedule": "0:(Eulr)"}, None),
    ],
)
def test_problems_of_what_is_on(settings, expected):
    found = problems_of(settings)
    if expected is None:
        assert found == []
    else:
        assert len(found) >= 1 and found[0].startswith(expected), found


def test_all_problems_are_told_at_once():
    settings = load_settings({"use_init": True, "cn_1_enabled": True, "seed": 1}, origin="a.txt")
    with pytest.raises(InputError) as error:
        check(settings, Schedules.of(settings))
    lines = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["cn_1_enabled", "init_image"]
    assert all(line.startswith("a.txt: ") for line in lines)


def test_features_and_what_has_no_effect():
    settings = load_settings(
        {
            "animation_mode": "Interpolation", "hybrid_motion": "Affine", "W": 100, "make_gif": 1,
            "optical_flow_cadence": "Farneback", "enable_perspective_flip": True,
            "near_schedule": 1, "diffusion_redo": 2, "use_looper": True,
            "optical_flow_redo_generation": "Farneback", "hybrid_comp_save_extra_frames": True,
            "r_upscale_video": True, "store_frames_in_ram": True,
        }
    )  # fmt: skip
    on = switched_on(settings)
    assert "GIF" in on
    assert not {"cadence", "perspective flip", "guided images", "diffusion redo"} & set(on)
    check(settings.replace(seed=1), Schedules.of(settings.replace(seed=1)))  # no guided images
    notes = " ".join(without_effect(settings))
    for key in (
        "hybrid_motion", "optical_flow_cadence", "enable_perspective_flip", "near_schedule",
        "diffusion_redo", "use_looper", "optical_flow_redo_generation", "store_frames_in_ram",
        "hybrid_comp_save_extra_frames", "r_upscale_model",
    ):  # fmt: skip
        assert f"{key}: " in notes
    assert "W: 100 is drawn as 96" in notes
    assert without_effect(load_settings({})) == []


def test_settings_of_forks_are_told():
    forks = {"shake_name": "INVESTIGATION", "shake_speed": 1, "wan_t2v_model": "x", "zom": 1}
    assert load_settings(forks | {"prompts": {"0": ""}}).notes == [
        "ignored, as the camera shake of Deforum's Forge fork is not available: shake_name, "
        "shake_speed",
        "ignored, as the video model Wan is not available: wan_t2v_model",
        "ignored, as not known: 'zom' (is zoom meant?)",
    ]


def test_report():
    settings = load_settings(
        {
            "max_frames": 24, "fps": 12, "diffusion_cadence": 3, "W": 130, "cn_1_enabled": True,
            "angle": "0:(0), 23:(23)", "prompts": {"0": "a cat", "max_f": "b `t`", "50": "c"},
            "zom": 1, "network_schedules": {"style": "0:(0.5)"},
        },
        origin="a.txt",
    )  # fmt: skip
    text = settings_report(settings)
    for line in (
        "a.txt: 2D, 128 × 512",
        "24 frames, 2.0 s at 12 fps",
        "8 of them generated by the model, the others moved",
        "seed by chance, iter",
        "Schedules at frames 0, 6, 12, 17, 23:",
        "  angle: 0, 6, 12, 17, 23",
        "  translation_x: 0",
        "  network style: 0.5",
        "  0: a cat",
        "  23: b `t` (with formulas)",
        "  50 (after the end): c",
        "  W: 130 is drawn as 128",
        "  ignored, as not known: 'zom' (is zoom meant?)",
        "  cn_1_enabled: ControlNet units are not supported yet; set it to false",
    ):
        assert line in text.splitlines()
    assert "rotation_3d_x" not in text and "translation_z" not in text
    with pytest.raises(InputError, match="prompts, frame 0, column 2"):
        settings_report(load_settings({"prompts": "`x`"}))


MANIFEST = {
    "options": {"output_fps": 24, "cadence": 4},
    "rendered_frames": [
        {
            "frame": n, "zoom": 1 + n, "zoom_delta": 1.5, "angle": 3 * n, "scale": 7 + n,
            "antiblur_kernel": 5.0, "guided_blendFactorMax": 0.25, "seed": 100 + n, "strength": n,
            "deforum_prompt": f"cat {n} --neg `t`", "sampler_schedule": "DDIM", "noise_pc": 3,
        }
        for n in range(4)
    ],
}  # fmt: skip


def test_parseq_stands_in_the_place_of_schedules():
    settings = load_settings({"parseq_manifest": json.dumps(MANIFEST), "seed": 1, "zoom": "0:(9)"})
    assert (settings["fps"], settings["diffusion_cadence"], settings["max_frames"]) == (24, 4, 4)
    assert settings["seed_behavior"] == "schedule" and settings["enable_subseed_scheduling"]
    assert not settings["enable_perspective_flip"]
    assert "max_frames: 4, by the Parseq manifest" in settings.notes
    schedules = Schedules.of(settings)
    assert schedules.zoom == [1.5] * 4
    assert schedules.angle == [0] * 4  # there is no angle_delta: the schedule's own
    assert schedules.cfg_scale_schedule == [7, 8, 9, 10]
    assert schedules.seed_schedule == [100, 101, 102, 103]
    assert schedules.kernel_schedule == [5] * 4 and isinstance(schedules.kernel_schedule[0], int)
    assert schedules.blendFactorMax == [0.25] * 4
    assert schedules.image_strength_schedule == schedules.strength_schedule == [0, 1, 2, 3]
    assert schedules.sampler_schedule == ["DDIM"] * 4
    assert schedules.noise_schedule == [0.065] * 4
    prompts = frame_prompts(settings)
    assert [tuple(one[:2]) for one in prompts[2:]] == [("cat 2", "2"), ("cat 3", "3")]


def test_parseq_without_deltas_and_overrides(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    settings = {
        "parseq_manifest": "manifest.json", "parseq_use_deltas": False, "max_frames": 6,
        "parseq_non_schedule_overrides": False, "fps": 10,
    }  # fmt: skip
    (tmp_path / "a.txt").write_text(json.dumps(settings))
    loaded = load_settings(tmp_path / "a.txt")
    assert (loaded["fps"], loaded["max_frames"], loaded["diffusion_cadence"]) == (10, 6, 2)
    schedules = Schedules.of(loaded.replace(seed=0))
    assert schedules.zoom == [1, 2, 3, 4, 4, 4]  # the last value stays
    assert schedules.angle == [0, 3, 6, 9, 9, 9]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("https://x.org/a", "is not downloaded; save it"),
        ("none.json", "expected JSON or a file; 'none.json' cannot be read: No such file"),
        ("{", "is not JSON"),
        ("{}", "expected rendered_frames"),
        ({"rendered_frames": [{"frame": "0"}]}, r"rendered_frames\[0\] has no frame"),
        ({"rendered_frames": [{"frame": 0, "noise": "x"}]}, "frame 0, noise: expected a number"),
        ({"rendered_frames": [{"frame": 0}], "options": {"cadence": 0}}, "diffusion_cadence: must"),
    ],
)
def test_manifests_that_cannot_be_used(manifest, message):
    with pytest.raises(InputError, match=f"parseq_manifest.*{message}"):
        Schedules.of(load_settings({"parseq_manifest": manifest}))


def test_report_shows_the_prompts_of_the_manifest():
    """Those that are drawn, and not the file's."""
    frames = [{"frame": n, "deforum_prompt": text} for n, text in enumerate(["a", "a", "b"])]
    manifest = json.dumps({"rendered_frames": frames})
    text = settings_report(load_settings({"parseq_manifest": manifest, "prompts": {"0": "mine"}}))
    assert "mine" not in text
    assert "Prompts:\n  by the Parseq manifest\n  0: a\n  2: b" in text


def report_of(tmp_path, *overrides, **settings):
    """What `--check` prints, and its exit status."""
    plain = {"W": 64, "H": 64, "max_frames": 3, "steps": 3, "legacy_colormatch": False}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(plain | {"prompts": {"0": "red apple"}} | settings), "utf-8")
    return main([str(path), *overrides, "--check"])


def test_check_finds_what_drawing_would_reject(tmp_path, capsys):
    assert report_of(tmp_path) == 0
    assert "Problems" not in capsys.readouterr().out
    settings = {"restore_faces": True, "prompts": {"0": "a <lora:nothere:0.8>"}}
    assert report_of(tmp_path, **settings) == 0
    out = capsys.readouterr().out
    assert "  restore_faces: 'CodeFormer' needs weights" in out
    assert "  frame 0: <lora:nothere>: no file of this name was searched for" in out
    assert report_of(tmp_path, motion_preview_mode=True, **settings) == 0
    assert "Problems" not in capsys.readouterr().out  # no model draws
    scheduled = {"enable_checkpoint_scheduling": True, "checkpoint_schedule": '0: ("gone")'}
    assert report_of(tmp_path, **scheduled) == 0
    assert "checkpoint_schedule: there is no model 'gone'" in capsys.readouterr().out
    assert report_of(tmp_path, animation_mode="3D", depth_model="no/such/folder") == 0
    assert "  depth_model: there is no folder 'no/such/folder'" in capsys.readouterr().out
    assert report_of(tmp_path, network_schedules={"ink": "0:(1)"}) == 0
    assert "network_schedules.ink: neither an artifact" in capsys.readouterr().out
    assert report_of(tmp_path, "base_model.path=gone.safetensors") == 2
    assert "base_model.path: no such file: 'gone.safetensors'" in capsys.readouterr().err


def test_check_reads_the_folders_of_networks_once(tmp_path, capsys, monkeypatch):
    tensors = {
        f"lora_unet_mid_block.lora_{half}.weight": torch.ones(1, 1) for half in ("up", "down")
    }
    for name in ("ink", "oil"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    read = []
    monkeypatch.setattr(library, "files_in", lambda *given: read.append(given) or files_in(*given))
    prompts = {"0": "a <lora:ink:1>", "1": "b <lora:oil:1>", "2": "c <lora:ink:0.5>"}
    assert report_of(tmp_path, f"artifact_dirs=[{tmp_path}]", prompts=prompts) == 0
    assert "Problems" not in capsys.readouterr().out
    assert len(read) == 1


def test_check_reads_the_range_of_the_video(tmp_path, capsys):
    folder = tmp_path / "frames"
    folder.mkdir()
    for n in range(4):
        Image.new("RGB", (64, 64), (n, 0, 0)).save(folder / f"{n}.png")
    colors = [Image.new("RGB", (64, 64), (90 * n, 0, 0)) for n in range(3)]
    colors[0].save(tmp_path / "v.gif", save_all=True, append_images=colors[1:])
    settings = {"animation_mode": "Video Input", "video_init_path": str(folder)}
    assert report_of(tmp_path, **settings) == 0
    assert "Problems" not in capsys.readouterr().out
    assert report_of(tmp_path, extract_from_frame=9, **settings) == 0
    expected = f"  video_init_path: no frames of {folder} are left with extract_from_frame=9"
    assert expected in capsys.readouterr().out
    settings["video_init_path"] = str(tmp_path / "v.gif")
    (tmp_path / "a.json").touch()
    before = sorted(tmp_path.rglob("*"))
    assert report_of(tmp_path, **settings) == 0
    assert "Problems" not in capsys.readouterr().out
    assert report_of(tmp_path, extract_from_frame=3, **settings) == 0
    assert "are left with extract_from_frame=3" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written


def test_loudness_of_sine_tones():
    """A second of silence, one of 100 Hz, one of 1 kHz at half the height."""
    time = np.arange(RATE) / RATE
    tones = [0 * time, np.sin(2 * math.pi * 100 * time), 0.5 * np.sin(2 * math.pi * 1000 * time)]
    levels = measure(np.concatenate(tones), RATE, fps=10, num_frames=40)
    middle = {name: [values[n] for n in (5, 15, 25, 35)] for name, values in levels.items()}
    assert middle["rms"] == pytest.approx([0, 1, 0.5, 0], abs=2e-3)
    assert middle["bass"] == pytest.approx([0, 1, 0, 0], abs=0.02)
    assert middle["mid"] == pytest.approx([0, 0, 1, 0], abs=0.02)
    assert max(map(max, levels.values())) == 1
    assert all(len(values) == 40 for values in levels.values())
    silent = measure(np.zeros(0), RATE, fps=10, num_frames=3)
    assert silent["rms"].tolist() == [0, 0, 0]


def test_sound_drives_schedules(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "a.wav"
    rate = 8000
    tone = np.sin(2 * math.pi * 100 * np.arange(rate) / rate)
    samples = (np.concatenate([0 * tone, tone]) * 30000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    settings = load_settings(
        {"audio_path": str(path), "zoom": "0:(1+0.1*rms)", "fps": 10, "max_frames": 25, "seed": 0}
    )
    zoom = Schedules.of(settings).zoom
    assert zoom[5] == pytest.approx(1, abs=1e-3)
    assert zoom[15] == pytest.approx(1.1, abs=1e-3)
    assert zoom[24] == 1  # behind the end
    assert audio_variables(str(path), 10, 25)["bass"][15] == pytest.approx(1, abs=0.02)
    (tmp_path / "no.wav").write_text("no sound")
    for name, message in [("none.wav", "there is no such file"), ("no.wav", "cannot be decoded")]:
        with pytest.raises(InputError, match=f"audio_path: .*{message}"):
            audio_variables(str(tmp_path / name), 10, 25)
