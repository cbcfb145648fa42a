"""The scripts that put `picto` together: the linear maps folded into its convolutions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.picto import adapt_unet, whiten_latents

PIXELS = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)


@pytest.fixture
def vae() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    return vae.eval()


def restored(vae: Any) -> Tensor:
    return vae.decode(vae.encode(PIXELS).latent_dist.mode()).sample


@torch.no_grad()
@pytest.mark.parametrize("variances", ["even", "visible"])
def test_turned_latents_restore_the_same_pictures(vae: Any, variances: str) -> None:
    before = restored(vae)
    mean, turn = whiten_latents.principal_axes(whiten_latents.modes(vae, PIXELS))
    expected = torch.ones(4)
    if variances == "visible":
        errors = whiten_latents.visibility(vae, PIXELS, mean, turn)
        expected = errors / errors.mean()
        turn *= expected.sqrt()[:, None]
    whiten_latents.fold(vae, mean, turn, std=0.25)
    latents = whiten_latents.modes(vae, PIXELS)
    torch.testing.assert_close(restored(vae), before, atol=2e-4, rtol=0)
    torch.testing.assert_close(torch.cov(latents.T), expected.diag(), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(latents.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    std = vae.encode(PIXELS).latent_dist.std
    torch.testing.assert_close(std, torch.full_like(std, 0.25))


@torch.no_grad()
def test_an_axis_that_the_decoder_ignores_is_invisible(vae: Any) -> None:
    mean, turn = whiten_latents.principal_axes(whiten_latents.modes(vae, PIXELS))
    whiten_latents.fold(vae, mean, turn, std=0.1)
    vae.post_quant_conv.weight[:, 2] = 0
    errors = whiten_latents.visibility(vae, PIXELS, torch.zeros(4), torch.eye(4))
    assert errors[2] == 0
    assert (errors[[0, 1, 3]] > 0).all()


@torch.no_grad()
def test_an_adapted_unet_answers_in_the_new_latents() -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    old, states = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)
    before = unet(old, 7, states).sample
    turn = torch.randn(4, 4, dtype=torch.double)
    new = torch.einsum("ij,bjhw->bihw", turn.float(), old)
    rows_old, rows_new = (x.movedim(1, -1).flatten(0, -2).double() for x in (old, new))
    to_old, share = adapt_unet.fitted(rows_new, rows_old)
    to_new, _ = adapt_unet.fitted(rows_old, rows_new)
    assert share == pytest.approx(1)
    adapt_unet.fold(unet, to_old.float(), to_new.float())
    expected = torch.einsum("ij,bjhw->bihw", turn.float(), before)
    torch.testing.assert_close(unet(new, 7, states).sample, expected, atol=1e-4, rtol=1e-4)


def test_the_share_of_variance_that_a_fit_tells() -> None:
    """Half of the output's variance is the input, half is independent of it."""
    inputs, other = torch.randn(20000, 2, 1, generator=torch.Generator().manual_seed(0)).unbind(1)
    matrix, share = adapt_unet.fitted(inputs, inputs + other)
    assert matrix.item() == pytest.approx(1, abs=0.03)
    assert share == pytest.approx(0.5, abs=0.02)
