"""How prompts find files by names."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from inference.artifacts.library import NetworkLibrary, spells
from inference.runtime.errors import DrawWarning

LORA = {
    f"lora_unet_mid_block_attentions_0_proj_in.{name}": torch.ones(2, 2)
    for name in ("lora_down.weight", "lora_up.weight")
}
EMBEDDING = {"emb_params": torch.ones(1, 4)}


@pytest.fixture
def library(tmp_path):
    """A LoRA and an embedding of one name, an embedding, a LoRA of another name, a broken file."""
    for folder in ("loras", "embeddings"):
        (tmp_path / folder).mkdir()
    save_file(LORA, tmp_path / "loras" / "Style.safetensors")
    save_file(EMBEDDING, tmp_path / "embeddings" / "Style.safetensors")
    save_file(EMBEDDING, tmp_path / "embeddings" / "art.safetensors")
    save_file(LORA, tmp_path / "loras" / "v2.safetensors", {"ss_output_name": "kohya"})
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    return NetworkLibrary(SimpleNamespace(embeddings={}), [tmp_path])  # type: ignore[arg-type]


def test_embeddings_are_called_in_any_case_and_as_whole_words(library):
    def named(text):
        return ["/".join(path.parts[-2:]) for path in library.named([text])]

    assert named("a party") == []
    assert named("(ART:1.2), x") == ["embeddings/art.safetensors"]
    assert named("style") == ["embeddings/Style.safetensors"]
    with pytest.warns(DrawWarning, match="broken.safetensors: .*: passed over"):
        assert named("a broken cup") == []


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("a cat", "cat", True),
        ("cats", "cat", False),
        ("tomcat", "cat", False),
        ("cat2, cat_x", "cat", True),
        ("x2y", "2", True),
        ("(<my-style>:1.1)", "<my-style>", True),
        ("élan", "lan", False),
        ("a+b", "a.b", False),
    ],
)
def test_names_in_texts(text, name, expected):
    assert spells(text, name) == expected
