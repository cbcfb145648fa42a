"""Hundreds of LoRAs on one layer: their sum, and how often anything is done for each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from inference.artifacts import Lora, LoraSpec, NetworkLibrary
from inference.artifacts.adapters import lora as lora_module
from inference.artifacts.adapters import lora_files, low_rank
from inference.artifacts.adapters.low_rank import MANY, LowRank, Stack, hang_in, initial_low_rank
from inference.prompts import ExtraNetwork


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 40, 1), nn.Flatten(2),
        nn.Linear(64, 64),
    ).requires_grad_(False)  # fmt: skip


def hang(model: nn.Sequential, count: int, rank: int) -> list[Stack]:
    """Return the stacks of the model's three layers, each with as many LoRAs."""
    stacks = {}
    for number in range(count):
        for index in ("0", "1", "3"):
            generator = torch.Generator().manual_seed(number)
            one = initial_low_rank(model[int(index)], rank, 1.0, 0.0, generator)
            one.lora_B.weight.data.normal_(0, 0.1, generator=generator)
            stacks[index] = hang_in(model, index, f"l{number}", one.requires_grad_(False))
            stacks[index].set_strength(f"l{number}", 0.1 + 0.01 * number)
    return list(stacks.values())


@pytest.mark.parametrize("rank", [1, 5])
def test_the_sum_of_many_is_that_of_one_after_the_other(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As halves, and where these are larger than the layer's weight as one weight."""
    model = network()
    x = torch.randn(2, 3, 16, 16)
    plain = model(x)
    stacks = hang(model, MANY, rank)
    together = model(x)
    assert {len(stack.change or ()) for stack in stacks} == ({1, 2} if rank == 1 else {1})
    with monkeypatch.context() as patch:
        patch.setattr(low_rank, "MANY", MANY + 1)
        apart = model(x)
    assert not together.allclose(plain, atol=1e-2)
    assert together.allclose(apart, atol=1e-4)
    for stack in stacks:  # neither is the sum kept when a strength changes
        stack.set_strength("l3", 0.0)
    fewer = model(x)  # one by one again
    assert not fewer.allclose(together, atol=1e-4)
    assert all(stack.change is None for stack in stacks)


def test_few_are_added_in_their_order_as_modules_are() -> None:
    """Pixels of a LoRA that is drawn with are those of the LoRA while it was trained."""
    first, second = network(), network()
    x = torch.randn(2, 3, 16, 16)
    hang(first, 3, 4)
    for number in range(3):
        for index in (0, 1, 3):
            generator = torch.Generator().manual_seed(number)
            layer = second[index]
            layer = layer.get_base_layer() if isinstance(layer, Stack) else layer
            one = initial_low_rank(layer, 4, 1.0, 0.0, generator)
            one.lora_B.weight.data.normal_(0, 0.1, generator=generator)
            hang_in(second, str(index), f"l{number}", one).set_strength(
                f"l{number}", 0.1 + 0.01 * number
            )
    assert any(p.requires_grad for p in second.parameters())
    with torch.no_grad():
        assert torch.equal(first(x), second(x))


def test_halves_follow_their_layer() -> None:
    """They are no parameters, and yet converted and moved along."""
    model = network()
    stacks = hang(model, MANY, 1)
    model(torch.randn(1, 3, 16, 16))
    model.double()
    assert {half.dtype for stack in stacks for pair in stack.halves.values() for half in pair} == {
        torch.float64
    }
    assert model(torch.randn(1, 3, 16, 16, dtype=torch.float64)).dtype == torch.float64


def test_each_file_is_read_once_and_each_model_is_walked_once(
    tiny_base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = MANY + 4
    lora = Lora.create(tiny_base, LoraSpec(1, 1.0, 0.0, ["attention"], False), seed=0)
    for layer in lora.layers.values():
        for parameter in layer.parameters():
            parameter.data.normal_(0, 0.01)
    for number in range(count):
        lora.save(tmp_path / f"l{number}.safetensors", torch.float16, {})
    walks, reads, built = [], [], []
    layers_of, read_tensors, init = (
        lora_module.layers_of,
        lora_files.read_tensors,
        LowRank.__init__,
    )
    monkeypatch.setattr(lora_module, "layers_of", lambda p: walks.append(p) or layers_of(p))
    monkeypatch.setattr(lora_files, "read_tensors", lambda p: reads.append(p) or read_tensors(p))
    monkeypatch.setattr(LowRank, "__init__", lambda *a, **k: built.append(1) or init(*a, **k))
    calls = tuple(ExtraNetwork("lora", f"l{n}", 0.1, 0.1, None, n) for n in range(count))
    library = NetworkLibrary(tiny_base, [tmp_path])
    for _ in range(2):
        with library.at_work(calls[:8], []) as used:
            assert len(used) == 8
    with library.at_work(calls, []):
        stacks = [module for module in tiny_base.unet.modules() if isinstance(module, Stack)]
        assert {len(stack.active_adapters) for stack in stacks} == {count}
        assert not any(".lora_" in name for name, _ in tiny_base.unet.named_parameters())
    library.close()
    assert not any(isinstance(module, Stack) for module in tiny_base.unet.modules())
    assert len(reads) == count
    assert len(built) == count * len(lora.layers)
    assert len(walks) <= len(lora_module.changeable_parts(tiny_base))
