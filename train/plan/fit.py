"""`python -m train.plan RECIPE --fit 12GB`: the settings with which a run fits into a GPU."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference.runtime import InputError

if TYPE_CHECKING:
    from train.config import TrainRecipe
    from train.memory import MemoryPlan

GIB = 2**30
FRAGMENTS = 0.05
"""Fraction of a GPU that stays free: for the gaps between the allocator's blocks, and a screen."""
LEAST_GAIN = 0.01
"""Fraction of the peak that a lever must save to be worth its price."""

Settings = Mapping[str, str]
"""Values by key of the recipe, as on the command line."""
Measure = Callable[[Settings], "MemoryPlan | None"]
"""Returns the memory of the recipe with these settings; None if the recipe rejects them."""


@dataclass(frozen=True)
class Lever:
    """A way to save memory."""

    settings: Callable[[TrainRecipe], Settings]
    """Returns what to set in a recipe; nothing if the lever does not apply."""
    price: str
    """What it costs, in words."""


def fixed(**settings: str) -> Callable[[TrainRecipe], Settings]:
    """Return a function that always returns these settings, with `__` for dots."""
    given = {key.replace("__", "."): value for key, value in settings.items()}
    return lambda recipe: given


def smaller_batch(recipe: TrainRecipe) -> Settings:
    """Return half the micro-batch with twice the accumulation, as far as the batch is even."""
    size = recipe.train_batch_size
    if size % 2:
        return {}
    return {
        "train_batch_size": str(size // 2),
        "gradient_accumulation_steps": str(2 * recipe.gradient_accumulation_steps),
    }


def eight_bits(recipe: TrainRecipe) -> Settings:
    """Return 8-bit state in place of AdamW's."""
    return {"optimizer.type": "adamw8bit"} if recipe.optimizer.type == "adamw" else {}


def fused(recipe: TrainRecipe) -> Settings:
    """Return the fused backward pass, and what it excludes."""
    return {
        "memory.fused_backward": "true",
        "max_grad_norm": "null",
        "gradient_accumulation_steps": "1",
    }


LEVERS = (
    Lever(fixed(memory__offload="model_offload"), "moves text encoders and VAE, not in steps"),
    Lever(fixed(sampling__batch_size="1"), "previews are drawn one by one"),
    Lever(fixed(vae_tiling="true"), "previews are decoded in tiles, with slight differences"),
    Lever(fixed(memory__ema_on_cpu="true"), "the average is updated on the CPU"),
    Lever(fixed(gradient_checkpointing="true"), "steps take about a third longer"),
    Lever(eight_bits, "the optimizer's state is rounded to 8 bits"),
    Lever(fused, "no clipping by norm, no accumulation"),
    Lever(smaller_batch, "smaller micro-batches, with the same batch"),
    Lever(smaller_batch, "smaller micro-batches, with the same batch"),
    Lever(fixed(base_model__quantization="fp8"), "the base model is rounded to 8 bits"),
    Lever(fixed(memory__trained_weights="bf16"), "trained weights have 8 bits of precision"),
    Lever(fixed(memory__blocks_to_swap="0.5"), "half of the blocks are copied in each step"),
    Lever(fixed(memory__blocks_to_swap="0.9"), "nearly all blocks are copied in each step"),
    Lever(fixed(base_model__quantization="nf4"), "the base model is rounded to 4 bits"),
    Lever(fixed(memory__optimizer_on_cpu="true"), "the optimizer works on the CPU, which is slow"),
    Lever(fixed(memory__activation_offload="true"), "activations are copied in each step"),
)
"""From the cheapest to the dearest."""


@dataclass
class Fit:
    """The levers that were chosen for a GPU."""

    size: int
    """Bytes of the GPU."""
    before: MemoryPlan
    settings: dict[str, str] = field(default_factory=dict)
    """All of them together."""
    steps: list[tuple[Settings, str, MemoryPlan]] = field(default_factory=list)
    """Settings, price and the memory with them and those before, in order."""

    @property
    def usable(self) -> int:
        """Return the bytes that a run can use."""
        return round(self.size * (1 - FRAGMENTS))

    @property
    def memory(self) -> MemoryPlan:
        """Return the memory with all of them."""
        return self.steps[-1][2] if self.steps else self.before

    def as_dict(self) -> dict[str, object]:
        """Return plain values, sizes in bytes."""
        peaks = {
            "filling": self.memory.filling,
            "previews": self.memory.previews,
            "training": self.memory.training,
            "peak": self.memory.peak,
        }
        prices = [{"settings": dict(given), "price": price} for given, price, _ in self.steps]
        return {
            "size": self.size,
            "usable": self.usable,
            "fits": self.is_enough,
            "before": self.before.peak,
            "settings": self.settings,
            "levers": prices,
            "memory": peaks,
        }

    @property
    def is_enough(self) -> bool:
        """Return whether the run fits."""
        return self.memory.peak <= self.usable


def card_bytes(text: str) -> int:
    """Return the bytes of a GPU's size, such as `12GB` or `24`; its maker's GB are GiB.

    Raises:
        InputError: it is no size.
    """
    match = re.fullmatch(r"(\d{1,4}(?:\.\d+)?)\s*(?:GI?B?)?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise InputError(f"--fit: expected the memory of a GPU, as in --fit 12GB; got {text!r}")
    return round(float(match[1]) * GIB)


def fit(recipe: TrainRecipe, measure: Measure, size: int, levers: Sequence[Lever] = LEVERS) -> Fit:
    """Choose levers, the cheapest first, until a run fits; leave out what the rest makes needless.

    Args:
        recipe: the run's.
        measure: returns its memory with other settings.
        size: bytes of the GPU.
        levers: from the cheapest to the dearest.
    """
    before = measure({})
    assert before is not None
    result = Fit(size, before)
    chosen: list[tuple[Settings, str]] = []
    for lever in levers:
        if result.is_enough:
            break
        asked = lever.settings(changed(recipe, result.settings))
        new = {key: value for key, value in asked.items() if result.settings.get(key) != value}
        if not new or (memory := measure(result.settings | new)) is None:
            continue
        if memory.peak <= result.memory.peak * (1 - LEAST_GAIN):
            result.settings |= new
            result.steps.append((new, lever.price, memory))
            chosen.append((new, lever.price))
    return pruned(result, chosen, measure) if result.is_enough else result


def pruned(result: Fit, chosen: Sequence[tuple[Settings, str]], measure: Measure) -> Fit:
    """Return the choice without levers that are not needed beside the others, dearest first."""
    kept = list(chosen)
    for lever in list(reversed(chosen))[1:]:
        fewer = [one for one in kept if one is not lever]
        memory = measure(together(fewer))
        if memory is not None and memory.peak <= result.usable:
            kept = fewer
    if len(kept) == len(chosen):
        return result
    smaller = Fit(result.size, result.before)
    for number, (settings, price) in enumerate(kept, 1):
        memory = measure(together(kept[:number]))
        if memory is not None:
            smaller.steps.append((settings, price, memory))
    smaller.settings = together(kept)
    return smaller


def together(levers: Sequence[tuple[Settings, str]]) -> dict[str, str]:
    """Return the settings of several levers; later ones win."""
    return {key: value for settings, _ in levers for key, value in settings.items()}


def changed(recipe: TrainRecipe, settings: Settings) -> TrainRecipe:
    """Return a recipe with another batch, which is all that levers look at."""
    from dataclasses import replace

    size = int(settings.get("train_batch_size", recipe.train_batch_size))
    accumulation = int(
        settings.get("gradient_accumulation_steps", recipe.gradient_accumulation_steps)
    )
    return replace(recipe, train_batch_size=size, gradient_accumulation_steps=accumulation)


def fit_recipe(arguments: Sequence[str], size: int, processes: int = 1) -> Fit:
    """Choose levers for a recipe; each try loads it as the command line would.

    Args:
        arguments: its path and overrides.
        size: bytes of the GPU.
        processes: of the run.

    Raises:
        InputError: the run could not start: recipe, data, captions, sizes or the base model.
    """
    from tqdm import tqdm

    from inference.recipe import RecipeError, find_recipe, load_recipe
    from inference.runtime import keys_named
    from train.config import train_schema
    from train.memory import memory_planned, outlined

    def loaded(settings: Settings) -> TrainRecipe:
        overrides = [f"{key}={value}" for key, value in settings.items()]
        return load_recipe(find_recipe(arguments[0]), train_schema, [*arguments[1:], *overrides])

    def measure(settings: Settings) -> MemoryPlan | None:
        bar.update()
        try:
            recipe = loaded(settings)
        except RecipeError:
            return None
        with keys_named(recipe):
            return memory_planned(recipe, outlined(recipe, processes), processes)

    with warnings.catch_warnings(), tqdm(desc="settings tried", leave=False, disable=None) as bar:
        warnings.simplefilter("ignore")  # those of the recipe itself have been shown
        return fit(loaded({}), measure, size)


def show(found: Fit, recipe: str) -> None:
    """Print the settings, what each saves and costs, and a command line with all of them."""
    from rich import box
    from rich.table import Table

    from inference.runtime import open_console

    console = open_console(highlight=False, soft_wrap=True)
    title = f"GiB on a GPU of {found.size / GIB:g} GB, of which {found.usable / GIB:.1f} are used"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("settings", "caches", "previews", "step", "needed"):
        is_text = name == "settings"
        justify = "left" if is_text else "right"
        table.add_column(name, justify=justify, no_wrap=not is_text, overflow="fold")
    table.add_column("price")
    for settings, price, memory in ({}, "", found.before), *found.steps:
        words = "\n  ".join(f"{key}={value}" for key, value in settings.items())
        peaks = memory.filling, memory.previews, memory.training, memory.peak
        numbers = (f"{peak / GIB:.2f}" if peak else "-" for peak in peaks)
        table.add_row(f"+ {words}" if words else "the recipe as it is", *numbers, price)
    console.print(table)
    if not found.is_enough:
        console.print(
            f"Nothing known here makes the run fit: it needs {found.memory.peak / GIB:.2f} GiB. "
            "Train on smaller images or clips (data.resolution, data.clips), or another objective."
        )
        return
    if not found.settings:
        console.print("The run fits as it is.")
        return
    overrides = " ".join(shlex.quote(f"{key}={value}") for key, value in found.settings.items())
    console.print(f"limner train {shlex.quote(recipe)} … {overrides}")
