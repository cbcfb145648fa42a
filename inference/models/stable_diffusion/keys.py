"""The names of weights in single-file checkpoints of Stable Diffusion.

Those of CompVis' latent-diffusion (SD 1.x), Stability AI's stablediffusion (SD 2.x) and
generative-models (SDXL), and of OpenCLIP's text encoders in the latter two. This file is only
about names and shapes; `detect` identifies the model of a file.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from inference.models.names import ASSETS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPTokenizer


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


def sgm_path(path: str, layers_per_block: int = 2) -> str:
    """Return a UNet module's path in the original (LDM, sgm) layout; unknown paths unchanged."""
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


MERGES = ASSETS / "clip" / "merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
"""Tokens of a prompt's chunk, start and end included."""


def byte_letters() -> list[str]:
    """Return a visible letter for every byte, in the order of their ids."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) for byte in visible] + [chr(256 + number) for number in range(len(hidden))]


@lru_cache(maxsize=1)
def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return ids by token, and the merges in their order."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [first + second for first, second in merges]
    return {word: number for number, word in enumerate([*words, START, END])}, merges


def clip_tokenizer(pads_with_end: bool = True) -> CLIPTokenizer:
    """Return the tokenizer of SD 1.x and of SDXL's first text encoder.

    Args:
        pads_with_end: False for OpenCLIP's text encoders (SD 2.x, SDXL's second), which were
            trained with short prompts padded with id 0, `!`.
    """
    vocabulary, merges = clip_vocabulary()
    return build_tokenizer(vocabulary, merges, START, END, END if pads_with_end else "!")


def build_tokenizer(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], start: str, end: str, pad: str
) -> CLIPTokenizer:
    """Return a tokenizer of CLIP's type; unknown tokens map to its end mark."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=pad,
        model_max_length=LENGTH,
    )


def splitting_tokenizer(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """Return a tokenizer that pads with its end mark, so that `!` is an ordinary word to it.

    For SDXL's refiner, whose only tokenizer takes every `!` of a prompt for padding.
    """
    vocabulary, merges = vocabulary_of(tokenizer)
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    start, end = str(tokenizer.bos_token), str(tokenizer.eos_token)
    return build_tokenizer(vocabulary, pairs, start, end, end)


def vocabulary_of(tokenizer: CLIPTokenizer) -> tuple[dict[str, int], list[str]]:
    """Return ids by token, and the merges as `first second`, of any tokenizer of CLIP's type."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tokenizer.get_vocab(), merges


def is_clips(tokenizer: CLIPTokenizer) -> bool:
    """Return whether it has CLIP's own ids."""
    return len(tokenizer) == len(clip_vocabulary()[0]) and (
        tokenizer.get_vocab() == clip_vocabulary()[0]
    )


Layout = Mapping[str, str]
"""Part of the base model -> prefix of its names in the file."""

_OUTER = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
LAYOUTS: dict[str, Layout] = {
    "sd1": {**_OUTER, "text_encoder": "cond_stage_model.transformer."},
    "sd2": {**_OUTER, "text_encoder": "cond_stage_model.model."},
    "sdxl": {
        **_OUTER,
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "sdxl_refiner": {**_OUTER, "text_encoder_2": "conditioner.embedders.0.model."},
}

KNOWN_EXTRAS = re.compile(
    r"model_ema\..+|(cond_stage_model\.|conditioner\.embedders\.\d\.)?(model\.)?logit_scale|"
    r".+\.position_ids|.+\.model\.attn_mask|first_stage_model\.loss\..+|embedding_manager\..+|"
    r"denoiser\..+|betas|alphas_cumprod(_prev)?|(sqrt|log)_.+|posterior_.+|logvar|lvlb_weights|"
    r"scale_factor|v_pred|ztsnr|edm_(mean|std)\b.*|global_step|iteration"
)
"""Other contents of checkpoints, which are ignored. `model_ema` are
averages of the weights, which diffusers and A1111 ignore as well."""

_TRANSFORMER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_THIRDS = ("q_proj", "k_proj", "v_proj")


class Place(NamedTuple):
    """The place of a weight in a single file."""

    key: str
    form: str = ""
    """`1x1`: our linear layer's weight is a 1x1 convolution's there; `transposed`; `q_proj`,
    `k_proj` or `v_proj`: this third of a fused weight. Empty: unchanged."""


def places(part: str, names: Iterable[str], layout: Layout) -> dict[str, Place]:
    """Return the place of each weight of a part.

    Args:
        part: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
        names: those of the part's weights in diffusers or transformers; they show how many layers
            a block has, and which blocks have attention.
        layout: one of LAYOUTS.
    """
    names, prefix = list(names), layout[part]
    if part == "unet":
        find = _unet_finder(names)
    elif part == "vae":
        find = _vae_finder(names)
    elif is_open_clip(prefix):
        find = _open_clip_place
    else:
        find = _clip_place
    return {name: Place(prefix + place.key, place.form) for name in names if (place := find(name))}


def is_open_clip(prefix: str) -> bool:
    """Return whether a text encoder under this prefix has OpenCLIP's names (else transformers')."""
    return prefix.endswith(".model.")


def _unet_finder(names: Iterable[str]) -> Callable[[str], Place]:
    first = [re.match(r"down_blocks\.0\.resnets\.(\d+)", name) for name in names]
    layers = 1 + max(int(match[1]) for match in first if match)
    attentive = {match[0] for name in names if (match := re.match(r"up_blocks\.\d+\.att", name))}

    def find(name: str) -> Place:
        path, _, end = name.rpartition(".")
        found = sgm_path(path, layers)
        block = re.match(r"up_blocks\.\d+\.", path)
        if block and f"{block[0]}att" not in attentive:
            found = found.replace(".2.conv", ".1.conv")
        return Place(f"{found}.{end}")

    return find


def _vae_finder(names: Iterable[str]) -> Callable[[str], Place]:
    found = [re.match(r"decoder\.up_blocks\.(\d+)", name) for name in names]
    last = max(int(match[1]) for match in found if match)

    def find(name: str) -> Place:
        path, _, end = name.rpartition(".")
        match path.split("."):
            case [half, "mid_block", "attentions", "0", *rest]:
                form = "1x1" if end == "weight" and rest != ["group_norm"] else ""
                layer = _VAE_ATTENTION[".".join(rest)]
                return Place(f"{half}.mid.attn_1.{layer}.{end}", form)
            case [half, "mid_block", "resnets", j, *rest]:
                path = f"{half}.mid.block_{int(j) + 1}.{'.'.join(rest)}"
            case ["encoder", "down_blocks", i, "resnets", j, *rest]:
                path = f"encoder.down.{i}.block.{j}.{'.'.join(rest)}"
            case ["encoder", "down_blocks", i, "downsamplers", "0", "conv"]:
                path = f"encoder.down.{i}.downsample.conv"
            case ["decoder", "up_blocks", i, "resnets", j, *rest]:
                path = f"decoder.up.{last - int(i)}.block.{j}.{'.'.join(rest)}"
            case ["decoder", "up_blocks", i, "upsamplers", "0", "conv"]:
                path = f"decoder.up.{last - int(i)}.upsample.conv"
        path = path.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        return Place(f"{path}.{end}")

    return find


def _clip_place(name: str) -> Place:
    """Return transformers' own names, as before it dropped `text_model.` in 5.6."""
    if name == "text_projection.weight":
        return Place(name)
    return Place("text_model." + name.removeprefix("text_model."))


def _open_clip_place(name: str) -> Place:
    name = name.removeprefix("text_model.")
    if name == "text_projection.weight":
        return Place("text_projection", "transposed")
    if name in _OPEN_CLIP:
        return Place(_OPEN_CLIP[name])
    _, _, number, layer = name.split(".", 3)  # encoder.layers.N.
    layer, _, end = layer.rpartition(".")
    block = f"transformer.resblocks.{number}"
    third = layer.removeprefix("self_attn.")
    if third in _THIRDS:
        return Place(f"{block}.attn.in_proj_{end}", third)
    return Place(f"{block}.{_TRANSFORMER[layer]}.{end}")


def to_file(part: str, weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return a part's weights by their names in a single file, with the extras of such files."""
    import torch

    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, place in places(part, weights, layout).items():
        value = weights[name]
        if place.form in _THIRDS:
            thirds.setdefault(place.key, {})[place.form] = value
        else:
            found[place.key] = _reshaped(value, place.form)
    found |= {key: torch.cat([third[name] for name in _THIRDS]) for key, third in thirds.items()}
    if part in ("unet", "vae"):
        return found
    prefix = layout[part]
    if not is_open_clip(prefix):
        length = found[f"{prefix}text_model.embeddings.position_embedding.weight"].shape[0]
        ids = torch.arange(length, device="cpu")[None]
        return {**found, f"{prefix}text_model.embeddings.position_ids": ids}
    return {**found, **_open_clip_extras(found, prefix)}


def _reshaped(value: Tensor, form: str) -> Tensor:
    if form == "1x1":
        return value[..., None, None]
    return value.T.contiguous() if form == "transposed" else value


def _open_clip_extras(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return OpenCLIP's unused weights: its temperature, and in SD 2.x its last layer.

    diffusers omits SD 2.x's last layer and projection, as the embeddings are taken before them.
    As in kohya's `model_util.py`, a copy of the layer before replaces it to complete the file.
    """
    import torch

    table = found[f"{prefix}token_embedding.weight"]
    extras = {f"{prefix}logit_scale": torch.tensor(math.log(100), dtype=table.dtype)}
    if f"{prefix}text_projection" not in found:
        width = table.shape[1]
        extras[f"{prefix}text_projection"] = torch.eye(width, dtype=table.dtype)
        last = max(int(key.split("resblocks.")[1].split(".")[0]) for key in found if "resb" in key)
        before, after = (f"{prefix}transformer.resblocks.{n}." for n in (last, last + 1))
        for key, value in found.items():
            if key.startswith(before):
                extras[key.replace(before, after)] = value.clone()
    return extras


def from_file(place: Place, value: Tensor) -> Tensor:
    """Return the weight at a place, in the shape that diffusers and transformers use."""
    if place.form in _THIRDS:
        return value.chunk(3)[_THIRDS.index(place.form)]
    if place.form == "1x1":  # some programs write it as a linear layer's, older ones as conv1d's
        return value.reshape(value.shape[:2])
    return value.T if place.form == "transposed" else value


def is_left_out(key: str, layout: Layout, last_layer: int) -> bool:
    """Return whether a name in a file is known not to be needed.

    Args:
        key: a name in the file.
        layout: one of LAYOUTS.
        last_layer: layers of the first text encoder in use; SD 2.x files have one
            more, and a projection.
    """
    prefix = layout.get("text_encoder")
    if prefix is not None and is_open_clip(prefix) and key.startswith(prefix):
        rest = key.removeprefix(prefix)
        if rest == "text_projection" or rest.startswith(f"transformer.resblocks.{last_layer}."):
            return True
    return KNOWN_EXTRAS.fullmatch(key) is not None
