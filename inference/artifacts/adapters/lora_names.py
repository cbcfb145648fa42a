"""The names that other programs give to LoRA tensors: ComfyUI's, SimpleTuner's and peft's.

They are rewritten to those of kohya and diffusers. Sources: ComfyUI 0.19.3 `comfy/lora.py`
(`model_lora_keys_unet`, `model_lora_keys_clip`); peft 0.21 `utils/save_and_load.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from inference.artifacts.adapters.base import adapter_of
from inference.config import ADAPTERS
from inference.runtime import ArtifactError

ROLES = (
    ("down", (".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight",
              ".lora_linear_layer.down.weight", "_lora.down.weight", ".lora_down.weight",
              ".lora_A")),
    ("up", (".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight",
            ".lora_linear_layer.up.weight", "_lora.up.weight", ".lora_up.weight", ".lora_B")),
    ("alpha", (".alpha",)),
)  # fmt: skip
"""Suffixes of keys -> the role of the tensor. The first ones are what diffusers writes today."""

OTHER_KINDS = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r"\.dora_scale$|\.lora_magnitude_vector\b", "DoRA (weight decomposition)"),
        (r"\.lora_mid\.weight$", "LoCon with Tucker decomposition"),
        (r"\.hada_[wt]\d", "LoHa"),
        (r"\.lokr_[wt]\d", "LoKr"),
        (r"^oft_(unet|te\d?)_|\.oft_(blocks|diag|R)\b|\.boft_R\b", "OFT"),
        (r"\.[ab][12]\.weight$", "GLoRA"),
        (r"\.on_input$|\.ia3_l\b", "IA3"),
        (r"\.[wb]_norm$", "trained norms (train_norm)"),
        (r"\.diff(_b)?$|\.set_weight$|\.reshape_weight$", "full weight differences"),
        (r"\.(q_layer|p_layer)\.weight$|\.lambda_layer$", "T-LoRA"),
        (r"\.vera_lambda_|\.lora_embedding_[AB]\b|\.lora_E\b", "a relative of LoRA by peft"),
        (r"^lllite_", "ControlNet-LLLite"),
        (r"^bundle_emb\.", "embeddings bundled with a LoRA"),
    )
)
"""Marks of LoRA relatives that are not supported here, by the names of their tensors."""

KINDS_OF_PEFT = {
    "LOHA": "LoHa", "LOKR": "LoKr", "OFT": "OFT", "BOFT": "BOFT", "IA3": "IA3",
    "ADALORA": "AdaLoRA",
}  # fmt: skip
"""`peft_type` -> the adapter's name; others are named as they are."""

COMFY_UNET = "diffusion_model."
COMFY_TEXT = re.compile(r"text_encoders\.clip_(?P<encoder>[lgh])\.transformer\.(?P<path>.+)")
COMFY_ENCODERS = {"l": "text_encoder", "h": "text_encoder", "g": "text_encoder_2"}
"""ComfyUI's text encoders: CLIP-L, SD 2.x's OpenCLIP-H, SDXL's OpenCLIP-bigG."""
LYCORIS = "lycoris_"
"""The prefix of SimpleTuner's LyCORIS files, before the path in diffusers' UNet."""
PEFT = re.compile(
    r"(?:(?P<part>unet|transformer|text_encoder(?:_2)?)\.)?base_model\.model\.(?P<path>.+)"
)
PEFT_PARTS = (
    (re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding)\b"), "unet"),
    (re.compile(r"(transformer_blocks|patch_embed|proj_out)\b"), "transformer"),
    (re.compile(r"(text_model|encoder\.layers)\b"), "text_encoder"),
)
"""Beginnings of paths -> the part, for peft's files, which do not name it."""
SECOND_WIDTHS = {1280, 5120}
"""Widths of the layers in SDXL's second text encoder, which no other has."""


def other_kinds(keys: Iterable[str]) -> list[tuple[str, str]]:
    """Return (relative of LoRA, key) of the tensors whose kind is known and not supported."""
    supported = tuple(f".{suffix}" for suffix in registered_suffixes())
    return [
        (what, key)
        for key in keys
        if not key.endswith(supported)
        for what in [next((what for sign, what in OTHER_KINDS if sign.search(key)), None)]
        if what is not None
    ]


def registered_suffixes() -> list[str]:
    """Return the suffixes of the tensors of all registered adapters."""
    return [suffix for name in ADAPTERS for suffix in adapter_of(name).suffixes]


def refuse_other_kinds(keys: Iterable[str]) -> None:
    """Raise ArtifactError if tensors belong to relatives of LoRA that are not supported."""
    keys = list(keys)
    if not (found := other_kinds(keys)):
        return
    what, key = found[0]
    counts = Counter(what for what, _ in found)
    others = "".join(f", {number} of {other}" for other, number in counts.items() if other != what)
    raise ArtifactError(
        f"{key}: {what} cannot be read; only plain LoRA (down and up) can ({counts[what]} of "
        f"{len(keys)} tensors are of {what}{others})"
    )


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names of kohya and diffusers.

    Raises:
        ArtifactError: two tensors have the same name then.
    """
    found: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for key, tensor in tensors.items():
        name = usual_name(key, tensor)
        if name in found:
            raise ArtifactError(f"{key} and {origins[name]} are names of the same tensor")
        found[name], origins[name] = tensor, key
    return found


def usual_name(key: str, tensor: Tensor) -> str:
    """Return a key as kohya or diffusers would write it; unchanged if it is none of the others'."""
    if key.startswith(COMFY_UNET):
        stem, end = split_end(key.removeprefix(COMFY_UNET))
        return f"lora_unet_{stem.replace('.', '_')}{end}" if end else key
    if match := COMFY_TEXT.fullmatch(key):
        return f"{COMFY_ENCODERS[match['encoder']]}.{match['path']}"
    if key.startswith(LYCORIS):
        return f"lora_unet_{key.removeprefix(LYCORIS)}"
    if match := PEFT.fullmatch(key):
        part = match["part"] or part_of_path(match["path"], tensor)
        return f"{part}.{match['path']}" if part else match["path"]
    return key


def split_end(key: str) -> tuple[str, str]:
    """Return a key's layer and its suffix, which begins with a dot; ("", "") for an unknown one."""
    ends = [end for _, role_ends in ROLES for end in role_ends]
    ends += [f".{suffix}" for suffix in registered_suffixes()]
    end = max((end for end in ends if key.endswith(end)), key=len, default="")
    return (key.removesuffix(end), end) if end else ("", "")


def part_of_path(path: str, tensor: Tensor) -> str | None:
    """Return the part that a path of peft is in; SDXL's second text encoder by its width."""
    part = next((part for sign, part in PEFT_PARTS if sign.match(path)), None)
    is_second = part == "text_encoder" and bool(SECOND_WIDTHS & {*tensor.shape})
    return "text_encoder_2" if is_second else part


def naming_of(keys: Iterable[str]) -> str | None:
    """Return the program whose names these are, if they are rewritten here."""
    for key in keys:
        if key.startswith(COMFY_UNET) or COMFY_TEXT.fullmatch(key):
            return "ComfyUI"
        if key.startswith(LYCORIS):
            return "SimpleTuner"
        if PEFT.fullmatch(key):
            return "peft"
    return None
