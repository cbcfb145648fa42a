"""Video models of random weights, small enough for every test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.models.cogvideox.model import VideoModel
from inference.models.conditions import Conditions

LETTERS = "abcdefghijklmnopqrstuvwxyz "


def tokenizer() -> Any:
    """One token for each letter, 1 for the end; filled up with 0."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    words |= {letter: number + 3 for number, letter in enumerate(LETTERS)}
    letters = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    letters.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def build_video_base(
    dtype: torch.dtype = torch.float32, path: str = "tiny_video", **changes: Any
) -> VideoModel:
    """Two layers of two heads of 16, rotary positions, latents (b, 3, 4, 4, 4); 1.0, T2V.

    Random AdaLN, so that every layer has a part in what is predicted.
    """
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
    from transformers import T5Config, T5EncoderModel

    shape: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
        "time_embed_dim": 8, "text_embed_dim": 32, "num_layers": 2, "sample_width": 4,
        "sample_height": 4, "sample_frames": 9, "max_text_seq_length": 16,
        "use_rotary_positional_embeddings": True,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = T5EncoderModel(
            T5Config(
                vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1,
            norm_num_groups=2, scaling_factor=0.7,
        )  # fmt: skip
        transformer = CogVideoXTransformer3DModel(**shape | changes)
        for parameter in transformer.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    schedule = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    model = VideoModel(
        path=path,
        tokenizer=tokenizer(),
        text_encoder=text,
        vae=vae,
        transformer=transformer,
        alphas_cumprod=schedule.alphas_cumprod.float(),
        prediction_type="v_prediction",
        noise_schedule={**schedule.config, "_class_name": "CogVideoXDDIMScheduler"},
        dtype=dtype,
    )
    for name, part in model.parts.items():
        part.requires_grad_(False).eval().to(torch.float32 if name == "vae" else dtype)
    return model


def predict(model: VideoModel, seed: int = 0) -> Tensor:
    """What the transformer predicts for fixed noise and text, (2, 3, 4, 4, 4)."""
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2, 4 if model.config.patch_size_t else 3, 4, 4, 4, generator=generator)
    states = torch.randn(2, 16, 32, generator=generator)
    image = torch.randn(noisy.shape, generator=generator) if model.is_image_to_video else None
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([700, 200]), Conditions(states), image)


def pipeline_of(model: VideoModel) -> Any:
    """diffusers' own pipeline of the same parts."""
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    scheduler: Any = CogVideoXDDIMScheduler.from_config(model.noise_schedule)
    return CogVideoXPipeline(
        model.tokenizer, model.text_encoder, model.vae, model.transformer, scheduler
    )


def save_folder(model: VideoModel, folder: Path) -> Path:
    """The model as a diffusers folder, as its pipeline writes it."""
    pipeline_of(model).save_pretrained(str(folder))
    return folder
