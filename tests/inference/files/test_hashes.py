"""Hashes by A1111's and kohya's rules, and what is kept of them on disk."""

import hashlib
import json
import os
import warnings

import pytest

from inference.files import hash_cache
from inference.files.hash_cache import SMALLEST, cache_file, remembered
from inference.files.hashes import (
    artifact_hash,
    lora_hash,
    lora_legacy_hash,
    old_hash,
    read_header,
    sha256,
)


def safetensors(path, metadata, content=b"\0\0\0\0"):
    header = {"__metadata__": metadata} if metadata else {}
    header["a"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def test_lora_hash_is_that_of_the_weights(tmp_path):
    weights = hashlib.sha256(b"\0\0\0\0").hexdigest()
    plain = safetensors(tmp_path / "a.safetensors", {})
    labelled = safetensors(tmp_path / "b.safetensors", {"ss_steps": "3"})
    own_word = safetensors(tmp_path / "c.safetensors", {"sshs_model_hash": "ab" * 32})
    assert lora_hash(plain) == lora_hash(labelled) == artifact_hash(labelled, "lora") == weights
    assert lora_hash(own_word) == "ab" * 32
    assert sha256(plain) != sha256(labelled)
    assert read_header(labelled)["__metadata__"] == {"ss_steps": "3"}
    pickle = tmp_path / "d.pt"
    pickle.write_bytes(b"x")
    assert lora_hash(pickle) == hashlib.sha256(b"x").hexdigest()


def test_hash_is_taken_anew_when_the_file_changes(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"1")
    first = sha256(path)
    path.write_bytes(b"22")
    assert sha256(path) == hashlib.sha256(b"22").hexdigest() != first


def test_folder_is_known_by_its_unet(tiny_base_folder, tmp_path):
    file = tiny_base_folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert artifact_hash(tiny_base_folder, "checkpoint") == sha256(file)
    assert artifact_hash(tmp_path, "checkpoint") is None


def test_old_hash_is_of_64_kib_after_the_first_mib(tmp_path):
    path = tmp_path / "model.ckpt"
    middle = bytes(range(256)) * 256
    path.write_bytes(b"\1" * 0x100000 + middle + b"\2" * 10)
    assert old_hash(path) == hashlib.sha256(middle).hexdigest()[:8]
    path.write_bytes(b"short")
    assert old_hash(path) == "e3b0c442"  # SHA-256 of nothing


def test_legacy_hash_of_loras_is_kohyas_word_if_there_is_one(tmp_path):
    plain = safetensors(tmp_path / "a.safetensors", {"ss_steps": "1"})
    labelled = safetensors(tmp_path / "b.safetensors", {"sshs_legacy_hash": "12345678"})
    assert lora_legacy_hash(plain) == "e3b0c442"
    assert lora_legacy_hash(labelled) == "12345678"


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file worth keeping the hash of, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hash_cache.warn_once.cache_clear()
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * SMALLEST)
    return path


class Counting:
    """Takes hashes and counts how often."""

    def __init__(self):
        self.times = 0

    def __call__(self, path):
        self.times += 1
        return f"hash {self.times}"


def test_hash_is_kept_until_the_file_changes(large):
    take = Counting()
    assert remembered(large, "sha256", take) == remembered(large, "sha256", take) == "hash 1"
    assert remembered(large, "other", take) == "hash 2"
    os.utime(large, ns=(1, 1))
    assert remembered(large, "sha256", take) == "hash 3"
    large.write_bytes(b"\0" * (SMALLEST + 1))
    assert remembered(large, "sha256", take) == "hash 4"
    kept = json.loads(cache_file().read_text())["hashes"]
    assert [entry[2] for entry in kept.values()] == ["hash 4", "hash 2"]
    assert [file.name for file in cache_file().parent.iterdir()] == ["hashes.json"]


def test_small_files_are_not_kept(large, tmp_path):
    take = Counting()
    (tmp_path / "small").write_bytes(b"x")
    for _ in range(2):
        remembered(tmp_path / "small", "sha256", take)
    assert take.times == 2
    assert not cache_file().exists()


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[]", b'{"format": 1, "hashes": 3}', b"[" * 100_000]
)
def test_broken_cache_is_begun_anew_and_told_once(large, content):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_bytes(content)
    take = Counting()
    with pytest.warns(UserWarning, match="cannot be read .* is rebuilt") as caught:
        assert remembered(large, "sha256", take) == "hash 1"
    assert len(caught) == 1
    assert remembered(large, "sha256", take) == "hash 1"
    assert take.times == 1


@pytest.mark.parametrize("entry", [None, [1], [1, 2, "x"], "x"])
def test_odd_entries_do_not_count(large, entry):
    cache_file().parent.mkdir(parents=True)
    hashes = {f"sha256 {large.resolve()}": entry}
    cache_file().write_text(json.dumps({"format": 1, "hashes": hashes}))
    assert remembered(large, "sha256", Counting()) == "hash 1"


def test_cache_that_cannot_be_written_is_done_without(large):
    cache_file().parent.parent.write_text("a file where a folder should be")
    take = Counting()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            remembered(large, "sha256", take)
    assert take.times == 3
    assert (
        len(caught) == len({str(warning.message) for warning in caught}) == 2
    )  # read, and written


def test_hashes_go_through_the_cache(large):
    whole = hashlib.sha256(b"\0" * SMALLEST).hexdigest()
    assert sha256(large) == whole
    (entry,) = json.loads(cache_file().read_text())["hashes"].values()
    assert entry == [SMALLEST, large.stat().st_mtime_ns, whole]
