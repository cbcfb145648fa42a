"""Metadata of LoRA files that kohya's tools, A1111 and the model specification name.

The hashes are recomputed here as kohya's `precalculate_safetensors_hashes` does.
"""

import hashlib
import re

import pytest
import torch
from safetensors.torch import save

from inference.artifacts.adapters.lora import Lora, LoraSpec
from tests.interop.bases import load_folder
from tests.interop.files import Tensors, must_fail, read

KOHYA = {
    "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha",
    "ss_network_args",
}  # fmt: skip
"""kohya's `SS_METADATA_MINIMUM_KEYS`."""
MODELSPEC = {
    f"modelspec.{key}"
    for key in ("sai_model_spec", "architecture", "implementation", "title", "prediction_type",
                "resolution")
}  # fmt: skip
HASHES = {"sshs_model_hash", "sshs_legacy_hash"}


def check_metadata(file: Tensors, rank, alpha, title) -> None:
    said = file.metadata
    missing = (KOHYA | MODELSPEC | HASHES) - said.keys()
    assert not missing
    assert said["ss_v2"] in ("True", "False")
    assert (said["ss_network_module"], said["ss_network_args"]) == ("networks.lora", "{}")
    assert (int(said["ss_network_dim"]), float(said["ss_network_alpha"])) == (rank, alpha)
    assert said["modelspec.title"] == title
    assert said["modelspec.architecture"].endswith("/lora")
    assert re.fullmatch(r"\d+x\d+", said["modelspec.resolution"])
    assert said["modelspec.prediction_type"] in ("epsilon", "v")
    own = {key: value for key, value in said.items() if key.startswith("ss_")}
    data = save(file.tensors, own)
    start = 8 + int.from_bytes(data[:8], "little")
    assert said["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    legacy = hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()
    assert said["sshs_legacy_hash"] == legacy[:8]


@pytest.fixture(scope="module")
def lora_file(tiny_base_folder, tmp_path_factory):
    lora = Lora.create(load_folder(tiny_base_folder), LoraSpec(4, 2.0, 0.0, None, False), seed=0)
    path = tmp_path_factory.mktemp("metadata") / "lora.safetensors"
    lora.save(path, torch.float32, {"modelspec.title": "icons"})
    return path


def test_metadata(lora_file):
    check_metadata(read(lora_file), 4, 2.0, "icons")


def test_the_hash_is_that_of_the_files_own_tensors(lora_file):
    """By which A1111 knows a file."""
    data = lora_file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    said = read(lora_file).metadata["sshs_model_hash"]
    assert said == hashlib.sha256(data[start:]).hexdigest()


CHANGES = {
    **{f"no {key}": (key, None) for key in sorted(KOHYA | MODELSPEC | HASHES)},
    "another rank": ("ss_network_dim", "8"),
    "another alpha": ("ss_network_alpha", "4.0"),
    "another hash": ("sshs_model_hash", "0" * 64),
    "another legacy hash": ("sshs_legacy_hash", "0" * 8),
    "side alone": ("modelspec.resolution", "512"),
    "another title": ("modelspec.title", "last"),
}


@pytest.mark.parametrize(("key", "value"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_metadata_is_found(key, value, lora_file):
    file = read(lora_file)
    del file.metadata[key]
    if value is not None:
        file.metadata[key] = value
    must_fail(check_metadata, file, 4, 2.0, "icons")


def test_a_change_of_a_tensor_is_found(lora_file):
    file = read(lora_file)
    name = next(name for name in file.tensors if name.endswith("lora_up.weight"))
    file.tensors[name] = file.tensors[name] + 1
    must_fail(check_metadata, file, 4, 2.0, "icons")
