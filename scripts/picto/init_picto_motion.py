"""Write an untrained `picto-motion`.

    python -m scripts.picto.init_picto_motion [--output FOLDER]

A small CogVideoX (arXiv:2408.06072) in diffusers' layout: tokenizer, T5 encoder, causal 3D VAE of
4x in space and time, transformer with rotary and absolute positions. The tokenizer's pieces come
from the captions of `python -m scripts.picto.build_picto_motion`, of datasets/fluent_clips and of
picto's train icons; everything else is random from a fixed seed. The recipes in configs/pretrain/
train VAE and transformer; the text encoder is never trained.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from inference.runtime import output

SPECIALS = ("<pad>", "</s>", "<unk>")
PIECES = 3000
MAX_TOKENS = 32
ALPHABET = [chr(code) for code in range(0x21, 0x7F)]
"""Printable ASCII, so that any text in it can be tokenized."""
TEXT_ENCODER = {
    "d_model": 192,
    "d_kv": 32,
    "num_heads": 6,
    "d_ff": 512,
    "num_layers": 3,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
VAE = {
    "sample_height": 64,
    "sample_width": 64,
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "block_out_channels": (16, 32, 64),
    "latent_channels": 8,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "temporal_compression_ratio": 4,
    "scaling_factor": 1.0,
}
TRANSFORMER = {
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "num_layers": 6,
    "in_channels": 8,
    "out_channels": 8,
    "patch_size": 4,
    "time_embed_dim": 128,
    "text_embed_dim": 192,
    "max_text_seq_length": MAX_TOKENS,
    "sample_width": 16,
    "sample_height": 16,
    "sample_frames": 25,
    "temporal_compression_ratio": 4,
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True,  # both, as CogVideoX-5B-I2V has them
}
NOISE_SCHEDULE = {  # CogVideoX-5B's
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "clip_sample": False,
    "snr_shift_scale": 1.0,
}
MODEL_INDEX = {
    "_class_name": "CogVideoXPipeline",
    "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLCogVideoX"],
}


# ------------------------------------------------------------------------------------- tokenizer


def captions(clips: Path, others: Iterable[Path], manifest: Path) -> Iterator[str]:
    """Yield the captions of pretraining: of the clips, and names, styles and tags of icons.

    Raises:
        SystemExit: a file is missing.
    """
    for path in (clips, *others, manifest):
        if not path.is_file():
            raise SystemExit(
                f"init_picto_motion: {path} is missing; see scripts/ for what builds it"
            )
    for path in (clips, *others):
        yield from (json.loads(line)["text"] for line in path.read_text("utf-8").splitlines())
    for record in map(json.loads, manifest.read_text("utf-8").splitlines()):
        if record["split"] == "train":
            yield ", ".join([record["name"], record["style_words"], *record["tags"]])


def pieces(texts: Iterable[str], count: int) -> list[tuple[str, float]]:
    """Return `count` pieces of a Unigram vocabulary with log probabilities, specials first.

    The pieces are those of byte-pair merges (deterministic, unlike the Unigram trainer, whose sums
    are rounded in the order of a hash table); their probabilities are counted in the same texts. A
    comma is always a piece of its own, so that a name before it is tokenized as elsewhere.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = list(texts)
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Punctuation(),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=count,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIALS),
        initial_alphabet=["▁", *ALPHABET],
    )
    bpe.train_from_iterator(texts, trainer)
    seen = Counter(piece for row in bpe.encode_batch(texts) for piece in row.tokens)
    total = sum(seen.values()) + bpe.get_vocab_size()
    ids = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    scored = [(piece, math.log((seen[piece] + 1) / total)) for piece, _ in ids]
    return [(piece, 0.0 if piece in SPECIALS else score) for piece, score in scored]


def write_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Save a T5 tokenizer (Unigram, without SentencePiece's file); return its vocabulary size."""
    from transformers import T5TokenizerFast

    tokenizer = T5TokenizerFast(
        vocab=pieces(texts, PIECES), extra_ids=0, model_max_length=MAX_TOKENS
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


# ------------------------------------------------------------------------------------------ main


def build_parts(vocabulary: int, seed: int) -> dict[str, nn.Module]:
    """Return the networks with random weights: {"text_encoder", "vae", "transformer"}."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    return {
        "text_encoder": T5EncoderModel(T5Config(vocab_size=vocabulary, **TEXT_ENCODER)),
        "vae": AutoencoderKLCogVideoX(**VAE),
        "transformer": CogVideoXTransformer3DModel(**TRANSFORMER),
    }


def main() -> None:
    """Write the untrained parts and the folder's index."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--clips", type=Path, default=Path("runs/picto_motion/clips/train/metadata.jsonl")
    )
    parser.add_argument("--output", type=Path, default=Path("runs/picto_motion/untrained"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    fluent = [Path("datasets/fluent_clips/train/metadata.jsonl")]
    texts = captions(options.clips, fluent, Path("datasets/picto/manifest.jsonl"))
    vocabulary = write_tokenizer(texts, options.output / "tokenizer")
    total = 0
    for name, part in build_parts(vocabulary, options.seed).items():
        part.save_pretrained(options.output / name)  # pyright: ignore[reportCallIssue]
        count = sum(weight.numel() for weight in part.parameters())
        total += count
        output(f"{name:13}{count:12,} parameters")
    CogVideoXDDIMScheduler(**NOISE_SCHEDULE).save_pretrained(options.output / "scheduler")
    (options.output / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")
    output(f"{'all':13}{total:12,} parameters, {total * 2 / 1e6:.1f} MB in fp16")
    output(f"untrained picto-motion, {vocabulary} pieces: {options.output}")


if __name__ == "__main__":
    main()
