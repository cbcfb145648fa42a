"""Parse LoRA files with the names of kohya, diffusers, peft and SAT.

SAT (SwissArmyTransformer) is the framework CogVideoX was trained with: `sat/README.md` and
`tools/export_sat_lora_weight.py` of github.com/zai-org/CogVideo document its names.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inference.artifacts.adapters.base import Adapter, adapter_with
from inference.artifacts.adapters.lora_keys import diffusers_path, kohya_name, part_of
from inference.artifacts.adapters.low_rank import LowRank
from inference.models import LoraLayout, all_families
from inference.runtime import ArtifactError

ADAPTERS = "lora_adapter_metadata"
"""The key of a file's metadata in which diffusers looks for alpha."""


def diffusers_tensors(
    layers: Mapping[str, LowRank], dtype: torch.dtype, is_linear: bool = False
) -> dict[str, Tensor]:
    """Return the tensors of a file by diffusers' names, e.g. `transformer.….to_q.lora_A.weight`.

    `lora_B` is multiplied by alpha / rank, in fp32: diffusers before 0.34 ignores alpha, and takes
    the rank for it.

    Args:
        layers: by kohya name.
        dtype: dtype of the file.
        is_linear: proj_in and proj_out of a UNet are linear, though kohya's are convolutions.
    """
    tensors: dict[str, Tensor] = {}
    for name, low_rank in layers.items():
        part, module = diffusers_path(name)
        halves = (low_rank.lora_A.weight, low_rank.lora_B.weight.float() * low_rank.scaling)
        for half, weight in zip("AB", halves, strict=True):
            value = weight.detach()
            if is_linear and module.endswith((".proj_in", ".proj_out")):
                value = value.reshape(value.shape[:2])
            tensors[f"{part}.{module}.lora_{half}.weight"] = value.to("cpu", dtype).contiguous()
    return tensors


def adapter_metadata(layers: Mapping[str, LowRank]) -> dict[str, str]:
    """Return the metadata from which diffusers takes each layer's alpha; layers by kohya name.

    Alpha is the rank; `diffusers_tensors` includes the scale.
    """
    parts: dict[str, dict[str, LowRank]] = {}
    for name, low_rank in layers.items():
        part, module = diffusers_path(name)
        parts.setdefault(part, {})[module.removeprefix("text_model.")] = low_rank
    options = {
        f"{part}.{key}": value
        for part, of_part in parts.items()
        for key, value in _peft_options(of_part).items()
    }
    return {"format": "pt", ADAPTERS: json.dumps(options, sort_keys=True)}


def _peft_options(layers: Mapping[str, LowRank]) -> dict[str, Any]:
    """Return peft's LoraConfig of a part: the most common rank as alpha too, and the exceptions."""
    rank = Counter(low_rank.rank for low_rank in layers.values()).most_common(1)[0][0]
    others = {key: one.rank for key, one in layers.items() if one.rank != rank}
    return {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(layers),
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
    }


KOHYA_KEY = re.compile(r"(?P<name>lora_(unet|te[12]?)_\w+)\.(?P<what>.+)")
DIFFUSERS_KEY = re.compile(r"(?P<part>unet|transformer|text_encoder(?:_2)?)\.(?P<path>.+)")
BARE_UNET_KEY = re.compile(r"(?P<path>(?:down_blocks|mid_block|up_blocks)\..+)")
"""A key of a file that diffusers wrote for the UNet alone."""
BARE_TRANSFORMER_KEY = re.compile(r"(?P<path>(?:transformer_blocks|patch_embed|proj_out)\..+)")
"""A key as CogVideo's tool exports it from SAT's checkpoints."""
SAT_KEY = re.compile(
    r"(?:.+\.)?layers\.(?P<block>\d+)\.attention\."
    r"(?:query_key_value\.matrix_(?P<half>[AB])\.(?P<index>[012])|dense\.matrix_(?P<out>[AB])\.0)"
)
"""A key of SAT's checkpoints, which also contain the whole transformer."""
SAT_ALPHA = 1.0
"""SAT's configs use no other value, and its files do not contain it."""

ALPHA_KEYS = ("lora_adapter_metadata", "lora_config")
"""Keys of a file's metadata that contain alpha: diffusers' (`<part>.lora_alpha`), and finetrainers'
(`lora_alpha`)."""

ROLES = (
    ("down", (".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight",
              ".lora_linear_layer.down.weight", "_lora.down.weight", ".lora_down.weight")),
    ("up", (".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight",
            ".lora_linear_layer.up.weight", "_lora.up.weight", ".lora_up.weight")),
    ("alpha", (".alpha",)),
)  # fmt: skip
"""Suffixes of keys -> the role of the tensor. The first ones are what diffusers writes today."""

OTHER_FORMATS = {
    "dora_scale": "DoRA (weight decomposition)",
    "lora_magnitude_vector": "DoRA (weight decomposition)",
    "lora_mid": "LoCon with Tucker decomposition",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "on_input": "IA3",
    ".diff": "full weight differences",
    "bundle_emb": "embeddings bundled with a LoRA",
}
"""Marks of LoRA relatives that are not supported here."""


@dataclass
class _Found:
    tensors: dict[str, Tensor] = field(default_factory=dict)
    path: str = ""
    """Path within the part, known only with diffusers' names."""


def is_lora(keys: Iterable[str]) -> bool:
    """Return whether some tensor has the name of a LoRA tensor."""
    ends = [end for role, role_ends in ROLES if role != "alpha" for end in role_ends]
    return any(
        key.endswith(tuple(ends)) or KOHYA_KEY.fullmatch(key) or SAT_KEY.fullmatch(key)
        for key in keys
    )


def format_of(keys: Iterable[str]) -> str:
    """Return the format of the names: `kohya`, `SAT` or `diffusers` (peft's are alike)."""
    keys = list(keys)
    if all(KOHYA_KEY.fullmatch(key) for key in keys):
        return "kohya"
    if any(SAT_KEY.fullmatch(key) or BARE_TRANSFORMER_KEY.fullmatch(key) for key in keys):
        return "SAT"
    return "diffusers"


def says_alpha(keys: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Return whether a LoRA file contains its alpha."""
    adapters = read_adapters(metadata)
    is_in_metadata = any(key.rpartition(".")[2] == "lora_alpha" for key in adapters)
    return is_in_metadata or any(key.endswith(".alpha") for key in keys)


def read_layers(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], alpha: float | None = None
) -> dict[str, Adapter]:
    """Return the layers of a LoRA file by kohya name, those of other adapters included.

    Args:
        tensors: the tensors of the file.
        metadata: its metadata; diffusers stores alpha there.
        alpha: alpha of the training, if the file does not have it. None is 1 for SAT's files and
            the rank for others, as in every tool.

    Raises:
        ArtifactError: a tensor is of an unknown kind, a layer is incomplete, or
            the metadata cannot be parsed.
    """
    others, tensors = split_adapters(tensors)
    found: dict[str, _Found] = {}
    layout = layout_of_file(tensors)
    if any(SAT_KEY.fullmatch(key) for key in tensors):
        tensors = {key: value for key, value in tensors.items() if SAT_KEY.fullmatch(key)}
    adapters = read_adapters(metadata)
    if alpha is None and format_of(tensors) == "SAT":
        alpha = SAT_ALPHA
    for key, tensor in tensors.items():
        name, path, role = parse_key(key, layout)
        found.setdefault(name, _Found()).tensors[role] = tensor
        found[name].path = path
    return others | {name: _low_rank(name, entry, adapters, alpha) for name, entry in found.items()}


def split_adapters(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Adapter], dict[str, Tensor]]:
    """Return the layers of registered adapters other than LoRA, and the remaining tensors.

    Raises:
        ArtifactError: a layer lacks tensors, or their shapes do not match.
    """
    by_layer: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := KOHYA_KEY.fullmatch(key):
            by_layer.setdefault(match["name"], {})[match["what"]] = tensor
    layers: dict[str, Adapter] = {}
    for name, own in by_layer.items():
        kinds = {kind for suffix in own if (kind := adapter_with(suffix)) is not None}
        kind = next(iter(kinds), LowRank)
        if len(kinds) > 1 or kind is LowRank:
            continue
        alpha = own.pop("alpha", None)
        try:
            layers[name] = kind.from_tensors(own, None if alpha is None else alpha.float().item())
        except ArtifactError as error:
            raise ArtifactError(f"{name}: {error}") from error
        layers[name].requires_grad_(False)
    taken = tuple(f"{name}." for name in layers)
    return layers, {key: one for key, one in tensors.items() if not key.startswith(taken)}


def read_adapters(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return peft's options in a file's metadata; empty if there are none.

    Raises:
        ArtifactError: they are not a JSON mapping.
    """
    for key in ALPHA_KEYS:
        if key not in metadata:
            continue
        try:
            options = json.loads(metadata[key])
        except ValueError as error:
            raise ArtifactError(f"metadata {key}: cannot be read as JSON: {error}") from error
        if not isinstance(options, dict):
            raise ArtifactError(f"metadata {key}: expected a mapping, got {options!r}")
        return options
    return {}


def layout_of_file(tensors: Mapping[str, Tensor]) -> LoraLayout | None:
    """Return the layout of a file in diffusers' format if it shows; None lets the parts decide.

    In kohya's format the names themselves identify it.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    layouts = [layout for family in all_families() for layout in family.lora_layouts]
    return next((layout for layout in layouts if layout.recognizes(shapes)), None)


def parse_key(key: str, layout: LoraLayout | None = None) -> tuple[str, str, str]:
    """Return a key's kohya name, path in the part ("" if unknown), and `down`, `up` or `alpha`."""
    if match := SAT_KEY.fullmatch(key):
        return _parse_sat(match)
    for role, ends in ROLES:
        for end in ends:
            if key.endswith(end) and (found := _parse_stem(key.removesuffix(end), end, layout)):
                return *found, role
    for sign, what in OTHER_FORMATS.items():
        if sign in key:
            raise ArtifactError(f"{key}: {what} cannot be read; only plain LoRA (down and up) can")
    raise ArtifactError(
        f"{key}: not a LoRA tensor. Known are lora_unet_….lora_down.weight, .lora_up.weight and "
        ".alpha (kohya), unet.… or transformer.….lora_A.weight and .lora_B.weight (diffusers)"
    )


def _parse_sat(match: re.Match[str]) -> tuple[str, str, str]:
    """Return what `parse_key` does for a match of `SAT_KEY`."""
    layer = f"to_{'qkv'[int(match['index'])]}" if match["half"] else "to_out.0"
    path = f"transformer_blocks.{match['block']}.attn1.{layer}"
    role = "down" if (match["half"] or match["out"]) == "A" else "up"
    return kohya_name("transformer", path), path, role


def _parse_stem(stem: str, end: str, layout: LoraLayout | None) -> tuple[str, str] | None:
    """Return the kohya name and the path of a key less its `end`; None if it names no layer."""
    if part_of(f"{stem}_") and "." not in stem:
        return stem, ""
    if BARE_TRANSFORMER_KEY.fullmatch(stem):
        return kohya_name("transformer", stem), stem
    match = DIFFUSERS_KEY.fullmatch(stem) or BARE_UNET_KEY.fullmatch(stem)
    if match is None:
        return None
    # attention processors of old diffusers: attn1.processor.to_q_lora, to_out_lora
    path = re.sub(r"\.processor\.(to_\w+?)$", r".\1", match["path"])
    if end.startswith("_lora") and path.endswith("to_out"):
        path += ".0"
    part = match.groupdict().get("part", "unet")
    return kohya_name(part, path, layout), path


def _low_rank(
    name: str, found: _Found, adapters: Mapping[str, object], fallback: float | None
) -> LowRank:
    halves = {f"lora_{role}.weight": one for role, one in found.tensors.items() if role != "alpha"}
    alpha = fallback
    if "alpha" in found.tensors:
        alpha = found.tensors["alpha"].float().item()
    elif "down" in found.tensors:
        rank = found.tensors["down"].shape[0]
        known = _adapter_alpha(part_of(name), found.path, rank, adapters)
        alpha = fallback if known is None else known
    try:
        return LowRank.from_tensors(halves, alpha)
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from error


def _adapter_alpha(part: str, path: str, rank: int, adapters: Mapping[str, object]) -> float | None:
    """Return alpha from a diffusers file's metadata (peft's config, `<part>.<option>`), or None.

    Rank-stabilised LoRA (Kalajdzievski 2023, arXiv 2312.03732) scales by alpha / sqrt(rank);
    here this becomes the alpha of a plain one.
    """

    def option(name: str) -> Any:  # a file of the UNet alone has no part in its names
        return adapters.get(f"{part}.{name}", adapters.get(name))

    if (alpha := option("lora_alpha")) is None:
        return None
    for pattern, value in (option("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = value
            break
    return float(alpha) * (rank**0.5 if option("use_rslora") else 1)
