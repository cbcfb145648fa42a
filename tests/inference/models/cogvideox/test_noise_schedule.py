import inspect

import pytest
import torch

from inference.models.cogvideox.loading import CLASS_DEFAULTS, CLASSES, REQUIRED, check_schedule
from inference.models.parametrization import Velocity
from inference.runtime.errors import InputError
from tests.inference.models.cogvideox.tiny import good_schedule


def scheduler_class(name: str):
    import diffusers

    return getattr(diffusers, name)


def alphas_cumprod(schedule: dict[str, object]) -> torch.Tensor:
    """Shares of the signal's variance, (1000,), worked out as SAT's ZeroSNRDDPMDiscretization."""
    shift = float(str(schedule["snr_shift_scale"]))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    unshifted = torch.cumprod(1.0 - betas, dim=0)
    shifted = unshifted / (shift + (1 - shift) * unshifted)
    roots = shifted.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    return ((roots - last) * (first / (first - last))) ** 2


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("shift", [1.0, 3.0, 2.5])
def test_shares_are_diffusers(name: str, shift: float) -> None:
    schedule = good_schedule(snr_shift_scale=shift)
    theirs = scheduler_class(name).from_config(schedule).alphas_cumprod
    ours = alphas_cumprod(schedule)
    assert ours.dtype == torch.float64
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("shift", "known"),
    [(3.0, {0: 0.99745, 500: 0.0953}), (1.0, {0: 0.99915, 500: 0.2410})],
    ids=["2B", "5B"],
)
def test_known_shares(shift: float, known: dict[int, float]) -> None:
    shares = alphas_cumprod(good_schedule(snr_shift_scale=shift))
    assert shares[999] == 0
    for timestep, share in known.items():
        assert shares[timestep].item() == pytest.approx(share, abs=5e-5 if timestep else 5e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_class_defaults_are_those_of_the_library(name: str) -> None:
    parameters = inspect.signature(scheduler_class(name).__init__).parameters
    assert {key: parameters[key].default for key in CLASS_DEFAULTS} == CLASS_DEFAULTS


def test_the_published_schedule_passes():
    check_schedule(good_schedule())
    check_schedule(good_schedule(_class_name="CogVideoXDDIMScheduler", snr_shift_scale=3.0))


@pytest.mark.parametrize("name", CLASSES)
def test_a_bare_scheduler_is_refused(name: str) -> None:
    with pytest.raises(InputError) as error:
        check_schedule(dict(scheduler_class(name)().config), "base/scheduler")
    message = str(error.value)
    assert message.startswith("base/scheduler: no schedule of CogVideoX: ")
    for part in (
        "prediction_type is 'epsilon', must be 'v_prediction'",
        "timestep_spacing is 'leading', must be 'trailing'",
        "rescale_betas_zero_snr is False, must be True",
        "clip_sample is True, must be False",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"_class_name": "DDIMScheduler"}, "_class_name is DDIMScheduler"),
        ({"set_alpha_to_one": False}, "set_alpha_to_one is False, must be True"),
        ({"beta_schedule": "linear"}, "beta_schedule is 'linear'"),
        ({"trained_betas": [0.1]}, "trained_betas is [0.1], must be None"),
        ({"snr_shift_scale": 0}, "snr_shift_scale is 0, must be a number above 0"),
        ({"beta_end": "0.012"}, "beta_end is '0.012', must be a number above 0"),
    ],
)
def test_other_schedules_are_refused(changes: dict[str, object], part: str) -> None:
    with pytest.raises(InputError) as error:
        check_schedule(good_schedule(**changes))
    assert part in str(error.value)


def test_keys_that_are_missing_are_the_class_defaults():
    with pytest.raises(InputError, match=r"prediction_type is 'epsilon' \(not given\)"):
        check_schedule({})
    for key in REQUIRED.keys() - {"set_alpha_to_one", "beta_schedule", "trained_betas"}:
        schedule = good_schedule()
        del schedule[key]
        with pytest.raises(InputError, match=key):
            check_schedule(schedule)


@pytest.mark.parametrize(("shift", "largest"), [(3.0, 393), (1.0, 1176)], ids=["2B", "5B"])
def test_the_loss_of_clean_latents_is_that_of_velocities(shift: float, largest: int) -> None:
    """1 / (1 - alpha) x error of the clean latents = error of the velocity, at all timesteps."""
    shares = alphas_cumprod(good_schedule(snr_shift_scale=shift))
    source = torch.Generator().manual_seed(0)
    latents, noise, predicted = torch.randn(
        3, 1000, 2, 4, 2, 2, dtype=torch.float64, generator=source
    )
    known, timesteps = Velocity(shares), torch.arange(1000)
    noisy = known.add_noise(latents, noise, timesteps)
    target = known.target(latents, noise, timesteps)
    of_velocity = (predicted - target).square().flatten(1).mean(1)
    weights = 1 / (1 - shares)
    signal, sigma = (share.view(-1, 1, 1, 1, 1) ** 0.5 for share in (shares, 1 - shares))
    errors = signal * noisy - sigma * predicted - latents
    of_clean = weights * errors.square().flatten(1).mean(1)
    assert ((of_clean - of_velocity).abs() / of_velocity).max() < 1e-13
    assert weights[999] == 1 and round(weights[0].item()) == largest
    assert (signal * noisy - sigma * target - latents).abs().max() < 1e-13


def test_diffusers_bf16_noise_is_wrong_at_small_timesteps_and_ours_is_not():
    schedule = good_schedule()
    scheduler = scheduler_class("CogVideoXDDIMScheduler").from_config(schedule)
    shares = alphas_cumprod(schedule)
    sigmas = (1 - shares).sqrt()
    none, one = torch.zeros(1000, 1), torch.ones(1000, 1)
    theirs = scheduler.add_noise(none.bfloat16(), one.bfloat16(), torch.arange(1000)).float()
    assert theirs[:2].tolist() == [[0], [0]]
    assert [round(sigma, 3) for sigma in sigmas[:2].tolist()] == [0.029, 0.042]
    wrong = (theirs.flatten() / sigmas - 1).abs()
    assert ((wrong > 0.1).sum(), (wrong > 0.02).sum()) == (5, 23)

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        ours = Velocity(shares).add_noise(none.to(dtype), one.to(dtype), torch.arange(1000))
        assert ours.dtype == torch.float32
        assert (ours.flatten() / sigmas - 1).abs().max() < 1e-6
