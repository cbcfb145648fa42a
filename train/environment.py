"""What a run was made with, for its environment.json."""

import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "accelerate", "diffusers", "transformers", "peft", "bitsandbytes", "omegaconf",
    "safetensors", "numpy", "pillow",
)  # fmt: skip


def limner_version() -> str:
    """The installed version of Limner."""
    try:
        return version("limner")
    except PackageNotFoundError:
        return "uninstalled"


def describe_environment() -> dict[str, Any]:
    """Versions, git commit of the clone, command line, machine."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "limner": limner_version(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed_files": (_git("status", "--porcelain") or "").splitlines(),
        "command": shlex.join(sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    """What git says of the clone this file lies in; None where there is no git or no clone."""
    folder = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
