"""Pickled artifacts hold only what A1111's and Forge's `modules/safe.py` allow.

The list of records is that of the oldest A1111: 1.10.1 also allows `byteorder` and
`.data/serialization_id`. Whatever else is in a file makes them refuse it as malicious.
"""

import re

import pytest
import torch

from inference.artifacts.embedding import Embedding
from inference.artifacts.hypernetwork import Hypernetwork
from inference.artifacts.hypernetwork_files import HypernetworkSpec
from inference.convert import main as convert
from tests.interop.bases import load_folder
from tests.interop.files import classes, must_fail, records, unpickled, write_records

RECORD = re.compile(r"[^/]+/(data\.pkl|data/\d+|version)")
CLASSES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Int", "Long", "Double")),
}


def check_records(path) -> None:
    found = records(path)
    assert [name for name in found if not RECORD.fullmatch(name)] == []
    folders = {name.partition("/")[0] for name in found}
    (folder,) = folders
    assert found[f"{folder}/version"].strip() == b"3"
    assert classes(found[f"{folder}/data.pkl"]) <= CLASSES


def embedding(base, path, dtype=torch.float32):
    Embedding.create(base, "thing", "a b", 3).save(path, dtype, {})
    return path


def diffusers_embedding(base, path):
    source = embedding(base, path.with_name("source.safetensors"))
    assert convert([str(source), str(path), "--to", "diffusers"]) == 0
    return path


def hypernetwork(base, path, dtype=torch.float32):
    spec = HypernetworkSpec((1, 2, 1), "mish", True, (0, 0.1, 0), True)
    Hypernetwork.create(base, spec, None, 0).save(path, dtype, {})
    return path


WRITERS = {
    "embedding.pt": embedding,
    "embedding.bin": diffusers_embedding,
    "hypernetwork.pt": hypernetwork,
    "half.pt": lambda base, path: hypernetwork(base, path, torch.float16),
    "bfloat.pt": lambda base, path: hypernetwork(base, path, torch.bfloat16),
}


@pytest.fixture(scope="module")
def base(tiny_base_folder):
    return load_folder(tiny_base_folder)


@pytest.mark.parametrize("name", WRITERS)
def test_records_are_those_of_safe_py(name, base, tmp_path):
    path = WRITERS[name](base, tmp_path / name)
    check_records(path)
    assert unpickled(path)


def test_records_of_sdxls_pair(tiny_sdxl, tmp_path):
    path = embedding(tiny_sdxl, tmp_path / "pair.pt")
    check_records(path)
    assert {key: tuple(value.shape) for key, value in unpickled(path).items()} == {
        "clip_l": (3, 16),
        "clip_g": (3, 24),
    }


@pytest.mark.parametrize(
    "record", [".format_version", ".storage_alignment", "byteorder", "code/x.py", "../version"]
)
def test_one_more_record_is_found(record, base, tmp_path):
    path = embedding(base, tmp_path / "a.pt")
    found = records(path)
    folder = next(iter(found)).partition("/")[0]
    write_records(path, {**found, f"{folder}/{record}": b"1"})
    must_fail(check_records, path)


@pytest.mark.parametrize(("old", "new"), [
    (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_sparse_tensor\n"),
    (b"ccollections\nOrderedDict\n", b"cbuiltins\ndict\n"),
])  # fmt: skip
def test_another_class_is_found(old, new, base, tmp_path):
    path = embedding(base, tmp_path / "a.pt")
    found = records(path)
    name = next(name for name in found if name.endswith("/data.pkl"))
    assert old in found[name]
    write_records(path, {**found, name: found[name].replace(old, new)})
    must_fail(check_records, path)


def test_a_missing_record_is_found(base, tmp_path):
    path = embedding(base, tmp_path / "a.pt")
    kept = {name: value for name, value in records(path).items() if not name.endswith("/version")}
    write_records(path, kept)
    with pytest.raises(KeyError):
        check_records(path)
