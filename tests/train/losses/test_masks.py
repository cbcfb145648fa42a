"""Masked loss against numbers known by hand, and the mask's way beside its picture."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from inference.models.parametrization import Epsilon
from inference.recipe.layers import RecipeError
from inference.recipe.loader import RecipeWarning
from train.common.errors import DataError
from train.config.data import DataConfig
from train.config.examples import MaskConfig, PictureBucketsConfig
from train.config.recipe import LossConfig, TrainRecipe
from train.data.caching.content_cache import ContentCache
from train.data.examples.examples import Examples
from train.data.examples.latents import cache_latents, latents_keys
from train.data.examples.loader import collate
from train.data.examples.masks import mask_weights
from train.data.sources.folder import Picture, find_pictures, fingerprint
from train.losses.denoising import Denoising


class VAE(torch.nn.Module):
    """Only its name is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=1.0)
        self.use_tiling = False


class Base:
    """A base model that predicts zeros; its VAE halves every side."""

    parametrization = Epsilon(torch.tensor([0.8]))  # a signal-to-noise ratio of 4
    device = torch.device("cpu")
    dtype = torch.float32
    source = None
    vae = VAE()

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = pixels[:, :, ::2, ::2]
        return mean, torch.zeros_like(mean)

    def predict(self, noisy: Tensor, *_: Any) -> Tensor:
        return torch.zeros_like(noisy)


def denoising(**loss: Any) -> Denoising:
    return Denoising(Base(), LossConfig(**loss), "deterministic", 5)  # type: ignore[arg-type]


HALF = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # errors of 1, 4, 9 and 16; the left half are the first and the third
        (MaskConfig(), (1 + 9) / 4),
        (MaskConfig(unmasked_weight=0.1), (1 + 9 + 0.1 * (4 + 16)) / 4),
        (MaskConfig(normalize=True), (1 + 9) / 2),
        (MaskConfig(unmasked_weight=0.1, normalize=True), (1 + 9 + 0.1 * (4 + 16)) / 2.2),
        (MaskConfig(formula="a1111"), 2 * (1 + 9) / 4),
        (MaskConfig(unmasked_weight=1.0), (1 + 4 + 9 + 16) / 4),
    ],
)
def test_loss_of_a_half_mask(config: MaskConfig, expected: float) -> None:
    prediction = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]] * 3])  # three channels
    mask = mask_weights(HALF, config)[None]
    errors = denoising().errors(prediction, torch.zeros(1, 3, 2, 2), mask)
    assert errors.tolist() == pytest.approx([expected])


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.5, 0.5, 1.0, 1.0], [0, 0, 2, 2]),  # the lowest counts 0 even where it is 0.5
        ([0.2, 0.4, 0.6, 0.8], [0, 2 / 3, 4 / 3, 2]),
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1]),  # A1111: 0/0
        ([0.0, 0.0, 0.0, 0.0], [1, 1, 1, 1]),
    ],
)
def test_formula_of_a1111(shares: list[float], expected: list[float]) -> None:
    weights = mask_weights(torch.tensor(shares).view(1, 1, 4), MaskConfig(formula="a1111"))
    assert weights.flatten().tolist() == pytest.approx(expected)


def test_a_mask_of_nothing_has_no_loss_rather_than_none() -> None:
    weights = mask_weights(torch.zeros(1, 2, 2), MaskConfig(normalize=True))
    assert weights.tolist() == [[[0, 0], [0, 0]]]


def test_with_min_snr_and_in_a_batch() -> None:
    """The weight of the timestep comes on top; every example has its own mask."""
    latents = torch.zeros(2, 1, 2, 2)
    batch: Any = {
        "positions": [3, 8],
        "latents": latents,
        "prompts": ["", ""],
        "prompt_states": torch.zeros(2),
        "mask": torch.stack([HALF, torch.ones(1, 2, 2)]),
    }
    loss = denoising(weighting="min_snr", snr_gamma=2.0)
    noise = loss.noise([3, 8], latents).square().flatten(1)  # the error of predicting 0
    expected = [float(noise[0, [0, 2]].sum()) / 4 * (2 / 4), float(noise[1].mean()) * (2 / 4)]
    assert loss.loss(batch).tolist() == pytest.approx(expected)


# The mask's way


def picture(folder: Path, mask: np.ndarray | None, name: str = "a", **more: Any) -> Path:
    """A picture whose red is its mask's white, and the mask."""
    size = (8, 8) if mask is None else mask.shape
    red = np.zeros(size, np.uint8) if mask is None else mask
    pixels = np.stack([red, *[np.zeros(size, np.uint8)] * 2], axis=2)
    (folder / f"{name}.txt").write_text(name)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    if mask is not None:
        Image.fromarray(mask).save(folder / f"{name}-masklabel.png", **more)
    return folder / f"{name}.png"


def made(folder: Path, resolution: int = 8, masks: MaskConfig | None = None, **config: Any) -> Any:
    data = DataConfig(path=str(folder), masks=masks or MaskConfig(), **config)
    examples = Examples(find_pictures(data, True), data, resolution, 5)
    examples.latent_factor = 2
    return examples


def checks(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random(size) < 0.5
    return np.where(noise, 255, 0).astype(np.uint8)


def test_places_are_means_of_their_pixels(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[0, :3] = 255
    mask[2:, 2:] = 51
    picture(tmp_path, mask)
    shares = made(tmp_path, 4).content(0)["mask"]
    assert shares.flatten().tolist() == pytest.approx([0.5, 0.25, 0, 0.2])


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("flip", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("resize", ["cover", "none"])
def test_the_mask_is_cut_as_its_picture(
    tmp_path: Path, crop: str, flip: float, resize: str
) -> None:
    """Red of the picture is the mask: places of both are the same in every epoch."""
    picture(tmp_path, np.kron(checks((8, 12)), np.ones((2, 2), np.uint8)))
    examples = made(tmp_path, 16 if resize == "cover" else 8, crop=crop, flip=flip, resize=resize)
    found = []
    for epoch in range(6):
        content = examples.content(0, epoch)
        red = (content["pixels"][0] + 1) / 2
        size = red.shape[0] // 2
        assert torch.allclose(content["mask"], red.view(size, 2, size, 2).mean((1, 3))[None])
        found.append(content["mask"])
    changes = crop == "random" or flip == 0.5
    assert any(not torch.equal(found[0], other) for other in found) == changes


def test_masks_of_buckets_and_of_room_that_edges_fill(tmp_path: Path) -> None:
    """Red of the picture is the mask there too."""
    picture(tmp_path, np.kron(checks((4, 8)), np.ones((2, 2), np.uint8)), "wide")
    picture(tmp_path, np.kron(checks((8, 4), 1), np.ones((2, 2), np.uint8)), "high")
    sizes = PictureBucketsConfig(sizes=["8x16", "16x8"])
    bucketed, filled = made(tmp_path, 8, buckets=sizes, flip=0.5), made(tmp_path, 16, resize="fill")
    bucketed.assign_buckets(2, 1)
    for examples, shapes in ((bucketed, {(4, 8), (8, 4)}), (filled, {(8, 8)})):
        found = [examples.content(index) for index in (0, 1)]
        assert {tuple(content["mask"].shape[1:]) for content in found} == shapes
        for content in found:
            red = (content["pixels"][0] + 1) / 2
            _, height, width = content["mask"].shape
            places = red.view(height, 2, width, 2).mean((1, 3))
            assert torch.allclose(content["mask"][0], places)


def test_a_smaller_mask_is_scaled_and_another_shape_is_refused(tmp_path: Path) -> None:
    file = picture(tmp_path, checks((8, 8)))
    small = Image.new("L", (4, 4))
    small.paste(255, (0, 0, 2, 4))
    small.save(tmp_path / "a-masklabel.png")
    shares = made(tmp_path).content(0)["mask"]
    assert shares[0].tolist() == [[1, 1, 0, 0]] * 4
    Image.new("L", (4, 8), 255).save(tmp_path / "a-masklabel.png")
    with pytest.raises(DataError, match=rf"a-masklabel.png: is 4x8, and its picture {file} is 8x8"):
        made(tmp_path).content(0)


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_masks_of_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    picture(tmp_path, checks((8, 8)))
    half = Image.new("L", (8, 8))
    half.paste(255, (0, 0, 8, 4))
    image = half.convert(kind) if kind != "I;16" else None
    if kind == "RGBA":  # white everywhere, and transparent below
        image = Image.new("RGBA", (8, 8), "white")
        image.putalpha(half)
    if image is None:
        image = Image.fromarray(np.asarray(half).astype(np.uint16) * 257)
    image.save(tmp_path / "a-masklabel.png")
    assert made(tmp_path).content(0)["mask"][0].tolist() == [[1] * 4] * 2 + [[0] * 4] * 2


def test_alpha_as_weight(tmp_path: Path) -> None:
    """Not as in A1111: of a picture wider than high too, and opaque ones count everywhere."""
    pixels = np.full((8, 16, 4), 255, np.uint8)
    pixels[:, :8, 3] = 51  # the left of the cut's middle square is a fifth opaque
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    alpha = MaskConfig(source="alpha", unmasked_probability=0.0)
    examples = made(tmp_path, masks=alpha, background="black")
    content = examples.content(0)
    assert content["mask"][0].tolist() == [pytest.approx([0.2, 0.2, 1, 1])] * 4
    assert content["pixels"][0, 0, [0, 7]].tolist() == pytest.approx([2 * 51 / 255 - 1, 1])
    assert examples.content(1)["mask"].tolist() == torch.ones(1, 4, 4).tolist()
    a1111 = made(tmp_path, masks=MaskConfig(source="alpha", formula="a1111"))
    masks = [a1111.weights(a1111.content(i)["mask"], i, a1111.config.masks) for i in (0, 1)]
    assert masks[0][0].tolist() == [[0, 0, 2, 2]] * 4
    assert masks[1].tolist() == torch.ones(1, 4, 4).tolist()


def test_examples_hold_weights_with_any_cache(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path, checks((8, 8), number), str(number))
    masks = MaskConfig(unmasked_weight=0.25, normalize=True, unmasked_probability=0.3)
    found = {}
    for kind in ("off", "auto", "disk"):
        examples = made(tmp_path, masks=masks, cache=kind)
        cache = ContentCache(tmp_path / "cache")
        cache_latents(examples, Base(), 2, lambda it, _: it, cache)  # type: ignore[arg-type]
        assert (examples.latents is None) == (kind == "off")
        found[kind] = collate([examples[position] for position in range(24)])["mask"]  # type: ignore
    assert found["off"].shape == (24, 1, 4, 4)
    assert torch.equal(found["off"], found["auto"])
    assert torch.equal(found["off"], found["disk"])
    assert torch.allclose(found["off"].mean((1, 2, 3)), torch.ones(24))
    whole = (found["off"] == 1).flatten(1).all(1)
    assert 1 <= int(whole.sum()) <= 15  # a third of 24, not all of a picture


def test_the_key_of_latents_follows_the_mask(tmp_path: Path) -> None:
    folder, masks = tmp_path / "pictures", tmp_path / "masks"
    for made_by, name in ((folder, "a"), (masks, "a")):
        made_by.mkdir()
        picture(made_by, None, name)

    def key(masks: MaskConfig | None) -> str:
        data = DataConfig(path=str(folder), masks=masks)
        return latents_keys(Examples(find_pictures(data, True), data, 8, 5), {})[0]

    path = str(masks)
    one = key(MaskConfig(path=path))
    assert one == key(MaskConfig(path=path, unmasked_weight=0.5, normalize=True))  # made of it
    Image.fromarray(checks((8, 8), 1)).save(masks / "a.png")
    other = key(MaskConfig(path=path))
    assert len({one, other, key(MaskConfig(source="alpha")), key(None)}) == 4


# Which file


def test_masks_are_no_pictures_and_count_in_the_fingerprint(tmp_path: Path) -> None:
    picture(tmp_path, checks((8, 8)))
    data = DataConfig(path=str(tmp_path), masks=MaskConfig())
    (found,) = find_pictures(data, True)
    assert found == Picture(tmp_path / "a.png", ("a",), tmp_path / "a-masklabel.png")
    before = fingerprint([found], tmp_path)
    Image.new("L", (8, 8), 1).save(tmp_path / "a-masklabel.png")
    assert fingerprint([found], tmp_path) != before


@pytest.mark.parametrize("inside", [True, False])
def test_masks_in_a_folder_of_their_own(tmp_path: Path, inside: bool) -> None:
    """kohya: the picture's name; the folder may lie among the pictures."""
    data, masks = tmp_path / "data", tmp_path / ("data/masks" if inside else "masks")
    for folder in (data / "cats", masks / "cats"):
        folder.mkdir(parents=True)
    picture(data / "cats", None)
    Image.new("L", (8, 8), 255).save(masks / "cats" / "a.webp")
    config = DataConfig(path=str(data), masks=MaskConfig(path=str(masks)))
    assert [one.mask for one in find_pictures(config, True)] == [masks / "cats" / "a.webp"]


def test_missing_masks_are_named_or_told(tmp_path: Path) -> None:
    picture(tmp_path, checks((8, 8)))
    picture(tmp_path, None, "b")
    with pytest.raises(DataError, match=r"1 of 2 pictures have no mask: \S+b.png.*missing=whole"):
        made(tmp_path)
    with pytest.warns(RecipeWarning, match=r"b.png; they count everywhere"):
        examples = made(tmp_path, masks=MaskConfig(missing="whole"))
    assert examples.content(1)["mask"].tolist() == torch.ones(1, 4, 4).tolist()
    with pytest.raises(DataError, match=r"data.masks.path: 'nowhere' is not a folder"):
        made(tmp_path, masks=MaskConfig(path="nowhere"))
    Image.new("L", (8, 8)).save(tmp_path / "b-masklabel.png")
    Image.new("L", (8, 8)).save(tmp_path / "b-masklabel.webp")
    with pytest.raises(DataError, match="masks of one picture"):
        made(tmp_path)


def test_an_empty_mask_is_told_by_name(tmp_path: Path) -> None:
    picture(tmp_path, np.zeros((8, 8), np.uint8))
    with pytest.warns(RecipeWarning, match=r"a-masklabel.png: the mask is empty everywhere"):
        assert made(tmp_path).content(0)["mask"].sum() == 0
    made(tmp_path, masks=MaskConfig(unmasked_weight=0.1)).content(0)  # counts a tenth: no warning
    (tmp_path / "a-masklabel.png").write_bytes(b"none")
    with pytest.raises(DataError, match="cannot be read as a mask"):
        made(tmp_path).content(0)


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (["data.masks={suffix: ''}"], "data.masks.suffix: must not be empty"),
        (["data.masks={suffix: _m.png}"], "data.masks.suffix: stands before the file's ending"),
        (["data.masks={unmasked_weight: 2}"], "unmasked_weight: must lie between 0 and 1"),
        (["data.masks={}", "data.clips={frames: 9}"], "data.masks: are for images; clips"),
        (["data.masks={}", "objective={type: autoencoder}"], "data.masks: weigh the error of"),
    ],
)
def test_refused(
    make_recipe: Callable[..., TrainRecipe], overrides: list[str], reported: str
) -> None:
    with pytest.raises(RecipeError, match=reported):
        make_recipe(*overrides)


def test_settings_without_effect_are_told(make_recipe: Callable[..., TrainRecipe]) -> None:
    with pytest.warns(RecipeWarning) as reported:
        make_recipe("data.masks={source: alpha, path: masks, formula: a1111, normalize: true}")
    lines = "\n".join(str(one.message) for one in reported)
    assert "data.masks.path: has no effect with source: alpha" in lines
    assert "data.masks.normalize: has no effect with formula: a1111" in lines
