"""The loss of clips that share a row of the transformer (`data.clips.pack`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from inference.conditions import Conditions
from inference.video.image_condition import offset
from train.batch import Batch
from train.clip_denoising import ClipDenoising
from train.packing import check_packing, pack
from train.timesteps import stratified_timesteps


@dataclass(frozen=True)
class PackedDenoising(ClipDenoising):
    """Turns a micro-batch into one row, and that into one loss per clip.

    Latents, noise and first frames are those that the clips have by themselves; so are their losses
    at the row's timestep.
    """

    def __post_init__(self) -> None:
        check_packing(self.base.config)

    def loss(self, batch: Batch) -> Tensor:
        timesteps = self.timesteps(batch)
        clips = [single(batch, place) for place in range(len(timesteps))]
        pairs = [self.noised(clip, timesteps[:1]) for clip in clips]
        predictions = self.predictions(
            [self.seen(noisy, clip) for clip, (noisy, _) in zip(clips, pairs, strict=True)],
            self.states(batch),
            timesteps[:1],
        )
        errors = torch.cat(
            [
                self.errors(prediction[None].float(), target)
                for prediction, (_, target) in zip(predictions, pairs, strict=True)
            ]
        )
        return errors * self.weights(self.base.alphas_cumprod[timesteps]).to(errors)

    def seen(self, noisy: Tensor, clip: Batch) -> Tensor:
        """What the transformer sees of a clip, (1, f', c, h', w'): image latents are told along."""
        if not self.base.is_image_to_video:
            return noisy
        return torch.cat([noisy, self.told_image(clip, noisy)], dim=2)

    def predictions(
        self, clips: list[Tensor], conditions: Conditions, timestep: Tensor
    ) -> list[Tensor]:
        """The velocity of each clip, (f', c, h', w'), of one run of the transformer."""
        base = self.base
        row = pack(
            [clip[0].to(base.dtype) for clip in clips],
            list(conditions.states.to(base.dtype)),
            base.config,
        )
        device = row.hidden_states.device
        ofs = offset(base.config, row.hidden_states)
        predicted = base.transformer(**row.arguments(), timestep=timestep.to(device), ofs=ofs)
        return row.unpack(predicted.sample)

    def timesteps(self, batch: Batch) -> Tensor:
        """One timestep for all (b,), drawn by the row's place: strata are dealt to rows."""
        if "timesteps" in batch:
            return batch["timesteps"]
        positions = batch["positions"]
        if self.config.timestep_sampling != "stratified":
            drawn = super().timesteps(single(batch, 0))
        else:
            first, rows = batch["first_position"], batch["step_size"] // len(positions)
            row = first + (positions[0] - first) // len(positions)
            low, high = self.timestep_range
            drawn = stratified_timesteps(self.seed, [row], rows, low, high, first)
        return drawn.expand(len(positions))


def single(batch: Batch, place: int) -> Batch:
    """One example of a micro-batch, as a micro-batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor | Conditions):
            return value[place : place + 1]
        if isinstance(value, list):
            return value[place][None] if isinstance(value[place], Tensor) else [value[place]]
        return value

    return cast("Batch", {name: cut(value) for name, value in batch.items()})
