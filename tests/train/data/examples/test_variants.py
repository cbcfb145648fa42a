"""Crops and mirror images that are encoded once: what an example has without the cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from inference.models import FrameRule
from train.config import ClipDataConfig, DataConfig, MaskConfig, SubsetConfig
from train.data.caching.content_cache import ContentCache
from train.data.examples.clip_buckets import BucketRule
from train.data.examples.clips import ClipExamples
from train.data.examples.examples import Examples
from train.data.examples.latents import cache_latents, latents_keys
from train.data.examples.variants import Variant, variants_of
from train.data.sources.clip_folder import find_clips
from train.data.sources.folder import find_pictures

EPOCHS = 12


class Base:
    """Its latents are every second pixel, so that they show their crop."""

    def __init__(self) -> None:
        self.source = None
        self.dtype = torch.float32
        self.vae: Any = nn.Linear(1, 1)
        self.vae.config = SimpleNamespace(scaling_factor=1.0)
        self.vae.use_tiling = False
        self.device = torch.device("cpu")
        self.count = 0

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.count += len(pixels)
        small = pixels[..., ::2, ::2]
        return small, torch.zeros_like(small)


def pictures(root: Path) -> Path:
    if not root.is_dir():
        root.mkdir()
        for number in range(3):
            noise = np.random.default_rng(number).integers(0, 255, (8, 20, 4), np.uint8)
            Image.fromarray(noise, "RGBA").save(root / f"{number}.png")
    return root


def picture_examples(root: Path, **options: Any) -> Examples:
    config = DataConfig(path=str(pictures(root)), masks=MaskConfig(source="alpha"), **options)
    return Examples(find_pictures(config, captioned=False), config, 8, seed=5)


def clip_examples(root: Path, **options: Any) -> ClipExamples:
    if not root.is_dir():
        root.mkdir()
        for number in range(3):
            noise = np.random.default_rng(number).integers(0, 255, (12, 16, 30), np.uint8)
            first, *others = map(Image.fromarray, noise)
            file = root / f"{number}.gif"
            first.save(file, save_all=True, append_images=others, duration=125)
    clips = ClipDataConfig(frames=9, height=8, width=8)
    config = DataConfig(path=str(root), clips=clips, **options)
    rule = BucketRule(clips, 8, 8, 8, FrameRule())
    return ClipExamples(find_clips(config, False), config, rule, 5, ("",), batch_size=2)


def filled(examples: Examples, tmp_path: Path, base: Any = None) -> Examples:
    cache_latents(examples, base or Base(), 2, lambda it, _: it, ContentCache(tmp_path / "cache"))  # type: ignore[arg-type]
    return examples


def streamed(examples: Examples) -> list[dict[str, Any]]:
    return [examples[position] for position in range(EPOCHS * len(examples))]


@pytest.mark.parametrize("make", [picture_examples, clip_examples])
@pytest.mark.parametrize("cache", ["auto", "disk"])
def test_mirror_images_come_as_without_the_cache(make: Any, cache: str, tmp_path: Path) -> None:
    """Every example is mirrored where it was, with the sizes and masks of its crop."""
    without = make(tmp_path / "data", flip=0.4, cached_crops=0)
    base = Base()
    cached = filled(make(tmp_path / "data", flip=0.4, cache=cache), tmp_path, base)
    assert filled(without, tmp_path).latents is None
    assert base.count == 2 * len(without) == len(cached.owners)
    seen = Counter()
    for one, two in zip(streamed(without), streamed(cached), strict=True):
        pixels = one.pop("pixels")
        assert torch.equal(base.encode_images(pixels)[0], two.pop("latents"))
        assert one.keys() == two.keys()
        for name, value in one.items():
            same = (
                torch.equal(value, two[name]) if isinstance(value, Tensor) else value == two[name]
            )
            assert same, name
        seen[one["indices"], float(pixels.sum()), float(pixels[..., 0].sum())] += 1
    assert len(seen) == 2 * len(without)


@pytest.mark.parametrize("make", [picture_examples, clip_examples])
def test_random_crops_are_few_and_all_used(make: Any, tmp_path: Path) -> None:
    base = Base()
    options = {"crop": "random", "flip": 0.5, "cached_crops": 3}
    first = filled(make(tmp_path / "data", **options, cache="disk"), tmp_path, base)
    assert len(first.owners) == 3 * 2 * len(first)
    assert base.count == len({*latents_keys(first, {})})  # equal crops are kept once
    again = filled(make(tmp_path / "data", **options), tmp_path, Base())
    rows = Counter(first.row(position) for position in range(EPOCHS * len(first)))
    assert len(rows) > 0.7 * len(first.owners)
    for one, two in zip(streamed(first), streamed(again), strict=True):
        assert torch.equal(one["latents"], two["latents"])
    for row in (0, 3, 7):
        index, variant = first.of_row(row)
        content = first.content(index, variant=variant)
        assert torch.equal(first.latents[row]["latents"], content["pixels"][..., ::2, ::2])  # type: ignore[index]


def test_crops_lie_apart_and_those_of_other_runs_are_found(tmp_path: Path) -> None:
    options = {"crop": "random", "cache": "disk"}
    base = Base()
    examples = filled(picture_examples(tmp_path / "data", **options), tmp_path, base)
    lefts = {int(examples.content_of_row(row)["sizes"][3]) for row in range(4)}
    assert len(lefts) > 1 and examples.config.cached_crops == 4
    filled(picture_examples(tmp_path / "data", **options, flip=0.5), tmp_path, base)
    assert base.count == 2 * len(examples.owners)  # the mirror images alone are new
    plain = picture_examples(tmp_path / "data", cache="disk")
    assert not {*latents_keys(plain, {})} & {*latents_keys(examples, {})}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [Variant()]),
        ({"flip": 1.0}, [Variant(0, True)]),
        ({"flip": 0.5}, [Variant(), Variant(0, True)]),
        ({"crop": "random"}, [Variant(0), Variant(1)]),
        ({"crop": "random", "resize": "stretch"}, [Variant()]),
        ({"crop": "random", "flip": 0.1},
         [Variant(0), Variant(0, True), Variant(1), Variant(1, True)]),
    ],
)  # fmt: skip
def test_variants(options: dict[str, Any], expected: list[Variant]) -> None:
    assert variants_of(DataConfig(path="x", **options), 2) == expected


def test_subsets_have_variants_of_their_own(tmp_path: Path) -> None:
    """An image has those of its own subset; rows follow the images."""
    examples = picture_examples(tmp_path / "data", flip=0.5)
    examples.first_rows  # noqa: B018
    assert examples.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert [examples.of_row(row)[1].is_mirrored for row in range(4)] == [False, True] * 2
    config = DataConfig(
        subsets={"a": SubsetConfig(path="a", flip=0.5), "b": SubsetConfig(path="b")}
    )
    assert config.is_random and config.caches_latents
    config.subsets["b"] = SubsetConfig(path="b", background="random")
    assert not config.caches_latents


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cached_crops": 2}, "neither crop nor flip"),
        ({"cached_crops": 2, "flip": 0.5}, "crop is not random"),
        ({"cached_crops": 2, "crop": "random", "cache": "off"}, "with cache: off"),
        ({"cached_crops": 0, "crop": "random", "cache": "disk"}, "captions only"),
        ({"cached_crops": 0, "flip": 0.5}, None),
        ({"cached_crops": 2, "crop": "random"}, None),
        ({"crop": "random", "cache": "disk"}, None),
    ],
)
def test_idle_numbers_are_named(options: dict[str, Any], words: str | None) -> None:
    said = [text for _, text in DataConfig(path="x", **options).idle()]
    assert [words in text for text in said] == [True] if words else said == []
