"""Cost of an animation beyond its model, and whether its memory grows.

    python -m scripts.bench.bench_deforum
    python -m scripts.bench.bench_deforum --base org/model --precision fp16 --size 512

After each frame of the engine, the same evaluations of the UNet (same number, same batches), an
encoding and a decoding run alone: the frame's floor. So both have the same conditions; ratios are
medians over the frames. The engine's time includes everything a frame needs: its motion, colours,
contrast, anti-blur, noise, sampling, its PNG and its state. It should be at most 1.10 of the floor
in 2D and 1.2 in 3D without a depth model. Then: 500 frames without a model, and the memory used at
frame 50 and at frame 500.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from inference.config import AnimationRecipe, BaseModelConfig
from inference.deforum import Animation, IdentityGenerator, ModelGenerator, open_generator
from inference.models import ImageModel
from inference.runtime import output, quiet_libraries
from scripts.bench.common import now, widen

SETTINGS: dict[str, Any] = {
    "sampler": "Euler a",
    "steps": 20,
    "cfg_scale_schedule": "0:(5)",
    "strength_schedule": "0:(0.5)",
    "noise_schedule": "0:(0.04)",
    "amount_schedule": "0:(0.1)",
    "contrast_schedule": "0:(1.01)",
    "color_coherence": "LAB",
    "diffusion_cadence": 1,
    "seed": 1,
    "skip_video_creation": True,
    "prompts": {"0": "a cat, noto style --neg blurry"},
}
MODES: dict[str, tuple[dict[str, Any], float]] = {
    "2D": ({"animation_mode": "2D", "zoom": "0:(1.02)", "angle": "0:(2)"}, 1.10),
    "3D": (
        {"animation_mode": "3D", "translation_z": "0:(4)", "rotation_3d_y": "0:(0.5)",
         "depth_model": "none"}, 1.2,
    ),
}  # fmt: skip
"""Mode -> its settings, and the maximum ratio of a frame's time to its floor."""

LONG, EARLY = 500, 50
WARM = 3
"""Frames that only warm up; the first of them is generated from noise."""


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description="Times animations against their UNet evaluations.")
    parser.add_argument("--base", default="picto", help="the base model (default: picto)")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--size", type=int, default=64, help="width and height (default: 64)")
    parser.add_argument("--frames", type=int, default=12, help="frames a run (default: 12)")
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        wide = widen(options.base, Path(folder) / "model")
        for name, path in (("base", options.base), ("wide", wide)):
            for mode in MODES:
                compare(name, mode, path, options, folder)
        memory(options.size, folder)


@dataclass
class Counted:
    """Records the calls of a base model since they were last repeated."""

    base: ImageModel
    calls: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        for name in ("predict", "encode_images", "decode_latents"):
            setattr(self.base, name, self.noted(getattr(self.base, name)))

    def noted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method with its calls recorded."""

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((method, arguments, options))
            return method(*arguments, **options)

        return call

    @torch.inference_mode()
    def again(self) -> float:
        """Repeat the calls alone, forget them, and return the seconds they take."""
        calls, self.calls = self.calls, []
        start = now()
        for method, arguments, options in calls:
            method(*arguments, **options)
        return now() - start


def compare(name: str, mode: str, path: str, options: argparse.Namespace, folder: str) -> None:
    """Print a mode's time per frame, its floor, and the ratio of both."""
    own, wanted = MODES[mode]
    sizes = {"W": options.size, "H": options.size, "max_frames": options.frames}
    recipe = AnimationRecipe(
        base_model=BaseModelConfig(path=path),
        settings=SETTINGS | own | sizes,
        output_dir=folder,
        precision=options.precision,
        contact_sheet=False,
        subtitles=False,
    )
    animation = Animation(recipe)
    animation.prepare()
    generator = open_generator(recipe, animation.script)
    assert isinstance(generator, ModelGenerator)
    counted = Counted(generator.base)
    times: list[tuple[float, float]] = []
    start = now()

    def saved(state: Any) -> None:
        nonlocal start
        keep(state)
        ours = now() - start
        times.append((ours, counted.again()))
        start = now()

    keep = animation.keep
    animation.keep = saved
    animation.draw(generator, log=lambda text: None)
    ours, floors = zip(*times[WARM:], strict=True)
    ratio = statistics.median(one / floor for one, floor in times[WARM:])
    output(
        f"{name}, {mode}: {statistics.median(ours) * 1000:.1f} ms a frame, floor "
        f"{statistics.median(floors) * 1000:.1f} ms; ratio {ratio:.3f}, at most {wanted} wanted",
    )


def memory(size: int, folder: str) -> None:
    """Print the memory used early and late in a long run without a model."""
    settings = SETTINGS | MODES["2D"][0] | {"W": size, "H": size, "max_frames": LONG}
    recipe = AnimationRecipe(
        settings=settings, output_dir=f"{folder}/long", contact_sheet=False, subtitles=False
    )
    animation = Animation(recipe)
    animation.prepare()
    held: dict[int, float] = {}
    keep = animation.keep

    def saved(state: Any) -> None:
        keep(state)
        held[state.frame] = resident()

    animation.keep = saved
    start = time.perf_counter()
    animation.draw(IdentityGenerator(), log=lambda text: None)
    each = (time.perf_counter() - start) / LONG * 1000
    output(
        f"{LONG} frames without a model: {each:.1f} ms each; memory {held[EARLY]:.1f} MB at frame "
        f"{EARLY}, {held[LONG]:.1f} MB at frame {LONG}"
    )


def resident() -> float:
    """Return the memory of this process in megabytes."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
