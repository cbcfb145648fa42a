"""Tiny CogVideoX models of random weights, in memory and as diffusers folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tests.copies import copied
from tests.inference.models.cogvideox.tiny import TRANSFORMER, VAE, good_schedule

if TYPE_CHECKING:
    from inference.models.cogvideox.model import VideoModel

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.<>:- "

PATCH_T = {"patch_size_t": 2, "patch_bias": False}
LEARNED = {"use_learned_positional_embeddings": True}
KINDS: dict[str, dict[str, Any]] = {
    "2b": {"use_rotary_positional_embeddings": False},
    "5b": {},
    "5b_i2v": {"in_channels": 8, **LEARNED},
    "1.5": PATCH_T,
    "1.5_i2v": {"in_channels": 8, "ofs_embed_dim": 4, **PATCH_T},
    "fun": {"in_channels": 8},
}
"""How the transformers of the published models differ, by the kind of model."""


def tiny_schedule(shift: float = 1.0, sampler: str = "DDIM") -> dict[str, object]:
    """A scheduler_config.json like those of the published models."""
    schedule = good_schedule(_class_name=f"CogVideoX{sampler}Scheduler", snr_shift_scale=shift)
    del schedule["_diffusers_version"]
    return schedule


def tiny_tokenizer(tokens: int = 16) -> Any:
    """One token per character, an end token, filled up with `<pad>`."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *LETTERS]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=tokens,
    )


@copied
def make_video_model(kind: str = "5b", sampler: str = "DDIM", **changes: Any) -> VideoModel:
    """64x64 pixels trained, VAE 8x8x4 with 4 channels, heads of 16, prompts of 16 tokens.

    Args:
        kind: of `KINDS`.
        sampler: DDIM or DPM, as the scheduler_config.json names it.
        changes: of the transformer's config.
    """
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
    from transformers import T5Config, T5EncoderModel

    from inference.models.cogvideox.model import VideoModel

    transformer = {**TRANSFORMER, "time_embed_dim": 4, **KINDS[kind], **changes}
    text = T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    vae: Any = AutoencoderKLCogVideoX
    scheduler: Any = CogVideoXDDIMScheduler
    schedule = tiny_schedule(3.0 if kind == "2b" else 1.0, sampler)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VideoModel(
            path=f"tiny-{kind}",
            tokenizer=tiny_tokenizer(transformer["max_text_seq_length"]),
            text_encoder=T5EncoderModel(text),
            vae=vae(**VAE, invert_scale_latents=kind.startswith("1.5")),
            transformer=CogVideoXTransformer3DModel(**transformer),
            alphas_cumprod=scheduler.from_config(schedule).alphas_cumprod.float(),
            prediction_type="v_prediction",
            noise_schedule=schedule,
            dtype=torch.float32,
        )
        for parameter in model.transformer.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    for part in model.parts.values():
        part.requires_grad_(False).eval()
    return model


def write_video_folder(model: VideoModel, folder: Path) -> Path:
    """The model as a diffusers folder."""
    for name, part in {**model.parts, "tokenizer": model.tokenizer}.items():
        part.save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(model.noise_schedule), encoding="utf-8")
    scheduler = str(model.noise_schedule["_class_name"])
    index = {
        "_class_name": "CogVideoXPipeline",
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
