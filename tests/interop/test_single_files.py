"""Single files by the names of CompVis, Stability AI and OpenCLIP, and the marks of NoobAI.

The name lists are those of the published files: the same templates make the 1131 names of SD 1.5's
file and the 2515 of SDXL's. `v_pred` and `ztsnr` are empty tensors by which ComfyUI and Forge know
v-prediction of SDXL and zero terminal SNR.
"""

import pytest
import torch

from inference.artifacts.checkpoint import Checkpoint
from tests.interop.bases import TEXT_LAYERS, VAE_CHANNELS, make_base
from tests.interop.files import Tensors, must_fail, read


def both(*names):
    return {f"{name}.{end}" for name in names for end in ("weight", "bias")}


def under(prefix, names):
    return {f"{prefix}{name}" for name in names}


def resnet(name, widens):
    layers = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
    return under(f"{name}.", both(*layers, *(["skip_connection"] if widens else [])))


def transformer(name, depth):
    found = both("norm", "proj_in", "proj_out")
    for n in range(depth):
        block = {f"attn{i}.to_{one}.weight" for i in (1, 2) for one in "qkv"}
        block |= both("attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
        found |= under(f"transformer_blocks.{n}.", block | both("norm1", "norm2", "norm3"))
    return under(f"{name}.", found)


def unet(depths, middle, widens, has_sizes=False):
    """Depth of the transformers of each level, 0 for none; which levels widen the one before."""
    found = both("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2")
    if has_sizes:
        found |= both("label_emb.0.0", "label_emb.0.2")
    n = 1
    for level, depth in enumerate(depths):
        for layer in range(2):
            found |= resnet(f"input_blocks.{n}.0", layer == 0 and widens[level])
            found |= transformer(f"input_blocks.{n}.1", depth) if depth else set()
            n += 1
        if level < len(depths) - 1:
            found |= both(f"input_blocks.{n}.0.op")
            n += 1
    found |= resnet("middle_block.0", False) | resnet("middle_block.2", False)
    found |= transformer("middle_block.1", middle)
    for level, depth in enumerate(reversed(depths)):
        for n in range(3 * level, 3 * level + 3):
            found |= resnet(f"output_blocks.{n}.0", True)
            found |= transformer(f"output_blocks.{n}.1", depth) if depth else set()
        if level < len(depths) - 1:
            found |= both(f"output_blocks.{3 * level + 2}.{2 if depth else 1}.conv")
    return under("model.diffusion_model.", found)


def vae(channels):
    def block(name, widens):
        layers = ["norm1", "conv1", "norm2", "conv2", *(["nin_shortcut"] if widens else [])]
        return under(f"{name}.", both(*layers))

    found = both("quant_conv", "post_quant_conv")
    for half in ("encoder", "decoder"):
        found |= both(f"{half}.conv_in", f"{half}.norm_out", f"{half}.conv_out")
        found |= block(f"{half}.mid.block_1", False) | block(f"{half}.mid.block_2", False)
        attention = both("norm", "q", "k", "v", "proj_out")
        found |= under(f"{half}.mid.attn_1.", attention)
    last = len(channels) - 1
    for i, width in enumerate(channels):
        for j in range(2):
            widens = j == 0 and i > 0 and width != channels[i - 1]
            found |= block(f"encoder.down.{i}.block.{j}", widens)
        for j in range(3):
            widens = j == 0 and i < last and width != channels[i + 1]
            found |= block(f"decoder.up.{i}.block.{j}", widens)
        found |= both(f"encoder.down.{i}.downsample.conv") if i < last else set()
        found |= both(f"decoder.up.{i}.upsample.conv") if i else set()
    return under("first_stage_model.", found)


def clip(prefix, layers):
    found = both("final_layer_norm")
    found |= {"embeddings.position_embedding.weight", "embeddings.token_embedding.weight"}
    found |= {"embeddings.position_ids"}
    layer = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    layer += [f"self_attn.{one}_proj" for one in ("q", "k", "v", "out")]
    for n in range(layers):
        found |= under(f"encoder.layers.{n}.", both(*layer))
    return under(f"{prefix}transformer.text_model.", found)


def open_clip(prefix, layers):
    found = {"positional_embedding", "text_projection", "logit_scale", "token_embedding.weight"}
    found |= both("ln_final")
    for n in range(layers):
        block = both("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
        block |= {"attn.in_proj_weight", "attn.in_proj_bias"}
        found |= under(f"transformer.resblocks.{n}.", block)
    return under(f"{prefix}model.", found)


SD_WIDENS = (False, True, True, False)
SDXL_WIDENS = (False, True, True)
REAL_VAE = (128, 256, 512, 512)
NAMES = {
    "sd1": unet((1, 1, 1, 0), 1, SD_WIDENS)
    | vae(VAE_CHANNELS)
    | clip("cond_stage_model.", TEXT_LAYERS),
    "sd2": unet((1, 1, 1, 0), 1, SD_WIDENS)
    | vae(VAE_CHANNELS)
    | open_clip("cond_stage_model.", TEXT_LAYERS + 1),  # the last one is never used
    "sdxl": unet((0, 2, 3), 3, SDXL_WIDENS, has_sizes=True)
    | vae(VAE_CHANNELS)
    | clip("conditioner.embedders.0.", TEXT_LAYERS)
    | open_clip("conditioner.embedders.1.", TEXT_LAYERS),
}


def test_the_templates_make_the_names_of_the_published_files():
    sd1 = unet((1, 1, 1, 0), 1, SD_WIDENS) | vae(REAL_VAE) | clip("cond_stage_model.", 12)
    sdxl = unet((0, 2, 10), 10, SDXL_WIDENS, has_sizes=True) | vae(REAL_VAE)
    sdxl |= clip("conditioner.embedders.0.", 12) | open_clip("conditioner.embedders.1.", 32)
    assert (len(sd1), len(sdxl)) == (1131, 2515)


LINEAR = ("sd2", "sdxl")
"""Families whose proj_in and proj_out are linear layers."""
IDS = "embeddings.position_ids"


def check_single_file(file: Tensors, family, base, dtype=torch.float32, marks=()) -> None:
    others = file.tensors.keys() ^ (NAMES[family] | {*marks})
    assert not others, len(others)
    assert [tuple(file.tensors[mark].shape) for mark in marks] == [(0,)] * len(marks)
    for key, value in file.tensors.items():
        assert value.dtype == (torch.int64 if key.endswith(IDS) else dtype)
        if key.endswith(("proj_in.weight", "proj_out.weight")):
            is_linear = "model.diffusion_model." in key and family in LINEAR
            assert value.dim() == (2 if is_linear else 4)
        if key.endswith(("attn_1.q.weight", "attn_1.k.weight", "attn_1.v.weight")):
            assert value.shape[2:] == (1, 1)
    check_values(file.tensors, family, base, dtype)


def check_values(tensors, family, base, dtype) -> None:
    """Some weights of every part, among them those that change their shape or are put together."""
    unet, text = base.unet, getattr(base.text_encoder, "text_model", base.text_encoder)
    begin = {"sd1": "cond_stage_model.", "sd2": "cond_stage_model."}.get(
        family, "conditioner.embedders.0."
    )
    down = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k.weight
    assert torch.equal(tensors["model.diffusion_model.input_blocks.4.1.transformer_blocks.0."
                               "attn2.to_k.weight"], down.to(dtype))  # fmt: skip
    up = unet.up_blocks[0].resnets[2].conv_shortcut.weight
    name = "model.diffusion_model.output_blocks.2.0.skip_connection.weight"
    assert torch.equal(tensors[name], up.to(dtype))
    query = base.vae.decoder.mid_block.attentions[0].to_q.weight
    assert torch.equal(
        tensors["first_stage_model.decoder.mid.attn_1.q.weight"], query[..., None, None].to(dtype)
    )
    last = base.vae.decoder.up_blocks[-1].resnets[0].conv1.weight
    name = "first_stage_model.decoder.up.0.block.0.conv1.weight"
    assert torch.equal(tensors[name], last.to(dtype))
    if family == "sd2":
        check_open_clip(tensors, f"{begin}model.", text, dtype)
    else:
        first = f"{begin}transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
        own = text.encoder.layers[0].self_attn.q_proj.weight
        assert torch.equal(tensors[first], own.to(dtype))
    if family == "sdxl":
        second = base.text_encoder_2
        prefix = "conditioner.embedders.1.model."
        check_open_clip(tensors, prefix, getattr(second, "text_model", second), dtype)
        projection = second.text_projection.weight.T.to(dtype)
        assert torch.equal(tensors[f"{prefix}text_projection"], projection)


def check_open_clip(tensors, prefix, text, dtype) -> None:
    attention = text.encoder.layers[0].self_attn
    thirds = [getattr(attention, f"{one}_proj").weight for one in "qkv"]
    fused = tensors[f"{prefix}transformer.resblocks.0.attn.in_proj_weight"]
    assert torch.equal(fused, torch.cat(thirds).to(dtype))


def save(base, path, dtype=torch.float32) -> Tensors:
    Checkpoint.of(base, ("unet", "vae", *base.text_encoders)).save(path, dtype, {})
    return read(path)


@pytest.fixture(scope="module")
def bases():
    """The three families, made once."""
    return {family: make_base(family) for family in NAMES}


@pytest.mark.parametrize("family", NAMES)
def test_names_shapes_and_values(family, bases, tmp_path):
    base = bases[family]
    check_single_file(save(base, tmp_path / "model.safetensors"), family, base)


ZERO = {"rescale_betas_zero_snr": True}
MARKS = {
    "sd1": ("sd1", "epsilon", {}, []),
    "sd1 zero": ("sd1", "epsilon", ZERO, ["ztsnr"]),
    "sd1 v zero": ("sd1", "v_prediction", ZERO, ["ztsnr"]),
    "sd2 v": ("sd2", "v_prediction", {}, []),
    "sd2 v zero": ("sd2", "v_prediction", ZERO, ["ztsnr"]),
    "sdxl v": ("sdxl", "v_prediction", {}, ["v_pred"]),
    "sdxl v zero": ("sdxl", "v_prediction", ZERO, ["v_pred", "ztsnr"]),
}


@pytest.mark.parametrize(("family", "prediction", "schedule", "marks"), MARKS.values(), ids=MARKS)
def test_marks_of_v_prediction_and_zero_snr(family, prediction, schedule, marks, bases, tmp_path):
    from dataclasses import replace

    base = bases[family]
    base = replace(base, prediction_type=prediction,
                   noise_schedule={**base.noise_schedule, **schedule})  # fmt: skip
    file = save(base, tmp_path / "model.safetensors", torch.float16)
    marked = {key: value.half() for key, value in file.tensors.items() if key in marks}
    file.tensors.update(marked)  # their dtype is free: only the names are looked for
    check_single_file(file, family, base, torch.float16, marks)
    said = "v" if prediction == "v_prediction" else "epsilon"
    assert file.metadata["modelspec.prediction_type"] == said
    for mark in marks:
        fewer = {key: value for key, value in file.tensors.items() if key != mark}
        must_fail(check_single_file, Tensors(fewer), family, base, torch.float16, marks)
        full = {**file.tensors, mark: torch.ones(1).half()}
        must_fail(check_single_file, Tensors(full), family, base, torch.float16, marks)


CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
QUERY = "first_stage_model.decoder.mid.attn_1.q.weight"
FUSED = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
PROJECTION = "conditioner.embedders.1.model.text_projection"
CHANGES = {
    "one name less": lambda tensors: tensors.pop(CONV_IN),
    "one name more": lambda tensors: tensors.update(ztsnr=torch.zeros(0)),
    "diffusers' name": lambda tensors: tensors.update(
        {"unet.conv_in.weight": tensors.pop(CONV_IN)}
    ),
    "one in bf16": lambda tensors: tensors.update({CONV_IN: tensors[CONV_IN].bfloat16()}),
    "query linear": lambda tensors: tensors.update({QUERY: tensors[QUERY].flatten(1)}),
    "thirds exchanged": lambda tensors: tensors.update({FUSED: tensors[FUSED].flip(0)}),
    "projection as in transformers": lambda tensors: tensors.update(
        {PROJECTION: tensors[PROJECTION].T.contiguous()}
    ),
}


@pytest.fixture(scope="module")
def sdxl_file(bases, tmp_path_factory):
    return save(bases["sdxl"], tmp_path_factory.mktemp("sdxl") / "model.safetensors")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_found(change, sdxl_file, bases):
    tensors = dict(sdxl_file.tensors)
    check_single_file(Tensors(tensors), "sdxl", bases["sdxl"])
    change(tensors)
    must_fail(check_single_file, Tensors(tensors), "sdxl", bases["sdxl"])
