"""`python -m inference.convert`: every pair of formats, merging, and what is refused."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.adapters.lora_keys import diffusers_path
from inference.artifacts.base import load_artifact
from inference.artifacts.checkpoint import Checkpoint
from inference.artifacts.embedding import Embedding
from inference.artifacts.hypernetwork import Hypernetwork
from inference.artifacts.hypernetwork_files import HypernetworkSpec
from inference.config.models import BaseModelConfig
from inference.convert import main
from inference.files.hashes import read_header
from inference.inspect import inspect
from inference.models.stable_diffusion.loading import load_base_model

GOLDEN = Path(__file__).parents[1] / "golden" / "lora_key_map.json"
EVERYTHING = ["attention", "feed_forward", "projection", "convolution"]


def convert(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def refusal(capsys, *arguments) -> str:
    """What is said when the command refuses."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    return capsys.readouterr().err


def fill(modules, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for module in modules:
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


@pytest.fixture
def lora_file(tiny_base, tmp_path):
    """A LoRA of UNet and text encoder in kohya's format; one layer has another alpha and rank."""
    lora = Lora.create(
        tiny_base, LoraSpec(4, 3.0, 0.0, EVERYTHING, train_text_encoder=True), seed=0
    )
    other = Lora.create(
        tiny_base, LoraSpec(2, 7.0, 0.0, ["attention"], train_text_encoder=True), seed=0
    )
    for part in ("unet", "te"):
        name = next(name for name in other.layers if name.startswith(f"lora_{part}_"))
        lora.layers[name] = other.layers[name]
    fill(lora.layers.values())
    path = tmp_path / "icons.safetensors"
    lora.save(path, torch.float32, {})
    return path


@pytest.fixture(scope="module")
def lora_key_map():
    return json.loads(GOLDEN.read_text())


def same_tensors(one, two) -> bool:
    one, two = load_file(one), load_file(two)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_lora_goes_to_diffusers_and_back(lora_file, tmp_path):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    convert(lora_file, there, "--to", "diffusers")
    options = json.loads(read_header(there)["__metadata__"]["lora_adapter_metadata"])
    assert (options["unet.r"], options["unet.lora_alpha"]) == (4, 4)
    assert [*options["unet.alpha_pattern"].values()] == [2]
    assert options["unet.alpha_pattern"] == options["unet.rank_pattern"]
    assert any(key.startswith("text_encoder.text_model.encoder") for key in load_file(there))
    convert(there, back, "--to", "kohya")
    start, end = load_file(lora_file), load_file(back)
    assert start.keys() == end.keys()
    for key in (key.removesuffix(".alpha") for key in start if key.endswith(".alpha")):
        rank = len(start[f"{key}.lora_down.weight"])
        scaled = start[f"{key}.lora_up.weight"] * (start[f"{key}.alpha"].item() / rank)
        assert end[f"{key}.alpha"] == rank
        assert torch.equal(end[f"{key}.lora_up.weight"], scaled)
        assert torch.equal(end[f"{key}.lora_down.weight"], start[f"{key}.lora_down.weight"])
    assert read_header(back)["__metadata__"]["ss_network_dim"] == "Dynamic"


def test_a_lora_of_diffusers_carries_hashes_as_kohyas_do(lora_file, tmp_path):
    convert(lora_file, tmp_path / "there.safetensors", "--to", "diffusers")
    header = read_header(tmp_path / "there.safetensors")["__metadata__"]
    raw = (tmp_path / "there.safetensors").read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert header["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert re.fullmatch("[0-9a-f]{8}", header["sshs_legacy_hash"])


def test_diffusers_reads_every_layer_at_its_strength(lora_file, tiny_base, tmp_path):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    convert(lora_file, tmp_path / "there.safetensors", "--to", "diffusers")
    pipe = StableDiffusionPipeline(
        **tiny_base.parts,
        tokenizer=tiny_base.tokenizer,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.load_lora_weights(str(tmp_path), weight_name="there.safetensors", adapter_name="one")
    lora: Any = load_artifact(lora_file)
    layers = lora.layers
    for name, own in layers.items():
        part, path = diffusers_path(name)
        module = getattr(pipe, part).get_submodule(path.removeprefix("text_model."))
        assert module.scaling["one"] == 1.0
        assert torch.equal(module.lora_A["one"].weight.squeeze(), own.lora_A.weight.squeeze())
        scaled = own.lora_B.weight.squeeze() * own.scaling
        assert torch.equal(module.lora_B["one"].weight.squeeze(), scaled)


def test_every_kohya_name_is_understood(lora_key_map):
    for names in lora_key_map.values():
        for name, entry in names.items():
            assert ".".join(diffusers_path(name)) == entry["diffusers"]


def test_a_lora_of_sdxl_keeps_its_names(lora_key_map, tmp_path):
    names = [*lora_key_map["sdxl"]][::40]
    names.append("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k")
    tensors = {}
    for number, name in enumerate(names):
        entry = lora_key_map["sdxl"][name]
        for half in ("down", "up"):
            shape = [3 if size == "r" else size for size in entry[half]]
            value = torch.full(shape, 0.1 + number)
            tensors[f"{name}.lora_{half}.weight"] = value
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "xl.safetensors")
    convert(tmp_path / "xl.safetensors", tmp_path / "there.safetensors", "--to", "diffusers")
    keys = load_file(tmp_path / "there.safetensors")
    assert any(key.startswith("text_encoder_2.text_model.") for key in keys)
    assert any(key.startswith("unet.down_blocks.") for key in keys)
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors", "--to", "kohya")
    start, back = (load_file(tmp_path / f"{name}.safetensors") for name in ("xl", "back"))
    assert {key: one.shape for key, one in start.items()} == {
        key: one.shape for key, one in back.items()
    }
    assert {one.item() for key, one in back.items() if key.endswith(".alpha")} == {3.0}
    metadata = read_header(tmp_path / "back.safetensors")["__metadata__"]
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"


def test_sd2s_projections_are_linear_in_diffusers_only(tmp_path):
    name = "lora_unet_down_blocks_0_attentions_0"
    tensors = {
        f"{name}_proj_in.lora_down.weight": torch.ones(2, 8, 1, 1),
        f"{name}_proj_in.lora_up.weight": torch.ones(8, 2, 1, 1),
        f"{name}_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(2, 1024),
        f"{name}_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(8, 2),
    }
    save_file(tensors, tmp_path / "two.safetensors")
    convert(tmp_path / "two.safetensors", tmp_path / "there.safetensors", "--to", "diffusers")
    there = load_file(tmp_path / "there.safetensors")
    assert there["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"].shape == (2, 8)
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors", "--to", "kohya")
    back = load_file(tmp_path / "back.safetensors")
    assert back[f"{name}_proj_in.lora_down.weight"].shape == (2, 8, 1, 1)


@pytest.mark.parametrize(("width", "is_reported"), [(1024, True), (768, False)])
def test_inspect_says_what_diffusers_needs_for_sd2(width, is_reported, tmp_path):
    """Only of kohya's form, in which its linear layers are convolutions."""
    name = "lora_unet_down_blocks_0_attentions_0"
    tensors = {
        f"{name}_proj_in.lora_down.weight": torch.ones(2, 8, 1, 1),
        f"{name}_proj_in.lora_up.weight": torch.ones(8, 2, 1, 1),
        f"{name}_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(2, width),
        f"{name}_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(8, 2),
    }
    save_file(tensors, tmp_path / "kohya.safetensors")
    facts = inspect(tmp_path / "kohya.safetensors")
    assert ("--to diffusers" in facts.get("in diffusers", "")) is is_reported
    convert(tmp_path / "kohya.safetensors", tmp_path / "there.safetensors", "--to", "diffusers")
    assert "in diffusers" not in inspect(tmp_path / "there.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_embedding_goes_through_every_format(suffix, tmp_path):
    vectors = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    start = tmp_path / "word.pt"
    Embedding(vectors, "word", {"step": 7}).save(start, torch.float32, {})
    kohyas, theirs = tmp_path / "word.safetensors", tmp_path / "d" / f"word{suffix}"
    convert(start, kohyas, "--to", "kohya")
    assert [*load_file(kohyas)] == ["emb_params"]
    convert(kohyas, theirs, "--to", "diffusers")
    again = load_artifact(theirs)
    assert isinstance(again, Embedding)
    assert torch.equal(again.learned.vectors, vectors)
    read = torch.load(theirs, weights_only=True) if suffix == ".bin" else load_file(theirs)
    assert [*read] == ["word"]
    convert(theirs, tmp_path / "again.pt", "--to", "a1111", "--dtype", "fp32")
    content = torch.load(tmp_path / "again.pt", weights_only=True)
    assert torch.equal(content["string_to_param"]["*"], vectors)
    convert(start, tmp_path / "word.png", "--to", "a1111", "--dtype", "fp32")
    word: Any = load_artifact(tmp_path / "word.png")
    assert torch.equal(word.learned.vectors, vectors)


def test_a_hypernetwork_goes_to_safetensors_and_back(tiny_base, tmp_path):
    spec = HypernetworkSpec((1, 2, 1), "mish")
    network = Hypernetwork.create(tiny_base, spec, None, 3)
    network.save(tmp_path / "net.pt", torch.float16, {})
    convert(tmp_path / "net.pt", tmp_path / "net.safetensors", "--to", "single-file")
    convert(tmp_path / "net.safetensors", tmp_path / "back.pt", "--to", "a1111")
    start, back = (torch.load(tmp_path / name, weights_only=True) for name in ("net.pt", "back.pt"))
    assert start.keys() == back.keys()
    assert start["activation_func"] == back["activation_func"] == "mish"
    for width in (key for key in start if isinstance(key, int)):
        for one, two in zip(start[width], back[width], strict=True):
            assert all(torch.equal(one[key], two[key]) for key in one)
            assert {value.dtype for value in two.values()} == {torch.float16}


def weights(path):
    base = load_base_model(BaseModelConfig(path=str(path)))
    return {f"{part}.{k}": v for part, m in base.parts.items() for k, v in m.state_dict().items()}


def test_a_base_model_goes_to_a_file_and_back(tiny_base_folder, tmp_path, capsys):
    file, folder = tmp_path / "tiny.safetensors", tmp_path / "again"
    convert(tiny_base_folder, file, "--to", "single-file")
    assert "only Limner knows how to open it" in capsys.readouterr().out
    convert(file, folder, "--to", "diffusers")
    start, back = weights(tiny_base_folder), weights(folder)
    assert all(torch.equal(back[key], value) for key, value in start.items())
    assert not (folder / "limner.json").exists()
    convert(file, tmp_path / "half.safetensors", "--to", "single-file", "--dtype", "fp16")
    formats = {v.dtype for v in load_file(tmp_path / "half.safetensors").values()}
    assert formats == {torch.float16, torch.int64}
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * file.stat().st_size


def test_a_pickle_becomes_safetensors(lora_file, tmp_path):
    torch.save({"state_dict": load_file(lora_file)}, tmp_path / "old.ckpt")
    convert(tmp_path / "old.ckpt", tmp_path / "new.safetensors", "--to", "kohya")
    assert same_tensors(tmp_path / "new.safetensors", lora_file)


@pytest.mark.parametrize("to", ["single-file", "diffusers"])
def test_a_merged_model_is_the_base_model_with_its_loras(
    to, tiny_base_folder, lora_file, tmp_path, capsys
):
    out = tmp_path / ("merged.safetensors" if to == "single-file" else "merged")
    second = tmp_path / "second.safetensors"
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    lora = Lora.create(
        base, LoraSpec(2, 2.0, 0.0, ["convolution"], train_text_encoder=False), seed=5
    )
    fill(lora.layers.values(), seed=2)
    lora.save(second, torch.float32, {})
    merges = ["--merge", f"{lora_file}:0.7", "--merge", second]
    convert(tiny_base_folder, out, "--to", to, *merges)
    assert "merged icons:0.7" in capsys.readouterr().out
    merged = load_base_model(BaseModelConfig(path=str(out)))
    plain = predict(base)
    load_artifact(lora_file).attach(base, 0.7)
    load_artifact(second).attach(base)
    attached = predict(base)
    assert (attached - plain).abs().max() > 0.05
    torch.testing.assert_close(predict(merged), attached, rtol=0, atol=1e-4)
    if to == "single-file":
        sources = read_header(out)["__metadata__"]["modelspec.merged_from"]
        assert sources.endswith("icons:0.7, second:1")


def predict(base) -> torch.Tensor:
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return base.predict(latents, torch.tensor([10, 500]), base.encode_prompts(["ab c", "d"]))


def test_what_cannot_be_is_refused_in_words(lora_file, tiny_base_folder, tmp_path, capsys):
    out = tmp_path / "out.safetensors"

    def said(*arguments):
        return refusal(capsys, *arguments)

    assert "no such file or folder" in said(tmp_path / "nothing", out, "--to", "kohya")
    message = said(lora_file, out, "--to", "a1111")
    assert "a LoRA cannot be converted to a1111; possible are kohya and diffusers" in message
    message = said(lora_file, tmp_path / "out.pt", "--to", "diffusers")
    assert "is written under a name that ends in .safetensors" in message
    message = said(lora_file, out, "--to", "kohya")
    assert "is in kohya's format already" in message
    message = said(lora_file, out, "--to", "diffusers", "--merge", lora_file)
    assert "LoRAs are merged into base models" in message
    for strength in ("nan", "inf", "-inf"):
        merges = ["--merge", f"{lora_file}:{strength}"]
        message = said(tiny_base_folder, out, "--to", "single-file", *merges)
        assert f"a strength is a number such as 0.8, got '{strength}' in" in message
    message = said(lora_file, out, "--to", "diffusers", "--prediction-type", "epsilon")
    assert "is for base models in single files" in message
    message = said(tiny_base_folder, tmp_path / "out.safetensors", "--to", "diffusers")
    assert "has no ending (it is a folder)" in message
    message = said(tiny_base_folder, out, "--to", "single-file", "--merge", f"{tmp_path}/x:1")
    assert "no such file or folder" in message
    assert "invalid choice: 'zip'" in said(lora_file, out, "--to", "zip")
    assert "--to" in said(lora_file, out)
    assert not out.exists()


def test_results_name_no_folder_of_their_sources(lora_file, tiny_base_folder, tmp_path):
    """A file that is passed on names models, and not where they were."""
    home = tmp_path / "alice_and_client"
    shutil.copytree(tiny_base_folder, home / "model")
    shutil.copy(lora_file, home / "icons.safetensors")
    for part in ("unet", "vae"):  # as older versions of diffusers wrote them
        config = home / "model" / part / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": str(home)}))
    merge = ("--merge", home / "icons.safetensors")
    out = tmp_path / "out"
    convert(home / "model", out / "file.safetensors", "--to", "single-file", *merge)
    convert(home / "model", out / "folder", "--to", "diffusers", *merge)
    convert(home / "icons.safetensors", out / "lora.safetensors", "--to", "diffusers")
    shutil.copy(out / "lora.safetensors", home)
    convert(home / "lora.safetensors", out / "kohya.safetensors", "--to", "kohya")
    contents = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(contents) > 3
    assert b"model, icons:1" in contents[out / "file.safetensors"]
    assert not [path for path, content in contents.items() if home.name.encode() in content]


def test_nothing_is_overwritten_unasked(lora_file, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    message = refusal(capsys, lora_file, out, "--to", "diffusers")
    assert "exists; --overwrite replaces it" in message
    assert out.read_text() == "mine"
    message = refusal(capsys, lora_file, lora_file, "--to", "diffusers", "--overwrite")
    assert "is IN itself" in message
    (tmp_path / "photos").mkdir()
    message = refusal(capsys, lora_file, tmp_path / "photos", "--to", "diffusers", "--overwrite")
    assert "a folder that is no base model is not replaced" in message
    convert(lora_file, out, "--to", "diffusers", "--overwrite")
    converted: Any = load_artifact(out)
    original: Any = load_artifact(lora_file)
    assert converted.layers.keys() == original.layers.keys()


LARGE = 7e4
"""More than fp16 can hold."""


def large_file(kind: str, base, folder: Path) -> Path:
    """A file with a value that is too large for fp16."""
    path = folder / f"in{'.pt' if kind == 'hypernetwork' else '.safetensors'}"
    if kind == "LoRA":
        made = Lora.create(base, LoraSpec(2, 2.0, 0.0, ["attention"], False), seed=0)
        fill(made.layers.values())
        tensor = next(iter(made.layers.values())).lora_B.weight  # type: ignore[union-attr]
    elif kind == "embedding":
        made = Embedding(torch.ones(2, 16), "word")
        tensor = made.learned.vectors
    elif kind == "hypernetwork":
        made = Hypernetwork.create(base, HypernetworkSpec(), [16], seed=0)
        tensor = made.pairs[16][0].linears[0].weight  # type: ignore[union-attr,index]
    else:
        made = Checkpoint.of(base, ["unet", "text_encoder", "vae"])
        tensor = base.unet.conv_in.weight
        path = path if kind == "model file" else folder / "in"
    with torch.no_grad():
        tensor.view(-1)[0] = LARGE  # type: ignore[operator]
    made.save(path, torch.float32, {})
    return path


@pytest.mark.parametrize(
    ("kind", "name", "to"),
    [
        ("LoRA", "out.safetensors", "diffusers"),
        ("embedding", "out.pt", "a1111"),
        ("embedding", "out.png", "a1111"),
        ("embedding", "out.bin", "diffusers"),
        ("hypernetwork", "out.safetensors", "single-file"),
        ("model file", "out", "diffusers"),
        ("model folder", "out.safetensors", "single-file"),
    ],
)
def test_what_fp16_cannot_hold_is_not_written(tiny_base, tmp_path, capsys, kind, name, to):
    source, out = large_file(kind, tiny_base, tmp_path), tmp_path / name
    message = refusal(capsys, source, out, "--to", to, "--dtype", "fp16")
    assert message.startswith(f"convert: {out}: was not written: 1 of ")
    for part in ("tensors are not finite (NaN or infinite) in fp16", "--dtype", "65504"):
        assert part in message
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    convert(source, out, "--to", to, "--dtype", "bf16")
    assert out.exists()
