"""The commands `python -m inference` and `python -m inference.inspect`, from recipe to files."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inference import inspect
from inference.__main__ import main
from inference.images.infotext.reading import read_infotext
from inference.images.infotext.text import parse_infotext
from inference.media.grid import grid_cells

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path, tiny_base_folder, monkeypatch):
    """The arguments of a command that draws two pictures into tmp_path/out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        f"""\
base_model: {{path: "{tiny_base_folder}"}}
settings: {{steps: 2, seed: 5}}
images:
  cat: {{prompt: a cat}}
  dog: {{prompt: a dog, seed: 7}}
output_dir: out
"""
    )
    return ["recipe.yaml"]


@pytest.fixture
def lora(tiny_base, tmp_path):
    """A LoRA file, as kohya writes them, that changes what the tiny base model draws."""
    tensors, generator = {}, torch.Generator().manual_seed(1)
    for path, module in tiny_base.unet.named_modules():
        if path.endswith(("attn2.to_k", "attn2.to_v")):
            name = f"lora_unet_{path.replace('.', '_')}"
            rows, columns = module.weight.shape
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
            tensors[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    metadata = {"ss_base_model_version": "sd_v1", "ss_steps": "3"}
    save_file(tensors, tmp_path / "icons.safetensors", metadata)
    return tmp_path / "icons.safetensors"


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_draws_and_says_where(recipe, capsys):
    assert main(recipe) == 0
    paths = capsys.readouterr().out.split()
    assert paths == ["out/00000-5.png", "out/00001-7.png", "out/grid-0000.png"]
    assert sorted(map(str, Path("out").iterdir())) == sorted(paths)
    infotext = parse_infotext(read_infotext(Path(paths[1])) or "")
    assert infotext.prompt == "a dog"
    assert infotext.parameters["Seed"] == "7"
    (row,) = grid_cells(Image.open(paths[2]))
    assert np.array_equal(np.asarray(row[0]), pixels(paths[0]))


def test_never_overwrites_and_always_draws_the_same(recipe, capsys):
    assert main(recipe) == main([*recipe, "grid=false"]) == 0
    assert main([*recipe, "images.dog=null"]) == 0  # one picture makes no grid
    names = [Path(path).name for path in capsys.readouterr().out.split()]
    assert names == ["00000-5.png", "00001-7.png", "grid-0000.png",
                     "00002-5.png", "00003-7.png", "00004-5.png"]  # fmt: skip
    first, second = Path("out/00000-5.png"), Path("out/00002-5.png")
    assert first.read_bytes() == second.read_bytes()


def test_numbers_go_on_above_the_highest(recipe, capsys):
    Path("out").mkdir()
    for name in ("00041-1.png", "00007-2.jpg", "grid-0009.png", "notes.txt", "123-x.png"):
        Path("out", name).write_bytes(b"")
    assert main(recipe) == 0
    names = [Path(path).name for path in capsys.readouterr().out.split()]
    assert names == ["00042-5.png", "00043-7.png", "grid-0010.png"]


def test_strengths_are_compared(recipe, lora, capsys):
    assert main(recipe) == 0
    arguments = [*recipe, f"artifacts.icons.path={lora}", "compare_strengths=[0, 0.5, 1]"]
    assert main(arguments) == 0
    paths = capsys.readouterr().out.split()
    rows = grid_cells(Image.open(paths[-1]))
    assert [len(row) for row in rows] == [2, 2, 2]
    for number, path in enumerate(paths[3:9]):
        cell = rows[number // 2][number % 2]
        assert np.array_equal(np.asarray(cell), pixels(path))
    for plain, at_zero, at_one in zip(paths[:2], paths[3:5], paths[7:9], strict=True):
        assert np.array_equal(pixels(plain), pixels(at_zero))  # the base model's, bit for bit
        assert not np.array_equal(pixels(plain), pixels(at_one))
    infotexts = [parse_infotext(read_infotext(Path(path)) or "") for path in paths[3:9:2]]
    assert [one.prompt for one in infotexts] == [
        "a cat",
        "a cat <lora:icons:0.5>",
        "a cat <lora:icons:1>",
    ]
    assert "Lora hashes" not in infotexts[0].parameters
    assert infotexts[1].parameters["Lora hashes"].startswith("icons: ")
    assert len(infotexts[1].parameters["Lora hashes"]) == len("icons: ") + 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["settings.sed=1"], "draw: command line: settings.sed: Key 'sed' not in"),
        (["images.cat.width=18"], "draw: width: 18 pixels do not fit this base model"),
        (["base_model.path=nowhere"], "draw: base_model.path: 'nowhere' is neither"),
        (
            ["artifacts.a.path=nowhere.safetensors"],
            "draw: artifacts.a.path: nowhere.safetensors: no",
        ),
        (["artifacts.a.path=recipe.yaml"], "draw: recipe.yaml: "),
        (["device=gpu7"], "draw: device: 'gpu7' cannot be used here"),
        (["output_dir=recipe.yaml"], "draw: output_dir: 'recipe.yaml' cannot be a folder"),
        (["images.dog.prompt=a (dog:1.2.3)"], "draw: "),
        (["images.dog.negative_prompt=a (dog:1.2.3)"], "draw: "),
        (["images.dog.hires.prompt=a (dog:1.2.3)"], "draw: "),
        (["images.dog.prompt=a <lora:gone:1>"], "draw: <lora:gone>: no file of this name was"),
        (["images.dog.hires.prompt=a <hypernet:gone>"], "draw: <hypernet:gone>: no file of this"),
        (["artifact_dirs=[nowhere]"], "draw: artifact_dirs: nowhere is no folder"),
        (["type=film"], "draw: command line: type: expected one of images"),
    ],
)
def test_wrong_input_is_told_in_one_line(recipe, capsys, overrides, message):
    assert main([*recipe, *overrides]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(message)
    assert output.out == ""
    assert not list(Path("out").glob("*"))


def test_several_faults_are_told_together(recipe, capsys):
    assert main([*recipe, "settings.sed=1", "batch_size=many"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("draw: command line: ") for line in lines)


def test_what_has_no_effect_is_warned_about(recipe, capsys):
    assert main([*recipe, "compare_strengths=[0, 1]"]) == 0
    output = capsys.readouterr()
    assert "compare_strengths: has no effect without `artifacts`" in output.err
    assert len(output.out.split()) == 3


def test_without_arguments_tells_how(capsys):
    assert main([]) == 2
    assert "usage: python -m inference RECIPE" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "usage: python -m inference RECIPE" in capsys.readouterr().out


def test_interruption(recipe, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("inference.images.drawing.draw_batch", interrupt)
    assert main(recipe) == 130
    assert "interrupted" in capsys.readouterr().err


def test_picture_that_is_no_number_fails(recipe, capsys, monkeypatch):
    def fail(*_):
        raise FloatingPointError("the latent is not finite")

    monkeypatch.setattr("inference.images.drawing.draw_batch", fail)
    assert main(recipe) == 1
    assert capsys.readouterr().err == "draw: the latent is not finite\n"


def test_failed_writing_leaves_nothing(recipe, monkeypatch, capsys):
    def fail(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("inference.media.outputs.picture_writer", lambda *_: fail)
    assert main(recipe) == 1
    assert capsys.readouterr().err.splitlines() == [
        "draw: output_dir: out/00000-5.png: No space left on device; make room on this disk, or "
        "write to another one"
    ]
    assert list(Path("out").iterdir()) == []


def test_wrong_recipe_is_told_before_torch_is_imported(recipe):
    code = (
        "import sys; from inference.__main__ import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *recipe, "settings.steps=0"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == "draw: command line: settings.steps: must be at least 1, got 0\n"


def inspect_files(capsys, *files):
    status = inspect.main([str(file) for file in files])
    output = capsys.readouterr()
    return status, " ".join(output.out.split()), output.err


def test_inspects_pictures(recipe, capsys):
    main(recipe)
    capsys.readouterr()
    status, out, _ = inspect_files(capsys, "out/00000-5.png")
    assert status == 0
    assert "kind │ picture" in out
    assert "16x16" in out
    assert "Steps: 2, Sampler: DPM++ 2M" in out


def test_inspects_loras(lora, capsys):
    facts = inspect.inspect(lora)
    assert facts["kind"] == "artifact: lora"
    assert (facts["rank"], facts["alpha"]) == ("2", "1")
    assert facts["base model"] == "sd_v1"
    number, _, part = facts["modules"].partition(" in ")
    assert (int(number), part) == (int(facts["tensors"]) / 3, "unet")
    assert facts["AutoV2 hash"] == facts["sha256"][:10]
    assert facts["hash in infotext"] == facts["sshs hash"][:12]
    assert facts["ss_steps"] == "3"
    status, out, _ = inspect_files(capsys, lora)
    assert status == 0
    assert "artifact: lora" in out


def test_inspects_base_models(tiny_base_folder, tiny_base):
    facts = inspect.inspect(tiny_base_folder)
    assert facts["kind"].startswith("base model")
    assert facts["prediction type"] == "epsilon"
    assert facts["resolution"] == "16x16 (4 pixels per latent)"
    number = sum(parameter.numel() for parameter in tiny_base.unet.parameters())
    assert facts["unet"] == f"{number:,} parameters (F32)"


def test_unknown_files_are_told(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.png").write_text("x")
    torch.save({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save(Unsafe(), tmp_path / "unsafe.pt")
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "good.png")
    names = ("notes.txt", "broken.png", "other.pt", "unsafe.pt", "folder", "none", "good.png")
    status, out, err = inspect_files(capsys, *(tmp_path / name for name in names))
    assert status == 2
    lines = err.splitlines()
    assert len(lines) == 6
    for line, name in zip(lines, names, strict=False):
        assert line.startswith(f"inspect: {tmp_path / name}: ")
    assert "no such file" in lines[-1]
    assert "picture" in out  # the known files are described all the same
    assert not (tmp_path / "ran").exists()


class Unsafe:
    """Does harm when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_inspect_without_arguments_tells_how(capsys):
    assert inspect.main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert inspect.main(["-h"]) == 0
