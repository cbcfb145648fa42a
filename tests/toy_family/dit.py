"""A transformer of two blocks over latents: the denoiser of the toy family, random and small."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention, with the names of layers that LoRA's targets look for."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, width) -> (b, n, width)."""
        split = [
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        ]
        mixed = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        return self.to_out[0](mixed)


class Block(nn.Module):
    """A block of a DiT: Peebles & Xie 2022, arXiv 2212.09748; adaLN-Zero, not begun at zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attn = Attention(width, heads)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return tokens (b, n, width), conditioned on time and prompt (b, width)."""
        shares = self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = shares
        tokens = tokens + gate * self.attn(normed(tokens) * (1 + scale) + shift)
        return tokens + ff_gate * self.ff(normed(tokens) * (1 + ff_scale) + ff_shift)


class ToyDiT(ModelMixin, ConfigMixin):
    """Predicts noise - x0 of latents (b, c, h, w) at timesteps, by patches of 2 x 2."""

    PATCH = 2

    @register_to_config
    def __init__(
        self,
        channels: int = 4,
        width: int = 32,
        heads: int = 2,
        depth: int = 2,
        text_width: int = 16,
    ) -> None:
        super().__init__()
        self.patches = nn.Linear(channels * self.PATCH**2, width)
        self.time = nn.Linear(width, width)
        self.text = nn.Linear(text_width, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.out = nn.Linear(width, channels * self.PATCH**2)

    def forward(self, latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """Latents (b, c, h, w), timesteps (b,), prompt states (b, n, t) -> (b, c, h, w)."""
        height, width = latents.shape[-2:]
        tokens = F.pixel_unshuffle(latents, self.PATCH).flatten(2).transpose(1, 2)
        tokens = self.patches(tokens)
        places = waves(torch.arange(tokens.shape[1], device=tokens.device), self.config["width"])
        tokens = tokens + places.to(tokens)
        condition = self.time(waves(timesteps, self.config["width"]).to(tokens))
        condition = condition + self.text(states.to(tokens).mean(1))
        for block in self.blocks:
            tokens = block(tokens, condition)
        tokens = self.out(normed(tokens)).transpose(1, 2)
        shape = (height // self.PATCH, width // self.PATCH)
        return F.pixel_shuffle(tokens.unflatten(2, shape), self.PATCH)


def normed(tokens: Tensor) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def waves(numbers: Tensor, width: int) -> Tensor:
    """Sines and cosines of numbers (n,), as (n, width), fp32."""
    rates = torch.exp(-math.log(1000) * torch.arange(width // 2) / (width // 2))
    angles = numbers.float()[:, None] * rates.to(numbers.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
