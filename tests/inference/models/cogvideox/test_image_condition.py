from math import exp
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from inference.models.cogvideox.arithmetic import padding
from inference.models.cogvideox.image_condition import (
    image_latents,
    noise_sigma,
    offset,
    place,
    with_noise,
    without,
)
from tests.inference.models.cogvideox.tiny import good_schedule, tiny_transformer, tiny_vae


def pipeline_of(vae: Any, transformer: Any) -> Any:
    from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import (
        CogVideoXImageToVideoPipeline,
    )
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    return CogVideoXImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=cast(Any, CogVideoXDDIMScheduler.from_config(good_schedule())),
    )


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("invert", "patch_size_t", "frames"),
    [(False, None, 9), (False, None, 1), (True, 2, 9), (True, 2, 8), (False, 2, 25)],
)
def test_the_condition_is_the_pipelines(
    invert: bool, patch_size_t: int | None, frames: int
) -> None:
    vae = tiny_vae(invert_scale_latents=invert)
    transformer = tiny_transformer(in_channels=8, patch_size_t=patch_size_t, num_layers=1)
    pipeline = pipeline_of(vae, transformer)
    pictures = torch.rand(2, 3, 16, 24, generator=generator()) * 2 - 1
    latent_frames = (frames - 1) // 4 + 1
    padded = latent_frames + padding(latent_frames, patch_size_t)
    with torch.no_grad():
        noise, theirs = pipeline.prepare_latents(
            pictures, 2, 4, frames + 4 * padding(latent_frames, patch_size_t), 16, 24,
            torch.float32, torch.device("cpu"), generator(),
        )  # fmt: skip
        drawn = generator()
        z = torch.cat(
            [
                vae.encode(picture[None, :, None]).latent_dist.sample(drawn).transpose(1, 2)
                for picture in pictures
            ]
        )
    ours = place(image_latents(z, vae.config.scaling_factor, invert), padded)
    assert noise.shape == ours.shape == (2, padded, 4, 2, 3)
    assert torch.equal(ours, theirs)


def test_the_scales_of_all_programs():
    z = torch.tensor([1.0, -2.0])
    expected = {
        ("pipeline", False): 0.7,
        ("pipeline", True): 1 / 0.7,
        ("raw", False): 1.0,
        ("raw", True): 1.0,
        ("scaled", False): 0.7,
        ("scaled", True): 0.7,
    }
    for (mode, invert), factor in expected.items():
        assert torch.equal(image_latents(z, 0.7, invert, mode), z * factor)  # type: ignore[arg-type]


def test_noise_of_pictures():
    drawn = generator(0)
    logs = torch.tensor([noise_sigma(drawn) for _ in range(4000)]).log()
    assert abs(logs.mean().item() + 3) < 0.03  # 3.8 standard errors
    assert abs(logs.std().item() - 0.5) < 0.02
    assert noise_sigma(generator(1), mean=-1.0, std=0.0) == pytest.approx(exp(-1))


def test_each_picture_has_noise_of_its_own_strength():
    pictures = torch.zeros(2, 3, 64, 64)
    noisy = with_noise(pictures, [generator(5), generator(6)])
    for picture, seed in zip(noisy, (5, 6), strict=True):
        assert picture.std().item() == pytest.approx(noise_sigma(generator(seed)), rel=0.03)
    alone = with_noise(pictures[1:], [generator(6)])
    assert torch.equal(alone[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[1])
    with pytest.raises(ValueError, match="zip"):
        with_noise(pictures, [generator()])


def test_some_examples_go_without():
    condition = torch.full((3, 2, 4, 1, 1), float("inf"))
    kept = without(condition, [False, True, False])
    assert kept[1].abs().sum() == 0
    assert kept[0].isinf().all() and kept[2].isinf().all()


def test_offset():
    like = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert offset(SimpleNamespace(ofs_embed_dim=None), like) is None
    ofs = offset(SimpleNamespace(ofs_embed_dim=512), like)
    assert ofs is not None and ofs.tolist() == [2.0] and ofs.dtype == torch.bfloat16
