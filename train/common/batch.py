"""The content of a micro-batch."""

from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor

from inference.models import Conditions
from inference.runtime import to_device


class Batch(TypedDict):
    """A micro-batch of b examples. Images are given as `pixels`, or as cached latents.

    Clips of several lengths, which occur together only with packing, are lists of b tensors.
    """

    step: int
    """Optimizer steps before this one."""
    step_size: int
    """Examples of an optimizer step: of all processes and micro-batches."""
    seed: int
    """Of the global generators in its forward and backward pass (dropout), while training."""
    completes_step: bool
    """Whether it is the last micro-batch of its optimizer step, while training."""
    first_position: int
    """Sample index at which steps of this size start: that of the run's stage."""
    positions: list[int]
    """Sample indices of the examples in the run's stream, from which noise and timesteps are drawn.
    Those of class images are below 0 (`train.losses.prior`), and come after all others."""
    indices: list[int]
    """Indices of the images in the sorted list of the folder."""
    names: list[str]
    """The files of the images, for messages."""
    weight: Tensor
    """Loss weight of each example, (b,); for class images the prior weight of the step."""
    prompts: list[str]
    timesteps: NotRequired[Tensor]
    """The timestep of each example, (b,), if none are drawn (validation)."""
    pixels: NotRequired[Tensor]
    """(b, 3, h, w) in -1 … 1; clips are (b, 3, f, h, w)."""
    latents: NotRequired[Tensor]
    """(b, c, h / f, w / f), for clips (b, f', c, h', w'): mean of the VAE's distribution (or drawn
    once), scaled."""
    latents_std: NotRequired[Tensor]
    """Standard deviation of the latents, only if they are drawn again every time."""
    mask: NotRequired[Tensor]
    """Loss weight of each latent position, (b, 1, h / f, w / f); see
    `train.data.examples.masks`."""
    sizes: NotRequired[Tensor]
    """SDXL's size conditioning in pixels, (b, 6): the file's height and width, the crop's top and
    left within the scaled image, the example's height and width. For its refiner (b, 5), with the
    aesthetic score instead of the last two."""
    inpainting_mask: NotRequired[Tensor]
    """An inpainting model's mask, (b, 1, h / f, w / f), 1 in the part to be repainted."""
    masked_pixels: NotRequired[Tensor]
    """Its images, (b, 3, h, w) in -1 … 1, grey in that part."""
    masked_latents: NotRequired[Tensor]
    """Their latents, (b, c, h / f, w / f), scaled; set by the loss."""
    first_frames: NotRequired[Tensor]
    """Clips for an image-to-video model: the first frames, (b, 3, h, w) in -1 … 1."""
    prompt_states: NotRequired[Conditions]
    """Prompt embeddings from frozen text encoders."""


def send(batch: Batch, device: torch.device) -> None:
    """Send the tensors of a batch to the device, without waiting; except pixels.

    The VAE takes those in parts, so that they need not all be there at once.
    """
    values: dict[str, Any] = cast("dict[str, Any]", batch)
    for name, value in values.items():
        if name in ("pixels", "masked_pixels"):
            continue
        if isinstance(value, Tensor):
            values[name] = to_device(value, device)
        elif isinstance(value, list) and isinstance(value[0], Tensor):
            values[name] = [to_device(one, device) for one in value]
