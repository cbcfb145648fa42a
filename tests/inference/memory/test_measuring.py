"""Memory measured on the meta device: counting, CUDA's arithmetic, and what is left unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from inference.memory.cuda_arithmetic import FP32, INTO_FP32, LOWER
from inference.memory.measuring import SHORTCUTS, live_bytes, on_meta

KIB = 1024


def blank(*shape: int, **settings: Any) -> Tensor:
    return torch.empty(*shape, device="meta", **settings)


def test_storages_count_until_they_are_freed() -> None:
    older = blank(256)
    with live_bytes() as (live, _):
        one = older * 2
        assert live.now == KIB
        view, same = one.view(16, 16), older.view(16, 16)
        assert live.now == KIB
        del one
        assert live.now == KIB
        two = view + same
        assert live.now == 2 * KIB
        del view, two
        assert (live.now, live.peak) == (0, 2 * KIB)
        small = older[:1] + 1
        assert live.now == 512  # the allocator rounds up
        del small


def kept_by(frozen: tuple[int, ...], is_checkpointing: bool = False) -> tuple[int, int]:
    """Bytes after the forward pass and at the peak of three layers of width 256 and a ReLU each."""
    layers = nn.ModuleList([nn.Linear(256, 256, device="meta") for _ in range(3)])
    for number in frozen:
        layers[number].requires_grad_(False)
    with live_bytes() as (live, cuda):
        x = torch.zeros(256, 256, device="meta")
        for layer in layers:

            def block(x: Tensor, layer: nn.Module = layer) -> Tensor:
                return functional.relu(functional.relu(layer(x)))

            x = checkpoint(block, x, use_reentrant=False) if is_checkpointing else block(x)
        loss = x.sum()
        del x
        forward = live.now
        cuda.backward(loss)
    assert all((layer.weight.grad is None) == (n in frozen) for n, layer in enumerate(layers))
    return forward, live.peak


def test_a_backward_pass_keeps_what_it_needs() -> None:
    all_trained, last, recomputed = kept_by(()), kept_by((0, 1)), kept_by((), True)
    assert all_trained[0] >= 7 * 256 * KIB  # the input, and two results of each layer
    assert last[0] < 4 * 256 * KIB  # of frozen layers in front nothing, of the last its input
    assert recomputed[0] < all_trained[0] and recomputed[1] < all_trained[1]


def test_autocast_is_imitated() -> None:
    layer, norm = nn.Linear(64, 64, device="meta"), nn.LayerNorm(64, device="meta")
    frozen = nn.Linear(64, 64, device="meta", dtype=torch.bfloat16).requires_grad_(False)
    with live_bytes(torch.bfloat16) as (live, cuda):
        x = torch.zeros(4, 64, device="meta")
        with cuda.autocast():
            low = frozen(layer(x))
            assert low.dtype == torch.bfloat16
            before = live.now
            again = layer(x)
            assert live.now - before < 3 * KIB  # the cast of the weight is there already
            assert norm(low).dtype == low.softmax(-1).dtype == low.sum().dtype == torch.float32
            assert (low + low).dtype == functional.silu(low).dtype == torch.bfloat16
            loss = (again.float() + norm(low)).mean()
        assert layer(x).dtype == torch.float32
        cuda.backward(loss)
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    assert not LOWER & FP32 and not FP32 & INTO_FP32 and not LOWER & INTO_FP32


def test_attention_keeps_no_scores() -> None:
    """As CUDA's flash kernel: 1024 x 1024 scores of four heads would take 8 MiB."""
    heads = [blank(1, 4, 1024, 40, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    mask = blank(1, 1, 1024, 1024, dtype=torch.bool)
    with live_bytes() as (live, cuda):
        out = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        assert out.shape == heads[0].shape
        assert live.now < 2 * out.nbytes
        cuda.backward(out.sum())
        assert live.peak < 10 * out.nbytes
        masked = functional.scaled_dot_product_attention(*heads, attn_mask=mask)
        assert masked.shape == heads[0].shape


SAMPLES: dict[str, list[Any]] = {
    "elementwise": [blank(2, 3, 4).transpose(1, 2), blank(2, 3, 4).transpose(1, 2)],
    "affine": [blank(5), blank(2, 3), blank(3, 5)],
    "layer_norm": [blank(2, 3, 8), [8], blank(8), blank(8), 1e-5],
    "group_norm": [blank(2, 8, 3, 3), blank(8), blank(8), 2, 8, 9, 4, 1e-5],
}


@pytest.mark.parametrize("func", SHORTCUTS, ids=str)
def test_shortcuts_give_what_operations_give(func: Any) -> None:
    inputs = SAMPLES[SHORTCUTS[func].__name__]
    quick, true = SHORTCUTS[func](*inputs), func(*inputs)
    pairs = zip([quick], [true], strict=True)
    if isinstance(true, tuple):
        pairs = zip(quick, true, strict=True)
    for one, other in pairs:
        assert one.shape == other.shape and one.dtype == other.dtype
        assert one.stride() == other.stride()
    on_host = [torch.zeros(4)] * len(inputs)
    assert SHORTCUTS[func](*on_host) is None


def test_modules_get_their_weights_back() -> None:
    inner = nn.BatchNorm1d(4)
    module = nn.Sequential(inner, nn.Linear(4, 4), inner)
    before = [*module.parameters(), *module.buffers()]
    with pytest.raises(ZeroDivisionError), on_meta(module):
        assert all(one.is_meta for one in (*module.parameters(), *module.buffers()))
        assert module[0].weight is module[2].weight
        raise ZeroDivisionError
    after = [*module.parameters(), *module.buffers()]
    assert all(one is other for one, other in zip(before, after, strict=True))
