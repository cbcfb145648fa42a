"""The block `speed:` of recipes: how fast the same is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from inference.config.memory import MemoryConfig
from inference.config.models import BaseModelConfig


@dataclass
class SpeedConfig:
    """Levers of speed, which change results by rounding; all are off by default."""

    tf32: bool = False
    """Multiply fp32 matrices in TF32 on GPUs from Ampere on: several times faster, with 10 instead
    of 23 bits of mantissa. fp16 and bf16 do not change."""
    cudnn_benchmark: bool = False
    """Let cuDNN try several kernels for each new shape and keep the fastest. The first steps are
    slower, and two runs may choose different kernels."""
    channels_last: bool = False
    """Store convolutions and images with the channels last, as tensor cores compute them; for image
    models."""
    attention: Literal["auto", "flash", "efficient", "cudnn", "math"] = "auto"
    """Kernel of fused attention: that of PyTorch's choice, or only this one. Inputs that a kernel
    does not support (masks, fp32 in flash) are computed by `math`, in single operations, which
    takes more memory."""
    compile: Literal["none", "whole", "blocks"] = "none"
    """Compile the denoiser as a whole with torch.compile, or each of its repeated blocks, which
    starts faster. The first step of each size takes minutes, fewer the next time: compiled code is
    kept in ~/.cache/limner/inductor, or TORCHINDUCTOR_CACHE_DIR. Needs a C++ compiler on CPUs and
    Triton on GPUs. Previews of training are not compiled."""

    def conflicts(
        self, deterministic: bool, model: BaseModelConfig, memory: MemoryConfig
    ) -> Iterator[tuple[str, str]]:
        """Yield the levers that the rest of a recipe excludes.

        Args:
            deterministic: the recipe's.
            model: its base model.
            memory: where its weights lie.
        """
        if deterministic:
            if self.attention not in ("auto", "math"):
                yield "attention", f"{self.attention} is excluded by deterministic: true, take math"
            if self.cudnn_benchmark:
                yield (
                    "cudnn_benchmark",
                    "may choose another kernel each time: deterministic is true",
                )
            if self.compile != "none":
                yield "compile", "compiled kernels are not known to be exact: deterministic is true"
        if self.compile != "none" and model.quantization is not None:
            problem = (
                f"packed weights are not compiled (base_model.quantization: {model.quantization})"
            )
            yield "compile", problem

        if self.compile != "none" and memory.moves_layers:
            yield "compile", "weights that come to the GPU block by block are not compiled (memory)"

    def without_effect(self, model: BaseModelConfig, for_clips: bool) -> Iterator[tuple[str, str]]:
        """Yield the levers that have no effect with this base model, which may be for clips."""
        if self.attention != "auto" and model.attention == "eager":
            yield "attention", "has no effect with base_model.attention: eager, which is not fused"
        if self.channels_last and for_clips:
            yield "channels_last", "has no effect: it is for image models"


@dataclass
class DrawingSpeedConfig(SpeedConfig):
    """Levers of speed of generation."""

    merge_lora: bool = False
    """Add the LoRAs of `artifacts` to the base model's weights once, instead of computing them in
    every layer and step. The sum is rounded to the weights' data type. Quantized weights are
    refused: their steps are as large as most changes by a LoRA."""


def merging_faults(speed: DrawingSpeedConfig, model: BaseModelConfig) -> Iterator[tuple[str, str]]:
    """Yield `merge_lora` where the sum would be packed again, and lose much of the LoRA."""
    if speed.merge_lora and model.quantization is not None:
        yield (
            "speed.merge_lora",
            f"is excluded by base_model.quantization: {model.quantization}, whose rounding loses "
            "much of a LoRA; leave one of them out",
        )


def merging_idle(
    speed: DrawingSpeedConfig, artifacts: Mapping[str, object], strengths: Sequence[float]
) -> Iterator[tuple[str, str]]:
    """Yield `merge_lora` where nothing is merged.

    Args:
        speed: the block.
        artifacts: those of the recipe.
        strengths: its `compare_strengths`.
    """
    if speed.merge_lora and not artifacts:
        yield "speed.merge_lora", "has no effect without `artifacts`; those of prompts stay apart"
    elif speed.merge_lora and strengths:
        yield (
            "speed.merge_lora",
            "has no effect with compare_strengths, which change what is merged",
        )


def prefixed(problems: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield problems of the block under its keys in the recipe."""
    for key, problem in problems:
        yield f"speed.{key}", problem
