"""The names of LoRA layers: kohya's, diffusers', and which module of a base model each one means.

Source of kohya's names: sd-scripts `networks/lora.py` (class LoRANetwork); of the SDXL names:
the modules of Stability AI's generative-models, which kohya keeps; of those of video transformers:
VideoX-Fun's LoRANetwork, after kohya's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

PREFIXES = {
    "unet": "lora_unet",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    "transformer": "lora_unet_",
}
"""Part of the base model -> first word of kohya's names, for SD 1.x and 2.x."""

SDXL_PREFIXES = {**PREFIXES, "text_encoder": "lora_te1"}
"""The same for base models with two text encoders."""

_RESNET = r"conv1|conv2|conv_shortcut|time_emb_proj"
TARGETS = {
    "attention": r"attentions\.\d+\.(.+\.)?attn[12]\.(to_q|to_k|to_v|to_out\.0)",
    "feed_forward": r"attentions\.\d+\.(.+\.)?ff\.net\.(0\.proj|2)",
    "projection": r"attentions\.\d+\.proj_(in|out)",
    "convolution": rf"resnets\.\d+\.({_RESNET})|(down|up)samplers\.0\.conv",
}
"""The recipe's `targets` -> ends of module paths within the UNet; `convolution` is what kohya's
conv_dim adds (LoCon)."""

VIDEO_TARGETS = {
    "attention": r"transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)",
    "feed_forward": r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)",
    "projection": r"patch_embed\.(proj|text_proj)|proj_out",
}
"""The same for a video transformer, whole paths; of these only linear layers are trained."""

USUAL_TARGETS = {
    "unet": ("attention", "feed_forward", "projection"),
    "transformer": ("attention",),
}
"""Denoiser -> targets of a recipe that names none: what kohya, and what every trainer of CogVideoX
trains."""

TEXT_ENCODER_TARGETS = r"self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2)"

SGM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
SGM_OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def part_of(name: str) -> str:
    """The part of the base model that a kohya name speaks of, as in the diffusers layout."""
    for prefix, part in (
        ("lora_unet__", "transformer"),
        ("lora_unet_", "unet"),
        ("lora_te_", "text_encoder"),
        ("lora_te1_", "text_encoder"),
        ("lora_te2_", "text_encoder_2"),
    ):
        if name.startswith(prefix):
            return part
    return ""


def is_lora_target(part: str, path: str, module: nn.Module, target: str) -> bool:
    """Whether a layer of the denoiser is one of those that a target of the recipe names."""
    if part == "transformer":
        pattern = VIDEO_TARGETS.get(target)
        is_linear = isinstance(module, nn.Linear)
        return pattern is not None and is_linear and re.fullmatch(pattern, path) is not None
    return re.search(rf"\.({TARGETS[target]})$", path) is not None


def is_text_encoder_target(path: str) -> bool:
    """Whether a text encoder's layer is one of those that a LoRA is trained on."""
    return re.search(rf"\.({TEXT_ENCODER_TARGETS})$", path) is not None


def layers_of(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every linear and convolution layer, in the model's order.

    Under layers that already carry a LoRA, the layer itself.
    """
    for path, module in part.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in path:
            yield path.removesuffix(".base_layer"), module


def kohya_name(part: str, path: str, has_two_text_encoders: bool = False) -> str:
    """The name under which kohya's files hold a layer, e.g. `lora_unet_mid_block_attentions_0_…`.

    Args:
        part: `unet`, `transformer`, `text_encoder` or `text_encoder_2`.
        path: the module's path within the part, as in diffusers and transformers.
        has_two_text_encoders: SDXL: original names in the UNet, `lora_te1_` and `lora_te2_`.
    """
    prefix = (SDXL_PREFIXES if has_two_text_encoders else PREFIXES)[part]
    if part in ("unet", "transformer"):
        path = sgm_path(path) if has_two_text_encoders else path
    else:  # transformers 5.6 dropped `text_model.` from its paths; every tool still writes it
        path = "text_model." + path.removeprefix("text_model.")
    return f"{prefix}_{path.replace('.', '_')}"


def sgm_path(path: str, layers_per_block: int = 2) -> str:
    """A UNet module's path in the original (LDM, sgm) layout; unknown paths stay as they are."""
    if path in SGM_OUTER:
        return SGM_OUTER[path]
    step = layers_per_block + 1
    match path.split("."):
        case ["down_blocks", i, "resnets", j, *rest]:
            return f"input_blocks.{step * int(i) + int(j) + 1}.0.{_sgm_resnet(rest)}"
        case ["down_blocks", i, "attentions", j, *rest]:
            return f"input_blocks.{step * int(i) + int(j) + 1}.1.{'.'.join(rest)}"
        case ["down_blocks", i, "downsamplers", "0", "conv"]:
            return f"input_blocks.{step * (int(i) + 1)}.0.op"
        case ["mid_block", "attentions", "0", *rest]:
            return f"middle_block.1.{'.'.join(rest)}"
        case ["mid_block", "resnets", j, *rest]:
            return f"middle_block.{2 * int(j)}.{_sgm_resnet(rest)}"
        case ["up_blocks", i, "resnets", j, *rest]:
            return f"output_blocks.{step * int(i) + int(j)}.0.{_sgm_resnet(rest)}"
        case ["up_blocks", i, "attentions", j, *rest]:
            return f"output_blocks.{step * int(i) + int(j)}.1.{'.'.join(rest)}"
        case ["up_blocks", i, "upsamplers", "0", "conv"]:
            return f"output_blocks.{step * int(i) + layers_per_block}.2.conv"
    return path


def _sgm_resnet(rest: list[str]) -> str:
    return ".".join([SGM_RESNET.get(rest[0], rest[0]), *rest[1:]])


def known_names(part: str, path: str) -> list[str]:
    """Every name under which some tool's file may hold a layer of a base model."""
    if part == "transformer":
        return [kohya_name(part, path)]
    names = [kohya_name(part, path), kohya_name(part, path, has_two_text_encoders=True)]
    if part != "unet":
        bare = path.removeprefix("text_model.").replace(".", "_")
        names += [f"{prefixes[part]}_{bare}" for prefixes in (PREFIXES, SDXL_PREFIXES)]
    elif path == "up_blocks.0.upsamplers.0.conv":  # no attention before it, unlike in SDXL
        names.append("lora_unet_output_blocks_2_1_conv")
    return names
