"""CogVideoX's transformer on several processes, each with a part of the clip's tokens.

diffusers 0.42 has neither a plan for this model nor an attention processor that would look beyond
the tokens of its own process (diffusers issue 13622). Both are here; splitting, gathering and the
exchange in attention are those of diffusers.

Each process has a share of the prompt's tokens and one of the clip's: tokens are in the order of
frames, so it is a share of the time. The embedding is computed whole, so that positions
are added before the split. Both are padded to equal shares, and padding is masked in attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from diffusers.hooks.hooks import HookRegistry, ModelHook
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from inference.models.cogvideox.arithmetic import video_tokens
from inference.models.cogvideox.transformer import EagerProcessor
from inference.parallel import missing

PLAN: dict[str, Any] = {
    "transformer_blocks.0": {
        "hidden_states": ContextParallelInput(1, 3),
        "encoder_hidden_states": ContextParallelInput(1, 3),
    },
    "transformer_blocks.*": {
        "image_rotary_emb": [ContextParallelInput(0, 2), ContextParallelInput(0, 2)]
    },
    "proj_out": ContextParallelOutput(1, 3),
}
"""A `_cp_plan` for CogVideoXTransformer3DModel, whose tokens must be divisible."""

PADDING = "limner_padding"
"""Name of the hooks that make them divisible."""


@dataclass(frozen=True)
class Row:
    """The tokens of one example, on several processes."""

    text: int
    video: int
    processes: int

    @property
    def is_padded(self) -> bool:
        """Return whether the processes have tokens of padding."""
        return any(missing(count, self.processes) for count in (self.text, self.video))

    def places(self) -> Tensor:
        """Return the place in prompt + clip of each token, in the processes' order; -1 is padding.

        The order is that of attention: prompt and clip of the first process, then of the next.
        """
        text, video = torch.arange(self.text), self.text + torch.arange(self.video)
        parts = [
            F.pad(one, (0, missing(len(one), self.processes)), value=-1).chunk(self.processes)
            for one in (text, video)
        ]
        return torch.cat([part for pair in zip(*parts, strict=True) for part in pair])

    def mask(self, given: Tensor | None, like: Tensor) -> Tensor | None:
        """Return the bias of attention (b, 1, s or 1, s) in the processes' order; None for none.

        Args:
            given: bias (b, s, s) of packed clips in the order of prompt + clip, or None.
            like: has the dtype and device of the result.
        """
        if given is None and not self.is_padded:
            return None
        places = self.places().to(like.device)
        bias = torch.zeros(len(places), dtype=like.dtype, device=like.device)
        bias = bias.masked_fill(places < 0, float("-inf")).view(1, 1, 1, -1)
        if given is None:
            return bias
        known = places.clamp(min=0)
        ordered = given[:, known][:, :, known].masked_fill((places < 0).view(1, -1, 1), 0)
        return ordered.unsqueeze(1).to(like.dtype) + bias


class ContextAttention:
    """diffusers' `CogVideoXAttnProcessor2_0` for a share of the tokens."""

    def __init__(self, parallel_config: Any) -> None:
        self.parallel_config = parallel_config

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        count = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            layer(tokens).unflatten(-1, (attn.heads, -1))
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )  # (b, tokens, heads, width)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (turned(one, count, image_rotary_emb) for one in (query, key))
        # autocast's norms are fp32, and the backward pass is not under autocast
        seen = dispatch_attention_fn(
            query.to(value.dtype),
            key.to(value.dtype),
            value,
            attn_mask=None if attention_mask is None else attention_mask.to(value.dtype),
            backend=AttentionBackendName.NATIVE,  # others take no mask
            parallel_config=self.parallel_config,
        )
        seen = attn.to_out[1](attn.to_out[0](seen.flatten(2)))
        return seen[:, count:], seen[:, :count]


def turned(heads: Tensor, count: int, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Return queries or keys (b, s, heads, width) with positions, from the token `count` on."""
    apply: Any = apply_rotary_emb
    positioned = apply(heads[:, count:], rotary, sequence_dim=1)
    return torch.cat([heads[:, :count], positioned], dim=1)


class WholeRow(ModelHook):
    """Of the transformer: sizes, mask and padded positions of the row it is called with."""

    def __init__(self, config: Any, processes: int) -> None:
        super().__init__()
        self.config = config
        self.processes = processes
        self.row = Row(0, 0, processes)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        latents, prompts = kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        frames, _, height, width = latents.shape[1:]
        video = video_tokens(frames, height, width, self.config)
        self.row = row = Row(prompts.shape[1], video, self.processes)
        given = dict(kwargs.get("attention_kwargs") or {})
        given["attention_mask"] = row.mask(given.get("attention_mask"), latents)
        kwargs["attention_kwargs"] = given
        if (rotary := kwargs.get("image_rotary_emb")) is not None:
            padding = (0, 0, 0, missing(video, self.processes))
            rotary = tuple(F.pad(table, padding) for table in rotary)
        kwargs["image_rotary_emb"] = rotary
        return args, kwargs


class PaddedTokens(ModelHook):
    """Of the first block: pads prompt and clip before they are split."""

    def __init__(self, processes: int) -> None:
        super().__init__()
        self.processes = processes

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args:  # gradient checkpointing passes no keywords
            return (*map(self.padded, args[:2]), *args[2:]), kwargs
        names = ("hidden_states", "encoder_hidden_states")
        return args, {**kwargs, **{name: self.padded(kwargs[name]) for name in names}}

    def padded(self, tokens: Tensor) -> Tensor:
        """Return tokens (b, s, width) in a number that the processes can share."""
        return F.pad(tokens, (0, 0, 0, missing(tokens.shape[1], self.processes)))


class OwnTokens(ModelHook):
    """Of the last layer: takes the padding off the gathered tokens.

    Each process computes the same loss, and passes back the gradient of its own tokens: a weight's
    gradient is the sum over the processes. They are averaged over all processes, as without
    context parallelism, so the gradient is multiplied by their number here.
    """

    def __init__(self, whole: WholeRow) -> None:
        super().__init__()
        self.whole = whole

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        tokens = output[:, : self.whole.row.video]
        if tokens.requires_grad:
            tokens.register_hook(lambda gradient: gradient * self.whole.processes)
        return tokens


class DividedTransformer:
    """Switches context parallelism of a transformer on and off."""

    def __init__(self, transformer: Any, parallel_config: Any, processes: int) -> None:
        """Switch it on.

        Args:
            transformer: a CogVideoXTransformer3DModel.
            parallel_config: from `inference.parallel.parallel_config`.
            processes: that share a row.
        """
        self.transformer = transformer
        self.parallel_config = parallel_config
        self.processes = processes
        self.switch_on()

    def switch_on(self) -> None:
        """Let the processes share each row from now on."""
        transformer = self.transformer
        self.processors = dict(transformer.attn_processors)
        own: dict[str, Any] = {}
        for name, processor in self.processors.items():
            divided = ContextAttention(self.parallel_config)
            own[name] = EagerProcessor(divided) if is_eager(processor) else divided
        transformer.set_attn_processor(own)
        apply_context_parallel(transformer, self.parallel_config.context_parallel_config, PLAN)
        whole = WholeRow(transformer.config, self.processes)
        for module, hook in (
            (transformer, whole),
            (transformer.transformer_blocks[0], PaddedTokens(self.processes)),
            (transformer.proj_out, OwnTokens(whole)),
        ):
            HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, PADDING)

    def switch_off(self) -> None:
        """Let each process compute whole rows again."""
        HookRegistry.check_if_exists_or_initialize(self.transformer).remove_hook(PADDING)
        remove_context_parallel(self.transformer, PLAN)
        self.transformer.set_attn_processor(dict(self.processors))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let each process compute whole rows inside the context."""
        self.switch_off()
        try:
            yield
        finally:
            self.switch_on()


def is_eager(processor: Any) -> bool:
    """Return whether a processor computes attention explicitly (`base_model.attention`)."""
    return isinstance(processor, EagerProcessor)
