"""Names in single files: the full key sets of SD 1.5, SD 2.1 and SDXL, and both directions.

The lists are those of the published files (v1-5-pruned-emaonly, v2-1_768-nonema-pruned without its
buffers, sd_xl_base_1.0), in braces.
"""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils

from inference.models.stable_diffusion.detect import FAMILIES
from inference.models.stable_diffusion.keys import LAYOUTS, from_file, is_left_out, places, to_file
from inference.models.stable_diffusion.single_file import build_part

GOLDEN = Path(__file__).parents[3] / "golden" / "lora_key_map.json"

WB = "{weight,bias}"
RESNET = "{in_layers.0,in_layers.2,emb_layers.1,out_layers.0,out_layers.3}." + WB
OUTER = "{norm,proj_in,proj_out}." + WB
ATTENTION = "{attn1,attn2}.{to_q,to_k,to_v}.weight|{attn1,attn2}.to_out.0." + WB
BLOCK = f"{ATTENTION}|ff.net.{{0.proj,2}}.{WB}|norm{{1,2,3}}.{WB}"

SD1_UNET = {
    "time_embed.{0,2}.": WB,
    "input_blocks.0.0.": WB,
    "input_blocks.{1,2,4,5,7,8,10,11}.0.": RESNET,
    "input_blocks.{4,7}.0.skip_connection.": WB,
    "input_blocks.{3,6,9}.0.op.": WB,
    "input_blocks.{1,2,4,5,7,8}.1.": OUTER,
    "input_blocks.{1,2,4,5,7,8}.1.transformer_blocks.0.": BLOCK,
    "middle_block.{0,2}.": RESNET,
    "middle_block.1.": OUTER,
    "middle_block.1.transformer_blocks.0.": BLOCK,
    "output_blocks.{0,1,2,3,4,5,6,7,8,9,10,11}.0.": RESNET,
    "output_blocks.{0,1,2,3,4,5,6,7,8,9,10,11}.0.skip_connection.": WB,
    "output_blocks.{3,4,5,6,7,8,9,10,11}.1.": OUTER,
    "output_blocks.{3,4,5,6,7,8,9,10,11}.1.transformer_blocks.0.": BLOCK,
    "output_blocks.2.1.conv.": WB,
    "output_blocks.{5,8}.2.conv.": WB,
    "out.{0,2}.": WB,
}
SDXL_UNET = {
    "{time_embed,label_emb.0}.{0,2}.": WB,
    "input_blocks.0.0.": WB,
    "input_blocks.{1,2,4,5,7,8}.0.": RESNET,
    "input_blocks.{4,7}.0.skip_connection.": WB,
    "input_blocks.{3,6}.0.op.": WB,
    "input_blocks.{4,5,7,8}.1.": OUTER,
    "input_blocks.{4,5}.1.transformer_blocks.{0,1}.": BLOCK,
    "input_blocks.{7,8}.1.transformer_blocks.{0,1,2,3,4,5,6,7,8,9}.": BLOCK,
    "middle_block.{0,2}.": RESNET,
    "middle_block.1.": OUTER,
    "middle_block.1.transformer_blocks.{0,1,2,3,4,5,6,7,8,9}.": BLOCK,
    "output_blocks.{0,1,2,3,4,5,6,7,8}.0.": RESNET,
    "output_blocks.{0,1,2,3,4,5,6,7,8}.0.skip_connection.": WB,
    "output_blocks.{0,1,2,3,4,5}.1.": OUTER,
    "output_blocks.{0,1,2}.1.transformer_blocks.{0,1,2,3,4,5,6,7,8,9}.": BLOCK,
    "output_blocks.{3,4,5}.1.transformer_blocks.{0,1}.": BLOCK,
    "output_blocks.{2,5}.2.conv.": WB,
    "out.{0,2}.": WB,
}
CONVOLUTIONS = "{norm1,conv1,norm2,conv2}." + WB
VAE = {
    "{encoder,decoder}.{conv_in,conv_out,norm_out}.": WB,
    "{encoder,decoder}.mid.block_{1,2}.": CONVOLUTIONS,
    "{encoder,decoder}.mid.attn_1.{norm,q,k,v,proj_out}.": WB,
    "encoder.down.{0,1,2,3}.block.{0,1}.": CONVOLUTIONS,
    "encoder.down.{1,2}.block.0.nin_shortcut.": WB,
    "encoder.down.{0,1,2}.downsample.conv.": WB,
    "decoder.up.{0,1,2,3}.block.{0,1,2}.": CONVOLUTIONS,
    "decoder.up.{0,1}.block.0.nin_shortcut.": WB,
    "decoder.up.{1,2,3}.upsample.conv.": WB,
    "{quant_conv,post_quant_conv}.": WB,
}


def numbers(count: int) -> str:
    return "{" + ",".join(map(str, range(count))) + "}"


CLIP_L = {
    "text_model.embeddings.": "{token_embedding.weight,position_embedding.weight,position_ids}",
    "text_model.final_layer_norm.": WB,
    f"text_model.encoder.layers.{numbers(12)}.": "{self_attn.q_proj,self_attn.k_proj,"
    "self_attn.v_proj,self_attn.out_proj,mlp.fc1,mlp.fc2,layer_norm1,layer_norm2}." + WB,
}


def open_clip(layers: int) -> dict[str, str]:
    return {
        "": "{positional_embedding,text_projection,logit_scale,token_embedding.weight}",
        "ln_final.": WB,
        f"transformer.resblocks.{numbers(layers)}.": "attn.in_proj_weight|attn.in_proj_bias|"
        "{attn.out_proj,ln_1,ln_2,mlp.c_fc,mlp.c_proj}." + WB,
    }


PUBLISHED = {
    "sd1": ({"unet": SD1_UNET, "vae": VAE, "text_encoder": CLIP_L}, 1131),
    "sd2": ({"unet": SD1_UNET, "vae": VAE, "text_encoder": open_clip(24)}, 1228),
    "sdxl": (
        {"unet": SDXL_UNET, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": open_clip(32)},
        2515,
    ),
}


def unfold(text: str) -> list[str]:
    """`a.{1,2}` -> a.1, a.2; `|` separates whole alternatives."""
    found: list[str] = []
    for alternative in text.split("|"):
        pieces = [piece.split(",") for piece in re.split(r"[{}]", alternative)]
        found += ["".join(choice) for choice in itertools.product(*pieces)]
    return found


def published_keys(layout: str) -> list[str]:
    parts, _ = PUBLISHED[layout]
    return [
        LAYOUTS[layout][part] + before + after
        for part, names in parts.items()
        for start, end in names.items()
        for before in unfold(start)
        for after in unfold(end)
    ]


@pytest.fixture(scope="module")
def models():
    """Every family at full size, on the meta device."""
    return {
        key: {part: build_part(part, config, family) for part, config in family.configs.items()}
        for key, family in FAMILIES.items()
    }


@pytest.fixture(scope="module")
def files(models):
    return {
        key: {
            name: value
            for part, module in parts.items()
            for name, value in to_file(part, module.state_dict(), LAYOUTS[key]).items()
        }
        for key, parts in models.items()
    }


@pytest.mark.parametrize("layout", PUBLISHED)
def test_key_sets_are_those_of_the_published_files(layout, files):
    expected = published_keys(layout)
    assert len(expected) == PUBLISHED[layout][1]
    assert Counter([*files[layout]]) == Counter(expected)


def test_shapes_that_differ_from_diffusers(files):
    sd1, sd2, sdxl = files["sd1"], files["sd2"], files["sdxl"]
    text = "cond_stage_model.model."
    assert sd1["first_stage_model.decoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    assert sd1["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (320, 320, 1, 1)
    assert sd2["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (320, 320)
    assert sd2[f"{text}transformer.resblocks.0.attn.in_proj_weight"].shape == (3072, 1024)
    assert sd2[f"{text}text_projection"].shape == (1024, 1024)
    assert sdxl["conditioner.embedders.1.model.text_projection"].shape == (1280, 1280)
    ids = sd1["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[*range(77)]]


@pytest.mark.parametrize("layout", PUBLISHED)
def test_diffusers_own_converters_lead_back(layout, models, files):
    unet, vae = models[layout]["unet"], models[layout]["vae"]
    for module, convert in (
        (unet, single_file_utils.convert_ldm_unet_checkpoint),
        (vae, single_file_utils.convert_ldm_vae_checkpoint),
    ):
        back = convert(dict(files[layout]), dict(module.config))
        own = module.state_dict()
        assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in own.items()}


def test_kohyas_names_of_lora_layers_are_layers_of_the_file(files):
    golden = json.loads(GOLDEN.read_text())["sdxl"]
    prefix = "model.diffusion_model."
    layers = {
        key.removeprefix(prefix).rpartition(".")[0].replace(".", "_")
        for key in files["sdxl"]
        if key.startswith(prefix)
    }
    named = {name.removeprefix("lora_unet_") for name in golden if name.startswith("lora_unet_")}
    assert len(named) == 788
    assert named <= layers


@pytest.mark.parametrize(
    ("key", "is_passed_over"),
    [
        ("model_ema.diffusion_modelinput_blocks00weight", True),
        ("cond_stage_model.model.transformer.resblocks.23.ln_1.weight", True),
        ("cond_stage_model.model.transformer.resblocks.24.ln_1.weight", False),
        ("cond_stage_model.model.text_projection", True),
        ("cond_stage_model.model.logit_scale", True),
        ("cond_stage_model.logit_scale", True),
        ("conditioner.embedders.1.model.logit_scale", True),
        ("alphas_cumprod_prev", True),
        ("sqrt_one_minus_alphas_cumprod", True),
        ("denoiser.sigmas", True),
        ("v_pred", True),
        ("model.diffusion_model.input_blocks.99.0.weight", False),
        ("something.else", False),
    ],
)
def test_what_is_known_not_to_be_drawn_with(key, is_passed_over):
    assert is_left_out(key, LAYOUTS["sd2"], last_layer=23) == is_passed_over


def test_values_go_there_and_back():
    generator = torch.Generator().manual_seed(0)
    width = 8
    shapes = {
        "text_model.embeddings.token_embedding.weight": (5, width),
        "text_model.encoder.layers.0.self_attn.q_proj.weight": (width, width),
        "text_model.encoder.layers.0.self_attn.k_proj.weight": (width, width),
        "text_model.encoder.layers.0.self_attn.v_proj.weight": (width, width),
        "text_projection.weight": (3, width),
    }
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    layout = LAYOUTS["sdxl"]
    file = to_file("text_encoder_2", weights, layout)
    fused = file["conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"]
    assert torch.equal(fused, torch.cat([weights[key] for key in list(shapes)[1:4]]))
    assert file["conditioner.embedders.1.model.text_projection"].shape == (width, 3)
    for name, place in places("text_encoder_2", weights, layout).items():
        assert torch.equal(from_file(place, file[place.key]), weights[name])
