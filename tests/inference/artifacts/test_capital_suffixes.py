"""Suffixes in capitals (`.PT`, `.SAFETENSORS`, `.PNG`) mean what those in lower case do."""

import ast
from pathlib import Path

import pytest
import torch

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.base import load_artifact
from inference.artifacts.checkpoint import Checkpoint
from inference.artifacts.embedding import Embedding
from inference.artifacts.hypernetwork import Hypernetwork
from inference.artifacts.hypernetwork_files import HypernetworkSpec
from inference.files.hashes import artifact_hash
from inference.inspect import inspect
from train.config.examples import CaptionConfig
from train.data.sources.caption_files import CaptionFiles

ROOT = Path(__file__).parents[3]
OWN_FILES = {
    ("train/data/streaming/cache.py", ".part"),
    ("train/runs/checkpoint_files.py", ".safetensors"),
}
"""Suffixes of files that nobody but Limner writes."""
KNOWN = (
    ".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".png", ".jpg", ".webp", ".txt", ".json",
    ".yaml", ".csv", ".parquet", ".jsonl", ".tar", ".zip",
)  # fmt: skip


def is_suffix(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "suffix"


def texts(node: ast.AST) -> set[str]:
    constants = (one.value for one in ast.walk(node) if isinstance(one, ast.Constant))
    return {one for one in constants if isinstance(one, str)}


def exact_tests_of_suffixes(source: str) -> list[tuple[int, set[str]]]:
    """Return lines that compare a path's suffix without lowering it, and the texts in them."""
    found: list[tuple[int, set[str]]] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(
                left=left, ops=[ast.Eq() | ast.NotEq() | ast.In() | ast.NotIn(), *_]
            ) if any(map(is_suffix, (left, *node.comparators))):
                found.append((node.lineno, texts(node)))
            case ast.Call(func=ast.Attribute(attr="endswith", value=value), args=[argument]):
                is_lowered = isinstance(value, ast.Call) and "lower" in ast.unparse(value.func)
                if not is_lowered and texts(argument) & {*KNOWN}:
                    found.append((node.lineno, texts(argument)))
            case ast.Match(subject=subject) if is_suffix(subject):
                found.append((node.lineno, texts(node)))
            case _:
                pass
    return found


def test_the_sweep_finds_an_exact_test():
    bad = "path.suffix == '.pt'\npath.suffix in KINDS\nname.endswith(('.png', '.x'))\n"
    assert [line for line, _ in exact_tests_of_suffixes(bad)] == [1, 2, 3]
    good = "path.suffix.lower() == '.pt'\nname.lower().endswith('.png')\nend = path.suffix\n"
    assert exact_tests_of_suffixes(good) == []


@pytest.mark.parametrize("package", ["inference", "train"])
def test_no_suffix_is_compared_as_it_is_spelled(package):
    found = []
    for file in sorted((ROOT / package).rglob("*.py")):
        name, source = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
        if ".suffix" not in source and ".endswith(" not in source:
            continue
        for line, words in exact_tests_of_suffixes(source):
            if not {(name, word) for word in words} & OWN_FILES:
                found.append(f"{name}:{line}")
    assert found == []


def artifacts_of(base, randomize):
    """Return one artifact of each kind with all suffixes that it is written with."""
    lora = Lora.create(base, LoraSpec(2, 1.0, 0.0, ["attention"], False), seed=0)
    randomize(list(lora.layers.values()))
    hypernetwork = Hypernetwork.create(base, HypernetworkSpec(), None, seed=0)
    randomize([*hypernetwork.pairs.values()])
    return [
        (lora, ".safetensors"),
        (Embedding(torch.randn(2, 24), "cat"), ".safetensors"),
        (Embedding(torch.randn(2, 24), "cat"), ".pt"),
        (Embedding(torch.randn(2, 24), "cat"), ".png"),
        (hypernetwork, ".pt"),
        (hypernetwork, ".safetensors"),
        (Checkpoint.of(base), ".safetensors"),
    ]


def test_every_artifact_is_read_under_a_name_in_capitals(base, randomize, tmp_path):
    for number, (artifact, suffix) in enumerate(artifacts_of(base, randomize)):
        artifact.suffix = suffix
        plain = tmp_path / f"one{number}{suffix}"
        artifact.save(plain, torch.float32, {})
        loud = tmp_path / f"ONE{number}{suffix.upper()}"
        loud.write_bytes(plain.read_bytes())
        assert load_artifact(loud).kind == load_artifact(plain).kind == artifact.kind
        assert artifact_hash(loud, artifact.kind) == artifact_hash(plain, artifact.kind)
        facts = [inspect(file) for file in (plain, loud)]
        assert facts[0] | {"called": ""} == facts[1] | {"called": ""}


def test_pickles_are_read_under_names_in_capitals(base, tmp_path):
    vectors = torch.randn(2, 24)
    for suffix in (".PT", ".BIN", ".Pt", ".PTH", ".CKPT"):
        torch.save({"string_to_param": {"*": vectors}, "name": "cat"}, tmp_path / f"x{suffix}")
        loaded = load_artifact(tmp_path / f"x{suffix}")
        assert isinstance(loaded, Embedding)
        assert torch.equal(loaded.learned.vectors, vectors)


def test_captions_are_found_under_names_in_capitals(tmp_path):
    for name, text in (("a.TXT", "one"), ("b.Txt", "two"), ("c.txt", "three")):
        (tmp_path / name).write_text(text)
    captions = CaptionFiles(CaptionConfig())
    assert [captions.captions(tmp_path / f"{stem}.PNG") for stem in "abc"] == [
        ("one",),
        ("two",),
        ("three",),
    ]
