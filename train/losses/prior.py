"""Prior preservation (Ruiz et al. 2022, arXiv 2208.12242, equation 2).

The loss of class images is added to that of the instance images, as in train_dreambooth.py:
loss = mean over the subject's examples + weight of the step x mean over the class's examples
"""

import torch
from torch import Tensor

from train.common import Batch
from train.config import LossConfig


def prior_weight(config: LossConfig, step: int, max_steps: int) -> float:
    """Return the weight of class images after `step` optimizer steps: linear to the target step.

    As in A1111's DreamBooth extension (`current_prior_loss`), which counts epochs.
    """
    if config.prior_weight_min is None:
        return config.prior_weight
    done = min(1.0, step / (config.prior_weight_target or max_steps))
    return config.prior_weight * (1 - done) + config.prior_weight_min * done


def weigh_class_pictures(batch: Batch, weight: float) -> None:
    """Set the weight of the class images in a batch."""
    is_class = torch.tensor([position < 0 for position in batch["positions"]])
    batch["weight"] = torch.where(is_class, batch["weight"] * weight, batch["weight"])


def total_loss(losses: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a micro-batch, and its components by name.

    Args:
        losses: (b,), with those of class images last.
        batch: its `weight` is (b,) too.

    Returns:
        The loss for the gradients; and its unweighted components, if there are several.
    """
    count = sum(position >= 0 for position in batch["positions"])
    total = (losses * batch["weight"].to(losses)).sum() / count
    if count == len(losses):
        return total, {}
    return total, {"instance": losses[:count].mean(), "prior": losses[count:].mean()}
