"""A common form of all base models: the expected clean latent at (x, sigma)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.models import Conditions, DiffusionModel, Part, Timeline, as_timelines
from inference.sampling import Blend, NoiseLevels


@dataclass(frozen=True)
class Batch:
    """The input of one UNet evaluation: rows of equally many tokens."""

    rows: Tensor
    """Their indices among all rows: first the positive ones of every image, then the negative."""
    pictures: Tensor
    """The image that each of them belongs to."""
    conditions: Conditions


@dataclass(frozen=True)
class Guidance:
    """Options of the negative prompts; their rules and names are A1111's."""

    filler: Conditions | None = None
    """An empty chunk, with which the shorter of an image's prompts are padded ("Pad
    prompt/negative prompt"). Without it prompts of other lengths go through the UNet apart."""
    total_steps: int | None = None
    """The number of model evaluations, for `skip_early_cond`."""
    skip_early_cond: float = 0.0
    """The negative prompts are omitted in this share of the evaluations, from the first one on
    ("Ignore negative prompt during early sampling"); 0 is never."""
    s_min_uncond: float = 0.0
    """Below this sigma they are omitted in every second evaluation ("Negative Guidance minimum
    sigma"); 0 is never."""
    keeps_uncond: bool = False
    """The negative prompts are evaluated every time, at a scale of 1 too."""

    def __post_init__(self) -> None:
        if self.skip_early_cond and not self.total_steps:
            raise ValueError("skip_early_cond needs total_steps")

    def leaves_negatives_out(self, evaluation: int, sigma: float) -> bool:
        """Return whether an evaluation, counted from 0, omits the negative prompts."""
        if self.keeps_uncond:
            return False
        share = evaluation / self.total_steps if self.total_steps else 0
        if self.skip_early_cond and share <= self.skip_early_cond:
            return True
        return evaluation % 2 == 1 and sigma < self.s_min_uncond


@dataclass(frozen=True)
class Inpainting:
    """Additional inputs of masks and inpainting models in each evaluation."""

    concat: Tensor | None = None
    """Further input channels of the UNet, (b or 1, k, h, w); inpainting models have five."""
    blend: Blend | None = None
    """Changes each clean latent last, for masks."""
    blend_input: Blend | None = None
    """Changes x before the model sees it."""


USUAL_GUIDANCE, NO_INPAINTING = Guidance(), Inpainting()


class Denoiser:
    """A base model that predicts noise or velocity, as a function (x, sigma) -> clean latent.

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) takes the prompts and the
    negative prompts through the UNet in one batch; at a scale of 1 the latter are omitted. Prompts
    joined by AND (Liu et al. 2022, arXiv 2206.01714) each lead away from the negative prompt:
    uncond + sum of weight x scale x (cond - uncond). Rules and names of the settings are those of
    A1111 1.10.1 (`modules/sd_samplers_cfg_denoiser.py`).

    Args:
        base: the base model.
        positive: conditioning of the UNet on b prompts, in its dtype: conditions of b rows, or
            the parts of each image.
        negative: the same for the negative prompts, without parts; None if the scale and all
            weights are 1.
        cfg_scale: 1 is no guidance, 0 the negative prompts alone.
        guidance: options of the negative prompts.
        inpainting: additional inputs of masks and inpainting models.
        levels: sigma -> the timestep of the evaluation; by default the model's own.
    """

    last_uncond: Tensor | None = None
    """The clean latents expected for the negative prompts at the last evaluation, (b, c, h, w), not
    blended; if they were omitted, those of the prompts (of several parts, the first one's)."""

    def __init__(
        self,
        base: DiffusionModel,
        positive: Conditions | Sequence[Sequence[Part]],
        negative: Conditions | Sequence[Timeline] | None = None,
        cfg_scale: float = 1.0,
        *,
        guidance: Guidance = USUAL_GUIDANCE,
        inpainting: Inpainting = NO_INPAINTING,
        levels: NoiseLevels | None = None,
    ) -> None:
        if isinstance(positive, Conditions):
            positive = [[Part(1.0, timeline)] for timeline in as_timelines(positive)]
        if isinstance(negative, Conditions):
            negative = as_timelines(negative)
        is_plain = all([part.weight for part in parts] == [1.0] for parts in positive)
        if not negative and not (cfg_scale == 1 and is_plain):
            raise ValueError(f"a cfg_scale of {cfg_scale} needs negative prompts, as weights do")
        self.base = base
        self.parametrization = base.parametrization
        self.levels = levels or self.parametrization
        self.cfg_scale = cfg_scale
        self.is_guided = guidance.keeps_uncond or not (cfg_scale == 1 and is_plain)
        self.positive = positive
        self.negative = negative or []
        self.guidance = guidance
        self.inpainting = inpainting
        self.evaluation = 0
        self._batches: tuple[object, list[Batch]] = (None, [])

    @property
    def num_pictures(self) -> int:
        return len(self.positive)

    @property
    def conditions(self) -> Conditions:
        """Return the next evaluation's conditioning: the prompts', then the negative prompts'.

        Only if all have equally many tokens.
        """
        return Conditions.cat([batch.conditions for batch in self.batches(self.is_guided)])

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the clean latents expected at x (b, c, h, w), fp32."""
        leaves_out = self.guidance.leaves_negatives_out(self.evaluation, sigma)
        is_guided = self.is_guided and not leaves_out
        blend, blend_input = self.inpainting.blend, self.inpainting.blend_input
        if blend_input is not None:
            x = blend_input(x, sigma)
        clean = self.denoise(x, sigma, self.batches(is_guided))
        self.evaluation += 1
        positive, negative = clean, None
        if is_guided:
            positive, negative = clean[: -len(x)], clean[-len(x) :]
        denoised, self.last_uncond = self.combine(positive, negative)
        return denoised if blend is None else blend(denoised, sigma)

    def combine(self, positive: Tensor, negative: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the guided latents, and those they were guided away from.

        Without negative ones each image's first part is used for them, at a scale of 1.
        """
        scale = self.cfg_scale if negative is not None else 1.0
        if len(positive) == self.num_pictures:
            if negative is None:
                return positive, positive
            weights = {part.weight * scale for parts in self.positive for part in parts}
            if len(weights) == 1:
                return negative + (positive - negative) * weights.pop(), negative
        pictures = [n for n, parts in enumerate(self.positive) for _ in parts]
        if negative is None:
            negative = positive[[pictures.index(n) for n in range(self.num_pictures)]]
        denoised = negative.clone()
        weights = [part.weight * scale for parts in self.positive for part in parts]
        for row, (picture, weight) in enumerate(zip(pictures, weights, strict=True)):
            denoised[picture] += (positive[row] - negative[picture]) * weight
        return denoised, negative

    def batches(self, is_guided: bool) -> list[Batch]:
        """Return the UNet's input for the next evaluation; cached while it stays the same."""
        timelines = [[part.timeline for part in parts] for parts in self.positive]
        negatives = self.negative if is_guided else []
        key = (
            is_guided,
            [[one.row(self.evaluation) for one in each] for each in timelines],
            [one.row(self.evaluation) for one in negatives],
        )
        if self._batches[0] != key:
            self._batches = (key, self.assemble(timelines, negatives))
        return self._batches[1]

    def assemble(
        self, timelines: Sequence[Sequence[Timeline]], negatives: Sequence[Timeline]
    ) -> list[Batch]:
        """Return batches of equally many tokens, in the order of their first rows."""
        positives = [[self.conditions_at(one) for one in each] for each in timelines]
        others = [[self.conditions_at(one)] for one in negatives]
        for picture, parts in enumerate(positives):
            own = others[picture] if others else []
            longest = max(one.states.shape[1] for one in parts)
            parts[:] = [one.stretched(longest) for one in parts]
            if (filler := self.guidance.filler) is not None:
                longest = max(one.states.shape[1] for one in parts + own)
                parts[:] = [one.filled_up(longest, filler) for one in parts]
                own[:] = [one.filled_up(longest, filler) for one in own]
        rows = [
            (n, one) for each in (positives, others) for n, own in enumerate(each) for one in own
        ]
        by_length: dict[int, list[int]] = {}
        for number, (_, one) in enumerate(rows):
            by_length.setdefault(one.states.shape[1], []).append(number)
        device = rows[0][1].states.device
        return [
            Batch(
                torch.tensor(numbers, device=device),
                torch.tensor([rows[number][0] for number in numbers], device=device),
                Conditions.cat([rows[number][1] for number in numbers]),
            )
            for numbers in by_length.values()
        ]

    def conditions_at(self, timeline: Timeline) -> Conditions:
        """Return one row of the next evaluation's conditions."""
        row = timeline.row(self.evaluation)
        return timeline.conditions[row : row + 1]

    def denoise(self, x: Tensor, sigma: float, batches: Sequence[Batch]) -> Tensor:
        """Return one latent for each row of all batches, without guidance."""
        if len(batches) == 1:
            return self.denoise_batch(x, sigma, batches[0])
        count = sum(len(batch.rows) for batch in batches)
        clean = x.new_empty((count, *x.shape[1:]))
        for batch in batches:
            clean[batch.rows] = self.denoise_batch(x, sigma, batch)
        return clean

    def denoise_batch(self, x: Tensor, sigma: float, batch: Batch) -> Tensor:
        """Return one latent for each row of a batch.

        The model sees x at the scale of its parametrization.
        """
        scale = 1 / self.levels.scale(sigma)
        pictures = batch.pictures
        timesteps = torch.full((len(pictures),), self.levels.timestep(sigma), device=x.device)
        x = x[pictures]
        seen = x * scale
        if (concat := self.inpainting.concat) is not None:
            further = concat.to(seen).expand(self.num_pictures, -1, -1, -1)
            seen = torch.cat([seen, further[pictures]], dim=1)
        output = self.base.predict(
            seen.to(batch.conditions.states.dtype), timesteps, batch.conditions
        ).float()
        return self.parametrization.denoised(x, output, sigma)
