"""Which details of Deforum for A1111 3.0 are kept and which of its faults are mended."""

from __future__ import annotations

from typing import Literal

Compat = Literal["deforum-3.0", "fixed"]
"""Whether Deforum 3.0's errors that show in its pictures are kept, or mended."""

DEFORUM: Compat = "deforum-3.0"
FIXED: Compat = "fixed"
