"""LoRA files by kohya's and diffusers' own rules, written out here.

kohya (`networks/lora.py`; A1111, Forge and ComfyUI read the same): a layer has `lora_down.weight`
(rank, in[, kh, kw]), `lora_up.weight` (out, rank[, 1, 1]) and `alpha`, and changes its weight by
alpha / rank * up @ down. diffusers: `lora_A` and `lora_B`, with alpha in the metadata
`lora_adapter_metadata`, which it heeds from 0.34 on; older versions take alpha = rank.
"""

import json
from dataclasses import replace

import pytest
import torch

from inference.artifacts.adapters.lora import Lora, LoraSpec, twin_of
from inference.convert import main as convert
from tests.inference.models.cogvideox.models import make_video_model
from tests.interop.bases import load_folder
from tests.interop.files import Tensors, must_fail, read

EVERYTHING = ("attention", "feed_forward", "projection", "convolution")
RANK, ALPHA = 4, 2.0


def names(blocks, layers):
    return {f"{block}_{layer}" for block in blocks for layer in layers}


ATTENTION = [f"attn{n}_to_{one}" for n in (1, 2) for one in ("q", "k", "v", "out_0")]
TRANSFORMER = [f"transformer_blocks_0_{one}" for one in (*ATTENTION, "ff_net_0_proj", "ff_net_2")]
RESNET = ["conv1", "conv2", "time_emb_proj"]
TEXT = [*(f"self_attn_{one}_proj" for one in ("q", "k", "v", "out")), "mlp_fc1", "mlp_fc2"]


def text_layers(begin, count):
    return names((f"{begin}_text_model_encoder_layers_{n}" for n in range(count)), TEXT)


SD_LAYERS = {
    *names(
        ("lora_unet_down_blocks_1_attentions_0", "lora_unet_mid_block_attentions_0",
         "lora_unet_up_blocks_0_attentions_0", "lora_unet_up_blocks_0_attentions_1"),
        ["proj_in", "proj_out", *TRANSFORMER],
    ),
    *names(("lora_unet_down_blocks_0_resnets_0", "lora_unet_mid_block_resnets_0",
            "lora_unet_mid_block_resnets_1"), RESNET),
    *names(("lora_unet_down_blocks_1_resnets_0", "lora_unet_up_blocks_0_resnets_0",
            "lora_unet_up_blocks_0_resnets_1", "lora_unet_up_blocks_1_resnets_0",
            "lora_unet_up_blocks_1_resnets_1"), [*RESNET, "conv_shortcut"]),
    "lora_unet_down_blocks_0_downsamplers_0_conv",
    "lora_unet_up_blocks_0_upsamplers_0_conv",
    *text_layers("lora_te", 2),
}  # fmt: skip
"""kohya's names for every layer of the tiny model: one block without attention, one with it."""

SGM_RESNET = ["in_layers_2", "emb_layers_1", "out_layers_3"]
SDXL_LAYERS = {
    *names(
        ("lora_unet_input_blocks_4_1", "lora_unet_input_blocks_5_1", "lora_unet_middle_block_1",
         *(f"lora_unet_output_blocks_{n}_1" for n in range(3))),
        ["proj_in", "proj_out", *TRANSFORMER, *(one.replace("0", "1", 1) for one in TRANSFORMER)],
    ),
    *names(("lora_unet_input_blocks_1_0", "lora_unet_input_blocks_2_0",
            "lora_unet_input_blocks_5_0", "lora_unet_middle_block_0",
            "lora_unet_middle_block_2"), SGM_RESNET),
    *names(("lora_unet_input_blocks_4_0", *(f"lora_unet_output_blocks_{n}_0" for n in range(6))),
           [*SGM_RESNET, "skip_connection"]),
    "lora_unet_input_blocks_3_0_op",
    "lora_unet_output_blocks_2_2_conv",
    *text_layers("lora_te1", 2),
    *text_layers("lora_te2", 3),
}  # fmt: skip
"""The same under the names of Stability AI's modules, which kohya keeps for SDXL."""


def make(base, targets=EVERYTHING, with_text=True, rank=RANK, alpha=ALPHA) -> Lora:
    """A LoRA with random numbers, one of whose layers has another rank and alpha."""
    lora = Lora.create(base, LoraSpec(rank, alpha, 0.0, targets, with_text), seed=0)
    other = Lora.create(base, LoraSpec(2, 1.5, 0.0, targets, with_text), seed=1)
    name = next(name for name in lora.layers if name.endswith("to_k"))
    lora.layers[name] = other.layers[name]
    numbers = torch.Generator().manual_seed(3)
    for layer in lora.layers.values():
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=numbers)
    return lora


def product(down, up, scale):
    return up.flatten(1).float() @ down.flatten(1).float() * scale


def trained(lora):
    """What the layers in memory add to the weights, by kohya's names."""
    return {
        name: product(layer.lora_A.weight, layer.lora_B.weight, layer.alpha / layer.rank).detach()
        for name, layer in lora.layers.items()
    }


def check_change(got, expected, tolerance) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


LINEAR_IN_SDXL = ("lora_unet_input_", "lora_unet_middle_", "lora_unet_output_")
"""proj_in and proj_out of SD 1.x and 2.x are 1x1 convolutions in kohya's network."""


def check_kohya(file: Tensors, layers, changes, dtype=torch.float32, tolerance=1e-6) -> None:
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    others = file.tensors.keys() ^ {f"{layer}.{end}" for layer in layers for end in ends}
    assert not others, len(others)
    for layer in layers:
        down, up, alpha = (file.tensors[f"{layer}.{end}"] for end in ends)
        assert (alpha.shape, alpha.dtype) == ((), torch.float32)
        assert down.dtype == up.dtype == dtype
        assert down.shape[0] == up.shape[1]
        if layer.endswith(("_proj_in", "_proj_out")):
            kernel = () if layer.startswith(LINEAR_IN_SDXL) else (1, 1)
            assert down.shape[2:] == up.shape[2:] == kernel
        else:
            assert up.shape[2:] == (() if down.dim() == 2 else (1, 1))
        check_change(product(down, up, alpha.item() / len(down)), changes[layer], tolerance)


def test_kohyas_names_shapes_and_alpha(tiny_base, tmp_path):
    lora = make(tiny_base)
    lora.save(tmp_path / "one.safetensors", torch.float32, {})
    check_kohya(read(tmp_path / "one.safetensors"), SD_LAYERS, trained(lora))


def test_kohyas_names_of_sdxl_in_fp16(tiny_sdxl, tmp_path):
    lora = make(tiny_sdxl)
    lora.save(tmp_path / "xl.safetensors", torch.float16, {})
    file = read(tmp_path / "xl.safetensors")
    check_kohya(file, SDXL_LAYERS, trained(lora), torch.float16, tolerance=2**-9)


def test_projections_of_sd2_are_convolutions_in_kohyas_format_only(tiny_base, tmp_path):
    base = tiny_sd2(tiny_base)
    lora = make(base)
    path, there = tmp_path / "two.safetensors", tmp_path / "there.safetensors"
    lora.save(path, torch.float32, {})
    check_kohya(read(path), SD_LAYERS, trained(lora))
    assert read(path).metadata["ss_v2"] == "True"
    assert convert([str(path), str(there), "--to", "diffusers"]) == 0
    check_diffusers(read(there), {named(name): one for name, one in trained(lora).items()})
    projections = [key for key in read(there).tensors if ".proj_in." in key]
    assert len(projections) == 8
    assert {read(there).tensors[key].dim() for key in projections} == {2}


def tiny_sd2(base):
    """SD 2.x: linear proj_in and proj_out, prompts of width 1024."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = {**base.unet.config, "use_linear_projection": True, "cross_attention_dim": 1024}
    unet = UNet2DConditionModel.from_config(config).requires_grad_(False).eval()
    return replace(base, unet=unet, prediction_type="v_prediction")


def key_of(tensors, end):
    return next(key for key in sorted(tensors) if key.endswith(end))


def without(end):
    def change(file):
        del file.tensors[key_of(file.tensors, end)]

    return change


def with_value(end, function):
    def change(file):
        key = key_of(file.tensors, end)
        file.tensors[key] = function(file.tensors[key])

    return change


def renamed(old, new):
    def change(file):
        key = next(key for key in sorted(file.tensors) if old in key)
        file.tensors[key.replace(old, new)] = file.tensors.pop(key)

    return change


def added(key):
    def change(file):
        file.tensors[key] = torch.zeros(2, 2)

    return change


KOHYA_CHANGES = {
    "no alpha": without("_ff_net_2.alpha"),
    "alpha doubled": with_value("_ff_net_2.alpha", lambda value: value * 2),
    "alpha a list": with_value("_ff_net_2.alpha", lambda value: value[None]),
    "alpha in fp16": with_value("_ff_net_2.alpha", torch.Tensor.half),
    "no up half": without("conv1.lora_up.weight"),
    "up half negative": with_value("conv1.lora_up.weight", torch.neg),
    "up half flat": with_value("conv1.lora_up.weight", lambda value: value.flatten(1)),
    "projection linear": with_value("proj_in.lora_down.weight", lambda value: value.flatten(1)),
    "rank cut": with_value("to_q.lora_down.weight", lambda value: value[:-1]),
    "one in bf16": with_value("fc1.lora_up.weight", torch.Tensor.bfloat16),
    "diffusers' text names": renamed("lora_te_text_model_", "lora_te_"),
    "SDXL's text names": renamed("lora_te_", "lora_te1_"),
    "diffusers' half": renamed(".lora_down.", ".lora_A."),
    "one layer more": added("lora_unet_conv_in.lora_down.weight"),
}


@pytest.mark.parametrize("change", KOHYA_CHANGES.values(), ids=KOHYA_CHANGES)
def test_a_change_of_kohyas_file_is_found(change, kohya_file):
    path, changes = kohya_file
    file = read(path)
    check_kohya(file, SD_LAYERS, changes)
    change(file)
    must_fail(check_kohya, file, SD_LAYERS, changes)


@pytest.fixture(scope="module")
def loras(tiny_base_folder, tmp_path_factory):
    """The same LoRA in kohya's and in diffusers' format, and what its layers change."""
    lora = make(load_folder(tiny_base_folder))
    folder = tmp_path_factory.mktemp("loras")
    kohya, there = folder / "kohya.safetensors", folder / "diffusers.safetensors"
    lora.save(kohya, torch.float32, {})
    assert convert([str(kohya), str(there), "--to", "diffusers"]) == 0
    return kohya, there, trained(lora)


@pytest.fixture
def kohya_file(loras):
    return loras[0], loras[2]


def named(name):
    """kohya's name of a layer of SD as diffusers' path, by the words that kohya joins."""
    begin, part = ("lora_te_", "text_encoder") if "_te_" in name else ("lora_unet_", "unet")
    path = name.removeprefix(begin).replace("_", ".")
    for word in ("down.blocks", "up.blocks", "mid.block", "text.model", "self.attn", "proj.in",
                 "proj.out", "transformer.blocks", "conv.shortcut", "time.emb.proj", "to.q",
                 "to.k", "to.v", "to.out", "q.proj", "k.proj", "v.proj", "out.proj"):  # fmt: skip
        path = path.replace(word, word.replace(".", "_"))
    return f"{part}.{path}"


PEFT = {"r", "lora_alpha", "rank_pattern", "alpha_pattern"}


def check_diffusers(file: Tensors, changes, tolerance=1e-6, parts=("unet", "text_encoder")) -> None:
    """Right in every version: those that read alpha, and those that take alpha = rank."""
    others = file.tensors.keys() ^ {f"{path}.lora_{h}.weight" for path in changes for h in "AB"}
    assert not others, len(others)
    options = json.loads(file.metadata["lora_adapter_metadata"])
    assert {key for key in options if key.rpartition(".")[2] in PEFT} == {
        f"{part}.{key}" for part in parts for key in PEFT
    }
    for path, change in changes.items():
        down, up = (file.tensors[f"{path}.lora_{half}.weight"] for half in "AB")
        part, _, inner = path.partition(".")
        inner = inner.removeprefix("text_model.")
        rank = options[f"{part}.rank_pattern"].get(inner, options[f"{part}.r"])
        alpha = options[f"{part}.alpha_pattern"].get(inner, options[f"{part}.lora_alpha"])
        assert rank == len(down) == up.shape[1]
        check_change(product(down, up, alpha / rank), change, tolerance)
        check_change(product(down, up, 1.0), change, tolerance)


def test_diffusers_format_is_right_with_and_without_alpha(loras):
    _, there, changes = loras
    check_diffusers(read(there), {named(name): change for name, change in changes.items()})


def with_options(function):
    def change(file):
        options = json.loads(file.metadata["lora_adapter_metadata"])
        function(options)
        file.metadata["lora_adapter_metadata"] = json.dumps(options)

    return change


DIFFUSERS_CHANGES = {
    "alpha not folded": lambda file: [
        with_options(lambda options: options.update({"unet.lora_alpha": ALPHA}))(file),
        file.tensors.update({
            key: value * RANK / ALPHA
            for key, value in file.tensors.items()
            if key.startswith("unet.") and "lora_B" in key
        }),
    ],
    "alpha halved": with_options(lambda options: options.update({"unet.lora_alpha": 2.0})),
    "no alpha": with_options(lambda options: options.pop("text_encoder.lora_alpha")),
    "no pattern": with_options(lambda options: options["unet.rank_pattern"].clear()),
    "another rank": with_options(lambda options: options.update({"unet.r": 8})),
    "kohya's half": renamed("lora_A", "lora_down"),
    "up half doubled": with_value("ff.net.2.lora_B.weight", lambda value: value * 2),
    "no text_model": renamed("text_encoder.text_model.", "text_encoder."),
    "one half less": without("to_q.lora_A.weight"),
    "alpha beside": added("unet.mid_block.attentions.0.proj_in.alpha"),
}  # fmt: skip


@pytest.mark.parametrize("change", DIFFUSERS_CHANGES.values(), ids=DIFFUSERS_CHANGES)
def test_a_change_of_diffusers_file_is_found(change, loras):
    _, there, changes = loras
    changes = {named(name): one for name, one in changes.items()}
    file = read(there)
    check_diffusers(file, changes)
    change(file)
    must_fail(check_diffusers, file, changes)


VIDEO_LAYERS = [
    f"transformer_blocks.{n}.attn1.{one}"
    for n in range(2)
    for one in ("to_q", "to_k", "to_v", "to_out.0")
]


def test_a_video_lora_and_its_twin(tmp_path):
    """diffusers' CogVideoX file, and the names of VideoX-Fun, which CogVideoXWrapper merges."""
    lora = make(make_video_model(), None, False)
    lora.comfyui_twin = True
    lora.save(tmp_path / "clip.safetensors", torch.float32, {})
    begin, changes = "lora_unet__", trained(lora)
    assert changes.keys() == {begin + path.replace(".", "_") for path in VIDEO_LAYERS}
    by_path = {f"transformer.{path}": changes[begin + path.replace(".", "_")]
               for path in VIDEO_LAYERS}  # fmt: skip
    file = read(tmp_path / "clip.safetensors")
    check_diffusers(file, by_path, parts=("transformer",))
    with_value("to_v.lora_B.weight", torch.neg)(file)
    must_fail(check_diffusers, file, by_path, 1e-6, ("transformer",))
    twin = read(twin_of(tmp_path / "clip.safetensors"))
    check_kohya(twin, changes, changes)
    with_value(".alpha", lambda value: value + 1)(twin)
    must_fail(check_kohya, twin, changes, changes)
