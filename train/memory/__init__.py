"""The memory of a run on each device and on the host, before it starts."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.memory.figures import CONTEXT, GIB, MemoryPlan, PartMemory, in_gib
    from train.memory.outline import Outline, objective_without_weights, outlined
    from train.memory.planning import latent_frames, memory_planned, plan_memory, traffic_planned
    from train.memory.ranks import Traffic, on_each

__all__ = [
    "CONTEXT", "GIB", "MemoryPlan", "Outline", "PartMemory", "Traffic", "in_gib", "latent_frames",
    "memory_planned", "objective_without_weights", "on_each", "outlined", "plan_memory",
    "traffic_planned",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
