"""AutoencoderKLCogVideoX with its chunks of frames shared out to the processes of a context group.

diffusers' own `encode` and `decode` run in every process, with its slices, tiles and chunks
(`autoencoder_kl_cogvideox.py`, 0.42.1). What changes is that each process skips the chunks of the
others, and that its convolutions get the frames before a chunk from the process that computes the
chunk before, instead of from `conv_cache`. So every chunk is computed from the same numbers in the
same shapes as by one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inference.models.cogvideox.arithmetic import FrameRule
from inference.parallel import Pass, Ring, brought_to_first, chunk_bounds, joined_frames, replaced


class SharedFrames:
    """A VAE whose clips several processes encode and decode together."""

    def __init__(self, vae: Any, ring: Ring, device: torch.device) -> None:
        """Describe the sharing; `at_work` begins it.

        Args:
            vae: an `AutoencoderKLCogVideoX`.
            ring: the processes.
            device: on which the VAE computes, wherever it lies meanwhile.
        """
        self.vae = vae
        self.ring = ring
        self.device = device
        self.rule = FrameRule.of(vae)
        self._pass: Pass | None = None
        """Of the chunk that is being computed."""
        self._chunks = 1
        """Of the clip that is being encoded or decoded."""

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let all processes encode and decode together inside the context.

        There each must encode and decode the same clips in the same order. Encoding gives the
        latents of the whole clip in every process, decoding the frames of the process's own chunks.
        A clip of one chunk is computed whole by each process.
        """
        vae = self.vae
        self.ring.meet(self.device)
        with ExitStack() as stack:
            for half in (vae.encoder, vae.decoder):
                for module, frames in causal_convolutions(half):
                    if frames > 0:
                        before = partial(self._give_halo, frames)
                        hook = module.register_forward_pre_hook(before, with_kwargs=True)
                        stack.callback(hook.remove)
                    stack.callback(module.register_forward_hook(self._drop_cache).remove)
                stack.enter_context(replaced(half, "forward", self._forward(half, half.forward)))
            stack.enter_context(replaced(vae, "sharers", (self.ring.place, self.ring.size)))
            stack.enter_context(replaced(vae, "_encode", self._encode(vae._encode)))
            stack.enter_context(replaced(vae, "_decode", self._decode(vae._decode)))
            yield

    def frame_lengths(self, latent_frames: int) -> list[int]:
        """Return the frames that each chunk of latent frames is decoded to."""
        bounds = chunk_bounds(latent_frames, self.rule.latent_chunk)
        return [self.rule.decoded_frames(end - start) for start, end in bounds]

    def latent_lengths(self, frames: int) -> list[int]:
        """Return the latent frames that each chunk of frames is encoded to."""
        bounds = chunk_bounds(frames, self.rule.frame_chunk)
        return [self.rule.latent_frames(end - start) for start, end in bounds]

    def to_first(self, decode: Callable[[], np.ndarray], latent_frames: int) -> np.ndarray:
        """Return a clip's frames (f, h, w, 3) in the first process; (0, h, w, 3) in the others.

        Args:
            decode: returns the frames of this process's chunks.
            latent_frames: of the whole clip.

        Raises:
            FloatingPointError: a frame is not finite, of whichever process.
        """
        fault, own = None, np.empty(0)
        try:
            own = decode()
        except FloatingPointError as error:  # raised when no process waits any more
            fault = error
        is_faulty = self.ring.any(fault is not None, self.device)
        if fault is not None:
            raise fault
        if is_faulty:
            raise FloatingPointError("the part of the clip in another process is not finite")
        lengths = self.frame_lengths(latent_frames)
        if len(lengths) == 1:
            return own if self.ring.is_first else own[:0]
        frames = brought_to_first(self.ring, torch.from_numpy(own), lengths, self.device)
        return own[:0] if frames is None else frames.numpy()

    def _encode(self, encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the VAE's `_encode`, with the moments of all processes."""

        def encoding(x: Tensor) -> Tensor:
            lengths = self.latent_lengths(x.shape[2])
            self._chunks = len(lengths)
            moments = encode(x)
            return joined_frames(self.ring, moments, lengths, 2) if len(lengths) > 1 else moments

        return encoding

    def _decode(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        """Return the VAE's `_decode`, with the frames of this process."""

        def decoding(z: Tensor, return_dict: bool = True) -> Any:
            self._chunks = len(chunk_bounds(z.shape[2], self.rule.latent_chunk))
            return decode(z, return_dict=return_dict)

        return decoding

    def _forward(self, half: nn.Module, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Return the `forward` of the encoder or decoder, which computes this process's chunks.

        diffusers gives what it returns as `conv_cache` to the next chunk of the clip or tile.
        """

        def forward(
            sample: Tensor, temb: Tensor | None = None, conv_cache: Pass | None = None
        ) -> tuple[Tensor, Pass | None]:
            if self._chunks == 1:
                return compute(sample, temb)[0], None
            if torch.is_grad_enabled() and any(p.requires_grad for p in half.parameters()):
                raise NotImplementedError("halos have no gradients: the VAE cannot be trained")
            current = Pass(self.ring, self._chunks) if conv_cache is None else conv_cache
            if not current.advance():
                return self._no_frames(half, sample), current
            self._pass = current
            try:
                return compute(sample, temb)[0], current
            finally:
                self._pass = None

        return forward

    def _no_frames(self, half: nn.Module, sample: Tensor) -> Tensor:
        """Return what the encoder or decoder makes of no frames."""
        config, (batch, _, _, height, width) = self.vae.config, sample.shape
        factor = 2 ** (len(config.block_out_channels) - 1)
        if half is self.vae.encoder:
            channels = 2 * config.latent_channels
            return sample.new_empty(batch, channels, 0, height // factor, width // factor)
        return sample.new_empty(batch, config.out_channels, 0, height * factor, width * factor)

    def _give_halo(
        self, frames: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Give a convolution the frames before its input."""
        if self._pass is None:
            return None
        return args, {**kwargs, "conv_cache": self._pass.halo(args[0], frames)}

    def _drop_cache(
        self, module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor | None]
    ) -> tuple[Tensor, None] | None:
        """Drop the frames that a convolution keeps for the next chunk."""
        return None if self._pass is None else (output[0], None)


def causal_convolutions(half: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Yield the causal convolutions of the encoder or decoder.

    Each with the frames that it reads of the chunk before.
    """
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d

    for module in half.modules():
        if isinstance(module, CogVideoXCausalConv3d):
            known: Any = module
            is_alone = known.pad_mode == "replicate"
            yield module, 0 if is_alone else known.time_kernel_size - 1
