"""What a micro-batch holds."""

from typing import NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """A micro-batch of b examples. Images come as `pixels`, or as cached latents."""

    step: int
    """Optimizer steps before this one."""
    positions: list[int]
    """Places of the examples in the run's stream; noise and timesteps are drawn by them. Those of
    class pictures are below 0 (`train.prior`), and stand behind all others."""
    indices: list[int]
    """Places of the pictures in the sorted list of the folder's."""
    names: list[str]
    """The pictures' files, for messages."""
    weight: Tensor
    """What each example's loss counts, (b,); of class pictures the prior weight of the step."""
    prompts: list[str]
    pixels: NotRequired[Tensor]
    """(b, 3, h, w) in -1 … 1."""
    latents: NotRequired[Tensor]
    """(b, c, h / f, w / f), mean of the VAE's distribution (or drawn once), scaled."""
    latents_std: NotRequired[Tensor]
    """Standard deviation of the latents, only when they are drawn anew every time."""
    prompt_states: NotRequired[Tensor]
    """(b, tokens, dim), of a frozen text encoder."""
