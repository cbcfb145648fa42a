"""Embeddings as A1111, kohya and diffusers look for them, written out here.

A1111 (`modules/textual_inversion/textual_inversion.py`): a dict with `string_to_param`, whose `*`
is the tensor, or SDXL's pair `clip_l` and `clip_g`; kohya's safetensors: `emb_params`, or the pair;
diffusers: one tensor under the token.
"""

import pytest
import torch

from inference.artifacts.embedding import Embedding
from inference.convert import main as convert
from tests.interop.bases import load_folder
from tests.interop.files import Tensors, must_fail, read, unpickled

COUNT, WIDTH = 3, 16
A1111_KEYS = {
    "string_to_token", "string_to_param", "name", "step", "sd_checkpoint", "sd_checkpoint_name",
}  # fmt: skip


def make(base) -> Embedding:
    made = Embedding.create(base, "thing", "a b", COUNT)
    numbers = torch.Generator().manual_seed(2)
    for vectors in made.learned.by_encoder():
        vectors.copy_(torch.randn(vectors.shape, generator=numbers))
    return made


@pytest.fixture(scope="module")
def base(tiny_base_folder):
    return load_folder(tiny_base_folder)


def check_tensors(tensors, expected, dtype=torch.float32) -> None:
    assert tensors.keys() == expected.keys()
    for name, value in tensors.items():
        assert value.dtype == dtype
        assert torch.equal(value, expected[name].to(dtype))


def check_a1111(content, vectors) -> None:
    assert content.keys() == A1111_KEYS
    assert content["string_to_token"] == {"*": 265}
    check_tensors(content["string_to_param"], {"*": vectors})
    assert type(content["name"]) is str
    assert type(content["step"]) is int


def test_a1111s_dict(base, tmp_path):
    made = make(base)
    made.save(tmp_path / "thing.pt", torch.float32, {"ss_steps": "7"})
    content = unpickled(tmp_path / "thing.pt")
    assert (content["name"], content["step"]) == ("thing", 7)
    check_a1111(content, made.learned.vectors)
    for change in (
        {"string_to_token": {"thing": 265}},
        {"string_to_param": {"thing": made.learned.vectors}},
        {"string_to_param": {"*": made.learned.vectors.half()}},
        {"string_to_param": {"*": made.learned.vectors[:2]}},
        {"step": "7"},
        {"emb_params": made.learned.vectors},
    ):
        must_fail(check_a1111, {**content, **change}, made.learned.vectors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kohyas_tensor(dtype, base, tmp_path):
    made = make(base)
    made.save(tmp_path / "thing.safetensors", dtype, {})
    file, expected = read(tmp_path / "thing.safetensors"), {"emb_params": made.learned.vectors}
    check_tensors(file.tensors, expected, dtype)
    for change in (
        {"thing": file.tensors["emb_params"]},
        {"emb_params": file.tensors["emb_params"].double()},
        {"emb_params": file.tensors["emb_params"] + 1},
    ):
        must_fail(check_tensors, change, expected, dtype)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_sdxls_pair(suffix, tiny_sdxl, tmp_path):
    made = make(tiny_sdxl)
    path = tmp_path / f"thing{suffix}"
    made.save(path, torch.float32, {})
    content = unpickled(path) if suffix == ".pt" else read(path).tensors
    expected = dict(zip(("clip_l", "clip_g"), made.learned.by_encoder(), strict=True))
    check_tensors(content, expected)
    swapped = {"clip_l": content["clip_g"], "clip_g": content["clip_l"]}
    must_fail(check_tensors, swapped, expected)
    must_fail(check_tensors, {"clip_l": content["clip_l"]}, expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_diffusers_token(suffix, base, tmp_path):
    made, source = make(base), tmp_path / "thing.safetensors"
    made.save(source, torch.float32, {})
    path = tmp_path / f"there{suffix}"
    assert convert([str(source), str(path), "--to", "diffusers"]) == 0
    content = unpickled(path) if suffix == ".bin" else read(path).tensors
    check_tensors(content, {"thing": made.learned.vectors})
    must_fail(check_tensors, Tensors({"*": content["thing"]}).tensors, {"thing": content["thing"]})
