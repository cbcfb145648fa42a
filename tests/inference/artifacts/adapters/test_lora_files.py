"""LoRA files: written as kohya does, read as kohya, diffusers and peft write them."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.base import load_artifact
from inference.files.tensors import read_tensors, serialize
from inference.runtime.errors import DrawWarning
from tests.inference.artifacts.adapters.low_rank_layers import low_ranks

pytestmark = pytest.mark.filterwarnings("ignore:.*layers have no alpha")

EVERYTHING = ["attention", "feed_forward", "projection"]
UNET_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
UNET_PROJ = "down_blocks.0.attentions.0.proj_in"
TEXT_Q = "encoder.layers.0.self_attn.q_proj"


def noise(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


@pytest.fixture
def trained(base, randomize):
    lora = Lora.create(base, LoraSpec(4, 3.0, 0.0, EVERYTHING, train_text_encoder=True), seed=0)
    randomize(list(lora.layers.values()))
    return lora


def hand_written() -> dict[str, torch.Tensor]:
    """Three layers in kohya's names; ranks 2, 3 and 5, the second without alpha."""
    unet, text = "lora_unet_down_blocks_0_attentions_0", "lora_te_text_model_encoder_layers_0"
    return {
        f"{unet}_transformer_blocks_0_attn1_to_q.lora_down.weight": noise(2, 16),
        f"{unet}_transformer_blocks_0_attn1_to_q.lora_up.weight": noise(16, 2, seed=4),
        f"{unet}_transformer_blocks_0_attn1_to_q.alpha": torch.tensor(0.5),
        f"{unet}_proj_in.lora_down.weight": noise(3, 16, 1, 1),
        f"{unet}_proj_in.lora_up.weight": noise(16, 3, 1, 1, seed=4),
        f"{text}_self_attn_q_proj.lora_down.weight": noise(5, 24),
        f"{text}_self_attn_q_proj.lora_up.weight": noise(24, 5, seed=4),
        f"{text}_self_attn_q_proj.alpha": torch.tensor(10.0),
    }


def check_hand_written(base, lora) -> None:
    """Every layer's output has moved by alpha / rank * up @ down, others' have not."""
    cases = (
        ("unet", UNET_Q, noise(2, 16), noise(16, 2, seed=4), 0.5 / 2, noise(7, 16, seed=9)),
        ("unet", UNET_PROJ, noise(3, 16), noise(16, 3, seed=4), 1.0, noise(2, 16, 4, 4, seed=9)),
        ("text_encoder", TEXT_Q, noise(5, 24), noise(24, 5, seed=4), 2.0, noise(7, 24, seed=9)),
    )
    before = [base.parts[part].get_submodule(path)(x) for part, path, *_, x in cases]
    lora.attach(base)
    for (part, path, down, up, scaling, x), plain in zip(cases, before, strict=True):
        features = x if x.dim() == 2 else x.movedim(1, -1)
        change = features @ (up @ down * scaling).T
        change = change if x.dim() == 2 else change.movedim(-1, 1)
        torch.testing.assert_close(base.parts[part].get_submodule(path)(x), plain + change)
    wrapped = [n for n, _ in base.unet.named_modules() if n.endswith("base_layer")]
    assert len(wrapped) == 2


def test_a_file_written_by_hand_in_kohyas_names_has_the_right_effect(base, tmp_path):
    path = tmp_path / "hand.safetensors"
    save_file(hand_written(), path)
    lora = load_artifact(path)
    assert isinstance(lora, Lora)
    assert lora.name == "hand"
    check_hand_written(base, lora)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_so_has_a_pickle(base, tmp_path, suffix):
    torch.save({"state_dict": hand_written()}, tmp_path / f"hand{suffix}")
    check_hand_written(base, load_artifact(tmp_path / f"hand{suffix}"))


def test_names_with_te1_and_without_text_model_are_understood(base, tmp_path):
    tensors = {
        key.replace("lora_te_text_model_", "lora_te1_"): value
        for key, value in hand_written().items()
    }
    save_file(tensors, tmp_path / "hand.safetensors")
    check_hand_written(base, load_artifact(tmp_path / "hand.safetensors"))


@pytest.mark.parametrize("style", ["peft", "peft_new_text_names", "lora", "processor"])
def test_diffusers_names_have_the_same_effect(base, tmp_path, style):
    down, up = {"lora": ("lora.down", "lora.up")}.get(style, ("lora_A", "lora_B"))
    text = "" if style == "peft_new_text_names" else "text_model."
    names = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": f"unet.{UNET_Q}",
        "lora_unet_down_blocks_0_attentions_0_proj_in": f"unet.{UNET_PROJ}",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": f"text_encoder.{text}{TEXT_Q}",
    }
    tensors = {}
    for key, value in hand_written().items():
        name, end = key.split(".", 1)
        end = end.replace("lora_down", down).replace("lora_up", up)
        if style == "processor" and name.endswith("to_q"):
            end = end.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
            stem = names[name].replace("attn1.to_q", "attn1.processor.to_q")
            tensors[f"{stem}_{end}" if end != "alpha" else f"{stem}_lora.alpha"] = value
        else:
            tensors[f"{names[name]}.{end}"] = value
    tensors = {
        key.replace("processor.to_q_lora.alpha", "to_q.alpha"): v for key, v in tensors.items()
    }
    save_file(tensors, tmp_path / "hand.safetensors")
    check_hand_written(base, load_artifact(tmp_path / "hand.safetensors"))


def test_alpha_of_diffusers_files_is_in_their_metadata(base, tmp_path):
    tensors = {
        f"unet.{UNET_Q}.lora_A.weight": noise(4, 16),
        f"unet.{UNET_Q}.lora_B.weight": noise(16, 4),
        f"unet.{UNET_PROJ}.lora_A.weight": noise(4, 16, 1, 1),
        f"unet.{UNET_PROJ}.lora_B.weight": noise(16, 4, 1, 1),
    }

    def scalings(**config):
        described = {f"unet.{key}": value for key, value in config.items()}
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(described)}
        save_file(tensors, tmp_path / "lora.safetensors", metadata)
        lora = Lora.load(tmp_path / "lora.safetensors")
        return [layer.scaling for layer in low_ranks(lora).values()]

    with pytest.warns(DrawWarning, match="does not say its alpha; its rank, 4, is taken"):
        assert scalings() == [1, 1]
    assert scalings(r=4, lora_alpha=2) == [0.5, 0.5]
    assert scalings(r=4, lora_alpha=2, use_rslora=True) == [1, 1]
    assert sorted(scalings(r=4, lora_alpha=2, alpha_pattern={"attn1.to_q": 12})) == [0.5, 3]


def test_layers_without_alpha_among_others_are_counted(tmp_path):
    save_file(hand_written(), tmp_path / "some.safetensors")
    with pytest.warns(DrawWarning, match="1 of 3 layers have no alpha, the others do; their rank"):
        lora = Lora.load(tmp_path / "some.safetensors")
    assert sorted(layer.scaling for layer in low_ranks(lora).values()) == [0.25, 1, 2]


def test_what_diffusers_and_peft_save_draws_the_same_here(new_base, predict, tmp_path):
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    theirs = new_base()
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "to_v", "to_out.0", "proj_in"],
                        init_lora_weights="gaussian")  # fmt: skip
    theirs.unet.add_adapter(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.unet.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(theirs.unet),
        **_collate_lora_metadata({"unet": theirs.unet}),
    )
    ours = new_base()
    before = predict(ours)
    load_artifact(tmp_path / "pytorch_lora_weights.safetensors").attach(ours)
    torch.testing.assert_close(predict(ours), predict(theirs), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(predict(ours), before, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_what_is_saved_draws_the_same_in_diffusers(new_base, predict, trained, tmp_path):
    from diffusers import StableDiffusionPipeline

    trained.save(tmp_path / "lora.safetensors", torch.float32, {})
    ours, theirs = new_base(), new_base()
    before = predict(ours)
    Lora.load(tmp_path / "lora.safetensors").attach(ours)
    pipe = StableDiffusionPipeline(
        vae=theirs.vae, text_encoder=theirs.text_encoder, tokenizer=theirs.tokenizer,
        unet=theirs.unet, scheduler=_scheduler(theirs), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    torch.testing.assert_close(predict(ours), predict(theirs), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(predict(ours), before, atol=1e-3)


def _scheduler(base):
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(base.noise_schedule)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saving_what_was_loaded_gives_the_same_bytes(trained, tmp_path, dtype):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    trained.save(one, dtype, {"ss_steps": "7", "modelspec.title": "Ünï"})
    Lora.load(one).save(two, dtype, {})
    assert one.read_bytes() == two.read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["one.safetensors", "two.safetensors"]


def test_a_loaded_lora_is_saved_unharmed_after_being_attached(new_base, trained, tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    trained.save(one, torch.float32, {})
    lora = Lora.load(one)
    lora.attach(new_base(torch.bfloat16))
    lora.save(two, torch.float32, {})
    assert one.read_bytes() == two.read_bytes()


def test_bytes_do_not_depend_on_hash_seeds():
    """safetensors writes metadata in the order of a hash map that is seeded anew each time."""
    tensors, metadata = {"a": noise(2)}, {f"k{i}": str(i) for i in range(40)}
    assert len({save(tensors, metadata) for _ in range(5)}) > 1
    assert len({serialize(tensors, metadata) for _ in range(5)}) == 1
    assert (
        len({serialize(tensors, dict(reversed(metadata.items()))), serialize(tensors, metadata)})
        == 1
    )


def test_serialized_tensors_are_what_safetensors_reads(tmp_path):
    tensors = {"b.x": noise(3, 5).half(), "a": torch.tensor(2.0), "c": torch.arange(4)}
    (tmp_path / "file.safetensors").write_bytes(serialize(tensors, {"z": "é", "a": "1"}))
    read = load_file(tmp_path / "file.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)
    assert read_tensors(tmp_path / "file.safetensors")[1] == {"z": "é", "a": "1"}


def test_metadata_and_hashes(trained, tmp_path):
    path = tmp_path / "lora.safetensors"
    trained.name = "icons"
    trained.save(path, torch.float16, {"ss_steps": "12", "ss_network_alpha": "3.0", "note": "x"})
    tensors, metadata = read_tensors(path)
    minimum = {
        "ss_v2": "False",
        "ss_base_model_version": "limner_tiny",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "3.0",
        "ss_network_args": "{}",
    }
    assert metadata.items() >= minimum.items()
    assert metadata["modelspec.title"] == "icons"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["note"] == "x"

    ss = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    raw = save(tensors, ss)
    start = 8 + int.from_bytes(raw[:8], "little")
    assert metadata["sshs_model_hash"] == hashlib.sha256(raw[start:]).hexdigest()
    assert metadata["sshs_legacy_hash"] == "e3b0c442"  # of nothing: the file is below 1 MiB


@pytest.mark.parametrize(
    ("context", "prediction_type", "version", "architecture"),
    [
        (768, "epsilon", "sd_v1", "stable-diffusion-v1/lora"),
        (768, "v_prediction", "sd_v1_v", "stable-diffusion-v1/lora"),
        (1024, "epsilon", "sd_v2", "stable-diffusion-v2-512/lora"),
        (1024, "v_prediction", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
    ],
)
def test_the_base_models_family_is_named(new_base, context, prediction_type, version, architecture):
    base = new_base(context=context)
    base.prediction_type = prediction_type
    lora = Lora.create(base, LoraSpec(1, 1.0, 0.0, ["attention"], False), seed=0)
    assert lora.metadata["ss_base_model_version"] == version
    assert lora.metadata["ss_v2"] == str(context == 1024)
    assert lora.metadata["modelspec.architecture"] == architecture


def test_linear_projections_are_written_as_convolutions_and_read_both_ways(
    new_base, predict, randomize, tmp_path
):
    base = new_base(linear=True)
    lora = Lora.create(base, LoraSpec(2, 2.0, 0.0, ["projection"], False), seed=0)
    randomize(list(lora.layers.values()))
    path = tmp_path / "lora.safetensors"
    lora.save(path, torch.float32, {})
    tensors = load_file(path)
    assert all(t.dim() == 4 for key, t in tensors.items() if not key.endswith("alpha"))
    lora.attach(base)
    shown = predict(base)
    lora.detach()

    save_file(
        {k: t.flatten(1) if t.dim() else t for k, t in tensors.items()},
        tmp_path / "flat.safetensors",
    )
    found = []
    for file in (path, tmp_path / "flat.safetensors"):
        loaded = Lora.load(file)
        loaded.attach(base)
        found.append(predict(base))
        loaded.detach()
    assert torch.equal(*found)
    # Weights that want gradients take another route through torch's matmul than loaded ones.
    torch.testing.assert_close(found[0], shown, rtol=0, atol=1e-5)
    assert (predict(base) - shown).abs().max() > 0.1


def test_convolutions_of_resnets_are_read(base, tmp_path):
    name, path = "lora_unet_down_blocks_0_downsamplers_0_conv", "down_blocks.0.downsamplers.0.conv"
    down, up = noise(2, 16, 3, 3), noise(16, 2, 1, 1)
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "c.safetensors"
    )
    conv, x = base.unet.get_submodule(path), noise(1, 16, 8, 8, seed=8)
    delta = torch.einsum("or,rihw->oihw", up[..., 0, 0], down)
    change = torch.nn.functional.conv2d(x, delta, stride=conv.stride, padding=conv.padding)
    expected = conv(x) + change
    with pytest.warns(DrawWarning, match="its rank, 2, is taken, as A1111, ComfyUI"):
        lora = Lora.load(tmp_path / "c.safetensors")
    lora.attach(base)
    torch.testing.assert_close(base.unet.get_submodule(path)(x), expected)


def test_convolutions_are_trained_under_kohyas_names_where_asked(
    base, randomize, predict, tmp_path
):
    lora = Lora.create(
        base, LoraSpec(2, 2.0, 0.0, ["convolution"], train_text_encoder=False), seed=0
    )
    first = "lora_unet_down_blocks_0_"
    assert [name.removeprefix(first) for name in lora.layers if name.startswith(first)] == [
        *(f"resnets_{i}_{layer}" for i in (0, 1) for layer in ("conv1", "time_emb_proj", "conv2")),
        "downsamplers_0_conv",
    ]
    randomize(list(lora.layers.values()))
    lora.attach(base)
    shown = predict(base)
    lora.save(tmp_path / "conv.safetensors", torch.float32, {})
    lora.detach()
    loaded = Lora.load(tmp_path / "conv.safetensors")
    loaded.attach(base)
    assert torch.equal(predict(base), shown)


def test_interrupted_saving_leaves_the_old_file(trained, tmp_path, monkeypatch):
    path = tmp_path / "lora.safetensors"
    trained.save(path, torch.float32, {})
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        trained.save(path, torch.float32, {"ss_steps": "2"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_lora_of_8_bits_has_the_effect_of_its_values(base, predict, tmp_path, dtype, suffix):
    eight = {key: value.to(dtype) for key, value in hand_written().items()}
    path, plain = tmp_path / f"eight{suffix}", tmp_path / "plain.safetensors"
    save_file(eight, path) if suffix == ".safetensors" else torch.save(eight, path)
    save_file({key: value.float() for key, value in eight.items()}, plain)
    found, before = [], predict(base)
    for file in (path, plain):
        lora = load_artifact(file)
        lora.attach(base)
        found.append(predict(base))
        lora.detach()
    assert torch.equal(*found)
    assert not torch.allclose(found[0], before, atol=1e-3)
    eighth = Lora.load(path)
    eighth.save(tmp_path / "again.safetensors", torch.float16, {})
    again = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(again[key].float(), value.float()) for key, value in eight.items())
