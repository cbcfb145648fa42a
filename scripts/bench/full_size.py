"""Base models of the published sizes with random weights, in memory or in a folder.

    python -m scripts.bench.full_size sd15 /tmp/sd15

Nothing is downloaded: the settings are those of the published models. Weights have the scale of
PyTorch's own initialization, so that values stay finite in fp16; images of such a model are noise.
SD 1.5 takes 2.0 GB on the disk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.config import BaseModelConfig
from inference.models import (
    DTYPES,
    DiffusionModel,
    cast_part,
    resolve_path,
    skeleton,
    write_base_model,
)
from inference.runtime import output

MODELS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "cogvideox-2b": "THUDM/CogVideoX-2b",
}
"""Hub ids whose settings are known without files, by short names."""


def random_base(
    path: str, precision: str, device: torch.device | str = "cpu", vae_precision: str | None = None
) -> DiffusionModel:
    """Return a model with random weights, frozen and in evaluation mode.

    Args:
        path: a name in MODELS, another hub id whose settings are known, or a folder with settings.
        precision: of its weights.
        device: where they are made; nothing larger than one part is held elsewhere.
        vae_precision: the VAE's; by default the same.
    """
    base = skeleton(BaseModelConfig(path=MODELS.get(path, path)), precision)
    for name, part in base.parts.items():
        wanted = vae_precision if name == "vae" and vae_precision else precision
        cast_part(part, DTYPES[wanted])
        fill(part, device)
    if base.tokenizers[0] is None:  # a video model's: only the number of its ids matters
        from transformers import AutoTokenizer

        folder = Path(resolve_path("picto-motion")) / "tokenizer"
        vars(base)["tokenizer"] = AutoTokenizer.from_pretrained(folder)
    if "snr_shift_scale" in base.noise_schedule:  # CogVideoX
        # A plan does not look at the noise levels, so that the skeleton has none.
        from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

        schedule: Any = CogVideoXDDIMScheduler.from_config(base.noise_schedule)
        vars(base)["alphas_cumprod"] = schedule.alphas_cumprod.float()
    base.dtype = DTYPES[precision]
    return base


def fill(part: nn.Module, device: torch.device | str) -> None:
    """Give a part on the meta device random weights, and the buffers that its class computes.

    Raises:
        ValueError: a buffer is of no known kind.
    """
    generator = torch.Generator(device).manual_seed(0)
    made: dict[int, nn.Parameter] = {}
    for path, module in part.named_modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if id(old) not in made:  # T5's embeddings have two names
                weight = torch.empty(old.shape, dtype=old.dtype, device=device)
                initialize(f"{path}.{name}", weight, generator)
                made[id(old)] = nn.Parameter(weight, requires_grad=False)
            setattr(module, name, made[id(old)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name not in BUFFERS:
                raise ValueError(f"{type(part).__name__}.{path}.{name}: a buffer of no known kind")
            values = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            setattr(module, name, BUFFERS[name](values))


def initialize(name: str, weight: Tensor, generator: torch.Generator) -> None:
    """Scale matrices and kernels by their inputs; norms are 1, biases 0, embeddings small."""
    if weight.dim() < 2:
        weight.fill_(1.0 if name.endswith("weight") else 0.0)
        return
    is_embedding = "embedding" in name or "shared" in name or "embed_tokens" in name
    inputs = weight[0].numel()
    weight.normal_(0, 0.02 if is_embedding else (3 * inputs) ** -0.5, generator=generator)


def number_positions(buffer: Tensor) -> Tensor:
    """Fill a buffer of shape (..., n) with 0 … n - 1."""
    return buffer.copy_(torch.arange(buffer.shape[-1], device=buffer.device).expand(buffer.shape))


BUFFERS: dict[str, Callable[[Tensor], Tensor]] = {
    "position_ids": number_positions,
    "pos_embedding": Tensor.zero_,
}
"""By name; position embeddings are computed again for other sizes than the published one."""


def main(arguments: list[str]) -> int:
    """Write a model into a folder; return the exit status."""
    if len(arguments) != 2 or arguments[0] not in MODELS:
        output(f"usage: python -m scripts.bench.full_size {'|'.join(MODELS)} FOLDER", is_error=True)
        return 2
    base = random_base(arguments[0], "fp16")
    folder = Path(arguments[1])
    folder.mkdir(parents=True)
    write_base_model(folder, base, [], torch.float16, {})
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    output(f"{folder}: {size / 2**30:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
