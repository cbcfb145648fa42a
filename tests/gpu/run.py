# SPDX-License-Identifier: Apache-2.0
"""Run one of Limner's commands on the mock CUDA device and report launches, waits and memory.

    python -m tests.gpu.run train RECIPE [key=value ...]
    python -m tests.gpu.run inference RECIPE ...
    python -m tests.gpu.run train.plan RECIPE ...

MOCK_CUDA_DEVICES and MOCK_CUDA_GIB describe the device, MOCK_CUDA_TOP=40 lists the most frequent
waits, MOCK_CUDA_SYNCS=FILE saves all of them as JSON. With WORLD_SIZE and RANK, collectives go
through mock_nccl.py.
"""

import json
import os
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

from tests.gpu import mock_cuda

COMMANDS = {"train": "train.__main__", "train.plan": "train.plan.__main__",
            "inference": "inference.__main__"}  # fmt: skip


def main() -> int:
    """Run the command and return its exit status."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"expected one of {', '.join(COMMANDS)} and its arguments", file=sys.stderr)
        return 2
    which, *arguments = sys.argv[1:]
    is_distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    mock_cuda.install(
        devices=int(os.environ.get("MOCK_CUDA_DEVICES", "1")),
        memory=int(float(os.environ.get("MOCK_CUDA_GIB", "24")) * 2**30),
    )
    if is_distributed:
        from tests.gpu import mock_nccl

        mock_nccl.install()
        mock_nccl.without_timer()
    status = import_module(COMMANDS[which]).main(arguments)
    if target := os.environ.get("MOCK_CUDA_SYNCS"):
        Path(target).write_text(json.dumps(mock_cuda.SYNCS))
    if is_distributed:
        from tests.gpu import mock_nccl

        calls = dict(Counter(mock_nccl.collectives()))
        print(f"timeouts of process groups: {mock_nccl.TIMEOUTS}; {calls}", file=sys.stderr)
    print(
        f"status {status}; {mock_cuda.ext.launches()} launches, {len(mock_cuda.SYNCS)} waits, "
        f"peak {mock_cuda.ext.bytes_peak() / 2**20:.0f} MiB",
        file=sys.stderr,
    )
    counts = Counter((kind, what, where) for kind, what, _, where in mock_cuda.SYNCS)
    for (kind, what, where), count in counts.most_common(int(os.environ.get("MOCK_CUDA_TOP", "0"))):
        print(f"{count:6d} {kind:5s} {what:28s} {where}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
