"""diffusers' caches, which skip repeated work between steps; enabled only while generating.

Pyramid Attention Broadcast (Zhao et al. 2024, arXiv 2408.12588), FasterCache (Lv et al. 2024,
arXiv 2410.19355), First Block Cache (ParaAttention), MagCache (Ma et al. 2025, arXiv 2506.09045).
TaylorSeer and SeaCache have no effect on CogVideoX in diffusers 0.42.1, and are not offered.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from inference.config import Cache, CacheConfig, ClipConfig
from inference.models import ClipModel
from inference.runtime import output

CONTEXT = "cond_uncond"
"""The pipelines' name for evaluating both prompts at once."""


@dataclass
class StepCache:
    """One of the caches, or none."""

    kind: Cache = "none"
    settings: CacheConfig = field(default_factory=CacheConfig)
    tell: Callable[[str], object] = output
    """Called with the mag_ratios that calibration has found."""
    timestep: int = 0
    """The timestep of the transformer's current evaluation."""

    @property
    def summary(self) -> str | None:
        """Return its entry for the infotext."""
        return None if self.kind == "none" or self.settings.calibrate else self.kind

    @contextmanager
    def on(self, base: ClipModel, request: ClipConfig, steps: int) -> Iterator[None]:
        """Enable it for one clip; afterwards the transformer is as before."""
        if self.kind == "none":
            yield
            return
        transformer = base.denoiser
        with as_before(transformer), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid")  # FasterCache's
            transformer.enable_cache(self.config(base, request, steps))
            try:
                yield
                if self.settings.calibrate:
                    self.tell(f"mag_ratios of seed {request.seed}: {found_ratios(transformer)}")
            finally:
                transformer.disable_cache()

    def context(self, base: ClipModel) -> Any:
        """Return the context of an evaluation, by which the cache separates its states."""
        return nullcontext() if self.kind == "none" else base.denoiser.cache_context(CONTEXT)

    def config(self, base: ClipModel, request: ClipConfig, steps: int) -> Any:
        """Return its config in diffusers."""
        from diffusers.hooks.faster_cache import FasterCacheConfig
        from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
        from diffusers.hooks.mag_cache import MagCacheConfig
        from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig

        given = self.settings
        attention: dict[str, Any] = {
            "spatial_attention_block_skip_range": given.skip,
            "spatial_attention_timestep_skip_range": tuple(given.timesteps),
            "current_timestep_callback": lambda: self.timestep,
        }
        match self.kind:
            case "pab":
                return PyramidAttentionBroadcastConfig(**attention)
            case "faster_cache":
                return FasterCacheConfig(
                    **attention,
                    spatial_attention_block_identifiers=base.block_lists,
                    attention_weight_callback=lambda _: 0.3,
                    tensor_format=base.tensor_format,
                    is_guidance_distilled=request.is_unguided,
                )
            case "first_block_cache":
                return FirstBlockCacheConfig(threshold=given.threshold or 0.05)
            case "mag_cache" if given.calibrate:
                return MagCacheConfig(calibrate=True, num_inference_steps=steps + 1)
            case "mag_cache":
                return MagCacheConfig(
                    threshold=given.threshold or 0.06,
                    mag_ratios=list(given.mag_ratios),
                    num_inference_steps=steps,
                )
            case _:
                raise AssertionError(self.kind)


@contextmanager
def as_before(transformer: nn.Module) -> Iterator[None]:
    """Remove attributes that diffusers leaves on modules after its hooks are removed."""
    names = "_diffusers_hook", "forward", "_cache_config"
    before = {module: [name in vars(module) for name in names] for module in transformer.modules()}
    try:
        yield
    finally:
        for module, had in before.items():
            for name, was_there in zip(names, had, strict=True):
                if not was_there:
                    vars(module).pop(name, None)


def found_ratios(transformer: nn.Module) -> list[float]:
    """Return the ratios of MagCache's calibration, read before it resets itself."""
    from diffusers.hooks.mag_cache import _MAG_CACHE_BLOCK_HOOK

    for module in transformer.modules():
        registry = vars(module).get("_diffusers_hook")
        hook = registry.get_hook(_MAG_CACHE_BLOCK_HOOK) if registry else None
        if hook is not None:
            states = hook.state_manager._state_cache.values()
            return [round(ratio, 5) for state in states for ratio in state.calibration_ratios]
    raise AssertionError("MagCache is not switched on")
