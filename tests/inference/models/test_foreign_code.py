"""Code that a model folder brings along is never run, and nobody is asked whether it may."""

import ast
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.models import load_auto
from inference.runtime import BaseModelError

ROOT = Path(__file__).parents[3]
FILES = sorted(path for name in ("train", "inference") for path in ROOT.glob(f"{name}/**/*.py"))
LOADER = "inference/models/folder.py"


def unsafe_loads(source: str) -> Iterator[tuple[int, str]]:
    """Ways to load by which a folder's own code could run."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="from_pretrained" | "from_config")
            ) if name.startswith("Auto") and name[4:5].isupper() and "Encoder" not in name:
                yield node.lineno, f"{name}: load it by load_auto"
            case ast.Call(func=ast.Name(id="read" | "partial"), args=[ast.Name(id=name), *_]) if (
                name.startswith("AutoT") or name.startswith("AutoM") or name.startswith("AutoI")
            ):
                yield node.lineno, f"{name}: load it by load_auto"
            case ast.keyword(arg="trust_remote_code", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                yield node.value.lineno, "trust_remote_code is always False"
            case ast.keyword(arg="custom_pipeline" | "weights_only", value=value) if not (
                isinstance(value, ast.Constant) and value.value is True
            ):
                yield node.value.lineno, f"{node.arg}: loads code"
            case ast.Attribute(
                value=ast.Name(id="pickle" | "dill" | "cloudpickle"), attr="load" | "loads"
            ):
                yield node.lineno, "unpickles"
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=words
            ):
                if not any(word.arg == "weights_only" for word in words):
                    yield node.lineno, "torch.load without weights_only=True"
            case ast.Call(func=ast.Name(id="eval" | "exec")):
                yield node.lineno, "evaluates text"


def test_no_call_runs_foreign_code() -> None:
    found = [
        f"{name}:{line}: {what}"
        for path in FILES
        if (name := path.relative_to(ROOT).as_posix()) != LOADER
        for line, what in unsafe_loads(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained(x)", "read(AutoTokenizer, 'a')", "f(trust_remote_code=True)",
        "torch.load(x)", "torch.load(x, weights_only=False)", "pickle.loads(x)", "eval('1')",
        "f(custom_pipeline='x')", "AutoImageProcessor.from_pretrained(x, backend='pil')",
    ],
)  # fmt: skip
def test_unsafe_load_is_found(source: str) -> None:
    assert list(unsafe_loads(source))


@pytest.mark.parametrize("kind", ["AutoTokenizer", "AutoModel", "AutoImageProcessor"])
def test_folder_with_code_is_refused_without_a_question(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    (tmp_path / "evil.py").write_text("open('ran', 'w')\nclass Evil: pass\n")
    auto_map = dict.fromkeys((kind, "AutoConfig"), "evil.Evil")
    auto_map["AutoTokenizer"] = ["evil.Evil", "evil.Evil"]  # type: ignore[assignment]
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))
    asked = sys.stdin
    with pytest.raises(BaseModelError, match="needs Python code of its own"):
        load_auto(getattr(transformers, kind), tmp_path, local_files_only=True)
    assert asked.tell() == 0
    assert not (tmp_path / "ran").exists()
