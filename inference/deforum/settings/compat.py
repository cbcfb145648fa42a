"""Which details of Deforum for A1111 3.0 are kept and which of its bugs are fixed."""

from __future__ import annotations

from typing import Literal

Compat = Literal["deforum-3.0", "fixed"]
"""Whether Deforum 3.0's bugs that affect images are kept, or fixed."""

DEFORUM: Compat = "deforum-3.0"
FIXED: Compat = "fixed"
