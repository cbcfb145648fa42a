"""What prompts call by name, out of folders, while they are drawn."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inference.artifacts.base import UsedArtifact, load_artifact
from inference.artifacts.embedding import Embedding
from inference.artifacts.hypernetwork import Hypernetwork
from inference.artifacts.hypernetwork_files import HypernetworkSpec
from inference.artifacts.library import NetworkLibrary
from inference.config.images import HiresConfig, ImageConfig
from inference.files.hashes import artifact_hash
from inference.images.drawing import Drawer, draw
from inference.images.infotext.text import parse_infotext
from inference.images.requests import all_calls, expand, group
from inference.runtime.errors import InputError

CAT = ImageConfig(prompt="a cat", negative_prompt="dog", seed=1, steps=2)


def write_lora(base, path, parts=("unet", "te"), metadata=None, seed=1):
    """A LoRA of rank 2 as kohya's trainer writes it, of attention in the parts named."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for part, model, ends in [
        ("unet", base.unet, ("attn2.to_k", "attn2.to_v")),
        ("te", base.text_encoder, ("q_proj", "v_proj")),
    ]:
        for name, module in model.named_modules():
            if part not in parts or not name.endswith(ends):
                continue
            name = name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}"
            key = f"lora_{part}_{name.replace('.', '_')}"
            rows, columns = module.weight.shape
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
            tensors[f"{key}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path, metadata or {})
    return path


def write_embedding(path, seed=2):
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(seed)) * 5
    save_file({"emb_params": vectors}, path)
    return path


@pytest.fixture
def folder(tiny_base, tmp_path):
    """ink (also called pen), te-only, unet-only, an embedding style, a hypernetwork hyper."""
    folder = tmp_path / "models"
    (folder / "below").mkdir(parents=True)
    write_lora(tiny_base, folder / "ink.safetensors", metadata={"ss_output_name": "pen"})
    write_lora(tiny_base, folder / "below" / "te-only.safetensors", ["te"])
    write_lora(tiny_base, folder / "unet-only.safetensors", ["unet"])
    Image.new("RGB", (8, 8)).save(folder / "ink.png")  # previews
    Image.new("RGB", (8, 8)).save(folder / "unet-only.preview.png")
    write_embedding(folder / "style.safetensors")
    hypernetwork = Hypernetwork.create(tiny_base, HypernetworkSpec(), None, seed=3)
    for pair in hypernetwork.pairs.values():
        for parameter in pair.parameters():
            parameter.data += 0.3
    hypernetwork.save(folder / "hyper.pt", torch.float32, {})
    return folder


@pytest.fixture
def draw_one(tiny_base, folder):
    """Draws one picture with what lies in the folder."""
    library = NetworkLibrary(tiny_base, [folder])

    def draw_one(prompt="a cat", artifacts=(), **changes):
        one = dataclasses.replace(CAT, prompt=prompt, **changes)
        requests = expand(tiny_base, [one])
        library.check(all_calls(requests))
        drawer = Drawer(tiny_base, requests, library, group(requests, 1), artifacts=artifacts)
        return drawer([0])[0][1]

    vars(draw_one)["library"] = library
    return draw_one


def same(*drawings):
    first, *others = (np.asarray(drawing.image) for drawing in drawings)
    return all(np.array_equal(first, other) for other in others)


def infotext_of(drawing):
    return parse_infotext(drawing.infotext).parameters


def test_lora_by_its_name_and_by_the_one_in_the_file(draw_one, folder):
    plain, by_stem, by_alias, lyco = map(
        draw_one, ["a cat", "a cat<lora:ink:0.5>", "a cat<lora:pen:0.5>", "a cat<lyco:ink:0.5>"]
    )
    assert same(by_stem, by_alias, lyco)
    assert not same(plain, by_stem)
    hash_ = artifact_hash(folder / "ink.safetensors", "lora")
    assert hash_
    hash_ = hash_[:12]
    assert infotext_of(by_stem)["Lora hashes"] == f"ink: {hash_}"
    assert infotext_of(by_alias)["Lora hashes"] == f"pen: {hash_}"
    assert parse_infotext(by_stem.infotext).prompt == "a cat<lora:ink:0.5>"
    assert "Lora hashes" not in infotext_of(plain)


def test_strengths_of_the_parts(draw_one):
    plain = draw_one("a cat")
    for idle in ("te-only:0:1", "te-only:0", "unet-only:1:0", "ink:0", "te-only:te=0:unet=1"):
        drawing = draw_one(f"a cat<lora:{idle}>")
        assert same(plain, drawing), idle
    whole = draw_one("a cat<lora:ink:1>")
    both = [draw_one(f"a cat<lora:ink:{each}>") for each in ("1:0", "0:1", "0.5")]
    assert not any(same(whole, one) or same(plain, one) for one in both)
    assert same(draw_one("a cat<lora:te-only:1>"), draw_one("a cat<lora:te-only:1:0>"))
    assert same(whole, draw_one("a cat<lora:ink>"), draw_one("a cat<lora:ink:te=1:unet=1>"))


@pytest.mark.parametrize(
    ("tags", "alone"),
    [
        ("<lora:ink:1> <lora:ink:0.5>", "<lora:ink:1>"),  # twice the last 0.5
        ("<lora:ink:0.5> <lora:ink:1>", "<lora:ink:2>"),
        ("<lora:ink:9:9> <lora:ink:1> <lora:ink:0.5:0.25>", "<lora:ink:1.5:0.75>"),
        ("<lora:ink:1> <lora:pen:0.5>", "<lora:ink:1.5>"),  # two names of one file
        ("<lora:ink:1:1:1> <lora:ink:0.5:0.5:2>", "<lora:ink:1:1:2>"),
    ],
)
def test_lora_that_is_called_several_times(draw_one, tags, alone):
    """A1111's `load_networks` takes one network per name, once per tag, with the last strengths."""
    assert same(draw_one(f"a cat{tags}"), draw_one(f"a cat{alone}{' ' * tags.count(' ')}"))


def test_lora_of_the_text_encoder_alone_is_told(draw_one):
    assert infotext_of(draw_one("a cat<lora:te-only:1:0>"))["Lora hashes"].startswith("te-only: ")
    assert "Lora hashes" not in infotext_of(draw_one("a cat<lora:ink:0:0>"))


def test_dyn_takes_the_first_ranks(draw_one, tiny_base, folder):
    whole, one, all_ = (draw_one(f"a cat<lora:ink:1:1{dyn}>") for dyn in ("", ":1", ":2"))
    assert same(whole, all_)
    assert not same(whole, one)


def test_hypernetworks(draw_one, folder):
    plain, half, whole = map(
        draw_one, ["a cat", "a cat<hypernet:hyper:0.5>", "a cat<hypernet:hyper:1>"]
    )
    assert not same(plain, half) and not same(half, whole) and not same(plain, whole)
    assert same(whole, draw_one("a cat<hypernet:hyper>"))
    assert same(plain, draw_one("a cat<hypernet:hyper:0>"), draw_one("a cat"))


def test_embeddings_by_the_names_of_their_files(draw_one, folder):
    plain, called, negative, capitals = (
        draw_one("a cat, style"),
        draw_one("a cat, style"),
        draw_one("a cat, of", negative_prompt="style"),
        draw_one("a cat, Style"),
    )
    assert same(plain, called, capitals)
    hash_ = artifact_hash(folder / "style.safetensors", "embedding")
    assert hash_
    hash_ = hash_[:12]
    for drawing in (called, negative, capitals):
        assert infotext_of(drawing)["TI hashes"] == f"style: {hash_}"
    (folder / "style.safetensors").rename(folder / "other.safetensors")
    without = NetworkLibrary(draw_one.library.base, [folder])
    requests = expand(without.base, [dataclasses.replace(CAT, prompt="a cat, style")])
    letters = Drawer(without.base, requests, without, [[0]])([0])[0][1]
    assert not same(called, letters)
    assert "TI hashes" not in infotext_of(letters)
    assert not same(negative, draw_one("a cat, of", negative_prompt="x"))


def test_embedding_of_a_run_is_called_as_it_says(tiny_base, tmp_path):
    embedding = Embedding.create(tiny_base, "number", "a", 1)
    embedding.save(tmp_path / "last.safetensors", torch.float32, {})
    library = NetworkLibrary(tiny_base, [tmp_path])
    assert library.named(["a number"]) == [tmp_path / "last.safetensors"]
    assert library.named(["the last one"]) == []


def test_embeddings_in_pictures(tiny_base, tmp_path):
    embedding = Embedding.create(tiny_base, "bird", "a", 1)
    embedding.save(tmp_path / "shown.png", torch.float32, {})
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "damaged.png").write_text("x")
    library = NetworkLibrary(tiny_base, [tmp_path])
    assert library.named(["a bird, a photo, shown"]) == [tmp_path / "shown.png"]
    assert library.named(["a damaged photo"]) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<lora:imk:1>", "<lora:imk>: no file of this name in .*models. Did you mean: ink"),
        ("<hypernet:ink:1>", "<hypernet:ink>: .*ink.safetensors is no hypernetwork"),
        ("<lora:hyper:1>", "<lora:hyper>: .*hyper.pt is no lora"),
        ("<lora:style>", "<lora:style>: .*style.safetensors is no lora"),
        ("<lora:two>", "<lora:two>: the name stands for .*two.* and .*two.*; rename one of them"),
        ("twin", "embedding twin: the name stands for .* and .*; rename one of them"),
        ("<lara:ink>", "<lara:…> is not a kind of network"),
    ],
)
def test_what_cannot_be_called(draw_one, tiny_base, folder, prompt, message):
    for path in (folder / "two.safetensors", folder / "below" / "two.safetensors"):
        write_lora(tiny_base, path)
    for path in (folder / "twin.safetensors", folder / "below" / "twin.safetensors"):
        write_embedding(path)
    with pytest.raises(InputError, match=message):
        draw_one(f"a cat {prompt}")


def test_files_of_other_kinds_may_have_the_same_name(draw_one, tiny_base, folder):
    plain = draw_one("a cat<lora:ink>")
    write_embedding(folder / "below" / "ink.safetensors")
    library = NetworkLibrary(tiny_base, [folder])
    assert library.named(["ink"]) == [folder / "below" / "ink.safetensors"]
    requests = expand(tiny_base, [dataclasses.replace(CAT, prompt="a cat<lora:ink>")])
    assert same(plain, Drawer(tiny_base, requests, library, [[0]])([0])[0][1])


def test_folders_may_lie_in_one_another(draw_one, tiny_base, folder):
    library = NetworkLibrary(tiny_base, [folder, folder / "below", folder])
    requests = expand(tiny_base, [dataclasses.replace(CAT, prompt="a cat<lora:te-only>")])
    drawing = Drawer(tiny_base, requests, library, [[0]])([0])[0][1]
    assert same(drawing, draw_one("a cat<lora:te-only>"))


def test_nothing_is_looked_for_where_no_folder_is(tiny_base):
    with pytest.raises(InputError, match=r"<lora:x>: no file .* since artifact_dirs is"):
        draw(tiny_base, [dataclasses.replace(CAT, prompt="<lora:x:1>")])


def test_base_model_is_as_before(draw_one, tiny_base):
    before = {name: tensor.clone() for name, tensor in weights(tiny_base).items()}
    plain = draw_one("a cat")
    draw_one("a cat, style<lora:ink:1><hypernet:hyper:1>")
    assert tiny_base.embeddings == {}
    assert same(plain, draw_one("a cat"))
    draw_one.library.close()
    after = weights(tiny_base)
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert same(plain, draw_one("a cat"))


def weights(base):
    return {
        f"{part}.{name}": tensor
        for part, module in base.parts.items()
        for name, tensor in module.state_dict().items()
    }


def test_error_leaves_nothing_at_work(draw_one, tiny_base, monkeypatch):
    plain = draw_one("a cat, style of")

    def fail(*_, **__):
        raise FloatingPointError("no number")

    with monkeypatch.context() as patch:
        patch.setattr("inference.images.drawing.sample", fail)
        with pytest.raises(FloatingPointError):
            draw_one("a cat, style<lora:ink:1><hypernet:hyper:1>")
    assert tiny_base.embeddings == {}
    assert same(plain, draw_one("a cat, style of"))


@pytest.mark.parametrize(
    ("tag", "file"), [("lora:ink", "ink.safetensors"), ("hypernet:hyper", "hyper.pt")]
)
def test_tag_equals_the_artifact_attached(draw_one, tiny_base, folder, tag, file):
    called = draw_one(f"a cat <{tag}:0.7>")
    artifact = load_artifact(folder / file)
    artifact.attach(tiny_base, 0.7)
    hash_ = artifact_hash(folder / file, artifact.kind)
    used = UsedArtifact(artifact.kind, artifact.name, 0.7, hash_)
    attached = draw_one("a cat", [used])
    artifact.detach()
    assert same(called, attached)
    assert called.infotext == attached.infotext


def test_second_pass_calls_its_own(draw_one):
    hires = HiresConfig(prompt="a cat<lora:te-only:1>", negative_prompt="style", steps=2)
    own = draw_one("a cat<lora:unet-only:1>", hires=hires)
    first, second = infotext_of(own)["Lora hashes"].split(", ")
    assert first.startswith("unet-only: ") and second.startswith("te-only: ")
    assert infotext_of(own)["TI hashes"].startswith("style: ")
    shared = draw_one("a cat<lora:unet-only:1>", hires=dataclasses.replace(hires, prompt=None))
    assert not same(own, shared)
    plain = dataclasses.replace(hires, prompt="a cat")
    assert not same(own, draw_one("a cat<lora:unet-only:1>", hires=plain))


def test_attached_artifact_is_in_the_second_passes_prompt_too(draw_one, tiny_base, folder):
    artifact = load_artifact(folder / "ink.safetensors")
    artifact.attach(tiny_base, 0.5)
    hires = HiresConfig(prompt="a dog", steps=2)
    attached = draw_one("a cat", [UsedArtifact("lora", "ink", 0.5, "0" * 12)], hires=hires)
    artifact.detach()
    assert infotext_of(attached)["Hires prompt"] == "a dog <lora:ink:0.5>"
    called = dataclasses.replace(hires, prompt=infotext_of(attached)["Hires prompt"])
    assert same(attached, draw_one("a cat <lora:ink:0.5>", hires=called))


def test_batches_of_other_networks_are_apart(tiny_base, folder):
    prompts = ["a<lora:ink>", "b", "c <lora:ink>", "d<lora:ink:0.5>", "e, style"]
    library = NetworkLibrary(tiny_base, [folder])
    requests = expand(tiny_base, [dataclasses.replace(CAT, prompt=prompt) for prompt in prompts])
    batches = group(requests, 8)
    assert batches == [[0, 2], [1, 4], [3]]
    drawer = Drawer(tiny_base, requests, library, batches)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = {index: one for batch in batches for index, one in drawer(batch)}
    for index, drawing in together.items():
        alone = drawer([index])[0][1]
        difference = np.asarray(alone.image, int) - np.asarray(drawing.image, int)
        assert abs(difference).max() <= 1
        assert alone.infotext == drawing.infotext
    assert "TI hashes" not in infotext_of(together[1])
