"""Frame packing: clips of several durations in one row, each blind to the others.

CogVideoX' "multi-resolution frame pack" (arXiv 2408.06072, 3.1) after Patch n' Pack (Dehghani et
al. 2023, arXiv 2307.06304), with a stock diffusers transformer. So a row has one size and one
timestep, and attention takes a dense mask, which grows with the square of the row's tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.errors import InputError
from inference.video.arithmetic import video_tokens
from inference.video.positions import Kind, Rotary, rotary_positions


@dataclass(frozen=True)
class PackedRow:
    """What the transformer is told of several clips at once."""

    hidden_states: Tensor
    """Latents (1, all latent frames, c, h, w)."""
    encoder_hidden_states: Tensor
    """Prompt states (1, all prompt tokens, width)."""
    image_rotary_emb: Rotary
    """Positions (all video tokens, head_dim); time begins anew with each clip."""
    attention_mask: Tensor
    """(1, s, s), 0 within a clip with its prompt and -inf elsewhere; all prompts stand first."""
    latent_frames: tuple[int, ...]
    """Of each clip."""

    def arguments(self) -> dict[str, Any]:
        """For `CogVideoXTransformer3DModel.forward`, which wants `timestep` (1,) besides."""
        return {
            "hidden_states": self.hidden_states,
            "encoder_hidden_states": self.encoder_hidden_states,
            "image_rotary_emb": self.image_rotary_emb,
            "attention_kwargs": {"attention_mask": self.attention_mask},
        }

    def unpack(self, prediction: Tensor) -> list[Tensor]:
        """The clips' own predictions, each (latent frames, c, h, w), from (1, all, c, h, w)."""
        return list(prediction[0].split(self.latent_frames))


def pack(
    latents: Sequence[Tensor],
    prompt_states: Sequence[Tensor],
    transformer_config: Any,
    kind: Kind = "pipeline",
) -> PackedRow:
    """One row of several clips of one size, to be denoised at one timestep.

    Args:
        latents: noisy clips (latent frames, c, h, w), with their image latents where the model
            takes any; CogVideoX 1.5: already padded to whole patches of frames.
        prompt_states: (tokens, width) of each clip.
        transformer_config: config of a `CogVideoXTransformer3DModel`.
        kind: of the positions, as `rotary_positions`.

    Raises:
        InputError: the model adds positions to its tokens (2B, 5B-I2V): they fit one clip only.
        ValueError: clips of several sizes, of frames that make no whole patches, or another number
            of prompts.
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
        block_mask(owners.to(device), latents[0].dtype),
        frames,
    )


def block_mask(owners: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of attention, (1, s, s): -inf between tokens of two owners."""
    apart = owners.unsqueeze(0) != owners.unsqueeze(1)
    mask = torch.zeros(apart.shape, dtype=dtype, device=owners.device)
    return mask.masked_fill_(apart, float("-inf")).unsqueeze(0)


def check_packing(transformer_config: Any) -> None:
    """Refuses models whose positions are no matter of attention.

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
