# SPDX-License-Identifier: Apache-2.0
"""Run tests that need a GPU: on a real one if torch is a CUDA build, else on the mock device.

    python -m tests.gpu.run_pytest [--mock] [pytest's arguments]

Without paths, the tests of this folder run. `--mock` runs them on the mock device only; where it
cannot be built, one line says why, and nothing runs.
"""

import os
import sys

from tests.gpu import mock_cuda


def main(arguments: list[str]) -> int:
    """Run pytest and return its exit status."""
    if arguments[:1] == ["--mock"]:
        arguments = arguments[1:]
        if reason := mock_cuda.missing():
            print(f"The tests on the mock CUDA device are left out: {reason}")
            return 0
    if not mock_cuda.torch_is_cuda_build():
        os.environ["LIMNER_MOCK_CUDA"] = "1"
        os.environ["PYTEST_PLUGINS"] = "tests.gpu.pytest_device"
        mock_cuda.install()
    import pytest
    import torch

    if not torch.cuda.is_available():
        print(
            "run_pytest: this CUDA build of torch finds no GPU, and the mock device needs a "
            "CPU-only build. Remedy: install torch from https://download.pytorch.org/whl/cpu",
            file=sys.stderr,
        )
        return 2
    print(f"device: {torch.cuda.get_device_name()}", flush=True)
    has_paths = any(os.path.exists(one.partition("::")[0]) for one in arguments)  # noqa: PTH110
    paths = [] if has_paths else ["tests/gpu"]
    return int(pytest.main(["-p", "no:cacheprovider", "-q", "--tb=short", *paths, *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
