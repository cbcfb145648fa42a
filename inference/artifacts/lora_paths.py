"""From kohya's names of LoRA layers back to the modules' paths in diffusers and transformers.

kohya joins a path with underscores, so that its dots have to be found again.
"""

from __future__ import annotations

import re
from functools import lru_cache

from inference.artifacts.base import ArtifactError
from inference.artifacts.lora_keys import SGM_OUTER, SGM_RESNET, part_of, sgm_path

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
