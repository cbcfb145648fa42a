"""Drawing with a tiny base model: what a list of requests becomes."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.config.images import HiresConfig, ImageConfig
from inference.config.models import BaseModelConfig
from inference.images import drawing as sampling
from inference.images.drawing import draw
from inference.images.infotext.text import parse_infotext
from inference.images.passes import Pass, sample
from inference.images.requests import expand, group
from inference.models.families import load_image_model
from inference.runtime.errors import DrawWarning, InputError

CAT = ImageConfig(prompt="a cat", seed=1, steps=3)
DOG = ImageConfig(prompt="a dog", negative_prompt="cat", seed=2, steps=3)
LONG = ImageConfig(prompt="a very long " * 20, seed=3, steps=3)


def pixels(drawings):
    return np.stack([np.asarray(drawing.image, dtype=int) for drawing in drawings])


def test_a_list_always_gives_the_same_pixels(tiny_base):
    requests = [CAT, DOG, dataclasses.replace(CAT, sampler="Euler a", count=2)]
    first, second = draw(tiny_base, requests), draw(tiny_base, requests)
    assert len(first) == 4
    assert np.array_equal(pixels(first), pixels(second))
    assert [one.infotext for one in first] == [two.infotext for two in second]
    assert first[0].image.mode == "RGB"


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "DPM++ 2M SDE", "Euler a"])
def test_batches_equal_single_pictures(tiny_base, sampler):
    requests = [
        dataclasses.replace(request, sampler=sampler) for request in (CAT, DOG, LONG, CAT, DOG)
    ]
    together = latents(tiny_base, requests, batch_size=8)
    alone = latents(tiny_base, requests, batch_size=1)
    assert alone.abs().max() > 30  # so that a rounding of fp32 is 4e-6
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-4)
    assert abs(pixels(draw(tiny_base, requests)) - pixels(draw(tiny_base, requests, 1))).max() <= 1


def latents(base, requests, batch_size):
    requests = expand(base, requests)
    found = {}
    with sampling.evaluation(base):
        for batch in group(requests, batch_size):
            chosen = [requests[index] for index in batch]
            drawn = sample(base, chosen, Pass.first(chosen))
            found |= zip(batch, drawn, strict=True)
    return torch.stack([found[index] for index in range(len(requests))])


def test_count_counts_seeds_on(tiny_base):
    drawings = draw(tiny_base, [dataclasses.replace(CAT, count=3), DOG])
    assert [drawing.request.seed for drawing in drawings] == [1, 2, 3, 2]
    assert [drawing.request.prompt for drawing in drawings] == ["a cat"] * 3 + ["a dog"]
    assert {drawing.request.count for drawing in drawings} == {1}
    alone = draw(tiny_base, [dataclasses.replace(CAT, seed=2)])
    assert abs(pixels(drawings)[1] - pixels(alone)[0]).max() <= 1


def test_size_is_the_models_own_unless_told_otherwise(tiny_base):
    drawings = draw(tiny_base, [CAT, dataclasses.replace(CAT, width=24, height=8)])
    assert [drawing.image.size for drawing in drawings] == [(16, 16), (24, 8)]
    assert [(d.request.width, d.request.height) for d in drawings] == [(16, 16), (24, 8)]
    assert parse_infotext(drawings[1].infotext).parameters["Size"] == "24x8"


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (18, "width: 18 pixels .* multiples of 4; take 16 or 20"),
        (2, "width: 2 pixels .* multiples of 4; take 4"),
    ],
)
def test_size_that_does_not_fit_names_the_next_ones(tiny_base, size, message):
    with pytest.raises(InputError, match=message):
        draw(tiny_base, [CAT, dataclasses.replace(CAT, width=size)])


def test_only_what_differs_in_seed_and_prompt_is_drawn_together(tiny_base):
    requests = [
        CAT,
        dataclasses.replace(CAT, steps=4),
        DOG,
        dataclasses.replace(CAT, cfg_scale=1),
        LONG,
        dataclasses.replace(DOG, seed=9),
        dataclasses.replace(DOG, negative_prompt=LONG.prompt),
    ]
    batches = group(expand(tiny_base, requests), batch_size=2)
    assert batches == [[0, 2], [4, 5], [6], [1], [3]]


def test_unguided_negative_prompt_does_not_matter(tiny_base):
    plain = dataclasses.replace(CAT, cfg_scale=1)
    with_negative = dataclasses.replace(plain, negative_prompt=LONG.prompt)
    first_drawn, then_drawn = (pixels(draw(tiny_base, [one])) for one in (plain, with_negative))
    assert np.array_equal(first_drawn, then_drawn)


def test_prompt_guidance_seed_and_sampler_matter(tiny_base):
    changes = [
        {"prompt": "b"},
        {"negative_prompt": "b"},
        {"seed": 2},
        {"cfg_scale": 2},
        {"steps": 4},
        {"sampler": "Euler"},
        {"schedule_type": "Uniform"},
        {"sampler": "Euler a", "eta": 0.5},
    ]
    requests = [CAT, *(dataclasses.replace(CAT, **change) for change in changes)]
    drawn = latents(tiny_base, requests, 1)
    for one, two in itertools.combinations(drawn, 2):
        assert (one - two).abs().max() > 0.01


def test_base_model_is_left_as_it_was(tiny_base):
    tiny_base.unet.train()
    tiny_base.unet.requires_grad_(True)
    modes = [module.training for part in tiny_base.parts.values() for module in part.modules()]
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = draw(tiny_base, [CAT])
    after = [module.training for part in tiny_base.parts.values() for module in part.modules()]
    assert after == modes
    assert np.array_equal(pixels(under_autocast), pixels(draw(tiny_base, [CAT])))
    x = torch.zeros(1, 4, 4, 4)
    states = tiny_base.encode_prompts(["a"])
    tiny_base.predict(x, torch.tensor([1]), states).sum().backward()


def test_drawing_leaves_the_global_generator_alone(tiny_base):
    state = torch.get_rng_state()
    draw(tiny_base, [dataclasses.replace(CAT, sampler="DPM++ 2M SDE"), CAT])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("sampler", ["Heun", "DDIM", "DPM++ 2M"])
def test_progress_counts_steps_of_pictures(tiny_base, sampler):
    heard = []
    requests = [dataclasses.replace(one, sampler=sampler) for one in (CAT, DOG, LONG)]
    draw(tiny_base, requests, progress=lambda *counts: heard.append(counts))
    assert heard[0] == (0, 9)
    assert heard[-1] == (9, 9)
    assert heard == sorted(heard)


def test_half_precision_draws_nearly_the_same(tiny_base_folder):
    from inference.models.stable_diffusion.loading import load_base_model

    config = BaseModelConfig(path=str(tiny_base_folder))
    full, half = (load_base_model(config, precision) for precision in ("fp32", "bf16"))
    assert half.unet.dtype == torch.bfloat16
    difference = pixels(draw(full, [CAT, DOG])) - pixels(draw(half, [CAT, DOG]))
    assert 0 < abs(difference).mean() < 4


def test_picture_that_is_no_number_is_an_error(tiny_base):
    tiny_base.vae.decoder.conv_out.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="picture is not finite"):
        draw(tiny_base, [CAT])
    tiny_base.unet.conv_out.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="latent is not finite"):
        draw(tiny_base, [CAT])


def test_a_first_pass_that_is_no_number_is_an_error(tiny_base, monkeypatch):
    """Its picture would be black, and the second pass make something finite of it."""
    calls = []

    def first_is_no_number(*arguments):
        calls.append(arguments)
        return sample(*arguments) * (float("nan") if len(calls) == 1 else 1)

    monkeypatch.setattr(sampling, "sample", first_is_no_number)
    hires = HiresConfig(upscaler="Lanczos", denoising_strength=0.6)
    with pytest.raises(FloatingPointError, match="latent is not finite"):
        draw(tiny_base, [dataclasses.replace(CAT, hires=hires)])


def test_fp16_of_weights_in_bf16_is_noted(tiny_base_folder, tmp_path, recwarn):
    shutil.copytree(tiny_base_folder, tmp_path / "base")
    weights = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {key: value.bfloat16() for key, value in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    config = BaseModelConfig(path=str(tmp_path / "base"))
    load_image_model(config, "bf16")
    load_image_model(BaseModelConfig(path=str(tiny_base_folder)), "fp16")
    assert not recwarn.list
    with pytest.warns(DrawWarning, match=r"^precision: fp16: the weights of .*base' are in bf16"):
        load_image_model(config, "fp16")


def test_velocity_model_is_drawn_with(tiny_base):
    by_noise = draw(tiny_base, [CAT])
    tiny_base.prediction_type = "v_prediction"
    by_velocity = draw(tiny_base, [CAT])
    assert not np.array_equal(pixels(by_noise), pixels(by_velocity))


def test_nothing_to_draw(tiny_base):
    assert draw(tiny_base, []) == []


@pytest.mark.parametrize("sampler", ["DDIM CFG++", "LCM", "UniPC", "DPM fast", "DPM++ SDE"])
def test_samplers_draw_with_the_model(tiny_base, sampler):
    drawing = draw(tiny_base, [dataclasses.replace(CAT, sampler=sampler, cfg_scale=3.0)])[0]
    assert parse_infotext(drawing.infotext).parameters["Sampler"] == sampler


def test_cfgpp_heeds_the_negative_prompt_at_every_scale(tiny_base):
    cat = dataclasses.replace(CAT, sampler="DDIM CFG++", cfg_scale=12.5, negative_prompt="dog")
    other = dataclasses.replace(cat, negative_prompt="tree house")
    one, two = latents(tiny_base, [cat, other], 1)
    assert (one - two).abs().max() > 0.01


def test_samplers_that_couple_a_batch_draw_one_at_a_time(tiny_base):
    cats = [
        dataclasses.replace(CAT, sampler=sampler, seed=seed, width=32, height=32)
        for sampler in ("DPM adaptive", "Euler")
        for seed in (1, 2)
    ]
    assert group(cats, 8) == [[0], [1], [2, 3]]
