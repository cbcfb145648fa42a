"""The noise schedule of CogVideoX, and how that of another model is told from it.

`scheduling_ddim_cogvideox.py` of diffusers 0.42.1, which has SAT's `ZeroSNRDDPMDiscretization`:
shift of the signal-to-noise ratio, then zero terminal SNR (Lin et al. 2023, arXiv 2305.08891).
"""

from collections.abc import Mapping

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


def _value(schedule: Mapping[str, object], key: str) -> object:
    return schedule[key] if key in schedule else CLASS_DEFAULTS[key]
