"""What recipes of drawing warn about: settings that change nothing, and none that change much."""

import pytest
import torch

from inference.config.clips import ClipConfig
from inference.config.images import (
    HiresConfig,
    ImageConfig,
    ImageToImageConfig,
    InpaintConfig,
    ScheduleConfig,
)
from inference.models.parametrization import Epsilon
from inference.recipe.loader import load_mapping
from inference.sampling.noise import NoiseSource
from inference.sampling.registry import SAMPLERS, samplers_of, sampling_sigmas

SECOND = HiresConfig(sampler="DPM++ 2M SDE", schedule_type="Beta")
START = ImageToImageConfig("a.png")
SCHEDULE = {
    name: ScheduleConfig(**{name: value})
    for name, value in {
        "sigma_min": 0.1, "sigma_max": 5.0, "rho": 5.0, "beta_alpha": 0.5, "beta_beta": 0.5,
        "discard_next_to_last_sigma": True, "use_old_karras": True,
    }.items()
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, []),
        ({"sampler": "Euler", "schedule": SCHEDULE["rho"]}, ["schedule.rho"]),
        ({"schedule": SCHEDULE["rho"]}, []),  # DPM++ 2M: Karras
        ({"schedule_type": "Exponential", "schedule": SCHEDULE["rho"]}, ["schedule.rho"]),
        ({"sampler": "Euler", "schedule": SCHEDULE["sigma_min"]}, ["schedule.sigma_min"]),
        ({"schedule_type": "Simple", "schedule": SCHEDULE["sigma_max"]}, ["schedule.sigma_max"]),
        ({"schedule_type": "KL Optimal", "schedule": SCHEDULE["sigma_max"]}, []),
        ({"sampler": "DDIM", "schedule": SCHEDULE["use_old_karras"]}, ["schedule.use_old_karras"]),
        ({"schedule": ScheduleConfig(0.1, 5.0, use_old_karras=True)}, ["schedule.use_old_karras"]),
        ({"schedule": SCHEDULE["beta_alpha"]}, ["schedule.beta_alpha"]),
        ({"schedule": SCHEDULE["beta_beta"], "hires": SECOND}, []),
        ({"sampler": "DPM2", "schedule": SCHEDULE["discard_next_to_last_sigma"]},
         ["schedule.discard_next_to_last_sigma"]),
        ({"sampler": "DPM fast", "schedule_type": "Karras"}, ["schedule_type"]),
        ({"sampler": "DPM fast", "schedule_type": "Karras", "img2img": START}, []),
        ({"eta": 0.5}, ["eta"]),
        ({"eta": 0.5, "hires": SECOND}, []),
        ({"eta": 0.5, "sampler": "DDIM"}, []),
        ({"s_churn": 1.0, "s_noise": 1.1}, ["s_churn", "s_noise"]),
        ({"s_churn": 1.0, "s_noise": 1.1, "sampler": "Euler"}, []),
        ({"s_noise": 1.1, "sampler": "Euler"}, ["s_noise"]),
        ({"s_noise": 1.1, "sampler": "DPM++ SDE"}, []),
        ({"s_tmax": 1.0, "sampler": "Euler"}, ["s_tmax"]),
        ({"ensd": 5}, ["ensd"]),
        ({"ensd": 5, "sampler": "Euler a"}, []),
        ({"ensd": 5, "sampler": "Euler a", "eta": 0.0}, ["ensd"]),
        ({"ensd": 5, "sampler": "LCM"}, []),
        ({"ensd": 5, "sampler": "Euler", "s_churn": 1.0}, []),
        ({"variation_seed": 5}, ["variation_seed"]),
        ({"sgm_noise_multiplier": True}, []),
        ({"sgm_noise_multiplier": True, "sampler": "PLMS"}, ["sgm_noise_multiplier"]),
        ({"sgm_noise_multiplier": True, "img2img": START}, ["sgm_noise_multiplier"]),
        ({"cfg_scale": 1.0, "negative_prompt": "x", "pad_conds": True},
         ["negative_prompt", "pad_conds"]),
        ({"cfg_scale": 1.0, "negative_prompt": "x", "prompt": "a AND b"}, []),
        ({"cfg_scale": 1.0, "negative_prompt": "x", "sampler": "DDIM CFG++"}, []),
        ({"s_min_uncond": 1.0, "sampler": "DDIM CFG++"}, ["s_min_uncond"]),
        ({"cfg_scale": 1.0, "skip_early_cond": 0.5}, ["skip_early_cond"]),
    ],
)  # fmt: skip
def test_settings_without_effect(changes, idle):
    assert [key for key, _ in ImageConfig(**{"prompt": "a", **changes}).idle()] == idle


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "Eular", "eta": 0.5},
        {"schedule_type": "Karas", "schedule": SCHEDULE["rho"]},
        {"hires": HiresConfig(sampler="ddim"), "eta": 0.5},
    ],
)
def test_unknown_names_are_faults_alone(changes):
    image = ImageConfig(**{"prompt": "a", **changes})
    assert not list(image.idle())
    parts = (image, image.hires) if image.hires else (image,)
    assert [message[:15] for part in parts for _, message in part.faults()] == ["expected one of"]


@pytest.mark.parametrize(
    ("sampler", "idle"), [("dpm", ["eta"]), ("Euler", ["eta"]), ("ddim", []), ("euler", [])]
)
def test_eta_of_clips(sampler, idle):
    clip = ClipConfig(prompt="a", sampler=sampler, eta=0.5)
    assert [key for key, _ in clip.idle()] == idle
    assert [key for key, _ in clip.faults()] == ["sampler"] * (sampler == "euler")


def test_groups_without_effect():
    second = HiresConfig(denoising_strength=0, steps=5, sampler="Euler", upscale=3, resize_x=64)
    assert [key for key, _ in second.idle()] == ["upscale", "steps", "sampler"]
    inpaint = InpaintConfig("m.png", area="Only masked")
    start = ImageToImageConfig("a.png", resize_mode="Resize and fill", inpaint=inpaint)
    assert [key for key, _ in start.idle()] == ["resize_mode"]
    assert not list(ImageToImageConfig("a.png", inpaint=inpaint).idle())


@pytest.mark.parametrize(
    ("part", "key"),
    [
        (HiresConfig(resize_x=4), "resize_x"),
        (ImageToImageConfig("a.png", denoising_strength=0, exact_steps=True), "exact_steps"),
        (ImageConfig(prompt="a", seed_resize_from_width=4, seed_resize_from_height=64),
         "seed_resize_from_width"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(part, key):
    assert [name for name, _ in part.faults()] == [key]


LEVELS = Epsilon(torch.linspace(0.999, 0.005, 1000))


def sampled(name, ensd=0, **options):
    """What a sampler makes of noise, with a denoiser that halves."""
    sampler = SAMPLERS[name]
    levels = sampler.levels(LEVELS)
    sigmas = sampling_sigmas(levels, name, "Automatic", 20)

    def ask(x, sigma):
        vars(ask)["last_uncond"] = x * 0.5
        return x * 0.5

    noise = NoiseSource([1], (1, 2, 2), ensd=ensd)
    x = noise.normal() * sampler.start_scale(sigmas[0])
    vars(ask)["last_uncond"] = x
    return sampler.function(ask, x, sigmas, noise, None, sampler.options(**options))


@pytest.mark.parametrize("s_churn", [0.0, 5.0])
@pytest.mark.parametrize("name", samplers_of("pictures"))
def test_further_noise_is_drawn_where_ensd_counts(name, s_churn):
    one, other = (sampled(name, ensd, s_churn=s_churn) for ensd in (0, 7))
    changes = not torch.equal(one, other)
    assert changes == SAMPLERS[name].draws_further_noise(None, s_churn)


@pytest.mark.parametrize("name", samplers_of("pictures"))
def test_samplers_heed_what_their_entries_say(name):
    sampler, usual = SAMPLERS[name], sampled(name)
    assert sampler.uses_churn != torch.equal(sampled(name, s_churn=5.0), usual)
    assert sampler.uses_s_noise != torch.equal(sampled(name, s_noise=1.5), usual)
    assert (sampler.default_eta is not None) != torch.equal(sampled(name, eta=0.3), usual)


@pytest.mark.parametrize(("sampler", "warned"), [("Euler a", 0), ("Euler", 1)])
def test_settings_are_judged_by_those_that_take_them(recwarn, sampler, warned):
    from inference.config.recipes import draw_schema

    image = {"prompt": "a", "sampler": sampler}
    load_mapping({"settings": {"eta": 0.5}, "images": {"a": image}}, "r.yaml", draw_schema)
    messages = [str(one.message) for one in recwarn.list]
    assert messages == ["r.yaml: settings.eta: has no effect with Euler"] * warned
