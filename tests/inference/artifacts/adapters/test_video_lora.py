"""LoRAs of video transformers: every format at the trained strength, and what is refused."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inference.artifacts.adapters.lora import Lora, LoraSpec, twin_of
from inference.artifacts.base import load_artifact
from inference.convert import main as convert
from inference.files.hashes import read_header
from inference.files.tensors import read_tensors
from inference.inspect import inspect
from inference.models.cogvideox.model import VideoModel
from inference.runtime.errors import ArtifactError, DrawWarning
from tests.inference.artifacts.adapters.low_rank_layers import low_ranks
from tests.inference.artifacts.video_base import build_video_base, pipeline_of, predict, save_folder

EVERYTHING = ["attention", "feed_forward", "projection"]
RANK, ALPHA = 4, 2.0  # the file has B times 0.5, which is exact


@pytest.fixture
def base() -> VideoModel:
    return build_video_base()


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    return save_folder(build_video_base(), tmp_path_factory.mktemp("video_base"))


def filled(lora: Lora, dtype: torch.dtype = torch.float32, seed: int = 1) -> Lora:
    """As after a training: no half is zero; the numbers are rounded as grids show them."""
    generator = torch.Generator().manual_seed(seed)
    for low_rank in low_ranks(lora).values():
        for weight in (low_rank.lora_A.weight, low_rank.lora_B.weight):
            weight.data = (torch.randn(weight.shape, generator=generator) * 0.3).to(dtype)
    return lora


def trained(base: VideoModel, targets=None, dtype: torch.dtype = torch.float32) -> Lora:
    return filled(Lora.create(base, LoraSpec(RANK, ALPHA, 0.0, targets, False), seed=3), dtype)


def mixed(base: VideoModel, dtype: torch.dtype = torch.float32) -> Lora:
    """The first layer has another rank, the last another alpha."""
    lora = Lora.create(base, LoraSpec(RANK, ALPHA, 0.0, EVERYTHING, False), seed=3)
    first, *_, last = lora.layers
    other = Lora.create(base, LoraSpec(2, ALPHA, 0.0, EVERYTHING, False), seed=3)
    lora.layers[first] = other.layers[first]
    lora.layers[last].alpha = 8.0
    return filled(lora, dtype)


def delta(base: VideoModel, lora: Lora) -> dict[str, Tensor]:
    """What merging adds to every weight of the transformer that it changes."""
    before = {key: value.clone() for key, value in base.transformer.state_dict().items()}
    lora.merge_into(base)
    after = base.transformer.state_dict()
    return {key: after[key] - before[key] for key in after if not after[key].equal(before[key])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [trained, mixed])
def test_what_is_predicted_before_saving_is_predicted_after_loading(make, dtype, tmp_path):
    base, plain = build_video_base(dtype), predict(build_video_base(dtype))
    lora = make(base, dtype=dtype)
    lora.comfyui_twin = True
    lora.attach(base)
    before = predict(base)
    path = tmp_path / "moving.safetensors"
    lora.save(path, dtype, {})
    assert not torch.equal(before, plain)

    arguments = [str(path), str(tmp_path / "kohya.safetensors"), "--to", "kohya"]
    assert convert(arguments) == 0
    arguments = [arguments[1], str(tmp_path / "again.safetensors"), "--to", "diffusers"]
    assert convert(arguments) == 0
    for file in ("moving", "moving.comfyui", "kohya", "again"):
        fresh = build_video_base(dtype)
        read = load_artifact(tmp_path / f"{file}.safetensors")
        read.attach(fresh)
        assert torch.equal(predict(fresh), before), file
        read.detach()
        assert torch.equal(predict(fresh), plain), file


@pytest.mark.parametrize("make", [trained, mixed])
def test_diffusers_own_pipeline_predicts_the_same_with_our_file(make, base, tmp_path):
    lora = make(base)
    lora.attach(base)
    expected = predict(base)
    path = tmp_path / "moving.safetensors"
    lora.save(path, torch.float32, {"ss_steps": "7"})

    fresh = build_video_base()
    pipeline = pipeline_of(fresh)
    pipeline.load_lora_weights(str(path))
    assert pipeline.get_list_adapters() == {"transformer": ["default_0"]}
    assert torch.equal(predict(fresh), expected)


def test_the_saved_keys_and_metadata(base, tmp_path):
    path = tmp_path / "moving.safetensors"
    lora = trained(base)
    lora.comfyui_twin = True
    lora.save(path, torch.float16, {"ss_steps": "7"})

    layers = [f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    expected = {
        f"transformer.transformer_blocks.{block}.{layer}.lora_{half}.weight"
        for block in range(2) for layer in layers for half in "AB"
    }  # fmt: skip
    tensors, metadata = read_tensors(path)
    assert set(tensors) == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    options = json.loads(metadata["lora_adapter_metadata"])
    assert (options["transformer.r"], options["transformer.lora_alpha"]) == (RANK, RANK)
    assert metadata["ss_network_alpha"] == "4.0"
    assert metadata["ss_steps"] == "7"
    assert metadata["modelspec.architecture"] == "limner_tiny_video/lora"

    twin, _ = read_tensors(twin_of(path))
    assert "lora_unet__transformer_blocks_0_attn1_to_out_0.lora_down.weight" in twin
    assert twin["lora_unet__transformer_blocks_1_attn1_to_q.alpha"].item() == ALPHA
    assert read_header(twin_of(path))["__metadata__"]["ss_network_alpha"] == "2.0"
    assert len(twin) == 8 * 3
    first = path.read_bytes()
    lora.save(path, torch.float16, {"ss_steps": "7"})
    assert path.read_bytes() == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_alpha_is_folded_into_the_up_half_before_it_is_rounded(dtype, base, tmp_path):
    """So that diffusers 0.32 and 0.33, which ignore alpha, draw at the trained strength too."""
    lora = trained(base)
    for layer in lora.layers.values():
        layer.alpha = 2.5
    path = tmp_path / "moving.safetensors"
    lora.save(path, dtype, {})
    tensors, metadata = read_tensors(path)
    options = json.loads(metadata["lora_adapter_metadata"])
    assert options["transformer.lora_alpha"] == options["transformer.r"] == RANK
    assert options["transformer.alpha_pattern"] == options["transformer.rank_pattern"] == {}
    assert not any(key.endswith("alpha") for key in tensors)
    own = low_ranks(lora)["lora_unet__transformer_blocks_1_attn1_to_out_0"]
    stem = "transformer.transformer_blocks.1.attn1.to_out.0"
    assert torch.equal(tensors[f"{stem}.lora_A.weight"], own.lora_A.weight.to(dtype))
    assert torch.equal(tensors[f"{stem}.lora_B.weight"], (own.lora_B.weight * 0.625).to(dtype))
    assert not torch.equal(tensors[f"{stem}.lora_B.weight"], own.lora_B.weight.to(dtype))


def test_without_a_twin_only_one_file_is_written(base, tmp_path):
    trained(base).save(tmp_path / "moving.safetensors", torch.float16, {})
    assert [file.name for file in tmp_path.iterdir()] == ["moving.safetensors"]


def test_comfyui_finds_the_layer_that_each_name_of_the_twin_means(base):
    """As `merge_lora` of ComfyUI-CogVideoXWrapper: words are joined until there is such a child."""
    for name, (_, _, module) in trained(base, EVERYTHING)._places(base).items():
        found, word = base.transformer, ""
        for part in name.split("lora_unet_")[-1].split("_"):
            word = f"{word}_{part}" if word else part
            if word in found._modules:
                found, word = found._modules[word], ""
        assert word == "" and found is module, name


SOURCES = {  # description -> keys and metadata of a file, and the scale of B A
    "diffusers with alpha": ("transformer.{path}.lora_{half}.weight", "lora_adapter_metadata", 3.0),
    "finetrainers": ("transformer.{path}.lora_{half}.weight", "lora_config", 3.0),
    "diffusers without": ("transformer.{path}.lora_{half}.weight", "", 4.0),
    "SAT exported": ("{path}.lora_{half}.weight", "", 1.0),
    "SAT raw": ("model.diffusion_model.transformer.layers.{block}.attention.{sat}", "", 1.0),
    "VideoX-Fun with alpha": ("lora_unet__{joined}.lora_{direction}.weight", "alpha", 3.0),
    "VideoX-Fun without": ("lora_unet__{joined}.lora_{direction}.weight", "", 4.0),
}


def foreign_file(source: str, path: Path) -> dict[str, Tensor]:
    """Writes a file of rank 4 by a format's description; returns B A of every weight."""
    pattern, alpha_in, _ = SOURCES[source]
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    for block in range(2):
        for index, layer in enumerate(("to_q", "to_k", "to_v", "to_out.0")):
            module = f"transformer_blocks.{block}.attn1.{layer}"
            halves = {half: torch.randn(shape, generator=generator)
                      for half, shape in (("A", (4, 32)), ("B", (32, 4)))}  # fmt: skip
            joined = module.replace(".", "_")
            for half, value in halves.items():
                sat = "dense.matrix_{}.0" if index == 3 else f"query_key_value.matrix_{{}}.{index}"
                key = pattern.format(
                    path=module, half=half, block=block, sat=sat.format(half), joined=joined,
                    direction={"A": "down", "B": "up"}[half],
                )  # fmt: skip
                tensors[key] = value
            if alpha_in == "alpha":
                tensors[f"lora_unet__{joined}.alpha"] = torch.tensor(3.0)
            products[f"{module}.weight"] = halves["B"] @ halves["A"]
    options = {"r": 4, "lora_alpha": 3.0, "init_lora_weights": True, "target_modules": ["to_q"]}
    metadata = {"format": "pt"}
    if alpha_in == "lora_adapter_metadata":
        options = {f"transformer.{key}": value for key, value in options.items()}
    if alpha_in.startswith("lora"):
        metadata[alpha_in] = json.dumps(options)
    if path.suffix == ".pt":  # SAT's checkpoint holds the transformer itself as well
        prefix = "model.diffusion_model.transformer.layers.0.attention.query_key_value"
        whole = {**tensors, f"{prefix}.weight": torch.ones(96, 32)}
        torch.save({"module": whole, "dp_world_size": 1}, path)
    else:
        save_file(tensors, path, metadata)
    return products


def read_told(path: Path) -> tuple[Lora, list[str]]:
    """The LoRA of a file, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lora = load_artifact(path)
    assert isinstance(lora, Lora)
    return lora, [str(one.message) for one in caught if one.category is DrawWarning]


@pytest.mark.parametrize("source", SOURCES)
def test_files_of_other_tools_load_with_the_right_delta(source, base, tmp_path):
    path = tmp_path / ("lora.pt" if source == "SAT raw" else "lora.safetensors")
    products = foreign_file(source, path)
    lora, reported = read_told(path)
    scale = SOURCES[source][2] / 4

    for parameter in base.transformer.parameters():  # so that sums lose nothing
        parameter.data.zero_()
    found = delta(base, lora)
    assert found.keys() == products.keys()
    for key, product in products.items():
        assert torch.equal(found[key], product * scale), key
    is_said = SOURCES[source][1] != ""
    assert len(reported) == (0 if is_said else 1)
    if not is_said:
        taken = "1 is taken, as SAT does" if scale == 0.25 else "its rank, 4, is taken"
        assert taken in reported[0] and "--alpha" in reported[0]


@pytest.mark.parametrize("source", ["SAT raw", "SAT exported", "diffusers without"])
def test_alpha_is_written_into_a_file_that_does_not_say_it(source, tmp_path, capsys):
    path = tmp_path / ("lora.pt" if source == "SAT raw" else "lora.safetensors")
    foreign_file(source, path)
    out = tmp_path / "out.safetensors"
    assert convert([str(path), str(out), "--to", "diffusers", "--alpha", "3"]) == 0
    lora, reported = read_told(out)
    assert not reported
    assert {low_rank.alpha for low_rank in lora.layers.values()} == {4.0}
    theirs = low_ranks(Lora.load(path, 3.0))
    for name, low_rank in low_ranks(lora).items():
        assert torch.equal(low_rank.lora_B.weight, theirs[name].lora_B.weight * (3 / 4))
    facts = inspect(out)
    assert (facts["rank"], facts["alpha"], facts["naming"]) == ("4", "4", "diffusers")
    assert facts["modules"] == "8 in transformer"
    capsys.readouterr()
    again = tmp_path / "again.safetensors"
    assert convert([str(out), str(again), "--to", "diffusers", "--alpha", "3"]) == 2
    assert "specifies its alpha" in capsys.readouterr().err


def test_converting_tells_which_alpha_is_taken(tmp_path, capsys):
    path, out = tmp_path / "lora.safetensors", tmp_path / "out.safetensors"
    foreign_file("SAT exported", path)
    assert convert([str(path), str(out), "--to", "diffusers"]) == 0
    assert "1 is taken, as SAT does" in capsys.readouterr().err
    assert "does not specify" in inspect(path)["alpha"]
    assert inspect(path)["naming"] == "SAT"
    options = json.loads(read_header(out)["__metadata__"]["lora_adapter_metadata"])
    assert options["transformer.lora_alpha"] == options["transformer.r"] == 4


@pytest.mark.parametrize(
    ("targets", "count"),
    [(None, 8), (["attention"], 8), (["feed_forward"], 4), (["projection"], 2), (EVERYTHING, 14)],
)
def test_targets_choose_layers_of_the_transformer(base, targets, count):
    lora = Lora.create(base, LoraSpec(2, 1.0, 0.0, targets, False), seed=0)
    assert len(lora.layers) == count
    assert [*lora.modules_by_part()] == ["transformer"]


def test_the_patches_are_trained_where_they_are_linear():
    later = build_video_base(patch_size_t=2, patch_bias=False)
    names = Lora.create(later, LoraSpec(2, 1.0, 0.0, ["projection"], False), seed=0).layers
    assert "lora_unet__patch_embed_proj" in names and len(names) == 3


def test_what_a_video_model_has_not_is_refused(base):
    with pytest.raises(ArtifactError, match=r"no layers of the kind convolution; it has attention"):
        Lora.create(base, LoraSpec(2, 1.0, 0.0, ["attention", "convolution"], False), seed=0)
    with pytest.raises(ArtifactError, match=r"train_text_encoder: .* T5 stays as it is"):
        Lora.create(base, LoraSpec(2, 1.0, 0.0, None, True), seed=0)


def test_strength_and_several_at_once(base):
    plain = predict(base)
    one, two = trained(base), filled(Lora.create(base, LoraSpec(2, 1.0, 0.0, EVERYTHING, False), 0))
    one.attach(base)
    alone = predict(base)
    two.attach(base, strength=0.0)
    assert torch.equal(predict(base), alone)
    two.set_strength(-0.5)
    assert not torch.equal(predict(base), alone)
    one.detach()
    two.set_strength(0.0)
    assert torch.equal(predict(base), plain)
    two.detach()
    assert torch.equal(predict(base), plain)


def test_merging_is_attaching_up_to_rounding(base):
    lora = trained(base, EVERYTHING)
    lora.attach(base, strength=0.6)
    attached = predict(base)
    lora.detach()
    lora.merge_into(base, strength=0.6)
    torch.testing.assert_close(predict(base), attached, rtol=1e-4, atol=1e-5)


def test_loras_of_other_models_are_refused(base, new_base):
    pictures = new_base()
    video = trained(base)
    of_pictures = Lora.create(pictures, LoraSpec(2, 1.0, 0.0, None, False), 0)
    with pytest.raises(ArtifactError, match=r"matches nothing .* this base model is one of clips"):
        of_pictures.attach(base)
    with pytest.raises(ArtifactError, match=r"matches nothing .* made for a video model"):
        video.attach(pictures)
    wider = build_video_base(num_attention_heads=4)
    with pytest.raises(ArtifactError, match=r"video transformer of width 32 .* has 64"):
        video.attach(wider)
    deeper = trained(build_video_base(num_layers=3))
    with pytest.raises(ArtifactError, match="4 of 12 layers are not in this base model"):
        deeper.attach(base)
    assert torch.equal(predict(base), predict(build_video_base()))


def test_a_damaged_header_is_named(base, tmp_path):
    path = tmp_path / "moving.safetensors"
    trained(base).save(path, torch.float32, {})
    save_file(load_file(path), path, {"lora_config": "{r: 4"})
    with pytest.raises(ArtifactError, match=r"moving.safetensors: metadata lora_config: cannot be"):
        load_artifact(path)


def test_half_a_layer_of_sat_is_an_error(tmp_path):
    key = "model.diffusion_model.transformer.layers.0.attention.dense.matrix_A.0"
    save_file({key: torch.ones(4, 32)}, tmp_path / "lora.safetensors")
    with pytest.raises(ArtifactError, match="the up half is missing"):
        load_artifact(tmp_path / "lora.safetensors")


def test_loras_are_merged_into_a_video_models_folder(base, base_folder, tmp_path, capsys):
    lora_file, out = tmp_path / "moving.safetensors", tmp_path / "merged"
    trained(base).save(lora_file, torch.float32, {})
    arguments = [str(base_folder), str(out), "--to", "diffusers", "--merge", f"{lora_file}:0.6"]
    assert convert(arguments) == 0
    expected = {k: v.clone() for k, v in base.transformer.state_dict().items()}
    for key, value in delta(base, Lora.load(lora_file)).items():
        assert value.any(), key
    merged = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    changed = {key for key, value in merged.items() if not torch.equal(value, expected[key])}
    assert len(changed) == 8
    facts = inspect(out)
    assert facts["kind"] == "base model of clips (diffusers folder)"
    assert facts["layout"] == "CogVideoX (of sizes of its own): text"
    assert facts["made for"] == "9 frames of 32x32"
    capsys.readouterr()
    single = [str(out), str(tmp_path / "one.safetensors"), "--to", "single-file"]
    assert convert(single) == 2
    assert "a video model is kept as a diffusers folder" in capsys.readouterr().err


def test_layers_in_training_stay_fp32_beside_a_half_precision_transformer():
    base = build_video_base(torch.bfloat16)
    lora = trained(base)
    lora.attach(base)
    for modules in lora.modules_by_part().values():
        assert {parameter.dtype for parameter in modules.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert predict(base).isfinite().all()
    low_rank = next(iter(low_ranks(lora).values()))
    assert low_rank.is_trained
