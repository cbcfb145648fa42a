"""What is known of samplers and schedules without torch, for recipes and infotext.

`inference.sampling` and `inference.sampling.schedules` draw with them; tests hold the two together.
"""

import sys

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


def known_samplers() -> list[str]:
    """Return the samplers by name, with those that a plug-in has entered into the registry."""
    registry = sys.modules.get("inference.sampling.registry")
    return list(dict.fromkeys([*SAMPLERS, *(registry.SAMPLERS if registry else ())]))


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
"""Those that add no fresh noise, or leave no choice how much."""

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
"""What `Automatic` stands for; with the other samplers for no other schedule type."""

HEED_RANGE = (
    "Karras",
    "Exponential",
    "Polyexponential",
    "SGM Uniform",
    "KL Optimal",
    "Normal",
    "Beta",
)
"""Schedule types that lead from a highest to a lowest sigma that can be set."""

DEFAULT_RHOS = {"Karras": 7.0, "Polyexponential": 1.0}
"""Schedule types with an exponent, and which it is unless told otherwise."""

RANGE_ONLY = ("DPM fast", "DPM adaptive")
"""Samplers that choose their own sigmas between the model's ends, but for img2img."""

BY_TIMESTEPS = ("DDIM", "DDIM CFG++", "PLMS", "UniPC")
"""Samplers that go by timesteps of their own as `Automatic`, and begin with noise of variance 1."""

ALWAYS_DISCARD = ("DPM2", "DPM2 a", "DPM++ 3M SDE")
"""Samplers that leave out the last sigma but one in any case."""

CHURNED = ("Euler", "Heun", "DPM2")
"""Samplers that `s_churn` says something to."""

HEED_S_NOISE = (
    "DPM2 a",
    "DPM fast",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 2S a",
    "DPM++ 3M SDE",
)
"""Samplers whose fresh noise `s_noise` multiplies, besides what `s_churn` adds."""

DEFAULT_ETAS = {
    "Euler a": 1.0,
    "DPM2 a": 1.0,
    "DPM++ 2S a": 1.0,
    "DPM fast": 1.0,
    "DPM adaptive": 1.0,
    "DDIM": 0.0,
    "DDIM CFG++": 0.0,
}
"""Samplers whose fresh noise comes from the picture's generator, in the share eta."""

ALWAYS_FRESH = ("LCM", "Restart")
"""Samplers that draw from it without being asked."""


def draws_further_noise(sampler: str, eta: float | None, s_churn: float) -> bool:
    """Whether noise after the first changes the picture, so that `ensd` does.

    Samplers named `SDE` follow Brownian paths of the seeds themselves, to which it says nothing.
    """
    share = DEFAULT_ETAS.get(sampler, 0.0) if eta is None else eta
    is_ancestral = sampler in DEFAULT_ETAS and share > 0
    return is_ancestral or sampler in ALWAYS_FRESH or (sampler in CHURNED and s_churn > 0)


def resolved(sampler: str, schedule_type: str) -> str:
    """What `Automatic` stands for with this sampler; else the type itself."""
    if schedule_type != "Automatic":
        return schedule_type
    return AUTOMATIC_SCHEDULES.get(sampler, "Automatic")
