"""Frame packing: clips of several durations in one row, without attention between them.

CogVideoX' "multi-resolution frame pack" (arXiv 2408.06072, 3.1) after Patch n' Pack (Dehghani et
al. 2023, arXiv 2307.06304), with a stock diffusers transformer. A row has one size and one
timestep, and attention takes a dense mask, which grows with the square of the row's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from inference.models import Conditions
from inference.models.cogvideox import Kind, Rotary, offset, rotary_positions, video_tokens
from inference.runtime import InputError, to_device
from train.common import Batch
from train.families.cogvideox.clips import ClipDenoising
from train.losses import stratified_timesteps


@dataclass(frozen=True)
class PackedRow:
    """The transformer's input for several clips at once."""

    hidden_states: Tensor
    """Latents (1, all latent frames, c, h, w)."""
    encoder_hidden_states: Tensor
    """Prompt embeddings (1, all prompt tokens, width)."""
    image_rotary_emb: Rotary
    """Positions (all video tokens, head_dim); time restarts with each clip."""
    attention_mask: Tensor
    """(1, s, s), 0 within a clip with its prompt and -inf elsewhere; all prompts come first."""
    latent_frames: tuple[int, ...]
    """Latent frames of each clip."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `CogVideoXTransformer3DModel.forward`, except `timestep` (1,)."""
        return {
            "hidden_states": self.hidden_states,
            "encoder_hidden_states": self.encoder_hidden_states,
            "image_rotary_emb": self.image_rotary_emb,
            "attention_kwargs": {"attention_mask": self.attention_mask},
        }

    def unpack(self, prediction: Tensor) -> list[Tensor]:
        """Return each clip's prediction (latent frames, c, h, w), from (1, all, c, h, w)."""
        return list(prediction[0].split(self.latent_frames))


def pack(
    latents: Sequence[Tensor],
    prompt_states: Sequence[Tensor],
    transformer_config: Any,
    kind: Kind = "pipeline",
) -> PackedRow:
    """Pack several clips of one size into one row, to be denoised at one timestep.

    Args:
        latents: noisy clips (latent frames, c, h, w), with their image latents if the model
            takes any; CogVideoX 1.5: already padded to whole patches of frames.
        prompt_states: (tokens, width) of each clip.
        transformer_config: config of a `CogVideoXTransformer3DModel`.
        kind: of the positions, as in `rotary_positions`.

    Raises:
        InputError: the model adds positions to its tokens (2B, 5B-I2V): they fit one clip only.
        ValueError: clips differ in size, do not have whole patches of frames, or their number is
            not that of the prompts.
    """
    check_packing(transformer_config)
    sizes = {tuple(clip.shape[1:]) for clip in latents}
    if len(sizes) != 1:
        raise ValueError(f"clips of one size go into a row, not of {sorted(sizes)}")
    frames = tuple(len(clip) for clip in latents)
    if any(count % (transformer_config.patch_size_t or 1) for count in frames):
        raise ValueError(f"{frames} latent frames: no whole patches; pad each clip first")
    height, width = latents[0].shape[-2:]
    device = latents[0].device
    tables = [
        rotary_positions(transformer_config, height, width, count, device, kind) for count in frames
    ]
    cosines, sines = zip(*filter(None, tables), strict=True)
    clips = range(len(latents))
    of_prompts = [len(states) for _, states in zip(clips, prompt_states, strict=True)]
    of_clips = [video_tokens(count, height, width, transformer_config) for count in frames]
    owners = torch.tensor([*clips, *clips]).repeat_interleave(torch.tensor(of_prompts + of_clips))
    return PackedRow(
        torch.cat(list(latents)).unsqueeze(0),
        torch.cat(list(prompt_states)).unsqueeze(0),
        (torch.cat(cosines), torch.cat(sines)),
        block_mask(to_device(owners, device), latents[0].dtype),
        frames,
    )


def block_mask(owners: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the attention bias, (1, s, s): -inf between tokens of two owners."""
    apart = owners.unsqueeze(0) != owners.unsqueeze(1)
    mask = torch.zeros(apart.shape, dtype=dtype, device=owners.device)
    return mask.masked_fill_(apart, float("-inf")).unsqueeze(0)


def check_packing(transformer_config: Any) -> None:
    """Reject models whose positions are not applied in attention.

    Raises:
        InputError: positions are added to the tokens (2B, 5B-I2V).
    """
    if transformer_config.use_learned_positional_embeddings:
        raise InputError(
            "pack: this model adds learned positions, which fit one clip; use "
            "drop_learned_positions: true, or buckets instead"
        )
    if not transformer_config.use_rotary_positional_embeddings:
        raise InputError(
            "pack: this model adds its positions to the tokens, which fits one clip; use buckets"
        )


@dataclass(frozen=True)
class PackedDenoising(ClipDenoising):
    """Turns a micro-batch into one row, and its prediction into one loss per clip.

    Latents, noise and first frames are the same as without packing; so are the losses
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
        return errors * self.weights(timesteps).to(errors)

    def seen(self, noisy: Tensor, clip: Batch) -> Tensor:
        """Return the transformer's input of a clip, (1, f', c, h', w'), with its image latents."""
        if not self.base.is_image_to_video:
            return noisy
        return torch.cat([noisy, self.image_conditioning(clip, noisy)], dim=2)

    def predictions(
        self, clips: list[Tensor], conditions: Conditions, timestep: Tensor
    ) -> list[Tensor]:
        """Return the velocity of each clip, (f', c, h', w'), from one model evaluation."""
        base = self.base
        row = pack(
            [clip[0].to(base.dtype) for clip in clips],
            list(conditions.states.to(base.dtype)),
            base.config,
        )
        ofs = offset(base.config, row.hidden_states)
        predicted = base.transformer(**row.arguments(), timestep=timestep, ofs=ofs)
        return row.unpack(predicted.sample)

    def drawn_timesteps(self, batch: Batch) -> Tensor:
        """Draw one timestep for all (b,), by the row's index: strata are dealt to rows."""
        positions = batch["positions"]
        if self.config.timestep_sampling != "stratified":
            drawn = super().drawn_timesteps(single(batch, 0))
        else:
            first, rows = batch["first_position"], batch["step_size"] // len(positions)
            row = first + (positions[0] - first) // len(positions)
            low, high = self.timestep_range
            drawn = stratified_timesteps(self.seed, [row], rows, low, high, first)
        return drawn.expand(len(positions))


def single(batch: Batch, place: int) -> Batch:
    """Return one example of a micro-batch, as a micro-batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor | Conditions):
            return value[place : place + 1]
        if isinstance(value, list):
            return value[place][None] if isinstance(value[place], Tensor) else [value[place]]
        return value

    return cast("Batch", {name: cut(value) for name, value in batch.items()})
