"""LoRA layers of Stable Diffusion: kohya's names, and their modules.

Source of kohya's names: sd-scripts `networks/lora.py` (class LoRANetwork); of the SDXL names: the
modules of Stability AI's generative-models, which kohya keeps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from inference.models.lora_layout import LoraLayout, dotted
from inference.models.stable_diffusion.keys import SGM_OUTER, SGM_RESNET, sgm_path
from inference.runtime import ArtifactError

if TYPE_CHECKING:
    from torch import nn

    from inference.models.base import DiffusionModel

REFINER_WIDTH = 1280
"""Width of the prompt embeddings in SDXL's refiner."""
VERSIONS = {
    768: "sd_v1",
    1024: "sd_v2",
    2048: "sdxl_base_v1-0",
    REFINER_WIDTH: "sdxl_refiner_v1-0",
}
"""Width of the prompt embeddings -> kohya's `ss_base_model_version`; for v-prediction with `_v`,
except SDXL's. kohya trains no refiner: its version is named likewise."""

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
"""Part -> first word of kohya's names, for SD 1.x and 2.x."""
SDXL_PREFIXES = {**PREFIXES, "text_encoder": "lora_te1"}
"""The same for SDXL."""
SDXL_NAMES = ("lora_te1_", "lora_te2_", "lora_unet_input_", "lora_unet_output_")
"""Prefixes of names in SDXL's files only."""
SDXL_WIDTH = 2048
"""Width of the prompt embeddings in SDXL."""
SDXL_READER = re.compile(r"attn2[._](processor\.)?to_[kv].*(lora_A|down)")
"""The half of a LoRA layer that reads them, in diffusers' and kohya's naming."""

FIRST_UPSAMPLER = "up_blocks.0.upsamplers.0.conv"
_RESNET = r"conv1|conv2|conv_shortcut|time_emb_proj"


class StableDiffusionLora(LoraLayout):
    """Layers of the UNet and of one or two CLIP text encoders.

    Args:
        has_sgm_names: SDXL: original names in the UNet, `lora_te1_` and `lora_te2_`.
        is_refiner: its refiner, whose text encoder is `lora_te2_`, as it is `text_encoder_2` in
            the diffusers layout.
    """

    denoiser = "unet"
    begins: ClassVar = {
        "lora_unet_": "unet",
        "lora_te_": "text_encoder",
        "lora_te1_": "text_encoder",
        "lora_te2_": "text_encoder_2",
    }
    targets: ClassVar = {
        "attention": r"attentions\.\d+\.(.+\.)?attn[12]\.(to_q|to_k|to_v|to_out\.0)",
        "feed_forward": r"attentions\.\d+\.(.+\.)?ff\.net\.(0\.proj|2)",
        "projection": r"attentions\.\d+\.proj_(in|out)",
        "convolution": rf"resnets\.\d+\.({_RESNET})|(down|up)samplers\.0\.conv",
    }
    """`convolution` is what kohya's conv_dim adds (LoCon)."""
    usual_targets = ("attention", "feed_forward", "projection")
    text_encoder_targets = r"self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2)"
    file_format = "kohya"
    readers = ("attn2_to_k", "attn2_to_v")
    widths: ClassVar = {
        768: "SD 1.x",
        1024: "SD 2.x",
        2048: "SDXL",
        REFINER_WIDTH: "SDXL's refiner",
    }
    versions: ClassVar = VERSIONS
    linear_widths = (1024, 2048, REFINER_WIDTH)
    made_for = "prompt states of width {width} ({model}); this base model's have"
    made_for_elsewhere = "prompt states of width {width} ({model})"

    def __init__(self, has_sgm_names: bool, is_refiner: bool = False) -> None:
        self.has_sgm_names = has_sgm_names
        self.is_refiner = is_refiner
        self.prefixes = SDXL_PREFIXES if has_sgm_names else PREFIXES

    def kohya_path(self, part: str, path: str) -> str:
        if part == "unet" and self.is_refiner and path == FIRST_UPSAMPLER:
            return "output_blocks.2.1.conv"  # no attention before it, unlike in SDXL
        if part == "unet":
            return sgm_path(path) if self.has_sgm_names else path
        # transformers 5.6 dropped `text_model.` from its paths; every tool still writes it
        return "text_model." + path.removeprefix("text_model.")

    def known_names(self, part: str, path: str) -> list[str]:
        layouts = LAYOUTS[:2]  # the refiner's names are SDXL's, but for its first upsampler
        names = [layout.kohya_name(part, path) for layout in layouts]
        if part != "unet":
            bare = path.removeprefix("text_model.").replace(".", "_")
            names += [f"{layout.prefixes[part]}_{bare}" for layout in layouts]
        elif path == FIRST_UPSAMPLER:  # no attention before it, unlike in SDXL
            names.append("lora_unet_output_blocks_2_1_conv")
        elif path.startswith("add_embedding."):  # ComfyUI's other name of the layer
            names.append(f"lora_unet_{path.replace('add_', 'class_').replace('.', '_')}")
        return names

    def diffusers_path(self, part: str, joined: str, name: str) -> str:
        """Return a module's path; those in text encoders begin with `text_model.`, as in files."""
        if part != "unet":
            return "text_model." + dotted(joined, name).removeprefix("text_model.")
        whole, beginnings = _sgm_names()
        if joined in whole:
            return whole[joined]
        begin = re.match(r"(?:input|output)_blocks_\d+_1_|middle_block_1_", joined)
        if begin and begin[0] in beginnings:
            return f"{beginnings[begin[0]]}.{dotted(joined.removeprefix(begin[0]), name)}"
        if not joined.startswith(("down_blocks_", "mid_block_", "up_blocks_", "conv_", "time_emb")):
            raise ArtifactError(f"{name}: not a layer of a UNet of SD 1.x, SD 2.x or SDXL")
        return dotted(joined, name)

    def is_target(self, path: str, module: nn.Module, target: str) -> bool:
        return re.search(rf"\.({self.targets[target]})$", path) is not None

    def recognizes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Recognize SDXL by its parts, or by the input width of attention; its refiner by that."""
        readers = {shape[1:] for key, shape in shapes.items() if SDXL_READER.search(key)}
        if self.is_refiner or (REFINER_WIDTH,) in readers:
            return self.is_refiner and (REFINER_WIDTH,) in readers
        has_second = any(key.startswith("text_encoder_2.") for key in shapes)
        return self.has_sgm_names and (has_second or (SDXL_WIDTH,) in readers)

    def input_width(self, base: DiffusionModel) -> int:
        return base.denoiser.config.cross_attention_dim


LAYOUTS = (StableDiffusionLora(False), StableDiffusionLora(True), StableDiffusionLora(True, True))
"""The layouts of SD 1.x and 2.x, of SDXL, and of its refiner."""


def layout_of(parts: Mapping[str, object]) -> LoraLayout:
    """Return the layout of a base model with these parts."""
    if "text_encoder_2" not in parts:
        return LAYOUTS[0]
    return LAYOUTS[1 if "text_encoder" in parts else 2]


def layout_for(names: Mapping[str, object], width: int | None) -> LoraLayout:
    """Return the layout of a LoRA by the input width of its attention, else by its names."""
    if width == REFINER_WIDTH:
        return LAYOUTS[2]
    if width in VERSIONS:
        return LAYOUTS[VERSIONS[width].startswith("sdxl")]
    return LAYOUTS[any(name.startswith(SDXL_NAMES) for name in names)]


@lru_cache(maxsize=1)
def _sgm_names() -> tuple[dict[str, str], dict[str, str]]:
    """Return joined original names of whole layers, and the prefixes in attention blocks."""
    paths = [*SGM_OUTER, "mid_block.attentions.0"]
    paths += [f"mid_block.resnets.{j}.{layer}" for j in range(2) for layer in SGM_RESNET]
    for i in range(4):
        paths += [f"down_blocks.{i}.downsamplers.0.conv", f"up_blocks.{i}.upsamplers.0.conv"]
        for side, layers in (("down", 2), ("up", 3)):
            for j in range(layers):
                paths.append(f"{side}_blocks.{i}.attentions.{j}")
                paths += [f"{side}_blocks.{i}.resnets.{j}.{layer}" for layer in SGM_RESNET]
    whole = {"output_blocks_2_1_conv": FIRST_UPSAMPLER}  # SD 1.x, SD 2.x and SDXL's refiner
    beginnings = {}
    for path in paths:
        joined = sgm_path(path).replace(".", "_")
        if ".attentions." in path:
            beginnings[joined] = path
        else:
            whole[joined] = path
    return whole, beginnings
