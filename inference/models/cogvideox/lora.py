"""LoRA layers of CogVideoX: VideoX-Fun's names after kohya's, and the targets of every trainer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from inference.models.lora_layout import LoraLayout, dotted

if TYPE_CHECKING:
    from torch import nn

    from inference.models.base import DiffusionModel


class CogVideoXLora(LoraLayout):
    """Linear layers of the transformer; T5 is never trained."""

    denoiser = "transformer"
    prefixes: Mapping[str, str] = {"transformer": "lora_unet_"}
    begins: ClassVar = {"lora_unet__": "transformer"}
    targets: ClassVar = {
        "attention": r"transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)",
        "feed_forward": r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)",
        "projection": r"patch_embed\.(proj|text_proj)|proj_out",
    }
    usual_targets = ("attention",)
    text_encoder_targets = None
    untrained_text_encoder = (
        "its T5 stays as it is in every tool, and no format has room for a LoRA of it"
    )
    file_format = "diffusers"
    readers = ("attn1_to_q",)
    widths: ClassVar = {1920: "CogVideoX-2B", 3072: "CogVideoX-5B or 1.5-5B"}
    versions: ClassVar = {}
    linear_widths = ()
    made_for = "a video transformer of width {width} ({model}); this base model's has"
    made_for_elsewhere = "a video model ({model})"

    def kohya_path(self, part: str, path: str) -> str:
        return path

    def known_names(self, part: str, path: str) -> list[str]:
        return [self.kohya_name(part, path)]

    def diffusers_path(self, part: str, joined: str, name: str) -> str:
        return dotted(joined, name)

    def is_target(self, path: str, module: nn.Module, target: str) -> bool:
        from torch import nn

        pattern = self.targets.get(target)
        is_linear = isinstance(module, nn.Linear)
        return pattern is not None and is_linear and re.fullmatch(pattern, path) is not None

    def recognizes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return False

    def input_width(self, base: DiffusionModel) -> int:
        config = base.denoiser.config
        return config.num_attention_heads * config.attention_head_dim


LORA = CogVideoXLora()
