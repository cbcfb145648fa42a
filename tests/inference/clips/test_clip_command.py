"""Recipes of `type: clip`, from the command line to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference.__main__ import main
from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.clips.command import draw_with
from inference.clips.drawing import draw_clips
from inference.clips.output import write_webp
from inference.clips.requests import crops_of, expand
from inference.clips.windows import blend_weights, windows
from inference.config.clips import ClipConfig, ClipsRecipe
from inference.config.recipes import draw_schema
from inference.images.infotext.reading import read_infotext
from inference.inspect import inspect
from inference.media.grid import grid_cells
from inference.media.video_reading import read_clip
from inference.media.video_writing import iter_frames
from inference.models.cogvideox.model import VideoModel
from inference.recipe.layers import RecipeError
from inference.recipe.loader import load_recipe
from inference.runtime.devices import Processes
from inference.runtime.errors import InputError
from tests.inference.artifacts.adapters.low_rank_layers import low_ranks

RECIPE = """\
type: clip
base_model: {{path: {base}}}
output_dir: {out}
formats: [mp4, gif, webp]
save_text: true
settings: {{steps: 2, width: 32, height: 32, frames: 9, negative_prompt: "a, b"}}
clips:
  ball: {{prompt: a red ball, seed: 4, count: 2}}
  cube: {{prompt: "a cube: blue", fps: 16}}
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_video_folder: Path) -> Path:
    file = tmp_path / "clip.yaml"
    text = RECIPE.format(base=tiny_video_folder, out=tmp_path / "out")
    file.write_text(text, encoding="utf-8")
    return file


def test_from_recipe_to_files(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe)]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    names = [
        f"{name}.{kind}"
        for name in ("00000-4", "00001-5", "00002-0")
        for kind in ("mp4", "gif", "webp", "txt")
    ]
    assert [path.name for path in paths] == [*names, "sheet-0000.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in paths
    )
    mp4, gif, webp, text = (tmp_path / "out" / name for name in names[:4])
    infotext = text.read_text(encoding="utf-8").rstrip("\n")
    assert infotext.startswith(
        "a red ball\nNegative prompt: a, b\nSteps: 2, Sampler: CogVideoX DDIM, CFG scale: 6, "
        "Seed: 4, Size: 32x32, Frames: 9, FPS: 8, Model hash: "
    )
    facts = inspect(mp4)
    assert facts["infotext"] == infotext
    assert (facts["size"], facts["frames"], facts["fps"]) == ("32x32", "9", "8")
    assert read_infotext(gif) == read_infotext(webp) == infotext
    assert inspect(tmp_path / "out" / "00002-0.mp4")["fps"] == "16"
    sheet = Image.open(tmp_path / "out" / "sheet-0000.png")
    with Image.open(webp) as opened:
        frames = []
        for number in range(getattr(opened, "n_frames", 1)):
            opened.seek(number)
            frames.append(np.asarray(opened.convert("RGB")))
    assert len(frames) == 9
    assert len(list(iter_frames(mp4, "video"))) == 9
    rows = grid_cells(sheet)
    assert [len(row) for row in rows] == [8, 8, 8]
    assert np.array_equal(np.asarray(rows[0][0]), frames[0])
    assert np.array_equal(np.asarray(rows[0][7]), frames[8])
    assert sheet.info["parameters"].startswith(f"{infotext}\n\n")

    assert main([str(recipe), "formats=[webp]", "contact_sheet=false", "clips.cube=null"]) == 0
    again = Path(capsys.readouterr().out.splitlines()[0])
    assert again.name == "00003-4.webp"
    assert again.read_bytes() == webp.read_bytes()


def test_strengths_of_a_lora_side_by_side(
    recipe: Path, tmp_path: Path, tiny_video_model: VideoModel, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 0 the base model's clip, at 1 another, in files as in memory."""
    layers = ["attention"]
    lora = Lora.create(tiny_video_model, LoraSpec(2, 1.0, 0.0, layers, False), seed=3)
    generator = torch.Generator().manual_seed(1)
    for layer in low_ranks(lora).values():
        for weight in (layer.lora_A.weight, layer.lora_B.weight):
            torch.nn.init.normal_(weight, std=0.5, generator=generator)
    lora.name = "spinning"
    lora.save(tmp_path / "spinning.safetensors", torch.float32, {})
    lora.attach(tiny_video_model)
    clip = ClipConfig(prompt="a", steps=2, width=32, height=32, frames=9, negative_prompt="a, b")
    trained = draw_clips(tiny_video_model, expand(tiny_video_model, [clip]))[0].frames
    lora.detach()
    plain = draw_clips(tiny_video_model, expand(tiny_video_model, [clip]))[0].frames

    overrides = [
        "clips={ball: null, cube: null, one: {prompt: a}}",
        f"artifacts.one.path={tmp_path / 'spinning.safetensors'}",
        "compare_strengths=[0, 1]",
        "formats=[webp]",
    ]
    assert main([str(recipe), *overrides]) == 0
    without, _, with_lora, _, sheet = map(Path, capsys.readouterr().out.splitlines())
    assert np.array_equal(read_clip(without).frames, plain)
    assert np.array_equal(read_clip(with_lora).frames, trained)
    assert not np.array_equal(plain, trained)
    assert (read_infotext(without) or "").startswith("a\n")
    assert (read_infotext(with_lora) or "").startswith("a <lora:spinning:1>\n")
    with Image.open(sheet) as opened:
        assert len(grid_cells(opened)) == 2


class Second(Processes):
    """The second of two processes; the first one's part is drawn here too."""

    count, rank, local_rank = 2, 1, 1

    def __init__(self) -> None:
        """Without others to speak to."""

    def together(self, work: Callable[[], Any]) -> Any:
        return work()

    def broadcast_from_main(self, value: Any) -> Any:
        return value

    def share(
        self, jobs: Sequence[Any], work: Callable[[Any], Any], together: int = 1
    ) -> Iterator[Any]:
        assert together == 1
        return map(work, jobs)


def test_only_the_first_process_writes(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_recipe(str(recipe), draw_schema, ["clips.ball=null"])
    assert isinstance(loaded, ClipsRecipe)
    draw_with(loaded, Second())
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


def test_a_model_of_pictures_is_refused(recipe: Path, tiny_base_folder: Path) -> None:
    overrides = [f"base_model.path={tiny_base_folder}"]
    loaded = load_recipe(str(recipe), draw_schema, overrides)
    assert isinstance(loaded, ClipsRecipe)
    with pytest.raises(InputError, match="draws no clips; give a CogVideoX model"):
        draw_with(loaded, Second())


def test_check_draws_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe), "--check", "clips.cube.video=nowhere.mp4"]) == 0
    reported = capsys.readouterr().out
    assert "clip ball: a red ball\n  seed 4 and 1 more, 2 steps" in reported
    assert "video: nowhere.mp4 (not there)" in reported
    assert "clips: 3, each as mp4, gif, webp" in reported
    assert not (tmp_path / "out").exists()


def test_check_rounds_as_drawing_does(
    recipe: Path, tiny_video_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ["settings.frames=20", "settings.width=41", "clips.cube=null"]
    assert main([str(recipe), "--check", *odd]) == 0
    reported, noted = capsys.readouterr()
    assert "  frames: 17; size: 48 x 32; fps: 8\n" in reported
    assert "sampler ddim," in reported
    assert "frames: 17 instead of 20" in noted
    assert "width: 48 instead of 41" in noted
    assert main([str(recipe), *odd, "formats=[gif]"]) == 0
    drawn = Path(capsys.readouterr().out.partition("\n")[0])
    with Image.open(drawn) as picture:
        assert (picture.width, picture.height) == (48, 32)
    assert main([str(recipe), "--check", "base_model.path=gone/away"]) == 0
    reported = capsys.readouterr().out
    assert "sizes and lengths are not checked: " in reported
    assert "  frames: 9; size: 32 x 32; fps: the model's own" in reported
    assert main([str(recipe), "--check", "clips.ball.image=a.png"]) == 0
    assert "  problem: image: " in capsys.readouterr().out


def test_crops_are_reported(tmp_path: Path) -> None:
    """A portrait picture of image-to-video loses most of itself."""
    path = tmp_path / "a.png"
    Image.new("RGB", (480, 720)).save(path)
    clip = ClipConfig(prompt="", image=str(path), end_image=str(path))
    first, last = crops_of(clip, 720, 480)
    assert first == (
        f"image: {path} is 480x720; its middle 480x320 is shown (44%), as the clip is 720x480"
    )
    assert last == first.replace("image:", "end_image:")
    assert list(crops_of(clip, 32, 48)) == []
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (480, 720)).save(tmp_path / "t.jpg", exif=turned)
    assert list(crops_of(ClipConfig(prompt="", image=str(tmp_path / "t.jpg")), 720, 480)) == []
    frames = np.zeros((2, 20, 40, 3), np.uint8)
    write_webp(tmp_path / "v.webp", frames, 8, "")
    (line,) = crops_of(ClipConfig(prompt="", video=str(tmp_path / "v.webp")), 32, 32)
    assert line.startswith(
        f"video: {tmp_path / 'v.webp'} is 40x20; its middle 20x20 is shown (50%)"
    )


def test_clips_inherit_the_settings(recipe: Path) -> None:
    loaded = load_recipe(str(recipe), draw_schema, ["settings.fps=4"])
    assert isinstance(loaded, ClipsRecipe)
    ball, cube = loaded.clips["ball"], loaded.clips["cube"]
    assert ball is not None
    assert cube is not None
    assert (ball.fps, cube.fps, cube.steps, cube.prompt) == (4, 16, 2, "a cube: blue")


@pytest.mark.parametrize(
    ("override", "reported"),
    [
        ("settings.cfg_scale=0.5", "settings.cfg_scale: must be 1 (no guidance) or more"),
        ("settings.cfg_scales=[1, 2, 3]", "settings.cfg_scales: 3 numbers for 2 steps"),
        ("clips.ball.end_image=a.png", "clips.ball.end_image: needs image"),
        ("clips.ball={image: a.png, video: b.mp4}", "clips.ball.video: cannot be used beside"),
        ("clips.ball={video: b.mp4, strength: 0.1}", "clips.ball.strength: 0.1 of 2 steps"),
        ("formats=[avi]", "formats: expected some of mp4, gif, webp"),
        ("cache=mag_cache", "cache_settings.mag_ratios: must be given"),
        ("clips.ball={window: 8, overlap: 8}", "clips.ball.overlap: must lie in 0 … window - 1"),
        ("settings.sampler=euler", "settings.sampler: expected one of Euler, "),
        ("settings.dynamic_cfg=off", "settings.dynamic_cfg: Invalid value 'off', expected one of"),
    ],
)
def test_faults_are_told_before_anything_is_loaded(
    recipe: Path, override: str, reported: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(str(recipe), draw_schema, [override])
    assert reported in str(refused.value)


@pytest.mark.parametrize("sampler", ["Heun", "DPM fast"])
def test_mag_cache_needs_one_evaluation_a_step(recipe: Path, sampler: str) -> None:
    overrides = ["cache=mag_cache", "cache_settings.calibrate=true", f"settings.sampler={sampler}"]
    with pytest.raises(RecipeError, match=r"sampler: does not evaluate the model once"):
        load_recipe(str(recipe), draw_schema, overrides)


@pytest.mark.parametrize(
    ("total", "length", "overlap", "multiple", "expected"),
    [
        (5, 5, 2, 1, [(0, 5)]),
        (5, 3, 1, 1, [(0, 3), (2, 5)]),
        (8, 4, 1, 2, [(0, 4), (2, 6), (4, 8)]),
        (7, 3, 0, 1, [(0, 3), (3, 6), (4, 7)]),
    ],
)
def test_windows_cover_and_shares_add_up(
    total: int, length: int, overlap: int, multiple: int, expected: list[tuple[int, int]]
) -> None:
    places = windows(total, length, overlap, multiple)
    assert [(place.start, place.stop) for place in places] == expected
    sums = np.zeros(total)
    for place, weights in zip(places, blend_weights(places), strict=True):
        assert min(weights) > 0
        sums[place] += weights
    assert np.allclose(sums, 1)


def test_shares_fall_off_in_a_straight_line() -> None:
    first, second = blend_weights([slice(0, 4), slice(1, 5)])
    assert first == pytest.approx([1, 0.75, 0.5, 0.25])
    assert second == pytest.approx([0.25, 0.5, 0.75, 1])


def test_webp_keeps_frames_that_are_equal(tmp_path: Path) -> None:
    """Odd sides; nothing changes, then one pixel, then much; times do not drift."""
    frames = np.zeros((7, 15, 21, 3), np.uint8)
    frames[2:, 7, 9] = 200
    frames[4:] = np.random.default_rng(0).integers(0, 256, (15, 21, 3), dtype=np.uint8)
    frames[6, 14, 20] = frames[6, 14, 20] ^ 1
    path = tmp_path / "clip.webp"
    write_webp(path, frames, 12, "a cat\nSteps: 1, Seed: 2, Size: 21x15")
    assert np.array_equal(read_clip(path).frames, frames)
    assert read_infotext(path) == "a cat\nSteps: 1, Seed: 2, Size: 21x15"
    with Image.open(path) as opened:
        assert opened.info["loop"] == 0
        durations = []
        for number in range(7):
            opened.seek(number)
            opened.load()
            durations.append(opened.info["duration"])
    assert durations == [83, 84, 83, 83, 84, 83, 83]
    write_webp(path, frames[:2], 12, "")
    assert read_clip(path).frames.shape == (2, 15, 21, 3)


def test_a_missing_model_is_told_as_such(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(str(recipe), draw_schema, [f"base_model.path={tmp_path / 'no'}"])
    assert isinstance(loaded, ClipsRecipe)
    with pytest.raises(InputError, match="not a diffusers folder of the CogVideoX layout"):
        draw_with(loaded, Second())
