"""How prompts find files by names."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inference.artifacts.library import NetworkLibrary, spells
from inference.prompts import ExtraNetwork
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


def test_links_have_names_of_their_own_and_stand_for_one_file(tmp_path):
    """As in the folder of a run: NAME.safetensors is a link to the newest artifact."""
    artifacts = tmp_path / "run" / "artifacts"
    artifacts.mkdir(parents=True)
    (tmp_path / "run" / "artifacts.json").write_text('{"output_name": "mine"}')
    save_file(LORA, artifacts / "mine-000500.safetensors", {"ss_output_name": "mine"})
    save_file(LORA, artifacts / "mine-001000.safetensors", {"ss_output_name": "mine"})
    (artifacts / "mine.safetensors").symlink_to("mine-001000.safetensors")
    save_file(EMBEDDING, artifacts / "word-000500.safetensors", {"name": "word"})
    (artifacts / "word.safetensors").symlink_to("word-000500.safetensors")
    base: Any = SimpleNamespace(embeddings={})
    library = NetworkLibrary(base, [tmp_path, artifacts])
    for name in ("mine", "mine-000500", "mine-001000"):
        assert library.find(ExtraNetwork("lora", name, 1, 1, None, 0)).name == f"{name}.safetensors"
    (tmp_path / "run" / "artifacts.json").write_text('{"output_name": "word", "format": 1}')
    library = NetworkLibrary(base, [tmp_path, artifacts])
    assert len(library.names_of_embeddings["word"]) == 1
