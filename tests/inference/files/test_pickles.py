"""Pickled artifacts: A1111's and Forge's checks allow every record and every name in them."""

import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inference.artifacts.embedding import Embedding
from inference.artifacts.hypernetwork import Hypernetwork
from inference.artifacts.hypernetwork_files import HypernetworkSpec, initial_pair
from inference.convert import main
from inference.files.pickles import pickle_bytes, write_pickle

ALLOWED_RECORDS = re.compile(r"^([^/]+)/(data\.pkl|data/\d+|version)$")
"""Of `safe.py` (A1111, Forge), less `byteorder`, which older versions refuse."""
ALLOWED_NAMES = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch", "FloatStorage"), ("torch", "HalfStorage"), ("torch", "BFloat16Storage"),
}  # fmt: skip
"""Of the classes that its unpickler allows, those that artifacts may need."""
MAY_SAVE = {
    "inference/files/pickles.py",
    "train/optimization/strategies/files.py",
    "train/optimization/strategies/sharded_files.py",
}
"""The one writer, and the checkpoints of runs, which no other program reads."""

REPOSITORY = Path(__file__).parents[3]


def embedding(path: Path, dtype: torch.dtype) -> None:
    Embedding(torch.randn(3, 768), "ours").save(path, dtype, {})


def pair(path: Path, dtype: torch.dtype) -> None:
    Embedding(torch.randn(3, 768), "ours", None, torch.randn(3, 1280)).save(path, dtype, {})


def hypernetwork(path: Path, dtype: torch.dtype) -> None:
    spec = HypernetworkSpec(is_layer_norm=True, dropout_structure=(0, 0.3, 0))
    Hypernetwork({16: initial_pair(16, spec, 0)}, spec, {}).save(path, dtype, {})


def converted(path: Path, dtype: torch.dtype) -> None:
    source = path.with_suffix(".safetensors")
    Embedding(torch.randn(3, 768), "ours").save(source, dtype, {})
    assert main([str(source), str(path), "--to", "diffusers"]) == 0


def converted_to_a1111(path: Path, dtype: torch.dtype) -> None:
    source = path.with_suffix(".safetensors")
    hypernetwork(source, dtype)
    assert main([str(source), str(path), "--to", "a1111"]) == 0


WRITERS: dict[str, tuple[str, Callable[[Path, torch.dtype], None]]] = {
    "embedding": ("ours.pt", embedding),
    "SDXL's pair": ("ours.pt", pair),
    "hypernetwork": ("ours.pt", hypernetwork),
    "convert to diffusers": ("ours.bin", converted),
    "convert to a1111": ("ours.pt", converted_to_a1111),
}


def refused(path: Path) -> list[str]:
    """What A1111 would refuse in a pickle: records, and names in its `data.pkl`."""
    with zipfile.ZipFile(path) as file:
        records = file.namelist()
        found = [name for name in records if not ALLOWED_RECORDS.match(name)]
        (structure,) = (name for name in records if name.endswith("/data.pkl"))
        operations = list(pickletools.genops(file.read(structure)))
    for operation, argument, _ in operations:
        assert operation.name != "STACK_GLOBAL"
        if operation.name == "GLOBAL" and tuple(str(argument).split(" ")) not in ALLOWED_NAMES:
            found.append(str(argument))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", WRITERS)
def test_a1111_refuses_nothing_in_a_pickle(kind, dtype, tmp_path):
    name, write = WRITERS[kind]
    write(tmp_path / name, dtype)
    assert refused(tmp_path / name) == []


def test_torchs_own_pickle_would_be_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "torch.pt")
    assert refused(tmp_path / "torch.pt")
    content = {"a": torch.zeros(2), "b": torch.Size([1])}
    write_pickle(tmp_path / "class.pt", content)
    assert refused(tmp_path / "class.pt") == ["torch Size"]


def test_torch_reads_a_pickle_without_byteorder(tmp_path):
    values = {
        "half": torch.randn(5, 3).half(), "numbers": [1, 2.5, None, "text", True],
        768: ({"w": torch.arange(7.0)}, {"w": torch.ones(2, 1).bfloat16()}),
        "empty": torch.zeros(0),
    }  # fmt: skip
    write_pickle(tmp_path / "x.pt", values)
    for mapped in (False, True):
        read = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mapped)
        assert list(read) == list(values)
        assert read["numbers"] == values["numbers"]
        for one, other in (
            (read["half"], values["half"]),
            (read["empty"], values["empty"]),
            (read[768][0]["w"], values[768][0]["w"]),
            (read[768][1]["w"], values[768][1]["w"]),
        ):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_records_are_stored_aligned_and_dated_alike(tmp_path):
    content = {"a": torch.ones(3), "b": torch.zeros(2)}
    assert pickle_bytes(content) == pickle_bytes(dict(content))
    write_pickle(tmp_path / "x.pt", content)
    data = (tmp_path / "x.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pt") as file:
        for record in file.infolist():
            assert record.compress_type == zipfile.ZIP_STORED
            assert record.date_time == (1980, 1, 1, 0, 0, 0)
            position = data.index(file.read(record), record.header_offset + 30)
            assert position % 64 == 0, record.filename


def test_no_other_file_pickles():
    saving = re.compile(r"(?<!safetensors\.)torch\.save\(|pickle\.dumps?\(|Pickler\(")
    files = [file for room in ("train", "inference") for file in (REPOSITORY / room).rglob("*.py")]
    found = {
        file.relative_to(REPOSITORY).as_posix()
        for file in files
        if saving.search(file.read_text(encoding="utf-8"))
    }
    assert found == MAY_SAVE
