"""Distances, and masks of words: with models of a few thousand random weights."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessorPil,
    ViTImageProcessorPil,
)

from inference.deforum.geometry.depth import CueDepth, DepthPictures, depth_to_z, open_depth
from inference.deforum.geometry.pixels import to_bytes
from inference.deforum.pictures.word_masks import WordMasks
from inference.runtime.errors import InputError


def picture(height=40, width=56, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Distances


def test_distances_are_spread_from_1_to_2():
    depth = np.arange(10000, dtype=np.float64).reshape(100, 100)
    far = depth_to_z(depth**3, near_is_high=False)
    near = depth_to_z(depth, near_is_high=True)
    assert far.min() >= 1
    assert far.max() == 2
    assert depth_to_z(depth, False)[50, 0] == pytest.approx(1.5, abs=0.001)
    assert near[50, 0] == pytest.approx(1.5, abs=0.001)
    assert near[0, 0] > near[99, 99]
    assert far[0, 0] < far[99, 99]


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan, np.inf])
def test_depth_that_says_nothing_is_1(value):
    assert np.all(depth_to_z(np.full((4, 5), value), True) == 1)


def test_depth_with_one_bad_value_is_1():
    depth = np.arange(20.0).reshape(4, 5)
    depth[2, 2] = np.nan
    assert np.all(depth_to_z(depth, False) == 1)


def test_cues_take_what_is_low_and_sharp_for_near():
    flat = np.full((64, 64, 3), 120, np.uint8)
    z = CueDepth().distances(flat)
    assert z[2].mean() > z[32].mean() > z[61].mean()
    sharp = flat.copy()
    sharp[20:44, 20:44] = picture(24, 24)
    z = CueDepth().distances(sharp)
    assert z[28:36, 28:36].mean() < z[28:36, :12].mean() - 0.2
    brighter = CueDepth().distances(np.full((64, 64, 3), 240, np.uint8))
    assert np.allclose(brighter, CueDepth().distances(flat))


def test_depth_pictures_share_a_scale():
    pictures = DepthPictures()
    assert pictures.picture(np.array([[1.0, 1.5]], np.float32)).tolist() == [[0, 255]]
    assert pictures.picture(np.array([[1.0, 2.0]], np.float32)).tolist() == [[0, 255]]
    assert pictures.picture(np.array([[1.0, 1.5]], np.float32)).tolist() == [[0, 128]]
    again = DepthPictures(pictures.low, pictures.high)
    assert again.picture(np.array([[1.25]], np.float32)).tolist() == [[64]]


def test_depth_models_by_name(tmp_path):
    assert open_depth("none") is None
    assert isinstance(open_depth("cues"), CueDepth)
    with pytest.raises(InputError, match=r"depth_model: .*nowhere' is no folder here"):
        open_depth(str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def test_a_users_depth_model(depth_folder):
    model: Any = open_depth(str(depth_folder))
    z = model.distances(picture())
    assert z.shape == (40, 56)
    assert z.dtype == np.float32
    assert 1 <= z.min() < z.max() <= 2
    assert model.near_is_high
    assert np.array_equal(z, model.distances(picture()))
    model.near_is_high = False
    assert np.allclose(model.distances(picture()), 3 - z)


# Words


@pytest.fixture(scope="module")
def word_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    tokenizer = CLIPTokenizer.from_pretrained("inference/assets/picto/tokenizer")
    config = CLIPSegConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        conditional_layer=0,
    )
    torch.manual_seed(0)
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_users_word_mask_model(word_folder):
    model = WordMasks(str(word_folder))
    likely, mask = model.likelihood(picture(), "a cat"), model.mask(picture(), "a cat")
    assert likely.shape == mask.shape == (40, 56)
    assert set(np.unique(mask)) == {0, 255}
    levels = to_bytes(likely * 255)
    assert levels[mask == 255].min() > levels[mask == 0].max()


def test_a_word_mask_model_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="word_mask_model: "):
        WordMasks(str(tmp_path))
