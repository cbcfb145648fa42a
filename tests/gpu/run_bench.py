# SPDX-License-Identifier: Apache-2.0
"""Run `scripts.bench.gpu` on the mock CUDA device, with tiny sizes and without times.

    python -m tests.gpu.run_bench --only sd15 --model sd15=picto

Models that are not replaced by tiny ones take minutes and gigabytes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tests.gpu import mock_cuda

MODULE = "tests.gpu.run_bench"
FLAGS = ("--tiny", "--without-times")


class MockWaits:
    """Counts the waits that the mock device records."""

    def __enter__(self) -> MockWaits:
        mock_cuda.SYNCS.clear()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def count(self) -> int:
        return len(mock_cuda.SYNCS)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark or one of its parts; return the exit status."""
    from scripts.bench import gpu

    arguments = [*arguments, *(flag for flag in FLAGS if flag not in arguments)]
    if "--part" in arguments:
        mock_cuda.install()
        from scripts.bench import gpu_parts

        gpu_parts.waits_of = MockWaits
    return gpu.main(arguments, MODULE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
