"""Score the demo's LoRA on subjects it was not trained on.

    python -m scripts.score.score_line_icons runs/line_icons_lora/artifacts/last.safetensors

Generates every caption of datasets/line_icons_test with the base model and with the LoRA at
strength 0, 0.5 and 1, and prints for each the fraction of strongly coloured pixels and of pixels
with ink.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from inference.runtime import output

CHROMA = 0.15
"""A pixel is strongly coloured if its largest and smallest channel differ by more (0 … 1)."""
INK = 0.25
"""A pixel has ink if its darkest channel differs from white by more (0 … 1)."""


def chroma_share(image: Image.Image) -> float:
    """Return the fraction of strongly coloured pixels, 0 … 1."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return float((pixels.max(axis=2) - pixels.min(axis=2) > CHROMA).mean())


def ink_share(image: Image.Image) -> float:
    """Return the fraction of pixels that are not (nearly) white, 0 … 1."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return float((1 - pixels.min(axis=2) > INK).mean())


def report(name: str, images: Sequence[Image.Image]) -> float:
    """Print one line of the table; return the mean fraction of coloured pixels."""
    chroma = float(np.mean([chroma_share(image) for image in images]))
    ink = [ink_share(image) for image in images]
    inside = sum(0.05 <= share <= 0.60 for share in ink)
    output(
        f"{name:14} coloured {chroma:6.3f}   drawn on {min(ink):.2f} … {max(ink):.2f} "
        f"(mean {np.mean(ink):.2f}), {inside} of {len(ink)} within 0.05 … 0.60"
    )
    return chroma


def main() -> None:
    """Generate the images, score them and save the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--base", default="picto")
    parser.add_argument("--test", type=Path, default=Path("datasets/line_icons_test"))
    parser.add_argument("--grid", type=Path, default=Path("runs/line_icons_score.png"))
    parser.add_argument("--seed", type=int, default=100)
    options = parser.parse_args()

    from inference.artifacts import load_artifact
    from inference.config import BaseModelConfig, ImageConfig
    from inference.images import draw
    from inference.media import image_grid, save_grid
    from inference.models.stable_diffusion import load_base_model

    captions = [file.read_text().strip() for file in sorted(options.test.glob("*.txt"))]
    wanted = [Image.open(file).convert("RGB") for file in sorted(options.test.glob("*.png"))]
    requests = [
        ImageConfig(prompt=caption, seed=options.seed + i, cfg_scale=4.0, schedule_type="Karras")
        for i, caption in enumerate(captions)
    ]
    base = load_base_model(BaseModelConfig(path=options.base))
    rows = {"base": [drawing.image for drawing in draw(base, requests)]}
    lora = load_artifact(options.lora)
    lora.attach(base)
    for strength in (0.0, 0.5, 1.0):
        lora.set_strength(strength)
        rows[f"strength {strength}"] = [drawing.image for drawing in draw(base, requests)]

    scores = {name: report(name, images) for name, images in rows.items()}
    report("real pictures", wanted)
    pairs = zip(rows["base"], rows["strength 0.0"], strict=True)
    same = all(a.tobytes() == b.tobytes() for a, b in pairs)
    output(f"strength 0 is the base model bit for bit: {'yes' if same else 'NO'}")
    output(f"coloured with the LoRA / with the base: {scores['strength 1.0'] / scores['base']:.3f}")
    save_grid(options.grid, image_grid(list(rows.values()), list(rows), captions), [])
    output(f"grid: {options.grid}")


if __name__ == "__main__":
    main()
