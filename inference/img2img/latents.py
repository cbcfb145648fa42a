"""Latents of img2img and inpainting: how they begin, and how they keep what is not masked."""

from __future__ import annotations

from torch import Tensor


def noised_latents(
    latents: Tensor,
    noise: Tensor,
    sigma: float,
    noise_multiplier: float = 1.0,
    extra_noise: float = 0.0,
) -> Tensor:
    """What sampling over sigmas begins with (A1111 1.10.1 `modules/sd_samplers_kdiffusion.py`).

    Args:
        latents: of the init image, (b, c, h, w), variance about 1.
        noise: standard normal, (b, c, h, w).
        sigma: the first of those that are taken (`steps.img2img_steps`).
        noise_multiplier: "Noise multiplier for img2img", usually 0 … 1.5.
        extra_noise: "Extra noise multiplier for img2img and hires fix", 0 … 1.
    """
    return latents + noise * (noise_multiplier * (sigma + extra_noise))


def blend_latents(denoised: Tensor, init_latents: Tensor, mask: Tensor) -> Tensor:
    """The denoised prediction where the mask is 1, the init latents where it is 0.

    A1111's samplers over sigmas do this to the expected clean latents in every step, and once more
    to the final latents; those of the DDIM family to x before the model sees it, with init latents
    noised alike.

    Args:
        denoised: (b, c, h, w).
        init_latents: (b, c, h, w), or one for all.
        mask: the latent mask, (1, 1, h, w); between 0 and 1 the two are mixed.
    """
    return init_latents * (1 - mask) + denoised * mask
