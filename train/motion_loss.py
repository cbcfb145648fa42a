"""A loss that also looks at how a clip changes from frame to frame."""

from torch import Tensor


def loss_with_motion(prediction: Tensor, target: Tensor, ratio: float = 0.25) -> Tensor:
    """Mean squared error of each example, part of it that of the differences of frames; (b,), fp32.

    (1 - ratio) x error + ratio x error of the differences: X-Fun's `motion_sub_loss`
    (`scripts/cogvideox_fun/train_lora.py`), per example. As there, clips of one or two latent
    frames count by their error alone.

    Args:
        prediction: (b, latent frames, c, h, w).
        target: of the same shape.
        ratio: share of the differences, 0 … 1.
    """
    errors = prediction.float() - target.float()
    loss = errors.square().flatten(1).mean(1)
    if errors.shape[1] <= 2:
        return loss
    return (1 - ratio) * loss + ratio * errors.diff(dim=1).square().flatten(1).mean(1)
