"""CUDA's arithmetic on the meta device, as far as memory depends on it: autocast and attention."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

LOWER = frozenset(
    {
        functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__,
        torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.addmm, Tensor.addmm, torch.baddbmm,
        Tensor.baddbmm, torch.addbmm, Tensor.addbmm, torch.mv, Tensor.mv, torch.addmv,
        Tensor.addmv, torch.einsum, torch.conv1d, torch.conv2d, torch.conv3d,
        functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
        functional.prelu, functional.scaled_dot_product_attention,
    }
)  # fmt: skip
"""Functions that autocast computes in the lower precision (PyTorch's page on torch.amp)."""

FP32 = frozenset(
    {
        functional.layer_norm, torch.layer_norm, functional.group_norm, torch.group_norm,
        functional.normalize, functional.cosine_similarity, functional.mse_loss,
        functional.l1_loss, functional.smooth_l1_loss, functional.softplus,
        torch.exp, Tensor.exp, torch.expm1, Tensor.expm1, torch.log, Tensor.log, torch.log10,
        Tensor.log10, torch.log2, Tensor.log2, torch.log1p, Tensor.log1p, torch.pow, Tensor.pow,
        Tensor.__pow__, Tensor.__rpow__, torch.reciprocal, Tensor.reciprocal, torch.rsqrt,
        Tensor.rsqrt, Tensor.__rtruediv__, torch.cosh, Tensor.cosh, torch.sinh, Tensor.sinh,
        torch.tan, Tensor.tan, torch.acos, Tensor.acos, torch.asin, Tensor.asin, torch.erfinv,
        Tensor.erfinv, torch.norm, Tensor.norm, torch.cdist, torch.dist, torch.renorm,
        Tensor.renorm,
    }
)  # fmt: skip
"""Functions whose inputs autocast casts to fp32."""

INTO_FP32 = frozenset(
    {
        functional.softmax, torch.softmax, Tensor.softmax, functional.log_softmax,
        torch.log_softmax, Tensor.log_softmax, torch.sum, Tensor.sum, torch.prod, Tensor.prod,
        torch.cumsum, Tensor.cumsum, torch.cumprod, Tensor.cumprod,
    }
)  # fmt: skip
"""Functions whose result autocast asks for in fp32."""

LONGEST_HEAD = 256
"""Width of attention heads up to which the flash kernel works."""


class CudaArithmetic(TorchFunctionMode):
    """Imitates, on the meta device, CUDA's autocast and its fused attention.

    Autocast has no backend for the meta device. It casts the inputs of listed functions, and keeps
    the casts of trained weights until the end of the forward pass. Attention keeps its inputs, its
    output and row sums, but no scores.
    """

    def __init__(self, lower: torch.dtype | None) -> None:
        super().__init__()
        self.lower = lower
        self._is_casting = self._is_backward = False
        self._casts: dict[tuple[int, torch.dtype], Any] = {}

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Use autocast inside the context, if a lower precision is given."""
        self._is_casting = self.lower is not None
        try:
            yield
        finally:
            self._is_casting = False
            self._casts.clear()

    def backward(self, loss: Tensor) -> None:
        """Compute gradients; what checkpoints compute again uses autocast."""
        engine: Any = torch.autograd.Variable._execution_engine
        self._is_backward = True
        try:
            with self.autocast():
                # torch.autograd.backward would call this mode, which is off in its own functions.
                start = (loss,), (torch.ones_like(loss),)
                engine.run_backward(
                    *start, False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        finally:
            self._is_backward = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._is_casting:
            dtype = self.lower if func in LOWER else torch.float32 if func in FP32 else None
            if dtype is not None:
                args, kwargs = tree_map_only(Tensor, self._cast_to(dtype), (args, kwargs))
            elif func in INTO_FP32 and args[0].is_meta and args[0].dtype == self.lower:
                kwargs = {**kwargs, "dtype": kwargs.get("dtype") or torch.float32}
        if func is functional.scaled_dot_product_attention and args[0].is_meta:
            if kwargs.pop("enable_gqa", False):
                raise NotImplementedError("attention with grouped queries is not measured")
            return fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast_to(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        def cast(tensor: Tensor) -> Tensor:
            is_other = tensor.is_floating_point() and tensor.dtype not in (dtype, torch.float64)
            if not tensor.is_meta or not is_other:
                return tensor
            if not (tensor.requires_grad and tensor.is_leaf and tensor.dtype == torch.float32):
                return tensor.to(dtype)
            kept = self._casts.get((id(tensor), dtype))
            found = kept() if isinstance(kept, weakref.ref) else kept
            if found is None:
                found = tensor.to(dtype)
                # A checkpoint's own autocast forgets its casts when it has computed a block again.
                kept = weakref.ref(found) if self._is_backward else found
                self._casts[id(tensor), dtype] = kept
            return found

        return cast


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Return attention by the operators of CUDA: flash, or memory-efficient with a mask or fp32."""
    if attn_mask is None and query.dtype != torch.float32 and query.shape[-1] <= LONGEST_HEAD:
        pad = -query.shape[-1] % 8
        if pad:
            query, key, value = (functional.pad(one, (0, pad)) for one in (query, key, value))
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out = flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return out[..., : out.shape[-1] - pad] if pad else out
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    learns = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, learns, dropout_p, is_causal, scale=scale)[0]
