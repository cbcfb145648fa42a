"""Prior preservation (Ruiz et al. 2022, arXiv 2208.12242, equation 2).

The loss of class pictures is added to that of the subject's, as in diffusers' train_dreambooth.py:
loss = mean over the subject's examples + weight of the step x mean over the class's examples
"""

import torch
from torch import Tensor

from train.common import Batch
from train.config import LossConfig


def prior_weight(config: LossConfig, step: int, max_steps: int) -> float:
    """What class pictures count after `step` optimizer steps: linear up to the target step.

    A1111's DreamBooth extension (`current_prior_loss`), which counts epochs.
    """
    if config.prior_weight_min is None:
        return config.prior_weight
    done = min(1.0, step / (config.prior_weight_target or max_steps))
    return config.prior_weight * (1 - done) + config.prior_weight_min * done


def weigh_class_pictures(batch: Batch, weight: float) -> None:
    """Gives the class pictures of a batch their weight."""
    is_class = torch.tensor([position < 0 for position in batch["positions"]])
    batch["weight"] = torch.where(is_class, batch["weight"] * weight, batch["weight"])


def total_loss(losses: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a micro-batch, and what it consists of, by name.

    Args:
        losses: (b,), those of class pictures behind all others.
        batch: whose `weight` is (b,) too.

    Returns:
        What gradients are taken of; and its parts without the weights, if there are several.
    """
    count = sum(position >= 0 for position in batch["positions"])
    total = (losses * batch["weight"].to(losses)).sum() / count
    if count == len(losses):
        return total, {}
    return total, {"instance": losses[:count].mean(), "prior": losses[count:].mean()}
