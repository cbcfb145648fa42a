# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a UNet evaluation without gradients at full size, weights included.

    FAKE_FULL=FOLDER python -m tests.gpu.fake_draw

FOLDER is the target of full_size_folders.py.
"""

from __future__ import annotations

import json
import os

from tests.gpu import mock_cuda

mock_cuda.install(memory=80 * 2**30)  # before torch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from inference.config import BaseModelConfig
from inference.models import Conditions
from tests.gpu.fake_memory import GIB, Live, attention, make_fake
from train.plan import skeleton

CASES = (
    ("sdxl", 2, 128, torch.bfloat16),
    ("sdxl", 16, 128, torch.bfloat16),
    ("sdxl", 2, 128, torch.float32),
    ("sd15", 16, 64, torch.bfloat16),
)


def main() -> None:
    """Print a line of JSON for each case."""
    torch.nn.functional.scaled_dot_product_attention = attention
    for name, rows, side, dtype in CASES:
        base = skeleton(BaseModelConfig(path=f"{os.environ['FAKE_FULL']}/{name}"), "fp32")
        unet = base.denoiser.to(dtype)
        mode, live = FakeTensorMode(allow_non_fake_inputs=True), Live()
        make_fake([unet], mode)
        with torch.inference_mode(), mode, live:
            for parameter in unet.parameters():
                live.note(parameter)
            weights = live.now
            tokens, width = base.prompt_shape
            states = torch.zeros(rows, tokens, width, dtype=dtype, device="cuda")
            pooled = torch.zeros(rows, 1280, dtype=dtype, device="cuda") if name == "sdxl" else None
            latents = torch.zeros(rows, 4, side, side, dtype=dtype, device="cuda")
            base.predict(latents, torch.zeros(rows, device="cuda"), Conditions(states, pooled))
        found = {"weights": round(weights / GIB, 2), "peak": round(live.peak / GIB, 2)}
        print(json.dumps({"case": f"{name} {rows} rows {dtype}", **found}), flush=True)


if __name__ == "__main__":
    main()
