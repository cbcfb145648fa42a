"""What tensors free stays in the process: the system need not clear its pages in every step."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

from inference.runtime.devices import keep_freed_memory

TENSOR = 48 * 2**20
"""Bytes: above what glibc would ever take from its heap by itself."""


NEW_PAGES = """
import resource, sys, torch
from inference.runtime.devices import keep_freed_memory
assert sys.argv[1] == "default" or keep_freed_memory()
fill = lambda: torch.empty(48 * 2**20, dtype=torch.uint8).fill_(1)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(setting: str) -> int:
    """Return the pages that the system cleared for 40 tensors, in a process of their own."""
    command = [sys.executable, "-c", NEW_PAGES, setting]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_pages_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert new_pages("kept") < 10 * TENSOR // resource.getpagesize()


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
    assert new_pages("default") >= 40 * TENSOR // resource.getpagesize()
