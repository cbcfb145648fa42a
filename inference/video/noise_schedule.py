"""The noise schedule of CogVideoX, and mixing and target of its training.

`scheduling_ddim_cogvideox.py` of diffusers 0.42.1, which has SAT's `ZeroSNRDDPMDiscretization`:
shift of the signal-to-noise ratio, then zero terminal SNR (Lin et al. 2023, arXiv 2305.08891).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from inference.errors import InputError

CLASSES = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
CLASS_DEFAULTS: dict[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": True,
    "set_alpha_to_one": True,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 3.0,
}
"""What the classes take where a scheduler_config.json says nothing: wrong for every CogVideoX."""
REQUIRED: dict[str, object] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "clip_sample": False,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
}
"""What every published CogVideoX was trained and is drawn with."""


def check_schedule(schedule: Mapping[str, object], where: str = "scheduler_config.json") -> None:
    """Refuses the schedule of another model, and that of a scheduler made without arguments.

    Args:
        schedule: the content of the file.
        where: what the user knows the file by.

    Raises:
        InputError: names all keys that are wrong, with what they must be.
    """
    name = schedule.get("_class_name", CLASSES[0])
    if name not in CLASSES:
        raise InputError(f"{where}: _class_name is {name}; expected {' or '.join(CLASSES)}")
    faults = [
        f"{key} is {value!r}{'' if key in schedule else ' (not given)'}, must be {expected!r}"
        for key, expected in REQUIRED.items()
        if (value := _value(schedule, key)) != expected
    ]
    for key in ("num_train_timesteps", "beta_start", "beta_end", "snr_shift_scale"):
        value = _value(schedule, key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            faults.append(f"{key} is {value!r}, must be a number above 0")
    if faults:
        raise InputError(
            f"{where}: no schedule of CogVideoX: {'; '.join(faults)}; take the file of the "
            "published model"
        )


def alphas_cumprod(schedule: Mapping[str, object]) -> Tensor:
    """Share of the signal's variance left at each timestep, (num_timesteps,), fp64 on the CPU.

    The last is 0 exactly. `schedule` has passed `check_schedule`.
    """
    start, end, shift = (
        float(str(_value(schedule, key))) for key in ("beta_start", "beta_end", "snr_shift_scale")
    )
    steps = int(str(_value(schedule, "num_train_timesteps")))
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    unshifted = torch.cumprod(1.0 - betas, dim=0)
    shifted = unshifted / (shift + (1 - shift) * unshifted)
    roots = shifted.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    return ((roots - last) * (first / (first - last))) ** 2


def _value(schedule: Mapping[str, object], key: str) -> object:
    return schedule[key] if key in schedule else CLASS_DEFAULTS[key]


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Latents (b, …) with noise at signal shares `alphas` (b,), in fp32 or in fp64 if all are.

    The schedulers' own `add_noise` rounds the shares to the latents' format first: in bf16 those of
    timesteps 0 and 1 become 1, which leaves the noise out.
    """
    signal, sigma = _factors(alphas, latents)
    return signal * latents + sigma * noise


def velocity(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """What the model is to predict (Salimans & Ho 2022, arXiv 2202.00512), as `add_noise`.

    Its mean squared error is CogVideoX' loss: that of the clean latents, over 1 - alpha.
    """
    signal, sigma = _factors(alphas, latents)
    return signal * noise - sigma * latents


def clean_latents(noisy: Tensor, predicted_velocity: Tensor, alphas: Tensor) -> Tensor:
    """The clean latents that a velocity says, as `add_noise`."""
    signal, sigma = _factors(alphas, noisy)
    return signal * noisy - sigma * predicted_velocity


def _factors(alphas: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(latents.dtype, torch.float32)
    shape = (-1, *[1] * (latents.ndim - 1))
    signal, sigma = alphas.sqrt().view(shape), (1 - alphas).sqrt().view(shape)
    return signal.to(latents.device, dtype), sigma.to(latents.device, dtype)
