"""What the denoiser asks of a base model, and what it makes of the answers; by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference.images.denoiser import Denoiser, Guidance, Inpainting
from inference.models.conditions import Conditions
from inference.models.drawing_prompts import Part, Timeline
from inference.models.parametrization import Epsilon

ALPHAS = torch.linspace(0.999, 0.01, 1000)
LEVELS = Epsilon(ALPHAS)
SIGMA = LEVELS.sigma(500)
X = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)) * SIGMA


class FakeBase:
    """Expects the clean latent that the mean of the prompt's first chunk is, everywhere."""

    parametrization = LEVELS

    def __new__(cls) -> Any:
        """In the place of a BaseModel."""
        return super().__new__(cls)

    def __init__(self):
        self.calls = []

    def predict(self, seen, timesteps, conditions):
        self.calls.append(SimpleNamespace(seen=seen, conditions=conditions))
        sigma = LEVELS.sigma(timesteps[0].item())
        clean = conditions.states[:, :7].mean((1, 2))[:, None, None, None]
        return (seen[:, :4] * math.sqrt(1 + sigma**2) - clean) / sigma

    @property
    def rows(self):
        return [len(call.seen) for call in self.calls]


def states(value, tokens=7):
    return Conditions(torch.full((1, tokens, 3), float(value)))


def always(value, tokens=7):
    return Timeline((0,), (0,), states(value, tokens))


def close(found, *values):
    expected = torch.tensor(values, dtype=torch.float32)[:, None, None, None]
    torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=1e-4)


def test_and_adds_up_what_each_part_leads_away_by():
    positive = [[Part(1.2, always(3)), Part(-0.5, always(7))], [Part(1.0, always(2))]]
    base = FakeBase()
    denoiser = Denoiser(base, positive, [always(1), always(0.5)], 4.0)
    close(denoiser(X, SIGMA), 1 + 4 * (1.2 * 2 - 0.5 * 6), 0.5 + 4 * 1.5)
    close(denoiser.last_uncond, 1, 0.5)
    assert base.rows == [5]  # three parts and two negatives at once
    seen = base.calls[0].seen * math.sqrt(1 + SIGMA**2)
    torch.testing.assert_close(seen, X[[0, 0, 1, 0, 1]])


def test_weights_need_negative_prompts_even_without_guidance():
    positive = [[Part(0.5, always(3)), Part(0.5, always(5))], [Part(1.0, always(2))]]
    denoiser = Denoiser(FakeBase(), positive, [always(1), always(0.5)], 1.0)
    close(denoiser(X, SIGMA), 4, 2)
    with pytest.raises(ValueError, match="needs negative prompts, as weights do"):
        Denoiser(FakeBase(), positive)


def test_one_part_each_is_the_plain_formula_bit_by_bit():
    positive, negative = (Conditions(torch.randn(2, 7, 3)) for _ in range(2))
    base = FakeBase()
    denoised = Denoiser(base, positive, negative, 7.5)(X, SIGMA)
    call = base.calls[0]
    assert torch.equal(call.conditions.states, torch.cat([positive.states, negative.states]))
    scaled = X * (1 / math.sqrt(SIGMA**2 + 1))
    assert torch.equal(call.seen, torch.cat([scaled, scaled]))
    t = torch.full((4,), LEVELS.timestep(SIGMA))
    clean = torch.cat([X, X]) - base.predict(call.seen, t, call.conditions) * SIGMA
    expected = clean[2:] + (clean[:2] - clean[2:]) * 7.5
    assert torch.equal(denoised, expected)


def test_prompts_change_at_their_evaluations():
    """The first text until step 2 has the evaluations 0, 1, 2; the other picture takes turns."""
    both = Conditions(torch.cat([states(1).states, states(5).states]))
    edited = Timeline((2, 4), (0, 1), both)
    turns = Timeline((1, 2, 3, 4), (0, 1, 0, 1), both)
    base = FakeBase()
    denoiser = Denoiser(base, [[Part(1.0, edited)], [Part(1.0, turns)]])
    for expected in ((1, 1), (1, 1), (1, 5), (5, 1), (5, 5), (5, 5)):
        close(denoiser(X, SIGMA), *expected)
    given = [call.conditions for call in base.calls]
    assert given[0] is given[1]  # put together once, while nothing changes
    assert given[4] is given[5]
    assert given[1] is not given[2]


def test_other_lengths_go_through_the_model_apart():
    positive = [[Part(1.0, always(3))], [Part(1.0, always(2, 14))]]
    base = FakeBase()
    denoiser = Denoiser(base, positive, [always(1), always(0)], 3.0)
    close(denoiser(X, SIGMA), 1 + 3 * 2, 3 * 2)
    assert base.rows == [3, 1]
    assert [call.conditions.states.shape[1] for call in base.calls] == [7, 14]


def test_filler_brings_prompt_and_negative_prompt_to_one_length():
    """Only within each picture: what else is in the batch changes nothing."""
    positive = [[Part(1.0, always(3, 21))], [Part(1.0, always(2))]]
    base = FakeBase()
    Denoiser(base, positive, [always(1), always(0)], 3.0, guidance=Guidance(filler=states(9)))(
        X, SIGMA
    )
    long, short = base.calls
    assert long.conditions.states[:, ::7, 0].tolist() == [[3, 3, 3], [1, 9, 9]]
    assert short.conditions.states[:, ::7, 0].tolist() == [[2], [0]]


def test_parts_of_one_picture_are_stretched_by_their_last_token():
    growing = Conditions(torch.arange(7.0)[None, :, None].expand(1, 7, 3))
    parts = [Part(1.0, always(3, 14)), Part(1.0, Timeline((0,), (0,), growing))]
    base = FakeBase()
    Denoiser(base, [parts], [always(1)], 3.0)(X[:1], SIGMA)
    assert base.rows == [2, 1]
    assert base.calls[0].conditions.states[1, :, 0].tolist() == [0, 1, 2, 3, 4, 5, *[6] * 8]


def test_negative_guidance_minimum_sigma_skips_every_second_evaluation():
    base = FakeBase()
    denoiser = Denoiser(base, states(3), states(1), 2.0, guidance=Guidance(s_min_uncond=1.0))
    for sigma, expected in ((5.0, 5), (5.0, 5), (0.9, 5), (0.9, 3), (0.9, 5), (1.0, 5), (0.5, 5)):
        close(denoiser(X[:1], sigma), expected)
        close(denoiser.last_uncond, 3 if expected == 3 else 1)
    assert base.rows == [2, 2, 2, 1, 2, 2, 2]


def test_early_guidance_is_skipped():
    """Up to and with the evaluation that the share falls on: 0, 1 and 2 of 10 at 0.2."""
    base = FakeBase()
    parts = [[Part(0.5, always(3)), Part(0.5, always(5))]]
    guidance = Guidance(total_steps=10, skip_early_cond=0.2)
    denoiser = Denoiser(base, parts, [always(1)], 2.0, guidance=guidance)
    for _ in range(3):
        close(denoiser(X[:1], SIGMA), 4)  # 3 + 0.5 * (5 - 3)
        close(denoiser.last_uncond, 3)
    close(denoiser(X[:1], SIGMA), 1 + 2 + 4)
    assert base.rows == [2, 2, 2, 3]
    with pytest.raises(ValueError, match="needs total_steps"):
        Guidance(skip_early_cond=0.2)


def test_without_guidance_the_negative_latents_are_the_denoised_ones():
    denoiser = Denoiser(FakeBase(), states(3))
    assert denoiser(X[:1], SIGMA) is denoiser.last_uncond


def test_blend_has_the_last_word():
    heard = []
    inpainting = Inpainting(blend=lambda clean, sigma: heard.append(sigma) or clean * 0 + 8)
    denoiser = Denoiser(FakeBase(), states(3), states(1), 2.0, inpainting=inpainting)
    close(denoiser(X[:1], SIGMA), 8)
    close(denoiser.last_uncond, 1)
    assert heard == [SIGMA]


@pytest.mark.parametrize("count", [1, 2])
def test_further_channels_stand_behind_the_latents_unscaled(count):
    concat = torch.arange(count * 5.0)[:, None].view(count, 5, 1, 1).expand(count, 5, 3, 5)
    base = FakeBase()
    positive = [[Part(1.0, always(3)), Part(1.0, always(4))], [Part(1.0, always(2))]]
    Denoiser(base, positive, [always(1)] * 2, 2.0, inpainting=Inpainting(concat=concat))(X, SIGMA)
    seen = base.calls[0].seen
    assert seen.shape == (5, 9, 3, 5)
    pictures = [0, 0, 1, 0, 1] if count == 2 else [0] * 5
    assert torch.equal(seen[:, 4:], concat[pictures])
