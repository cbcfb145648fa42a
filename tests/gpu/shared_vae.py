# SPDX-License-Identifier: Apache-2.0
"""One of several processes that encode and decode a clip together on mock devices.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=… python -m tests.gpu.shared_vae

Prints as JSON the peaks of the allocator and those of the plan, in bytes, and digests of latents
and frames. WORLD_SIZE=1 is one process that does all.
"""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from tests.gpu import mock_cuda

FRAMES, HEIGHT, WIDTH = 25, 64, 96
SIZES = {"block_out_channels": (16, 32, 32, 64), "norm_num_groups": 8, "layers_per_block": 2}


def measured(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what is made, and the bytes that the allocator gave out at the peak."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = work()
    return made, torch.cuda.max_memory_allocated() - before


def to_frames(pixels: Any) -> Any:
    """Return pixels (1, 3, f, h, w) as frames (f, h, w, 3) on the CPU."""
    return pixels[0].permute(1, 2, 3, 0).cpu().numpy()


def digest(values: Any) -> str:
    """Return a hash of an array's values."""
    return hashlib.sha256(values.tobytes()).hexdigest()


def main() -> None:
    """Measure and print."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    mock_cuda.install(devices=processes, memory=24 * 2**30)
    import torch
    import torch.distributed as dist

    from tests.gpu import mock_nccl

    torch.set_num_threads(1)
    torch.cuda.set_device(rank)
    if processes > 1:
        mock_nccl.install()
        dist.init_process_group("gloo")  # as drawing: the context group is another
    from inference.memory import decoding_measured, encoding_measured, on_meta
    from inference.parallel import ImaginedRing, Layout, ring_of
    from tests.inference.models.cogvideox.models import make_video_model
    from tests.inference.models.cogvideox.tiny import tiny_vae

    base = make_video_model()
    base.vae = tiny_vae(**SIZES)
    device = torch.device("cuda", rank)
    imagined = ImaginedRing(processes, rank) if processes > 1 else None
    shape = (1, 7, 4, HEIGHT // 8, WIDTH // 8)
    found: dict[str, Any] = {}
    with torch.no_grad():
        with on_meta(*base.parts.values()), base.frames_shared(imagined):
            found["plan"] = [
                encoding_measured(base, 1, (FRAMES, HEIGHT, WIDTH)).bytes,
                decoding_measured(base, shape).bytes,
            ]
        base.to(device)
        pixels = torch.rand(1, 3, FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
        with base.frames_shared(ring_of(Layout(rank, processes, processes), device)):
            mean, encoding = measured(lambda: base.encode_images(pixels)[0])
            _, decoding = measured(lambda: base.decode_latents(mean))
            frames = base.decode_frames(mean, to_frames)
    found["peaks"] = [encoding, decoding]
    found["latents"] = digest(mean.cpu().numpy())
    found["frames"] = digest(frames) if len(frames) else None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
