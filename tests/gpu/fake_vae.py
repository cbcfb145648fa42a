# SPDX-License-Identifier: Apache-2.0
"""Peak memory of encoding and decoding at full size, weights of the VAE included.

    FAKE_FULL=FOLDER python -m tests.gpu.fake_vae [part of a case's name]

FOLDER is the target of full_size_folders.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

from tests.gpu import mock_cuda

mock_cuda.install(memory=80 * 2**30)  # before torch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from inference.config import BaseModelConfig
from tests.gpu.fake_memory import GIB, Live, attention, make_fake
from train.plan import skeleton

FULL = os.environ["FAKE_FULL"]
CASES = [
    ("sd15 encode 4x512 fp32", f"{FULL}/sd15", "encode", (4, 3, 512, 512), torch.float32, False),
    ("sdxl encode 1x1024 fp32", f"{FULL}/sdxl", "encode", (1, 3, 1024, 1024), torch.float32, False),
    ("sdxl encode 4x1024 fp32", f"{FULL}/sdxl", "encode", (4, 3, 1024, 1024), torch.float32, False),
    ("sdxl decode 1x1024 fp32", f"{FULL}/sdxl", "decode", (1, 4, 128, 128), torch.float32, False),
    ("sdxl decode 1x1024 bf16", f"{FULL}/sdxl", "decode", (1, 4, 128, 128), torch.bfloat16, False),
    (
        "cog5b encode 49x480x720 fp32",
        "THUDM/CogVideoX-5b",
        "encode",
        (1, 3, 49, 480, 720),
        torch.float32,
        False,
    ),
    (
        "cog5b encode 49x480x720 bf16",
        "THUDM/CogVideoX-5b",
        "encode",
        (1, 3, 49, 480, 720),
        torch.bfloat16,
        False,
    ),
    (
        "cog5b encode 49x480x720 bf16 tiled",
        "THUDM/CogVideoX-5b",
        "encode",
        (1, 3, 49, 480, 720),
        torch.bfloat16,
        True,
    ),
    (
        "cog5b decode 49x480x720 bf16",
        "THUDM/CogVideoX-5b",
        "decode",
        (1, 13, 16, 60, 90),
        torch.bfloat16,
        False,
    ),
    (
        "cog5b decode 49x480x720 fp32",
        "THUDM/CogVideoX-5b",
        "decode",
        (1, 13, 16, 60, 90),
        torch.float32,
        False,
    ),
    (
        "cog5b decode 49x480x720 bf16 tiled",
        "THUDM/CogVideoX-5b",
        "decode",
        (1, 13, 16, 60, 90),
        torch.bfloat16,
        True,
    ),
    (
        "cog1.5 encode 81x768x1360 bf16",
        "THUDM/CogVideoX1.5-5B",
        "encode",
        (1, 3, 81, 768, 1360),
        torch.bfloat16,
        False,
    ),
    (
        "cog1.5 decode 81x768x1360 bf16",
        "THUDM/CogVideoX1.5-5B",
        "decode",
        (1, 21, 16, 96, 170),
        torch.bfloat16,
        False,
    ),
]


def measure(path: str, what: str, shape: tuple[int, ...], dtype: torch.dtype, tiled: bool) -> Any:
    """Return GiB of the weights and at the peak, and the operation at the peak."""
    vae: Any = skeleton(BaseModelConfig(path=path), "fp32").parts["vae"]
    vae.to(dtype)
    mode, live = FakeTensorMode(allow_non_fake_inputs=True), Live()
    make_fake([vae], mode)
    if tiled:
        vae.enable_tiling()
    with torch.inference_mode(), mode, live:
        for parameter in vae.parameters():
            live.note(parameter)
        weights = live.now
        given = torch.zeros(shape, dtype=dtype, device="cuda")
        if what == "encode":
            vae.encode(given).latent_dist.mean.float()
        else:
            vae.decode(given.transpose(1, 2) if len(shape) == 5 else given).sample.float()
    sizes = {"weights": round(weights / GIB, 2), "peak": round(live.peak / GIB, 2)}
    return {**sizes, "at": live.at_peak, "ops": live.ops}


def main() -> None:
    """Print a line of JSON for each case."""
    torch.nn.functional.scaled_dot_product_attention = attention
    for name, *case in CASES:
        if len(sys.argv) > 1 and sys.argv[1] not in name:
            continue
        start = time.time()
        try:
            found = measure(*case)
        except Exception as error:  # report it and go on
            traceback.print_exc()
            found: dict[str, Any] = {"error": repr(error)[:200]}
        found["seconds"] = round(time.time() - start)
        print(json.dumps({"case": name, **found}), flush=True)


if __name__ == "__main__":
    main()
