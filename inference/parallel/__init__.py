"""How several processes divide work, on plain PyTorch modules."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.parallel.groups import explain_loss, joined, names_lost_process, release_at_end
    from inference.parallel.heartbeat import SIGNS
    from inference.parallel.layout import Layout

__all__ = [
    "SIGNS", "Layout", "explain_loss", "joined", "names_lost_process", "release_at_end",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
