"""What tensors free stays in the process: the system need not clear its pages in every step."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest
import torch

from inference.runtime.devices import keep_freed_memory

TENSOR = 48 * 2**20
"""Bytes: above what glibc would ever take from its heap by itself."""


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_pages_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert keep_freed_memory()
    torch.empty(TENSOR, dtype=torch.uint8).fill_(1)
    before = faults()
    for _ in range(4):
        torch.empty(TENSOR, dtype=torch.uint8).fill_(1)
    assert faults() - before < TENSOR // resource.getpagesize()


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")],
)
def test_settings_of_the_user_stay(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_without_it_the_pages_are_new_each_time() -> None:
    """So that the test above could fail."""
    code = (
        "import resource, torch\n"
        "fill = lambda: torch.empty(48 * 2**20, dtype=torch.uint8).fill_(1)\n"
        "fill(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(4): fill()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 4 * TENSOR // resource.getpagesize()
