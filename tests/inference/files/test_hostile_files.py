"""Files that would exhaust a machine, or draw nothing: one message each, and in no time."""

import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from importlib.metadata import EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from inference.artifacts import load_artifact
from inference.artifacts.adapters.lora_keys import layers_of
from inference.artifacts.adapters.low_rank import LowRank, hang_in
from inference.images import load_picture
from inference.images.redraw import LONGEST_NOTE, MOST_NOTES, called_here, recipe_from_infotext
from inference.inspect import main as inspect
from inference.recipe import plugins
from inference.runtime import ArtifactError, InputError


def bomb(path: Path, side: int) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    signature = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(signature + chunk(b"IHDR", head) + body + chunk(b"IEND", b""))
    return path


def test_decompression_bombs_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bomb(tmp_path / "bomb.png", 60000)
    with pytest.raises(InputError, match="cannot be read as a picture"):
        load_picture(path)
    assert inspect([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"inspect: {path}: cannot be read as a picture: ")
    assert said.count("\n") == 1
    with pytest.raises(ArtifactError, match="cannot be read as a picture"):
        load_artifact(path)


def test_pipes_and_devices_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reading one would wait for ever, or never end."""
    for name in ("x.png", "x.safetensors", "x.pt", "x.txt", "x.mp4"):
        os.mkfifo(tmp_path / name)
        assert inspect([str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.endswith(
            "is a pipe or a device, which is not read; name a file\n"
        )
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for read in (load_picture, load_artifact):
        for name in ("x.png", "zero.png"):
            with pytest.raises(InputError, match="is a pipe or a device"):
                read(tmp_path / name)
    from inference.deforum import load_settings_recipe, recipe_settings

    with pytest.raises(InputError, match="is a pipe or a device"):
        recipe_settings(load_settings_recipe(str(tmp_path / "x.txt"), []))


def picture(path: Path, infotext: str) -> Path:
    info = PngInfo()
    info.add_text("parameters", infotext)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def calls_in(work: Callable[[], Any]) -> int:
    """How many Python functions are called."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize(
    "part", ["<lora:", "<lora:a:", "<lora:a", "<", "(", "[", "\\", "a:b,", ":1", "<lora:a:1:2:3"]
)
def test_prompts_of_any_shape_take_linear_time(part: str) -> None:
    """A million characters; with the old expression `<lora:` alone took hours."""
    prompt = part * (1_000_000 // len(part))
    notes: list[str] = []
    assert called_here(prompt, {}, [], notes) == prompt or notes


def test_notes_are_few_and_short(tmp_path: Path) -> None:
    """Of hundreds of thousands of keys and tags that are not known."""
    keys = ", ".join(f"Key {n}: {'x' * 10}" for n in range(20_000))
    tags = "".join(f"<lora:l{n}:1>" for n in range(2000))
    text = f"a {tags}\nSteps: 3, Long: {'y' * 100_000}, Seed: 1, {keys}"
    made = recipe_from_infotext(text, [tmp_path])
    assert len(made.notes) == MOST_NOTES + 1
    assert max(map(len, made.notes)) <= LONGEST_NOTE + 1
    assert "more notes" in made.notes[-1]
    assert "<lora" not in made.recipe["images"]["picture"]["prompt"]


def test_long_infotext_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 2_000_000 + "\nSteps: 3, Seed: 1, Size: 8x8")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="characters; expected 1048576 at most"):
        load_picture(tmp_path / "a.png")


INFOTEXT_NUMBERS = (
    "Steps: {}", "Seed: {}", "CFG scale: {}", "Size: {}x{}", "Clip skip: {}", "Hires upscale: {}",
    "Hires steps: {}", "Hires resize: {}x{}", "ENSD: {}", "Eta: {}", "Variation seed: {}",
    "Seed resize from: {}x{}", "Schedule rho: {}", "First pass size: {}x{}", "NGMS: {}",
)  # fmt: skip
NUMBERS = ("0", "-1", "99999999999", "9" * 400, "9" * 5000, "nan", "inf", "1e400", "1e30", "")


@pytest.mark.filterwarnings("ignore")
def test_numbers_of_an_infotext_are_taken_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "entry_points", EntryPoints)  # slow to look for
    for entry in INFOTEXT_NUMBERS:
        for value in NUMBERS:
            line = entry.format(value, value)
            rest = "".join(
                f", {one}" for one in ("Steps: 3", "Seed: 1", "Size: 64x64") if one[:4] != line[:4]
            )
            path = picture(tmp_path / "n.png", f"a cat\n{line}{rest}, Model: x")
            try:
                recipe, notes = load_picture(path, ["base_model.path=picto"])
            except InputError as error:
                assert all(len(one) < 700 for one in str(error).split("\n")), line
            else:
                assert all(len(note) <= LONGEST_NOTE + 1 for note in notes)
                settings = recipe.settings
                assert settings.steps <= 10_000 and (settings.width or 0) <= 16_384, line
                assert settings.hires is None or settings.hires.upscale <= 16, line


def test_inspect_cuts_long_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"lora_unet_a.lora_down.weight": torch.ones(2, 4),
               "lora_unet_a.lora_up.weight": torch.ones(4, 2)}  # fmt: skip
    metadata = {"ss_long": "z" * 1_000_000} | {f"k{n}": "v" for n in range(5000)}
    save_file(tensors, path, metadata)
    assert inspect([str(path)]) == 0
    printed = capsys.readouterr().out
    assert len(printed) < 200_000
    assert "more" in printed


def test_attaching_does_not_walk_through_what_is_attached() -> None:
    """With hundreds of LoRAs on a layer, each further one would walk through all before it."""
    part = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(6)))
    names = [path for path, _ in layers_of(part)]
    modules = [module for _, module in layers_of(part)]
    before = calls_in(lambda: list(layers_of(part)))
    for number in range(40):
        for name in names:
            low_rank = LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)
            hang_in(part, name, f"slot{number}", low_rank)
    assert [path for path, _ in layers_of(part)] == names
    assert all(one is other for (_, one), other in zip(layers_of(part), modules, strict=True))
    assert calls_in(lambda: list(layers_of(part))) < 12 * before


def test_json_of_an_embedding_picture_is_bounded(tmp_path: Path) -> None:
    """Deep nesting in its text is a message."""
    import base64

    info = PngInfo()
    text = "[" * 100_000
    info.add_text("sd-ti-embedding", base64.b64encode(text.encode()).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(ArtifactError, match="carries an embedding that is damaged"):
        load_artifact(tmp_path / "x.png")
    assert json.dumps(text)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"junk", b"\x80\x02}q\x00.", b"cos\nsystem\n(S'x'\ntR.", b"\x80\x04K\x01.",
     b"PK\x03\x04" + b"\0" * 50, b"\x80\x02c__builtin__\neval\nq\x00."],
)  # fmt: skip
def test_no_message_advises_to_run_the_code_of_a_pickle(content: bytes, tmp_path: Path) -> None:
    from train.runs.tensor_comparison import read_tensors as compared

    path = tmp_path / "x.pt"
    path.write_bytes(content)
    for read in (load_artifact, compared):
        with pytest.raises(InputError) as caught:
            read(path)
        message = str(caught.value)
        assert "weights_only" not in message and "two options" not in message
        assert "\x1b" not in message and message.count("\n") == 0
