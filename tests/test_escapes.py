"""Every command, with names and texts that would command a terminal: all come out escaped."""

import os
from collections.abc import Callable
from importlib.metadata import EntryPoints
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from inference import convert, inspect
from inference.__main__ import main as draw
from inference.deforum import stitch
from inference.recipe import PLUGIN_VARIABLE, plugins
from train import cli

EVIL = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202egnp"
COMMANDING = {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), 0x202E)}

HEAD = "name: x\nobjective: {type: lora}\ndata: {path: .}\n"
RECIPES = {
    "an unknown key": f'"{EVIL}": 1',
    "a value": f'name: x\nmixed_precision: "{EVIL}"\nobjective: {{type: lora}}',
    "a type": f'objective: {{type: "{EVIL}"}}',
    "a path": f'name: x\nobjective: {{type: lora}}\ndata: {{path: "{EVIL}"}}',
    "a base model": f'{HEAD}base_model: {{path: "{EVIL}"}}',
    "a base": f'base: "{EVIL}.yaml"',
    "a plug-in": f'plugins: ["{EVIL}"]\nobjective: {{type: lora}}',
    "a reference": f'name: "${{{EVIL}}}"\nobjective: {{type: lora}}\ndata: {{path: .}}',
    "an entry": f'{HEAD}sampling: {{images: {{"{EVIL}": {{}}}}}}',
    "a tag": f"name: !{EVIL} x",
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "entry_points", EntryPoints)
    return tmp_path


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was printed, by whatever way, after a check."""

    def read() -> str:
        captured = capfd.readouterr()
        text = captured.out + captured.err
        assert text.strip()
        found = COMMANDING & set(text)
        assert not found, repr(text)
        return text

    return read


def yaml_of(text: str) -> str:
    """YAML has none of these characters but as escapes in double quotes."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in text)


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes(kind: str, printed: Callable[[], str]) -> None:
    text = RECIPES[kind] if kind == "a tag" else yaml_of(RECIPES[kind])
    Path("r.yaml").write_text(text)
    for command in ("train", "plan"):
        assert cli.main([command, "r.yaml"]) == 2
        printed()
    assert draw(["r.yaml"]) == 2
    printed()


@pytest.mark.parametrize("override", [f"{EVIL}=1", f"name={EVIL}", f"data.path={EVIL}", EVIL])
def test_overrides(override: str, printed: Callable[[], str]) -> None:
    Path("r.yaml").write_text("objective: {type: lora}\nbase_model: {path: no}")
    assert cli.main(["train", "r.yaml", "data.path=no", "name=x", override]) == 2
    printed()


@pytest.mark.parametrize(
    "arguments",
    [
        [EVIL], ["train", f"{EVIL}.yaml"], ["plan", EVIL], ["diff", EVIL, EVIL], ["rerun", EVIL],
        ["inspect", EVIL], ["list", EVIL], ["schema", EVIL], ["draw", f"{EVIL}.png"],
        ["draw", f"{EVIL}.txt"], ["stitch", EVIL], ["list", "samplers", f"plugins=[{EVIL}]"],
    ],
    ids=lambda arguments: arguments[0] if arguments[0] != EVIL else "none",
)  # fmt: skip
def test_arguments(arguments: list[str], printed: Callable[[], str]) -> None:
    assert cli.main(arguments) == 2
    printed()


def test_options_of_convert(printed: Callable[[], str]) -> None:
    with pytest.raises(SystemExit):
        convert.main([EVIL, "b", "--to", EVIL])
    printed()
    assert convert.main([f"{EVIL}.safetensors", "b.safetensors", "--to", "kohya"]) == 2
    printed()


def test_names_and_metadata_of_files(printed: Callable[[], str]) -> None:
    tensors = {f"lora_unet_{EVIL}.lora_down.weight": torch.ones(2, 4),
               f"lora_unet_{EVIL}.lora_up.weight": torch.ones(4, 2)}  # fmt: skip
    name = EVIL.replace("/", "")
    save_file(tensors, "plain.safetensors", {"ss_output_name": EVIL, EVIL: EVIL})
    os.rename("plain.safetensors", f"{name}.safetensors")  # noqa: PTH104
    assert inspect.main([f"{name}.safetensors"]) == 0
    assert r"\x1b]0;owned" in printed().replace("\n", "")
    info = PngInfo()
    info.add_text(
        "parameters", f"{EVIL}\nSteps: 1, Seed: 1, Size: 8x8, Key {EVIL}: {EVIL}, Model: {EVIL}"
    )
    Image.new("RGB", (8, 8)).save(f"{name}.png", pnginfo=info)
    assert inspect.main([f"{name}.png"]) == 0
    printed()
    assert draw([f"{name}.png", f"artifact_dirs=[{EVIL}]"]) == 2
    printed()
    Path(f"{name}.txt").write_text('{"' + yaml_of(EVIL) + '": 1, "W": "' + yaml_of(EVIL) + '"}')
    assert draw([f"{name}.txt", "--check"]) == 2
    printed()
    assert stitch.main([f"{name}.txt"]) == 2
    printed()


def test_names_of_plugins(printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLUGIN_VARIABLE, EVIL.replace(" ", ""))
    assert cli.main(["plugins"]) == 1
    printed()
    assert cli.main(["list", "samplers"]) == 2
    printed()


def test_names_and_captions_of_data(printed: Callable[[], str], tiny_base_folder: Path) -> None:
    data = Path("data") / EVIL
    data.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (16, 16), "red").save(data / f"{number}{EVIL}.png")
        (data / f"{number}{EVIL}.txt").write_text(f"{EVIL} " * 40)
    recipe = f"name: x\nbase_model: {{path: {tiny_base_folder}}}\nobjective: {{type: lora}}\n"
    Path("r.yaml").write_text(recipe + "data: {path: data}\n")
    assert cli.main(["plan", "r.yaml"]) == 0
    printed()
    (data / f"2{EVIL}.png").write_bytes(b"no picture")
    assert cli.main(["plan", "r.yaml"]) == 2
    printed()
