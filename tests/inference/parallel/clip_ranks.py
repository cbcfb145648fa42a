r"""One of several processes that encode and decode clips together; run by test_ranks.py.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=… \
        python -m tests.inference.parallel.clip_ranks

Each context group has a clip of its own. Prints what it has compared.
"""

from __future__ import annotations

import copy
import os
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from inference.memory import enable_tiles
from inference.models.cogvideox.shared_frames import SharedFrames
from inference.parallel import Layout, ring_of
from tests.inference.models.cogvideox.tiny import tiny_vae

CPU = torch.device("cpu")
LENGTHS = 1, 5, 8, 9, 13, 16, 17, 33, 49, 81
"""49 is usual for CogVideoX, 81 for 1.5."""


def frames_of(model: Any, z: Tensor) -> np.ndarray:
    """Return decoded frames (f, h, w, 3), those of this process."""
    return model.decode(z).sample.float()[0].permute(1, 2, 3, 0).numpy()


def check(layout: Layout) -> int:
    """Compare encoding and decoding together with those alone; return the comparisons."""
    ring, made = ring_of(layout), 0
    assert ring is not None
    assert (ring.place, ring.size) == (layout.context_rank, layout.context)
    assert ring_of(layout).group is ring.group  # type: ignore[union-attr]
    for dtype in (torch.float32, torch.bfloat16):
        for is_tiled in (False, True):
            model = tiny_vae().to(dtype)
            if is_tiled:
                model.enable_tiling(tile_sample_min_height=32, tile_sample_min_width=32)
                enable_tiles(model)
            alone, side = copy.deepcopy(model), 48 if is_tiled else 16
            shared = SharedFrames(model, ring, CPU)
            for length in LENGTHS[6:8] if is_tiled else LENGTHS:
                random = torch.Generator().manual_seed(100 * layout.data_rank + length)
                clip = torch.rand(1, 3, length, side, side, generator=random).to(dtype)
                moments = alone.encode(clip).latent_dist
                z = moments.mode()
                whole = frames_of(alone, z)
                with shared.at_work():
                    found = model.encode(clip).latent_dist
                    frames = shared.to_first(partial(frames_of, model, z), z.shape[2])
                assert torch.equal(found.parameters, moments.parameters), (dtype, length)
                np.testing.assert_array_equal(frames, whole if ring.is_first else whole[:0])
                made += 1
    return made


@torch.no_grad()
def main() -> None:
    """Compare in groups of all processes, and of two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    made = [check(Layout(rank, processes, context)) for context in sorted({2, processes})]
    print(f"{sum(made)} compared")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
