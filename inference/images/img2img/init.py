"""The start of img2img, and the post-processing of its images (A1111 1.10.1 `processing.py`)."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from inference.config import ImageConfig, ImageToImageConfig, InpaintConfig
from inference.images.img2img.color_correction import correct_colors
from inference.images.img2img.conditioning import blend_latents, inpainting_conditioning
from inference.images.img2img.masks import (
    SoftInpainting,
    latent_mask,
    mask_tensor,
    masked_latents,
    open_mask,
    sketch_init_image,
    sketch_mask,
)
from inference.images.img2img.opening import open_init_image, to_pixels
from inference.images.img2img.preparation import InpaintOptions, Prepared, prepare
from inference.images.img2img.upscalers import upscale_latents
from inference.models import ImageModel
from inference.runtime import DrawWarning
from inference.sampling import Blend


@dataclass(frozen=True)
class InitImage:
    """An init image, prepared for the size of the generated image."""

    prepared: Prepared
    digest: str
    """Infotext's `Init image hash`: MD5 of the RGB bytes."""

    def finish(self, result: Image.Image, with_its_colors: bool) -> Image.Image:
        """Paste the result in its place, surrounded by the original's own pixels."""
        if with_its_colors:
            result = correct_colors(result, self.prepared.image)
        return self.prepared.finish(result)


@dataclass(frozen=True)
class Start:
    """The start of sampling, besides noise."""

    latents: Tensor
    """Clean, (b, c, h, w), fp32."""
    denoising_strength: float
    exact_steps: bool = False
    noise_multiplier: float = 1.0
    extra_noise: float = 0.0
    mask: Tensor | None = None
    """Latent masks (b, 1, h, w): 1 is repainted, 0 stays."""
    masked_content: str = "original"
    has_soft_edges: bool = False
    """Masks between 0 and 1 that open step by step (A1111's soft inpainting)."""
    concat: Tensor | None = None
    """Further input channels of the UNet, (b, k, h, w)."""

    def with_masked_content(self, noise: Tensor) -> Self:
        """Apply `masked_content` inside the masks; `noise` is the seeds' first."""
        if self.mask is None:
            return self
        latents = masked_latents(self.latents, self.mask, self.masked_content, noise)
        return dataclasses.replace(self, latents=latents)

    def blend(self) -> Blend | None:
        """Keep the expected clean latents outside the masks, in every step."""
        mask = self.mask
        if mask is None:
            return None
        if self.has_soft_edges:
            return lambda clean, sigma: SoftInpainting().blend(clean, self.latents, mask, sigma)
        return lambda clean, sigma: blend_latents(clean, self.latents, mask)

    def blend_input(self) -> Blend | None:
        """Replace x outside the masks, for samplers by timesteps, before the model sees it.

        There the clean latents replace noisy ones of variance 1, as in A1111 (which
        omits the noise).
        """
        mask = self.mask
        if mask is None:
            return None
        return lambda x, sigma: blend_latents(x, self.latents * sqrt(1 + sigma**2), mask)


def open_init(request: ImageConfig) -> InitImage:
    """Open a request's init image and mask, and resize them to the generated size.

    Raises:
        InputError: a file is missing or corrupt, or sizes do not fit.
    """
    start = request.img2img
    assert start
    original = open_init_image(start.init_image, start.background_color, "img2img.init_image")
    digest = digest_of(original)
    if start.inpaint is None:
        return prepare_init(request, original, None, digest)
    return prepare_init(request, *open_masked(start, start.inpaint, original), digest)


def prepare_init(
    request: ImageConfig,
    picture: Image.Image,
    mask: Image.Image | None = None,
    digest: str | None = None,
) -> InitImage:
    """Prepare an init image and mask that are already open.

    Args:
        request: the request with `img2img`, whose paths are ignored.
        picture: RGB.
        mask: mode "L", of the image's size; required exactly with `img2img.inpaint`.
        digest: infotext's `Init image hash`, if it is another image's.

    Raises:
        InputError: sizes do not fit.
    """
    start = request.img2img
    assert start and request.width and request.height
    options = None
    if (inpaint := start.inpaint) is not None:
        options = InpaintOptions(
            inpaint.mask_mode == "Inpaint not masked",
            inpaint.mask_blur,
            None,
            inpaint.masked_content,
            inpaint.area,
            inpaint.padding,
        )
    prepared = prepare(picture, request.width, request.height, mask, options, start.resize_mode)
    for note in prepared.notes:
        warnings.warn(f"{start.init_image}: {note}", DrawWarning, stacklevel=3)
    return InitImage(prepared, digest or digest_of(picture))


def digest_of(picture: Image.Image) -> str:
    """Return the MD5 of the RGB bytes."""
    return hashlib.md5(picture.tobytes(), usedforsecurity=False).hexdigest()


def open_masked(
    start: ImageToImageConfig, inpaint: InpaintConfig, original: Image.Image
) -> tuple[Image.Image, Image.Image]:
    """Return the image with the strokes over it, and the mask of its size."""
    if inpaint.sketch is None:
        assert inpaint.mask
        return original, open_mask(inpaint.mask, inpaint.soft_edges)
    sketch = open_init_image(inpaint.sketch, start.background_color, "img2img.inpaint.sketch")
    mask = sketch_mask(sketch, original, inpaint.mask_transparency)
    return sketch_init_image(sketch, original, mask, inpaint.mask_blur), mask


def encode_start(
    base: ImageModel, requests: Sequence[ImageConfig], inits: Sequence[InitImage]
) -> Start:
    """Return the batch's latents, masks, and the conditioning of inpainting models.

    The VAE's mean is used, not a sample of its posterior (as in A1111, from a random
    number that no infotext has).
    """
    first = requests[0]
    start = first.img2img
    assert start and first.width and first.height
    width, height = (side // base.vae_scale_factor for side in (first.width, first.height))
    latents = torch.cat([encode(base, [init.prepared.image], width, height) for init in inits])
    inpaint, mask = start.inpaint, None
    if inpaint is not None:
        masks = [
            torch.ones(1, 1, height, width)
            if init.prepared.mask is None
            else latent_mask(init.prepared.mask, width, height, inpaint.soft_edges)
            for init in inits
        ]
        mask = torch.cat(masks).to(base.device)
    return Start(
        latents,
        start.denoising_strength,
        start.exact_steps,
        start.noise_multiplier,
        start.extra_noise,
        mask,
        inpaint.masked_content if inpaint else "original",
        inpaint is not None and inpaint.soft_edges,
        inpainting_channels(base, inits, inpaint, width, height),
    )


def encode(base: ImageModel, images: Sequence[Image.Image], width: int, height: int) -> Tensor:
    """Encode images to latents (b, c, height, width); resized if they come out in another size."""
    factor = base.vae_scale_factor
    images = [
        image.resize(tuple(max(1, round(side / factor)) * factor for side in image.size))  # type: ignore[arg-type]
        for image in images
    ]
    latents, _ = base.encode_images(to_pixels(images))
    if latents.shape[2:] != (height, width):
        latents = upscale_latents(latents, width, height)
    return latents


def inpainting_channels(
    base: ImageModel,
    inits: Sequence[InitImage],
    inpaint: InpaintConfig | None,
    width: int,
    height: int,
) -> Tensor | None:
    """Return an inpainting model's view of masks and masked images, (b, k, h, w).

    None for a model whose only input are latents.
    """
    return base.masked_image_channels(masked_images(base, inits, inpaint, width, height))


def masked_images(
    base: ImageModel,
    inits: Sequence[InitImage],
    inpaint: InpaintConfig | None,
    width: int,
    height: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the mask of each init image, and the latents of its unmasked part."""
    for init in inits:
        pixels = to_pixels([init.prepared.image])
        mask = (
            torch.ones(1, 1, *pixels.shape[2:])
            if init.prepared.mask is None
            else mask_tensor(init.prepared.mask, inpaint is not None and inpaint.soft_edges)
        )
        strength = 1.0 if inpaint is None else inpaint.conditioning_mask_strength
        small, blanked = inpainting_conditioning(pixels, mask, width, height, strength)
        latents, _ = base.encode_images(blanked)
        if latents.shape[2:] != (height, width):
            latents = upscale_latents(latents, width, height)
        yield small, latents
