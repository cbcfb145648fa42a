"""Embeddings: files of several programs, and how prompts call them."""

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor, nn

from inference.artifacts.base import load_artifact
from inference.artifacts.embedding import Embedding
from inference.artifacts.embedding_picture import picture_with
from inference.models.stable_diffusion.model import BaseModel
from inference.runtime.errors import ArtifactError, DrawWarning

VECTORS = torch.arange(12.0).reshape(3, 4) / 8


FORMS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a1111": (
        "ours.pt",
        lambda file: torch.save(
            {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": VECTORS},
                "name": "made as another name",
                "step": 70,
                "sd_checkpoint": None,
                "sd_checkpoint_name": None,
            },
            file,
        ),
    ),
    "a1111, another key": (
        "ours.pt",
        lambda file: torch.save({"string_to_param": {"cat": VECTORS}}, file),
    ),
    "original code": (
        "ours.pt",
        lambda file: torch.save(
            {"string_to_token": {}, "string_to_param": nn.ParameterDict({"*": VECTORS})}, file
        ),
    ),
    "diffusers": ("ours.bin", lambda file: torch.save({"<ours>": VECTORS}, file)),
    "diffusers, safetensors": ("ours.safetensors", lambda file: save_file({"<o>": VECTORS}, file)),
    "kohya": ("ours.safetensors", lambda file: save_file({"emb_params": VECTORS}, file)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_vectors(form: str, tmp_path: Path) -> None:
    """And the name of the file, as A1111 calls it."""
    name, write = FORMS[form]
    write(tmp_path / name)
    loaded = load_artifact(tmp_path / name)
    assert isinstance(loaded, Embedding)
    assert torch.equal(loaded.learned.vectors, VECTORS)
    assert loaded.name == "ours"


def test_one_vector_of_one_dimension(tmp_path: Path) -> None:
    save_file({"<o>": VECTORS[0].clone()}, tmp_path / "o.safetensors")
    loaded = load_artifact(tmp_path / "o.safetensors")
    assert isinstance(loaded, Embedding)
    assert torch.equal(loaded.learned.vectors, VECTORS[:1])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_saved_is_what_is_loaded(suffix: str, tmp_path: Path) -> None:
    facts = {"sd_checkpoint": "0123456789", "sd_checkpoint_name": "picto"}
    saved = Embedding(VECTORS, "noto-cat", facts)
    for name in (f"step-000500{suffix}", f"again{suffix}"):
        saved.save(tmp_path / name, torch.float32, {"ss_steps": "500"})
    loaded = load_artifact(tmp_path / f"step-000500{suffix}")
    assert isinstance(loaded, Embedding)
    assert torch.equal(loaded.learned.vectors, VECTORS)
    assert loaded.name == "noto-cat"  # and not step-000500
    assert {"sd_checkpoint": "0123456789", "sd_checkpoint_name": "picto"}.items() <= (
        loaded.facts.items()
    )
    assert int(loaded.facts["step"]) == 500
    again = load_artifact(tmp_path / f"again{suffix}")
    assert again.name == "again"
    bytes_of = [(tmp_path / f"{name}{suffix}").read_bytes() for name in ("step-000500", "again")]
    assert bytes_of[0] == bytes_of[1]


def test_the_pt_file_is_a1111s(tmp_path: Path) -> None:
    Embedding(VECTORS, "cat").save(tmp_path / "cat.pt", torch.float16, {"ss_steps": "5"})
    content = torch.load(tmp_path / "cat.pt", weights_only=True)
    assert content.pop("string_to_param")["*"].dtype == torch.float32
    assert content == {
        "string_to_token": {"*": 265},
        "name": "cat",
        "step": 5,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"clip_l": VECTORS, "clip_g": VECTORS[:2]}, "equally many vectors"),
        ({"emb_params": VECTORS[None]}, "expected vectors"),
        ({"emb_params": VECTORS.int()}, "expected vectors"),
        ({"emb_params": VECTORS / 0}, "not finite"),
    ],
)
def test_files_that_are_refused(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ArtifactError, match=message):
        load_artifact(tmp_path / "x.safetensors")


@pytest.mark.parametrize("parameters", [None, {}, {"*": 1}, {"*": VECTORS, "+": VECTORS}])
def test_a1111_files_that_are_refused(parameters: Any, tmp_path: Path) -> None:
    torch.save({"string_to_param": parameters, 7.5: "a number as a key"}, tmp_path / "x.pt")
    with pytest.raises(ArtifactError, match="expected vectors under one name"):
        load_artifact(tmp_path / "x.pt")


# ------------------------------------------------------------------------------------- in pictures


def test_a_picture_carries_an_embedding(tmp_path: Path) -> None:
    """Called by its own name, whatever the file is called; without the keyword from the pixels."""
    Embedding(VECTORS, "noto-cat").save(tmp_path / "x.png", torch.float32, {"ss_steps": "5"})
    with Image.open(tmp_path / "x.png") as image:
        assert {*image.info} == {"sd-ti-embedding"}
        image.save(tmp_path / "bare.png")
        Image.open(tmp_path / "bare.png").convert("RGB").save(tmp_path / "stripes.webp", lossless=1)
    for name in ("x.png", "bare.png", "stripes.webp"):
        loaded = load_artifact(tmp_path / name)
        assert isinstance(loaded, Embedding)
        assert torch.equal(loaded.learned.vectors, VECTORS)
        assert (loaded.name, loaded.facts["step"]) == ("noto-cat", 5)


def test_stripes_as_a1111_lays_them_out() -> None:
    """Low half bytes on the left, high ones on the right, a black line beside each.

    Both under the low bits of the generator s = 1664525 s + 1013904223, which gives s % 255.
    """
    image, texts = picture_with(Image.new("RGB", (5, 8), "red"), {"step": 3})
    pixels = np.asarray(image)
    width = (pixels.shape[1] - 7) // 2
    assert not pixels[:, width].any()
    assert not pixels[:, -width - 1].any()
    assert (pixels[:, width + 1 : -width - 1] == (255, 0, 0)).all()
    noise, state = [], 0
    for _ in range(8 * width * 3):
        state = (1664525 * state + 1013904223) % 2**32
        noise.append(state % 255 & 15)
    halves = [
        half.ravel() & 15 ^ np.array(noise) for half in (pixels[:, :width], pixels[:, -width:])
    ]
    data = bytes(((halves[1] << 4) | halves[0]).tolist())
    assert json.loads(zlib.decompressobj().decompress(data)) == {"step": 3}
    assert json.loads(base64.b64decode(texts["sd-ti-embedding"])) == {"step": 3}


def test_pictures_without_an_embedding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, pixels in {
        "black": np.zeros((8, 8, 3)),
        "white": np.full((8, 8, 3), 255),
        "noise": rng.integers(0, 256, (8, 8, 3)),
        "lines": np.repeat([[0, 255, 0, 200, 0, 255, 0, 1]], 8, axis=0)[..., None].repeat(3, 2),
    }.items():
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
        with pytest.raises(ArtifactError, match="no known kind of artifact"):
            load_artifact(tmp_path / f"{name}.png")


def test_a_damaged_picture(tmp_path: Path) -> None:
    texts = PngInfo()
    texts.add_text("sd-ti-embedding", "bm8gSlNPTg==")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=texts)
    with pytest.raises(ArtifactError, match="an embedding that is damaged"):
        load_artifact(tmp_path / "x.png")


# --------------------------------------------------------------------------------------- in prompts


def embedding(name: str, count: int, seed: int = 0, width: int = 16) -> Embedding:
    generator = torch.Generator().manual_seed(seed)
    return Embedding(torch.randn(count, width, generator=generator), name)


def ids(base: BaseModel, text: str) -> list[int]:
    return base.tokenizer(text, add_special_tokens=False).input_ids


def test_vectors_take_the_places_of_the_name(tiny_base: BaseModel) -> None:
    embedding("xyz", 2).attach(tiny_base)
    tokens = tiny_base.tokenize(["a xyz b", "no"])
    assert tokens.places == [(0, 0, 2, "xyz")]
    bos, eos = tiny_base.tokenizer.bos_token_id, tiny_base.tokenizer.eos_token_id
    expected = [bos, *ids(tiny_base, "a"), 0, 0, *ids(tiny_base, "b"), eos]
    assert tokens.ids[0, 0, : len(expected)].tolist() == expected


def test_states_are_those_of_a_table_with_the_vectors_in_it(tiny_base: BaseModel) -> None:
    """A prompt of two letters whose rows in the token table are the vectors."""
    word = embedding("xyz", 2)
    before = tiny_base.encode_prompts(["a xyz b"]).states
    word.attach(tiny_base)
    states = tiny_base.encode_prompts(["a xyz b", "c"]).states
    word.set_strength(0)
    assert torch.equal(tiny_base.encode_prompts(["a xyz b"]).states, before)
    word.set_strength(0.5)
    half = tiny_base.encode_prompts(["a xyz b", "c"]).states
    word.detach()
    assert torch.equal(tiny_base.encode_prompts(["a xyz b"]).states, before)
    encoder = tiny_base.text_encoder
    assert encoder is not None
    table = encoder.get_input_embeddings().weight
    for strength, expected in ((1.0, states), (0.5, half)):
        letters = [ids(tiny_base, letter)[0] for letter in "qw"]
        kept = table[letters].clone()
        table.data[letters] = word.learned.vectors * strength
        assert torch.equal(tiny_base.encode_prompts(["a q w b", "c"]).states, expected)
        table.data[letters] = kept


def test_the_longest_name_wins(tiny_base: BaseModel) -> None:
    for name, count in (("ab", 1), ("ab cd", 3), ("cd", 2)):
        embedding(name, count).attach(tiny_base)
    places = tiny_base.tokenize(["ab cd, ab, cd"]).places
    assert [place.name for place in places] == ["ab cd", "ab", "cd"]
    assert [place.position for place in places] == [1, 5, 7]


def test_vectors_that_do_not_fit_begin_a_new_chunk(tiny_base: BaseModel) -> None:
    embedding("xyz", 4).attach(tiny_base)
    for letters, place in ((71, (0, 0, 72, "xyz")), (72, (0, 1, 1, "xyz"))):
        tokens = tiny_base.tokenize([" ".join("a" * letters) + " xyz b"])
        assert tokens.places == [place]
        assert tokens.ids.shape == (1, 2, 77)
        assert tiny_base.encode_prompts([" ".join("a" * letters) + " xyz b"]).states.shape[1] == 154
    assert tokens.ids[0, 0, 73] == tiny_base.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [("q w", 4, "qqww"), ("q w e", 2, "qw"), ("q w e r", 2, "qe"), ("q", 1, "q")],
)
def test_begins_as_rows_of_the_token_table(
    text: str, count: int, expected: str, tiny_base: BaseModel
) -> None:
    """Row i * N // n of the text's N tokens for vector i of n."""
    created = Embedding.create(tiny_base, "new", text, count)
    encoder = tiny_base.text_encoder
    assert encoder is not None
    table = encoder.get_input_embeddings().weight
    rows = [ids(tiny_base, letter)[0] for letter in expected]
    assert torch.equal(created.learned.vectors, table[rows])


def test_an_empty_text_begins_with_zeros(tiny_base: BaseModel) -> None:
    assert not Embedding.create(tiny_base, "new", "", 2).learned.vectors.any()


def test_what_does_not_fit_is_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(ArtifactError, match=r"width 768 \(SD 1.x\); .* has 16"):
        embedding("x", 1, width=768).attach(tiny_base)
    with pytest.raises(ArtifactError, match="76 vectors; a prompt's chunk holds 75"):
        embedding("x", 76).attach(tiny_base)
    with pytest.raises(ArtifactError, match=r"1 … 75"):
        Embedding.create(tiny_base, "x", "q", 76)
    one = embedding("x", 1)
    one.attach(tiny_base)
    with pytest.raises(ArtifactError, match="already attached"):
        one.attach(tiny_base)
    with pytest.raises(ArtifactError, match="another embedding of this name"):
        embedding("x", 1).attach(tiny_base)


@pytest.mark.parametrize(
    ("keys", "used", "said"),
    [
        (("clip_l", "clip_l_out"), ["clip_l"], "'clip_l_out' has vectors for the output of the"),
        (("emp_params", "emp_params_out"), ["emp_params"], "'emp_params_out' has vectors for the"),
        (("clip_l", "clip_g", "t5"), ["clip_l", "clip_g"], "'t5' has vectors for T5"),
        (("clip_l", "t5xxl", "t5xxl_out"), ["clip_l"], "'t5xxl' has vectors for T5"),
        (("clip_l", "clip_g", "llama"), ["clip_l", "clip_g"], "'llama' has vectors for nothing"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_vectors_that_no_model_here_can_use_are_named(
    tmp_path: Path, suffix: str, keys: tuple[str, ...], used: list[str], said: str
) -> None:
    """OneTrainer's output embeddings, and those of models with T5."""
    tensors = {key: VECTORS + number for number, key in enumerate(keys)}
    path = written(tmp_path / f"x{suffix}", tensors)
    with pytest.warns(DrawWarning, match=f"x{suffix}: .*{said}.*: left out"):
        loaded = load_artifact(path)
    assert isinstance(loaded, Embedding)
    found = loaded.learned.by_encoder()
    assert len(found) == len(used)
    assert all(torch.equal(a, tensors[key]) for a, key in zip(found, used, strict=True))


@pytest.mark.parametrize("keys", [("clip_l_out",), ("clip_g_out", "clip_l_out"), ("t5",)])
def test_an_embedding_of_only_such_vectors_is_refused(
    tmp_path: Path, keys: tuple[str, ...]
) -> None:
    path = written(tmp_path / "x.safetensors", {key: VECTORS.clone() for key in keys})
    with pytest.raises(ArtifactError, match=rf"x.safetensors: '{keys[0]}' has vectors for .*expec"):
        load_artifact(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("keys", [("emb_params",), ("clip_l", "clip_g"), ("*",)])
def test_vectors_of_8_bits_are_their_values(
    tmp_path: Path, dtype: torch.dtype, suffix: str, keys: tuple[str, ...]
) -> None:
    tensors = {key: (VECTORS + number).to(dtype) for number, key in enumerate(keys)}
    content = {"string_to_param": tensors} if keys == ("*",) and suffix == ".pt" else tensors
    loaded = load_artifact(written(tmp_path / f"x{suffix}", content))
    assert isinstance(loaded, Embedding)
    found = loaded.learned.by_encoder()
    assert [one.dtype for one in found] == [torch.float32] * len(keys)
    for one, key in zip(found, keys, strict=True):
        assert torch.equal(one, tensors[key].float())


def written(path: Path, content: dict[str, Any]) -> Path:
    if path.suffix == ".pt":
        torch.save(content, path)
    else:
        save_file(content, path)
    return path
