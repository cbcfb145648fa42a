"""Score a trained subject: is it generated, and does its class stay unchanged?

    python -m scripts.score.score_subject runs/octopus_dreambooth/artifacts/last \
        --prompt "sks octopus" --pictures datasets/octopus_test --class-prompt octopus

Generates every prompt with several seeds, with the base model and with the artifacts. Similarity is
the mean cosine of EfficientNet-Lite0 embeddings, centred on the mean of images of all kinds:
  subject  images of --prompt with the images in --pictures, which nothing was trained on
  class    images of --class-prompt before with those after, seed by seed: 1 is no drift
Needs `python -m scripts.picto.build_picto_dataset` (for that mean) and `make install-pretrain`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from inference.artifacts import load_artifact
from inference.config import BaseModelConfig, ImageConfig
from inference.images import draw
from inference.media import image_grid, save_grid
from inference.models.stable_diffusion import BaseModel, load_base_model
from inference.runtime import output
from scripts.score.evaluate_picto import embed, read_images, read_pairs
from train.losses import load_efficientnet_lite0

REFERENCES = 400
"""Number of images whose mean embedding is subtracted."""


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return cosines (n, m) of embeddings (n, d) and (m, d)."""
    return functional.normalize(first, dim=-1) @ functional.normalize(second, dim=-1).T


def draw_prompts(
    base: BaseModel, prompts: list[str], options: argparse.Namespace
) -> list[Image.Image]:
    """Generate every prompt with each seed, DPM++ 2M Karras, 20 steps."""
    requests = [
        ImageConfig(
            prompt=prompt,
            seed=100,
            count=options.seeds,
            cfg_scale=options.cfg_scale,
            schedule_type="Karras",
        )
        for prompt in prompts
    ]
    return [drawing.image for drawing in draw(base, requests)]


def draw_both(options: argparse.Namespace) -> dict[str, list[Image.Image]]:
    """Return images of subject and class, before and after the artifacts are attached."""
    base = load_base_model(BaseModelConfig(path=options.base))
    asked = {"subject": options.prompt, "class": options.class_prompt}
    rows = {f"{k} before": draw_prompts(base, v, options) for k, v in asked.items() if v}
    for path in options.artifacts:
        load_artifact(path).attach(base)
    return rows | {f"{k} after": draw_prompts(base, v, options) for k, v in asked.items() if v}


def centre(judge: torch.nn.Module, data: Path) -> Tensor:
    """Return the mean embedding (d,) of images of all kinds."""
    pairs = random.Random(0).sample(read_pairs(data), REFERENCES)
    return embed(judge, read_images(pairs), "references").mean(0)  # type: ignore[arg-type]


def score(options: argparse.Namespace, rows: dict[str, list[Image.Image]]) -> dict[str, float]:
    """Return the similarities, by name."""
    judge = load_efficientnet_lite0()
    mean = centre(judge, options.data)
    vectors = {name: embed(judge, images, name) - mean for name, images in rows.items()}
    pictures = [Image.open(file).convert("RGBA") for file in sorted(options.pictures.glob("*.png"))]
    truth = embed(judge, pictures, "pictures") - mean
    scores = {
        f"subject {when}": similarity(vectors[f"subject {when}"], truth).mean().item()
        for when in ("before", "after")
    }
    scores["pictures among themselves"] = off_diagonal(similarity(truth, truth))
    if options.class_prompt:
        before, after = vectors["class before"], vectors["class after"]
        scores["class before with after"] = similarity(before, after).diagonal().mean().item()
        scores["class before with the subject"] = similarity(before, truth).mean().item()
        scores["class after with the subject"] = similarity(after, truth).mean().item()
    return scores


def off_diagonal(cosines: Tensor) -> float:
    """Return the mean of a square matrix (n, n) without its diagonal; NaN if n is 1."""
    n = len(cosines)
    return ((cosines.sum() - cosines.diagonal().sum()) / (n * n - n)).item()


def main() -> None:
    """Generate the images, score them and save the grid."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--pictures", type=Path, required=True, help="folder of unseen pictures")
    parser.add_argument("--class-prompt", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=8, help="drawings of every prompt")
    parser.add_argument("--cfg-scale", type=float, default=4.0)
    parser.add_argument("--base", default="picto")
    parser.add_argument("--data", type=Path, default=Path("datasets/picto/images/train"))
    parser.add_argument("--grid", type=Path, default=Path("runs/subject_score.png"))
    options = parser.parse_args()
    rows = draw_both(options)
    for name, value in score(options, rows).items():
        output(f"{name:32} {value:6.3f}")
    options.grid.parent.mkdir(parents=True, exist_ok=True)
    save_grid(options.grid, image_grid(list(rows.values()), list(rows)), [])
    output(f"grid: {options.grid}")


if __name__ == "__main__":
    main()
