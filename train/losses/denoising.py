"""The loss of latent diffusion: the error at a random timestep, by the model's parametrization."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from inference.models import Conditions, DiffusionModel, Parametrization
from inference.runtime import InputError, to_device
from train.common import Batch, encode_in_parts, generator, normal
from train.config import LossConfig
from train.losses.frozen_prior import FrozenPrior
from train.losses.timesteps import stratified_timesteps


def check_weights(config: LossConfig, parametrization: Parametrization) -> None:
    """Check that the weight of the loss is a number at every timestep that is trained.

    With zero terminal SNR (Lin et al. 2023, arXiv 2305.08891) the last timestep has no signal, and
    an error of the predicted noise says nothing about the clean image.

    Raises:
        InputError: it is not.
    """
    if config.weighting == "uniform":
        return
    last = config.max_timestep or parametrization.num_train_timesteps
    numbers = torch.arange(config.min_timestep, last, device="cpu")  # also of a plan's skeleton
    timesteps = parametrization.sample_timesteps(numbers)
    weights = parametrization.loss_weight(timesteps, config.weighting, config.snr_gamma)
    if weights.is_meta:
        return
    unknown = (~weights.isfinite()).nonzero().flatten().tolist()
    if unknown and len(unknown) < len(weights):  # a plan of clips does not know the schedule
        first = int(numbers[unknown[0]])
        raise InputError(
            f"loss.weighting: {config.weighting} divides by the signal, and there is none at "
            f"timestep {first} of this base model (zero terminal SNR, with prediction_type: "
            f"epsilon): loss.max_timestep={first} leaves it out, or take weighting: uniform"
        )


@dataclass(frozen=True)
class Denoising:
    """Turns a batch into one loss per example."""

    base: DiffusionModel
    config: LossConfig
    latent_sampling: str
    seed: int
    zeroes_empty_prompts: bool = False
    """Whether an empty caption is encoded as zeros, instead of by the text encoders."""
    prior: FrozenPrior | None = field(default=None, kw_only=True)
    """Provides the targets of class images, with `loss.prior: prediction`."""

    @cached_property
    def parametrization(self) -> Parametrization:
        """Return the base model's, whose tables stay on the device."""
        return self.base.parametrization

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted mean squared error of each example's prediction, (b,), fp32."""
        timesteps = self.timesteps(batch)
        noisy, target = self.noised(batch, timesteps)
        if self.prior is not None:
            target = self.prior.targets(self.prediction, noisy, target, timesteps, batch)
        prediction = self.prediction(noisy, timesteps, batch).float()
        errors = self.errors(prediction, target, batch.get("mask"))
        return errors * self.weights(timesteps).to(errors)

    def noised(self, batch: Batch, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return noisy latents at the timesteps (b,), and their target; both fp32."""
        latents = self.latents(batch)
        noise = self.noise(batch["positions"], latents)
        noisy = self.parametrization.add_noise(latents, noise, timesteps)
        return noisy, self.parametrization.target(latents, noise, timesteps)

    def states(self, batch: Batch) -> Conditions:
        """Return the prompt embeddings that condition the model."""
        states = batch.get("prompt_states")
        if states is None:
            states = self.base.encode_prompts(batch["prompts"])
        if self.zeroes_empty_prompts:
            states = states.zeroed([not prompt for prompt in batch["prompts"]])
        return states

    def errors(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return each example's mean squared error, (b,), weighted by the mask (b, 1, h, w)."""
        squares = (prediction - target).square()
        if mask is not None:
            squares = squares * mask.to(squares)
        return squares.flatten(1).mean(1)

    def prediction(self, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        """Return the model's prediction, conditioned on the batch's prompts."""
        return self.predict(noisy, timesteps, self.states(batch), batch)

    def predict(self, noisy: Tensor, timesteps: Tensor, states: Conditions, batch: Batch) -> Tensor:
        """Return the model's prediction, with the batch's extra conditioning."""
        return self.base.predict(noisy, timesteps, states, batch.get("sizes"))

    def latents(self, batch: Batch) -> Tensor:
        """Return clean latents, by `data.latent_sampling`; the same with or without cache."""
        pixels, cached = batch.get("pixels"), batch.get("latents")
        if pixels is not None:
            with torch.no_grad(), self.in_its_own_format():
                mean, std = encode_in_parts(self.base, pixels)
        else:
            assert cached is not None
            mean, std = to_device(cached, self.base.device), batch.get("latents_std")
        if std is None or self.latent_sampling == "deterministic":
            return mean
        if self.latent_sampling == "once":
            noise = normal(mean, self.seed, "latents once", batch["indices"])
        else:
            noise = normal(mean, self.seed, "latents", batch["positions"])
        return mean + to_device(std, mean.device).to(mean.dtype) * noise

    def in_its_own_format(self) -> AbstractContextManager[object]:
        """Disable autocast inside the context, so that the VAE encodes as in the cache."""
        device = self.base.device.type
        return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)

    def noise(self, positions: list[int], like: Tensor) -> Tensor:
        """Return standard normal noise of the shape of `like`, drawn on the CPU."""
        draws = []
        for position in positions:
            source = generator(self.seed, "noise", position)
            noise = torch.randn(like.shape[1:], generator=source)
            if self.config.noise_offset:
                offset = torch.randn((like.shape[-3], 1, 1), generator=source)
                noise = noise + self.config.noise_offset * offset
            draws.append(noise)
        return to_device(torch.stack(draws).to(like.dtype), like.device)

    def timesteps(self, batch: Batch) -> Tensor:
        """Return timesteps (b,), on the model's device: the batch's, or drawn on the CPU."""
        if "timesteps" in batch:
            return to_device(batch["timesteps"], self.base.device)
        return to_device(self.drawn_timesteps(batch), self.base.device)

    def drawn_timesteps(self, batch: Batch) -> Tensor:
        """Draw timesteps (b,) by the parametrization, on the CPU."""
        low, high = self.timestep_range
        if self.config.timestep_sampling == "stratified":
            at = batch["positions"], batch["step_size"], low, high, batch["first_position"]
            uniform = stratified_timesteps(self.seed, *at)
        else:
            draws = [
                torch.randint(low, high, (), generator=generator(self.seed, "timestep", position))
                for position in batch["positions"]
            ]
            uniform = torch.stack(draws)
        return self.parametrization.sample_timesteps(uniform)

    @property
    def timestep_range(self) -> tuple[int, int]:
        """Return the first timestep, and the one after the last."""
        last = self.config.max_timestep or self.parametrization.num_train_timesteps
        return self.config.min_timestep, last

    def weights(self, timesteps: Tensor) -> Tensor:
        """Return the weight of the prediction's error at the timesteps (b,)."""
        law = self.config.weighting, self.config.snr_gamma
        return self.parametrization.loss_weight(timesteps, *law)
