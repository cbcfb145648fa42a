"""A transformer that several processes compute together equals that of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from inference.models.cogvideox.context import Row
from inference.models.cogvideox.detect import FAMILIES
from inference.models.conditions import Conditions
from inference.parallel import Layout, check_heads
from inference.runtime import InputError
from tests.inference.models.cogvideox.models import make_video_model
from tests.inference.parallel.ranks import on_ranks

CLOSE = 1e-5
"""Of fp32 sums in another order, relative to their norm."""

Model = Any
Results = dict[str, Tensor]


def run(model: Model, frames: int, side: int = 8) -> Results:
    """The prediction, the loss and the gradients of all weights for two examples."""
    numbers = torch.Generator().manual_seed(frames)
    config = model.config
    shape = (2, frames, 4, side, side)
    noisy, target = (torch.randn(shape, generator=numbers) for _ in range(2))
    image = torch.randn(shape, generator=numbers) if config.in_channels == 8 else None
    states = torch.randn(2, *model.prompt_shape, generator=numbers)
    model.transformer.requires_grad_(True)
    prediction = model.predict(noisy, torch.tensor([300, 700]), Conditions(states), image)
    loss = (prediction - target).square().mean()
    loss.backward()
    gradients = {
        name: weight.grad.clone()
        for name, weight in model.transformer.named_parameters()
        if weight.grad is not None
    }
    model.transformer.zero_grad()
    return {"prediction": prediction.detach(), "loss": loss.detach(), **gradients}


def divided(
    size: int, make: Callable[[], Model], frames: int, context: int = 0, side: int = 8
) -> list[Results]:
    """The same of each of `size` processes; gradients are averaged over all, as by DDP."""

    def work(rank: int) -> Results:
        model = make()
        model.divide(Layout(rank, size, context or size))
        results = run(model, frames, side)
        for name, gradient in results.items():
            if name not in ("prediction", "loss"):
                dist.all_reduce(gradient)
                gradient /= size
        with model.undivided():
            alone = run(model, frames, side)
        results["alone"] = alone["prediction"]
        return results

    return on_ranks(size, work)


def check_equal(whole: Results, part: Results) -> None:
    assert part.keys() - {"alone"} == whole.keys()
    for name, expected in whole.items():
        error = (part[name] - expected).norm()
        assert error <= CLOSE * max(float(expected.norm()), 1e-3), (name, error)
    assert torch.equal(part["alone"], whole["prediction"])


def recomputed(model: Model) -> Model:
    """With gradient checkpointing."""
    model.transformer.train()
    model.transformer.enable_gradient_checkpointing()
    return model


def test_two_processes_equal_one() -> None:
    """Nine tokens per frame, so that one process has padding; weights recomputed."""

    def make() -> Model:
        return recomputed(make_video_model("5b"))

    whole = run(make(), 3, side=6)
    for part in divided(2, make, 3, side=6):
        check_equal(whole, part)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("heads", [4, 8])
@pytest.mark.parametrize(
    ("kind", "frames"),
    [
        ("2b", 3), ("5b", 1), ("5b", 3), ("5b_i2v", 3), ("1.5", 2), ("1.5", 6), ("1.5_i2v", 4),
        ("fun", 5),
    ],
)  # fmt: skip
def test_processes_equal_one(kind: str, frames: int, heads: int, size: int) -> None:
    def make() -> Model:
        return make_video_model(kind, num_attention_heads=heads, max_text_seq_length=15)

    side = 8 if kind == "5b_i2v" else 6
    whole = run(make(), frames, side)
    for part in divided(size, make, frames, side=side):
        check_equal(whole, part)


@pytest.mark.slow
def test_processes_along_data_have_examples_of_their_own() -> None:
    """The mean over all processes is the gradient of the mean loss."""

    def work(rank: int) -> Results:
        model = make_video_model("5b")
        layout = Layout(rank, 4, 2)
        model.divide(layout)
        results = run(model, 3 + 2 * layout.data_rank)
        for name, gradient in results.items():
            if name not in ("prediction", "loss"):
                dist.all_reduce(gradient)
                gradient /= 4
        return results

    parts = on_ranks(4, work)
    three, five = (run(make_video_model("5b"), frames) for frames in (3, 5))
    for rank, part in enumerate(parts):
        assert torch.allclose(part["loss"], (three if rank < 2 else five)["loss"])
        for name in three.keys() - {"prediction", "loss"}:
            mean = (three[name] + five[name]) / 2
            assert (part[name] - mean).norm() <= CLOSE * mean.norm() + 1e-8, name


def test_tokens_in_the_order_of_the_processes() -> None:
    """Prompts of 3 and clips of 5 tokens on two processes: -1 is padding."""
    assert Row(3, 5, 2).places().tolist() == [0, 1, 3, 4, 5, 2, -1, 6, 7, -1]
    assert Row(226, 17550, 2).mask(None, torch.zeros(1)) is None  # CogVideoX-5B needs no padding


def test_tokens_of_one_process() -> None:
    """Nine tokens per frame, and prompts of 16; the shares are padded alike."""
    model = make_video_model("5b")
    assert [model.sequence_tokens(3, 6, 6, count) for count in (1, 2, 4)] == [43, 22, 11]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_memory_falls_with_the_tokens(size: int) -> None:
    """What a block keeps for the backward pass, counted: its share of the tokens, and more.

    Modulation has no tokens, and keeps the same in each process.
    """

    def kept(model: Model) -> int:
        storages: dict[int, int] = {}
        model.transformer.requires_grad_(True)
        weights = {one.untyped_storage().data_ptr() for one in model.transformer.parameters()}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
                held.append(tensor)
            return tensor

        held: list[Tensor] = []
        latents = torch.randn(1, 9, 4, 16, 16)
        states = torch.randn(1, *model.prompt_shape)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.predict(latents, torch.tensor([500]), Conditions(states))
        return sum(storages.values())

    def work(rank: int) -> int:
        model = make_video_model("5b", num_layers=6, num_attention_heads=4)
        model.divide(Layout(rank, size, size))
        return kept(model)

    whole = kept(make_video_model("5b", num_layers=6, num_attention_heads=4))
    for own in on_ranks(size, work):
        print(f"{own / whole:.3f} of one process's")
        assert own < 1.05 * whole / size


def test_padding_is_masked() -> None:
    mask = Row(3, 5, 2).mask(None, torch.zeros(1))
    assert mask is not None
    assert mask.flatten().isinf().nonzero().flatten().tolist() == [6, 9]


def test_packed_clips_keep_their_mask() -> None:
    """The bias between two tokens is that of the whole row."""
    given = torch.arange(64.0).view(1, 8, 8)
    mask = Row(3, 5, 2).mask(given, torch.zeros(1))
    assert mask is not None
    places = Row(3, 5, 2).places().tolist()
    for row, query in enumerate(places):
        for column, key in enumerate(places):
            expected = -torch.inf if key < 0 else 0.0 if query < 0 else float(8 * query + key)
            assert mask[0, 0, row, column] == expected


def test_heads_that_do_not_divide_are_refused() -> None:
    heads = FAMILIES["cogvideox-2b"].transformer["num_attention_heads"]
    with pytest.raises(InputError) as caught:
        check_heads(heads, 4, "CogVideoX-2B")
    assert str(caught.value) == (
        "parallel.context: CogVideoX-2B has 30 attention heads, which 4 processes cannot share "
        "equally; take one of 2, 3, 5, 6, 10, 15"
    )
    for name, family in FAMILIES.items():
        heads = family.transformer["num_attention_heads"]
        for context in (2, 3, 6):
            check_heads(heads, context, name)
