"""What a micro-batch holds."""

from typing import NotRequired, TypedDict

from torch import Tensor

from inference.models import Conditions


class Batch(TypedDict):
    """A micro-batch of b examples. Images come as `pixels`, or as cached latents.

    Clips of several lengths, which only packing has side by side, come as lists of b tensors.
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
    """Place in the stream where steps of this size begin: that of the run's stage."""
    positions: list[int]
    """Places of the examples in the run's stream; noise and timesteps are drawn by them. Those of
    class pictures are below 0 (`train.losses.prior`), and stand behind all others."""
    indices: list[int]
    """Places of the pictures in the sorted list of the folder's."""
    names: list[str]
    """The pictures' files, for messages."""
    weight: Tensor
    """What each example's loss counts, (b,); of class pictures the prior weight of the step."""
    prompts: list[str]
    timesteps: NotRequired[Tensor]
    """The timestep of each example, (b,), where none are drawn (validation)."""
    pixels: NotRequired[Tensor]
    """(b, 3, h, w) in -1 … 1; clips are (b, 3, f, h, w)."""
    latents: NotRequired[Tensor]
    """(b, c, h / f, w / f), of clips (b, f', c, h', w'): mean of the VAE's distribution (or drawn
    once), scaled."""
    latents_std: NotRequired[Tensor]
    """Standard deviation of the latents, only when they are drawn anew every time."""
    mask: NotRequired[Tensor]
    """What the error at each place of the latents counts, (b, 1, h / f, w / f); see
    `train.data.examples.masks`."""
    sizes: NotRequired[Tensor]
    """SDXL's size conditions in pixels, (b, 6): the file's height and width, the cut's top and
    left within the scaled picture, the example's height and width."""
    first_frames: NotRequired[Tensor]
    """Clips for an image-to-video model: the first frames, (b, 3, h, w) in -1 … 1."""
    prompt_states: NotRequired[Conditions]
    """What frozen text encoders make of the prompts."""
