"""What ends a run before it spoils what was learned: numbers that are not finite."""

import torch
from torch import Tensor

from train.batch import Batch


def check_finite(losses: Tensor, batch: Batch, step: int) -> None:
    """Raises FloatingPointError, with the pictures' names, if one of the losses (b,) is not."""
    if torch.isfinite(losses).all():
        return
    faulty = zip(losses.tolist(), batch["names"], strict=True)
    named = ", ".join(f"{name} ({loss})" for loss, name in faulty)
    raise FloatingPointError(
        f"loss is not finite at step {step}: {named}. The last checkpoint is "
        "untouched; a lower learning rate or mixed_precision=bf16 may help"
    )
