"""What a run was made with, for its environment.json."""

import platform
import shlex
import sys
from importlib.metadata import version
from typing import Any

from inference.version import git, limner_version

PACKAGES = (
    "torch", "accelerate", "diffusers", "transformers", "peft", "bitsandbytes", "omegaconf",
    "safetensors", "numpy", "pillow",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Versions, git commit of the clone, command line, machine."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "limner": limner_version(),
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": (git("status", "--porcelain") or "").splitlines(),
        "command": shlex.join(sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
    }
