"""What recipes and infotexts need to know about samplers and schedules, without torch.

`inference.sampling` and `inference.sampling.schedules` implement them; tests keep the two
consistent.
"""

SAMPLERS = (
    "Euler",
    "Euler a",
    "LMS",
    "Heun",
    "DPM2",
    "DPM2 a",
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 2S a",
    "DPM++ 3M SDE",
    "DPM fast",
    "DPM adaptive",
    "Restart",
    "DDIM",
    "DDIM CFG++",
    "PLMS",
    "UniPC",
    "LCM",
)
"""The samplers of `inference.sampling`, by their A1111 names."""

SAMPLERS_WITHOUT_ETA = (
    "Euler",
    "LMS",
    "Heun",
    "DPM2",
    "DPM++ 2M",
    "Restart",
    "PLMS",
    "UniPC",
    "LCM",
)
"""Samplers that add no fresh noise, or a fixed amount of it."""

SCHEDULE_TYPES = (
    "Automatic",
    "Uniform",
    "Karras",
    "Exponential",
    "Polyexponential",
    "SGM Uniform",
    "KL Optimal",
    "Align Your Steps",
    "Simple",
    "Normal",
    "DDIM",
    "Beta",
)
"""The noise schedules of `inference.sampling.schedules`, by their A1111 names."""

AUTOMATIC_SCHEDULES = {
    "DPM2": "Karras",
    "DPM2 a": "Karras",
    "DPM++ 2M": "Karras",
    "DPM++ SDE": "Karras",
    "DPM++ 2M SDE": "Exponential",
    "DPM++ 2M SDE Heun": "Exponential",
    "DPM++ 2S a": "Karras",
    "DPM++ 3M SDE": "Exponential",
    "Restart": "Karras",
}
"""What `Automatic` stands for; with the other samplers it is no other schedule type."""

HEED_RANGE = (
    "Karras",
    "Exponential",
    "Polyexponential",
    "SGM Uniform",
    "KL Optimal",
    "Normal",
    "Beta",
)
"""Schedule types whose highest and lowest sigma can be set."""

DEFAULT_RHOS = {"Karras": 7.0, "Polyexponential": 1.0}
"""Schedule types with an exponent, and its default."""

RANGE_ONLY = ("DPM fast", "DPM adaptive")
"""Samplers that choose their own sigmas between the model's limits, except in img2img."""

BY_TIMESTEPS = ("DDIM", "DDIM CFG++", "PLMS", "UniPC")
"""Samplers that use timesteps of their own with `Automatic`, and start from noise of variance 1."""

ALWAYS_DISCARD = ("DPM2", "DPM2 a", "DPM++ 3M SDE")
"""Samplers that always skip the next-to-last sigma."""

CHURNED = ("Euler", "Heun", "DPM2")
"""Samplers that `s_churn` affects."""

HEED_S_NOISE = (
    "DPM2 a",
    "DPM fast",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 2S a",
    "DPM++ 3M SDE",
)
"""Samplers whose fresh noise `s_noise` multiplies, besides the noise of `s_churn`."""

DEFAULT_ETAS = {
    "Euler a": 1.0,
    "DPM2 a": 1.0,
    "DPM++ 2S a": 1.0,
    "DPM fast": 1.0,
    "DPM adaptive": 1.0,
    "DDIM": 0.0,
    "DDIM CFG++": 0.0,
}
"""Samplers whose fresh noise comes from the image's generator, and its default fraction eta."""

ALWAYS_FRESH = ("LCM", "Restart")
"""Samplers that always draw noise from the image's generator."""


def draws_further_noise(sampler: str, eta: float | None, s_churn: float) -> bool:
    """Return whether noise after the first affects the image, so that `ensd` has an effect.

    Samplers named `SDE` use Brownian paths seeded by the seeds themselves, which `ensd` does not
    change.
    """
    share = DEFAULT_ETAS.get(sampler, 0.0) if eta is None else eta
    is_ancestral = sampler in DEFAULT_ETAS and share > 0
    return is_ancestral or sampler in ALWAYS_FRESH or (sampler in CHURNED and s_churn > 0)


def resolved(sampler: str, schedule_type: str) -> str:
    """Return the schedule type that `Automatic` stands for with this sampler; others unchanged."""
    if schedule_type != "Automatic":
        return schedule_type
    return AUTOMATIC_SCHEDULES.get(sampler, "Automatic")
