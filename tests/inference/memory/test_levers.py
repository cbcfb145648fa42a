"""Levers of memory: which blocks are swapped, what pictures need, and warnings on a CPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from inference.config import BaseModelConfig, MemoryConfig, draw_schema
from inference.images.memory import Levers, picture_needs, place_for_drawing
from inference.memory import (
    MemoryPlan,
    Swapping,
    chosen_blocks,
    enable_tiles,
    swapped_bytes,
    weight_bytes,
)
from inference.memory.swapping import frozen_tensors, leaves
from inference.models.stable_diffusion.loading import load_base_model
from inference.recipe import RecipeError, load_recipe
from inference.runtime import DrawWarning, InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (0, []),
        (1, [7]),
        (2, [3, 7]),
        (3, [1, 4, 7]),
        (0.5, [1, 3, 5, 7]),
        (0.01, [7]),
        (8, [*range(8)]),
    ],
)
def test_swapped_blocks_are_spread(wish: float, expected: list[int]) -> None:
    blocks = [nn.Linear(1, 1) for _ in range(8)]
    assert [blocks.index(one) for one in chosen_blocks(blocks, wish)] == expected  # type: ignore[arg-type]


def test_more_blocks_than_there_are_is_an_error() -> None:
    with pytest.raises(InputError, match=r"blocks_to_swap: got 3; the denoiser has 2 blocks"):
        chosen_blocks([nn.Linear(1, 1)] * 2, 3)
    with pytest.raises(InputError, match="has 0 blocks"):
        chosen_blocks([], 0.5)


def test_two_swapped_blocks_remain_on_the_device() -> None:
    blocks = [nn.Linear(3, 4, bias=False).requires_grad_(False) for _ in range(5)]
    blocks[0].weight.requires_grad_(True)  # trained: it stays
    assert swapped_bytes(blocks, 5) == 2 * 4 * 3 * 4
    assert frozen_tensors(blocks[0]) == []


def test_blocks_of_a_unet_are_those_that_are_recomputed(tiny_base_folder: Path) -> None:
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    base.unet.enable_gradient_checkpointing()
    recomputed: list[nn.Module] = []

    def note(module: nn.Module, *inputs: torch.Tensor) -> object:
        recomputed.append(module)
        return module(*inputs)

    for module in base.unet.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = note  # type: ignore[assignment]
    latents = torch.zeros(1, 4, 8, 8)
    base.predict(latents, torch.zeros(1), base.encode_prompts(["a"]))
    assert recomputed == base.blocks()


def test_every_weight_of_a_part_is_in_one_leaf(tiny_base_folder: Path) -> None:
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    for part in (base.unet, base.text_encoders["text_encoder"]):
        found = [t for leaf in leaves(part) for t in frozen_tensors(leaf, is_recursive=False)]
        assert {id(one) for one in found} == {id(one) for one in frozen_tensors(part)}
        assert len(found) == len(frozen_tensors(part))


def test_swapping_on_a_cpu_computes_as_before() -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    expected, weight = layer(torch.ones(1, 2)), layer.weight
    swapping = Swapping([layer], CPU)
    assert torch.equal(layer(torch.ones(1, 2)), expected)
    assert layer.weight is weight
    swapping.release()
    assert "forward" not in vars(layer)


def test_levers_without_effect_cause_one_warning(tiny_base_folder: Path) -> None:
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    levers = Levers(MemoryConfig(offload="model_offload", blocks_to_swap=2))

    def needs(_: float) -> None:
        raise AssertionError("nothing is chosen on a CPU")

    with pytest.warns(DrawWarning) as caught:
        place_for_drawing(base, CPU, levers, needs)  # type: ignore[arg-type]
    assert [str(one.message) for one in caught] == [
        "memory: model_offload, blocks_to_swap have no effect on cpu"
    ]
    assert base.placement is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        place_for_drawing(base, CPU, Levers(), needs)  # type: ignore[arg-type]


def test_a_sliced_vae(tiny_base_folder: Path) -> None:
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    place_for_drawing(base, CPU, Levers(MemoryConfig(vae_slicing=True)), lambda _: None)  # type: ignore
    assert base.vae.use_slicing
    pixels = torch.zeros(2, 3, 16, 16)
    assert base.encode_images(pixels)[0].shape[0] == 2
    assert base.device == CPU


@pytest.mark.parametrize(("height", "width"), [(64, 64), (88, 104), (480, 720)])
def test_tiles_of_clips_fit_together(height: int, width: int) -> None:
    """Latents and clips keep their sizes, also where a tile overlaps by part of a latent."""
    from diffusers import AutoencoderKLCogVideoX

    sizes = {"sample_height": height, "sample_width": width, "block_out_channels": (8, 8)}
    kinds = {
        f"{way}_block_types": (f"CogVideoX{way.title()}Block3D",) * 2 for way in ("down", "up")
    }
    vae = AutoencoderKLCogVideoX(**sizes, **kinds, layers_per_block=1, norm_num_groups=4)
    enable_tiles(vae)
    with torch.no_grad(), torch.device("meta"):
        clip = torch.zeros(1, 3, 1, height, width)
        latents = vae.to("meta").encode(clip).latent_dist.mean
        assert latents.shape[-2:] == (height // 2, width // 2)
        assert vae.decode(latents).sample.shape[-2:] == (height, width)


def test_a_plan_is_summed_up() -> None:
    assert MemoryPlan("model_offload", True, "", 12).summary == (
        "model_offload, 12 blocks swapped, the VAE in tiles"
    )
    assert MemoryPlan(blocks_to_swap=0.25).summary == "none, 25% of the blocks swapped"


def test_needs_of_pictures(tiny_base_folder: Path) -> None:
    """Of the largest one, measured; guidance doubles the rows, and decoding has one of them."""
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    side = 8 * base.vae_scale_factor
    needs = picture_needs(base, [(8, 8), (2 * side, side)], 3)
    states = 2 * 3 * 2 * base.unet.config.block_out_channels[0] * 8 * 8 * 2 * 4
    assert states < needs.drawing < 24 * states
    assert needs.denoiser == weight_bytes(base.unet)
    assert 3 * 2 * side**2 * 4 < needs.tiled_decoding < needs.decoding
    more = picture_needs(base, [(2 * side, side)], 6)
    assert more.decoding == needs.decoding and 1.5 < more.drawing / needs.drawing < 2.5
    assert picture_needs(base, [(side, side)], 3).decoding < needs.decoding
    assert all(one.device.type == "cpu" for one in base.unet.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["memory=group_offload"], "group_offload is for clips"),
        (["memory.blocks_to_swap=2.5"], "whole number, or a share below 1, got 2.5"),
        (["memory.blocks_to_swap=-1"], "whole number, or a share below 1, got -1"),
        (
            ["memory={offload: sequential_offload, blocks_to_swap: 2}"],
            "cannot go with offload: sequential_offload",
        ),
        (["memory.blocks_to_swap=2", "base_model.quantization=nf4", "type=clip"], "nf4"),
        (["memory=group_offload", "base_model.quantization=int8", "type=clip"], "int8"),
    ],
)
def test_levers_that_exclude_each_other(overrides: list[str], message: str, tmp_path: Path) -> None:
    kind = "clips" if "type=clip" in overrides else "images"
    (tmp_path / "r.yaml").write_text(f"{kind}: {{one: {{prompt: a}}}}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "r.yaml", draw_schema, overrides)
