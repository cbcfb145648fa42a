"""The names of LoRA layers: kohya's, diffusers', and which module of a base model each one means.

Source of kohya's names: sd-scripts `networks/lora.py` (class LoRANetwork); of the SDXL names:
the modules of Stability AI's generative-models, which kohya keeps; of those of video transformers:
VideoX-Fun's LoRANetwork, after kohya's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from torch import nn

from inference.models.stable_diffusion import SGM_OUTER, SGM_RESNET, sgm_path
from inference.runtime import ArtifactError

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


_WORDS = re.compile(
    r"down_blocks|up_blocks|mid_block|transformer_blocks|proj_(?:in|out)|to_(?:q|k|v|out)|"
    r"patch_embed|text_proj|norm_out|ofs_embedding|time_emb_proj|conv_shortcut|conv_(?:in|out)|(?:time|add)_embedding|linear_[12]|"
    r"text_model|self_attn|(?:q|k|v|out)_proj|[a-z]+\d*|\d+"
)
"""The words of paths; those that hold an underscore themselves are named."""


def diffusers_path(name: str) -> tuple[str, str]:
    """Part and path of the layer that a kohya name means.

    Paths in text encoders begin with `text_model.`, as in files.

    Raises:
        ArtifactError: the name is not understood.
    """
    part = part_of(name)
    if not part:
        raise ArtifactError(f"{name}: not a layer's name as kohya writes it")
    joined = re.sub(r"^lora_(unet_(?=_)|unet|te[12]?)_", "", name)
    if part == "transformer":
        return part, _dotted(joined, name)
    if part != "unet":
        return part, "text_model." + _dotted(joined, name).removeprefix("text_model.")
    whole, beginnings = _sgm_names()
    if joined in whole:
        return part, whole[joined]
    begin = re.match(r"(?:input|output)_blocks_\d+_1_|middle_block_1_", joined)
    if begin and begin[0] in beginnings:
        return part, f"{beginnings[begin[0]]}.{_dotted(joined.removeprefix(begin[0]), name)}"
    if not joined.startswith(("down_blocks_", "mid_block_", "up_blocks_", "conv_", "time_emb")):
        raise ArtifactError(f"{name}: not a layer of a UNet of SD 1.x, SD 2.x or SDXL")
    return part, _dotted(joined, name)


def _dotted(joined: str, name: str) -> str:
    words = _WORDS.findall(joined)
    if "_".join(words) != joined:
        raise ArtifactError(f"{name}: not a layer's name as kohya writes it")
    return ".".join(words)


@lru_cache(maxsize=1)
def _sgm_names() -> tuple[dict[str, str], dict[str, str]]:
    """Original names, joined, of whole layers; and what those in attention blocks begin with."""
    paths = [*SGM_OUTER, "mid_block.attentions.0"]
    paths += [f"mid_block.resnets.{j}.{layer}" for j in range(2) for layer in SGM_RESNET]
    for i in range(4):
        paths += [f"down_blocks.{i}.downsamplers.0.conv", f"up_blocks.{i}.upsamplers.0.conv"]
        for side, layers in (("down", 2), ("up", 3)):
            for j in range(layers):
                paths.append(f"{side}_blocks.{i}.attentions.{j}")
                paths += [f"{side}_blocks.{i}.resnets.{j}.{layer}" for layer in SGM_RESNET]
    whole = {"output_blocks_2_1_conv": "up_blocks.0.upsamplers.0.conv"}  # SD 1.x and 2.x
    beginnings = {}
    for path in paths:
        joined = sgm_path(path).replace(".", "_")
        if ".attentions." in path:
            beginnings[joined] = path
        else:
            whole[joined] = path
    return whole, beginnings
