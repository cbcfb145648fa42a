"""Measure a `picto` base model: VAE fidelity, and whether its images match their prompts.

    python -m scripts.score.evaluate_picto inference/assets/picto --pairs 200

Needs `python -m scripts.picto.build_picto_dataset` and `make install-pretrain`. Three measurements:
  VAE        mean PSNR in dB over split val (64x64 on white, values in [0, 1]), latent mode
  retrieval  generate the prompt `{name}, {style words}`; is the true image the nearest (top-1),
             or among the nearest five (top-5), of 50 images of the same style? EfficientNet-Lite0
             embeddings centred on the mean of the references, cosine; chance is 2 % and 10 %
  grid       10 x 10 images, rows 1-5 of split train, rows 6-10 of split val
Prints a table and writes report.json and grid.png to --out.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from inference.runtime import output
from train.losses import EfficientNetLite0, load_efficientnet_lite0

REFERENCES = 50  # number of images, one of which is the true one
POOL_PER_STYLE = 100  # the others come from a fixed pool, to limit the number of embeddings
STEPS, GUIDANCE, BATCH = 20, 4.0, 50

Draw = Callable[[list[str], list[int]], list[Image.Image]]
"""(prompts, seeds) -> images; image i depends only on prompt i and seed i."""


@dataclass(frozen=True)
class Pair:
    """One image of the corpus: a subject in a style."""

    name: str
    style: str
    style_words: str
    path: Path

    @property
    def prompt(self) -> str:
        """Return the most frequent caption form of pretraining."""
        return f"{self.name}, {self.style_words}"


def read_pairs(folder: Path) -> list[Pair]:
    """Read one rendered split.

    Raises:
        SystemExit: the split has not been rendered.
    """
    metadata = folder / "metadata.jsonl"
    if not metadata.exists():
        raise SystemExit(
            f"evaluate_picto: {metadata} not found; expected the rendered icons. "
            f"Remedy: python -m scripts.picto.build_picto_dataset"
        )
    rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines()]
    return [
        Pair(row["name"], row["style"], row["style_words"], folder / row["file_name"])
        for row in rows
    ]


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """Return images as (b, 3, h, w) float32 in [-1, 1], composited on white."""
    arrays = []
    for image in images:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        arrays.append(np.asarray(Image.alpha_composite(white, rgba).convert("RGB")))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def read_images(pairs: list[Pair]) -> list[Image.Image]:
    """Open the pairs' images."""
    images = []
    for pair in pairs:
        with Image.open(pair.path) as opened:
            images.append(opened.convert("RGBA"))
    return images


# ------------------------------------------------------------------------------------------- VAE


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio in dB: two (b, 3, h, w) in [-1, 1] -> (b,)."""
    error = ((first - second) / 2).pow(2).mean((1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


@torch.no_grad()
def vae_psnr(vae: Any, pairs: list[Pair]) -> float:
    """Return the mean PSNR in dB of the autoencoder over the images on white."""
    values = []
    for start in tqdm(range(0, len(pairs), BATCH), "VAE", unit="batch"):
        pixels = to_pixels(read_images(pairs[start : start + BATCH]))
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        values.append(psnr(decoded.clamp(-1, 1), pixels))
    return torch.cat(values).mean().item()


# ------------------------------------------------------------------------------------- retrieval


@torch.no_grad()
def embed(judge: EfficientNetLite0, images: list[Image.Image], title: str) -> torch.Tensor:
    """Return embeddings (n, d) of images."""
    starts = range(0, len(images), BATCH)
    parts = (judge.embed(to_pixels(images[s : s + BATCH])) for s in tqdm(starts, title))
    return torch.cat(list(parts))


def rank_of_truth(drawn: torch.Tensor, truth: torch.Tensor, others: torch.Tensor) -> int:
    """Return the truth's rank (0 is best) by cosine: drawn (d,), truth (d,), others (n, d)."""
    candidates = torch.cat([truth[None], others])
    similarity = functional.cosine_similarity(drawn[None], candidates)
    return int((similarity[1:] >= similarity[0]).sum())


def retrieval(
    asked: dict[str, list[Pair]],
    drawings: dict[str, list[Image.Image]],
    pool: dict[str, list[Pair]],
    judge: EfficientNetLite0,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Return top-1 and top-5 accuracy per split, of each pair among REFERENCES of its own style.

    `pool` contains the other references by style. All embeddings are centred on the pool's mean.
    """
    vectors, names = {}, {}
    for style, members in pool.items():
        vectors[style] = embed(judge, read_images(members), f"references {style}")
        names[style] = np.array([member.name for member in members])
    mean = torch.cat(list(vectors.values())).mean(0)
    scores = {}
    for split, pairs in asked.items():
        drawn = embed(judge, drawings[split], f"drawn {split}") - mean
        truth = embed(judge, read_images(pairs), f"true {split}") - mean
        ranks = []
        for index, pair in enumerate(pairs):
            candidates = np.flatnonzero(names[pair.style] != pair.name).tolist()
            rng = random.Random(f"{seed}:{split}:{index}")
            chosen = rng.sample(candidates, REFERENCES - 1)
            others = vectors[pair.style][chosen] - mean
            ranks.append(rank_of_truth(drawn[index], truth[index], others))
        found = np.array(ranks)
        scores[split] = {
            "pairs": len(ranks),
            "top1": float((found < 1).mean()),
            "top5": float((found < 5).mean()),
        }
    return scores


# --------------------------------------------------------------------------------------- drawing


def our_drawer(folder: Path, precision: str) -> Draw:
    """Return a function that generates with our sampler: DPM++ 2M Karras, STEPS, GUIDANCE."""
    from inference.config import BaseModelConfig, ImageConfig
    from inference.images import draw as draw_images
    from inference.models.stable_diffusion import load_base_model

    base = load_base_model(BaseModelConfig(path=str(folder)), precision)

    def draw(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        requests = [
            ImageConfig(prompt=prompt, seed=seed, steps=STEPS, cfg_scale=GUIDANCE)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return [drawing.image for drawing in draw_images(base, requests, batch_size=BATCH)]

    return draw


def draw_all(draw: Draw, pairs: list[Pair], title: str) -> list[Image.Image]:
    """Generate every pair's prompt, seed = its index, in batches."""
    images = []
    for start in tqdm(range(0, len(pairs), BATCH), title, unit="batch"):
        prompts = [pair.prompt for pair in pairs[start : start + BATCH]]
        images += draw(prompts, list(range(start, start + len(prompts))))
    return images


def save_grid(images: list[Image.Image], columns: int, path: Path) -> None:
    """Write images of one size row by row, two pixels apart, on white."""
    width, height = (side + 2 for side in images[0].size)
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for index, image in enumerate(images):
        grid.paste(image.convert("RGB"), (index % columns * width, index // columns * height))
    grid.save(path)


# ------------------------------------------------------------------------------------------ main


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Run the three measurements and return the report."""
    from diffusers import AutoencoderKL

    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    splits = {split: read_pairs(options.data / split) for split in ("train", "val")}
    vae = AutoencoderKL.from_pretrained(options.base, subfolder="vae", dtype=torch.float32).eval()
    report: dict[str, Any] = {"base": str(options.base), "vae_psnr": vae_psnr(vae, splits["val"])}
    if options.vae_only:
        return report
    rng = random.Random(options.seed)
    asked = {k: rng.sample(v, min(options.pairs, len(v))) for k, v in splits.items()}
    by_style = defaultdict(list)
    for pair in splits["train"]:
        by_style[pair.style].append(pair)
    pool = {style: rng.sample(members, POOL_PER_STYLE) for style, members in by_style.items()}
    draw, start = our_drawer(options.base, options.precision), time.monotonic()
    drawings = {split: draw_all(draw, pairs, f"draw {split}") for split, pairs in asked.items()}
    report["seconds_per_drawing"] = (time.monotonic() - start) / sum(map(len, drawings.values()))
    report["retrieval"] = retrieval(asked, drawings, pool, load_efficientnet_lite0(), options.seed)
    half = drawings["train"][:50] + drawings["val"][:50]
    save_grid(half, 10, options.out / "grid.png")
    return report


def print_table(report: dict[str, Any]) -> None:
    """Print the report as a small table."""
    output(f"\n{report['base']}\n  VAE PSNR, split val: {report['vae_psnr']:.2f} dB")
    for split, score in report.get("retrieval", {}).items():
        output(
            f"  {split:5s}  {score['pairs']:4d} pairs   top-1 {score['top1']:6.1%}   "
            f"top-5 {score['top5']:6.1%}   (chance 2 %, 10 %)"
        )
    if "seconds_per_drawing" in report:
        output(f"  {report['seconds_per_drawing']:.2f} s per drawing")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", type=Path, help="folder in diffusers layout")
    parser.add_argument("--data", type=Path, default=Path("datasets/picto/images"))
    parser.add_argument("--out", type=Path, default=Path("runs/picto/evaluation"))
    parser.add_argument("--pairs", type=int, default=200, help="per split (val has 197)")
    parser.add_argument("--vae-only", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of drawing")
    options = parser.parse_args()
    report = evaluate(options)
    print_table(report)
    path = options.out / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    output(f"  written: {path}" + ("" if options.vae_only else f" and {options.out / 'grid.png'}"))


if __name__ == "__main__":
    main()
