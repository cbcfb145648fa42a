"""Latents of inpainting: how they keep what is not masked."""

from __future__ import annotations

from torch import Tensor


def blend_latents(denoised: Tensor, init_latents: Tensor, mask: Tensor) -> Tensor:
    """The denoised prediction where the mask is 1, the init latents where it is 0.

    A1111's samplers over sigmas do this to the expected clean latents in every step, and once more
    to the final latents; those of the DDIM family to x before the model sees it.

    Args:
        denoised: (b, c, h, w).
        init_latents: (b, c, h, w), or one for all.
        mask: the latent mask, (1, 1, h, w); between 0 and 1 the two are mixed.
    """
    return init_latents * (1 - mask) + denoised * mask
