"""Everything that drawing and converting write, on disks that are full or read-only."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.path_sweep import Case, answers

IMAGES = """
base_model: {{path: {base}}}
settings: {{steps: 1, seed: 1}}
images: {{a: {{prompt: cat}}, b: {{prompt: dog}}}}
output_dir: {out}
"""
CLIPS = """
type: clip
base_model: {{path: {base}}}
settings: {{steps: 1, width: 32, height: 32, frames: 9, seed: 1}}
clips: {{a: {{prompt: cat}}}}
output_dir: {out}
"""
ANIMATION = """
type: animation
base_model: {{path: {base}}}
settings: {{max_frames: 2, W: 16, H: 16, steps: 1, prompts: {{"0": cat}}}}
output_dir: {out}
"""
WRITERS = {
    "images": "draw images.yaml",
    "jpeg": "draw images.yaml file_format=jpg",
    "clip as gif": "draw clips.yaml formats=[gif]",
    "clip as webp": "draw clips.yaml formats=[webp]",
    "clip as mp4": "draw clips.yaml formats=[mp4]",
    "animation": "draw animation.yaml",
    "convert to a file": "convert BASE OUT/new.safetensors --to single-file --dtype fp16",
    "convert to a folder": "convert model.safetensors OUT/new --to diffusers",
}


@pytest.fixture
def folder(tmp_path: Path, tiny_base_folder: Path, tiny_video_folder: Path) -> Iterator[Path]:
    """Recipes, and a folder that can be deleted afterwards."""
    bases = {"images": tiny_base_folder, "clips": tiny_video_folder, "animation": tiny_base_folder}
    for name, text in (("images", IMAGES), ("clips", CLIPS), ("animation", ANIMATION)):
        (tmp_path / f"{name}.yaml").write_text(text.format(base=bases[name], out=tmp_path / "out"))
    yield tmp_path
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)


@pytest.mark.slow
def test_a_disk_that_takes_nothing_is_one_message_that_names_the_file(
    folder: Path, tiny_base_folder: Path
) -> None:
    cases: list[Case] = []
    out = folder / "out"
    out.mkdir()
    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    for name, arguments in WRITERS.items():
        line = arguments.replace("BASE", str(tiny_base_folder))
        command = line.replace("OUT", str(out)).split()
        cases.append((f"{name}, full", command, 100))
        command = line.replace("OUT", str(closed)).split()
        output = [f"output_dir={closed}"] if command[0] == "draw" else []
        cases.append((f"{name}, read-only", [*command, *output], None))
    made = f"convert {tiny_base_folder} {folder}/model.safetensors --to single-file"
    first, *others = answers([("a model", made.split(), None), *cases], folder)
    assert first.status == 0, first
    for one in others:
        print(f"{one.name}: {one.status}: {one.err}")
        where, reason = out, "File too large"
        if "read-only" in one.name:
            where, reason = closed, "Permission denied"
        assert one.is_a_message, one
        assert str(where) in one.err, one
        assert reason in one.err, one
    assert [path for path in out.rglob("*") if path.is_file() and not path.stat().st_size] == []
    assert not list(out.rglob(".*"))
