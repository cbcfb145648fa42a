import torch
from torch.nn.functional import mse_loss

from train.families.cogvideox.clips import loss_with_motion


def test_each_example_is_that_of_x_fun():
    prediction, target = torch.randn(2, 3, 5, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for ratio in (0.0, 0.25, 1.0):
        losses = loss_with_motion(prediction, target, ratio)
        for example, loss in enumerate(losses):
            mine, theirs = prediction[example], target[example]
            error = mse_loss(mine, theirs)
            motion = mse_loss(mine[1:] - mine[:-1], theirs[1:] - theirs[:-1])
            torch.testing.assert_close(loss, (1 - ratio) * error + ratio * motion)


def test_an_error_that_stands_still_costs_less_and_one_that_flickers_more():
    target = torch.zeros(1, 4, 1, 1, 1)
    still, flicker = torch.ones_like(target), torch.tensor([1.0, -1, 1, -1]).view(1, 4, 1, 1, 1)
    assert loss_with_motion(still, target, 0.25).item() == 0.75  # the differences are right
    assert loss_with_motion(flicker, target, 0.25).item() == 1.75  # (1 - r) + r x 2^2


def test_pictures_and_two_latent_frames_count_by_their_error():
    for frames in (1, 2):
        prediction = torch.arange(frames * 2.0).view(2, frames, 1, 1, 1)
        target = torch.zeros_like(prediction)
        expected = prediction.square().flatten(1).mean(1)
        assert torch.equal(loss_with_motion(prediction, target, 0.9), expected)


def test_half_precision_is_compared_in_fp32():
    prediction = torch.full((1, 3, 1, 1, 1), 300.0, dtype=torch.float16)
    loss = loss_with_motion(prediction, torch.zeros_like(prediction), 0.25)
    assert loss.dtype == torch.float32 and loss.item() == 67500  # 300^2 is not in fp16
