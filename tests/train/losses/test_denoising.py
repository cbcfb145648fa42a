"""Noise, targets and weights against numbers known by hand, and where the draws come from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.config.models import BaseModelConfig
from inference.models.families import skeleton
from inference.models.parametrization import discrete_vp
from inference.models.stable_diffusion.model import BaseModel
from inference.runtime.errors import InputError
from train.common.randomness import generator
from train.config.data import DataConfig
from train.config.examples import ColorJitterConfig
from train.config.recipe import LossConfig
from train.data.examples.examples import Examples
from train.data.examples.latents import cache_latents
from train.data.examples.loader import collate
from train.data.sources.folder import find_pictures
from train.losses.denoising import Denoising, check_weights

ALPHAS = torch.tensor([0.8, 0.5, 0.2])
"""Share of the signal at the three timesteps: signal-to-noise ratios of 4, 1 and 1/4."""


class Base:
    """A base model whose UNet is a formula and whose VAE halves every side."""

    def __init__(self, prediction_type: str = "epsilon") -> None:
        self.parametrization = discrete_vp(ALPHAS, prediction_type)
        self.device = torch.device("cpu")
        self.seen: list[tuple[Tensor, Tensor, Any]] = []
        self.answer = torch.zeros(())

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = pixels[:, :, ::2, ::2]
        return mean, torch.full_like(mean, 0.5)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    def predict(
        self, noisy: Tensor, timesteps: Tensor, states: Tensor, sizes: Tensor | None = None
    ) -> Tensor:
        self.seen.append((noisy, timesteps, states))
        return self.answer.expand_as(noisy)


def denoising(
    base: Base, sampling: str = "deterministic", seed: int = 5, **config: Any
) -> Denoising:
    return Denoising(base, LossConfig(**config), sampling, seed)  # type: ignore[arg-type]


def batch(positions: list[int], **more: Any) -> Any:
    latents = torch.stack([torch.full((2, 3, 3), float(position)) for position in positions])
    return {"positions": positions, "latents": latents, "prompts": ["ab"] * len(positions), **more}


@pytest.mark.parametrize(
    ("prediction_type", "weighting", "expected"),
    [
        ("epsilon", "uniform", [1, 1, 1]),
        ("v_prediction", "uniform", [1, 1, 1]),
        ("epsilon", "min_snr", [2 / 4, 1, 1]),  # min(SNR, 2) / SNR
        ("v_prediction", "min_snr", [2 / 5, 1 / 2, 0.25 / 1.25]),  # min(SNR, 2) / (SNR + 1)
        ("epsilon", "truncated_snr", [2 / 4, 1, 4]),  # SNR within 1 … 2, / SNR
        ("v_prediction", "truncated_snr", [2 / 5, 1 / 2, 1 / 1.25]),
    ],
)
def test_weights(prediction_type: str, weighting: str, expected: list[float]) -> None:
    loss = denoising(Base(prediction_type), weighting=weighting, snr_gamma=2.0)
    assert loss.weights(torch.arange(3)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction_type", "weighting"), [("epsilon", "min_snr"), ("v_prediction", "truncated_snr")]
)
def test_weights_mean_the_same_clean_picture_for_both_predictions(
    prediction_type: str, weighting: str
) -> None:
    """An error of the clean picture counts min(SNR, gamma), whatever the model predicts."""
    for timestep, alpha in enumerate(ALPHAS):
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        clean_error = torch.tensor(0.1)
        # x0 = (x - sigma eps) / signal, and x0 = signal x - sigma v
        error = clean_error * (signal / sigma if prediction_type == "epsilon" else 1 / sigma)
        loss = denoising(Base(prediction_type), weighting=weighting, snr_gamma=2.0)
        weight = loss.weights(torch.tensor(timestep))
        snr = float(alpha / (1 - alpha))
        counts = min(max(snr, 1.0 if weighting == "truncated_snr" else 0.0), 2.0)
        assert float(weight * error**2) == pytest.approx(counts * 0.01, rel=1e-5)


def test_noisy_latents_and_epsilon_loss() -> None:
    base = Base()
    loss = denoising(base)
    losses = loss.loss(batch([3, 8]))
    noise = loss.noise([3, 8], torch.zeros(2, 2, 3, 3))
    ((noisy, timesteps, states),) = base.seen
    for row, position in enumerate((3, 8)):
        alpha = ALPHAS[timesteps[row]]
        expected = alpha.sqrt() * position + (1 - alpha).sqrt() * noise[row]
        assert torch.allclose(noisy[row], expected)
        assert float(losses[row]) == pytest.approx(float(noise[row].square().mean()))
    assert states.tolist() == [2, 2]
    assert losses.dtype == torch.float32


def test_velocity_target() -> None:
    """v = signal * noise - sigma * latents (Salimans & Ho 2022): predicted exactly, loss 0."""
    base = Base("v_prediction")
    loss = denoising(base)
    loss.loss(batch([4]))
    ((_, timesteps, _),) = base.seen
    alpha = ALPHAS[timesteps[0]]
    base.answer = alpha.sqrt() * loss.noise([4], torch.zeros(1, 2, 3, 3)) - (1 - alpha).sqrt() * 4
    assert float(loss.loss(batch([4]))) == pytest.approx(0, abs=1e-10)
    base.answer = base.answer + 0.5
    assert float(loss.loss(batch([4]))) == pytest.approx(0.25)


def test_noise_offset_is_constant_over_each_channel() -> None:
    like = torch.zeros(200, 2, 3, 3)
    positions = list(range(200))
    plain = denoising(Base()).noise(positions, like)
    offset = denoising(Base(), noise_offset=0.1).noise(positions, like) - plain
    assert torch.allclose(offset, offset[:, :, :1, :1].expand_as(offset), atol=1e-6)
    assert float(offset[:, :, 0, 0].std()) == pytest.approx(0.1, rel=0.15)
    assert float(offset[0, 0, 0, 0]) != pytest.approx(float(offset[0, 1, 0, 0]))


def test_timesteps_stay_in_their_bounds() -> None:
    positions = list(range(300))
    base = Base()
    base.parametrization = discrete_vp(torch.linspace(1, 0, 1000), "epsilon")
    everywhere = denoising(base).timesteps(batch(positions))
    assert everywhere.min() < 20
    assert everywhere.max() > 980
    assert float(everywhere.float().mean()) == pytest.approx(500, abs=50)
    bounded = denoising(base, min_timestep=10, max_timestep=13).timesteps(batch(positions))
    assert bounded.unique().tolist() == [10, 11, 12]


def test_draws_depend_on_seed_and_position_only() -> None:
    """Not on neighbours, nor on the global generator."""
    like = torch.zeros(3, 2, 3, 3)
    loss, other = denoising(Base()), denoising(Base(), seed=6)
    noise, timesteps = loss.noise([1, 2, 3], like), loss.timesteps(batch(list(range(50))))
    torch.manual_seed(123)
    assert torch.equal(loss.noise([3], like[:1])[0], noise[2])
    assert torch.equal(loss.noise([2, 9, 1], like)[2], noise[0])
    assert torch.equal(loss.timesteps(batch([40, 41])), timesteps[40:42])
    assert not torch.equal(other.noise([1, 2, 3], like), noise)
    assert not torch.equal(other.timesteps(batch(list(range(50)))), timesteps)
    assert len({tuple(draw.flatten().tolist()) for draw in noise}) == 3
    before = torch.get_rng_state()
    loss.loss(batch([1, 2]))
    assert torch.equal(torch.get_rng_state(), before)


def test_prompt_states_of_a_frozen_encoder_are_taken_as_they_come() -> None:
    base = Base()
    denoising(base).loss(batch([1], prompt_states=torch.tensor([7.0])))
    assert base.seen[0][2].tolist() == [7]


# How latents are sampled


def drawn(kind: str, **batch_content: Any) -> Tensor:
    base = Base()
    loss = Denoising(base, LossConfig(), kind, 5)  # type: ignore[arg-type]
    return loss.latents({"positions": [9], "indices": [2], **batch_content})  # type: ignore


def test_latent_sampling_of_pixels() -> None:
    square = torch.ones(1, 1, 4, 4)
    noise = {
        name: torch.randn((1, 2, 2), generator=generator(5, purpose, counter))
        for name, purpose, counter in (("once", "latents once", 2), ("random", "latents", 9))
    }
    assert drawn("deterministic", pixels=square).unique().tolist() == [1]
    for kind in ("once", "random"):
        assert torch.equal(drawn(kind, pixels=square)[0], 1 + 0.5 * noise[kind])


@pytest.mark.parametrize("kind", ["once", "deterministic", "random"])
def test_cache_changes_nothing(kind: str, pictures: Path) -> None:
    data = DataConfig(path=str(pictures), latent_sampling=kind)  # type: ignore[arg-type]
    found = find_pictures(data, captioned=True)
    base: Any = Base()
    results = []
    for cache in ("off", "auto"):
        examples = Examples(found, replace(data, cache=cache), resolution=16, seed=5)
        cache_latents(examples, base, 3, lambda sequence, _: sequence)
        assert (examples.latents is None) == (cache == "off")
        made: Any = collate([examples[position] for position in (0, 11, 3)])
        assert ("pixels" in made) == (cache == "off")
        results.append(Denoising(base, LossConfig(), kind, 5).latents(made))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 0.5, "cached_crops": 0},
        {"crop": "random", "cached_crops": 0},
        {"background": "random"},
        {"color_jitter": ColorJitterConfig(hue=0.1), "flip": 0.5},
    ],
)
def test_nothing_is_cached_behind_random_pixels(pictures: Path, options: dict[str, Any]) -> None:
    data = DataConfig(path=str(pictures), **options)
    examples = Examples(find_pictures(data, captioned=True), data, resolution=16, seed=5)
    cache_latents(examples, SimpleNamespace(), 3, lambda sequence, _: sequence)  # type: ignore
    assert examples.latents is None


def test_of_a_real_base_model(tiny_base: BaseModel) -> None:
    """Shapes and a loss near 1: an untrained UNet knows nothing of the noise."""
    loss = Denoising(tiny_base, LossConfig(), "random", 5)
    pixels = torch.rand(4, 3, 16, 16) * 2 - 1
    content: Any = {"positions": list(range(4)), "prompts": ["a"] * 4, "pixels": pixels}
    losses = loss.loss(content)
    assert losses.shape == (4,)
    assert 0.5 < float(losses.mean()) < 2


@pytest.mark.parametrize("weighting", ["min_snr", "truncated_snr"])
def test_weights_that_are_no_numbers_are_refused(weighting: Any) -> None:
    """With zero terminal SNR and epsilon the last timestep's weight is 0 / 0, or 1 / 0."""
    alphas = torch.cat([ALPHAS[:-1], torch.zeros(1)])
    last = len(alphas) - 1
    reported = (
        rf"loss\.weighting: {weighting} divides by .*at timestep {last} .*max_timestep={last} l"
    )
    with pytest.raises(InputError, match=reported):
        check_weights(LossConfig(weighting=weighting), discrete_vp(alphas, "epsilon"))
    check_weights(LossConfig(weighting=weighting), discrete_vp(alphas, "v_prediction"))
    check_weights(LossConfig(weighting=weighting), discrete_vp(ALPHAS, "epsilon"))
    with torch.device("meta"), pytest.raises(InputError, match="zero terminal SNR"):  # as in a plan
        check_weights(LossConfig(weighting=weighting), discrete_vp(alphas, "epsilon"))
    for sound in (LossConfig(weighting=weighting, max_timestep=last), LossConfig()):
        check_weights(sound, discrete_vp(alphas, "epsilon"))


def test_a_plan_knows_the_noise_schedule(tiny_base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base_folder, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rescale_betas_zero_snr": True}))
    base = skeleton(BaseModelConfig(path=str(folder)), "fp32")
    with pytest.raises(InputError, match=r"at timestep 999 of this base model"):
        check_weights(LossConfig(weighting="min_snr"), base.parametrization)
