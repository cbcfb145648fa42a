# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a training step at full size, by fake tensors.

    FAKE_FULL=FOLDER FAKE_PICTURES=FOLDER python -m tests.gpu.fake_memory [part of a case's name]

The objective of a recipe (built by `train.plan`, without weights) becomes fake CUDA tensors; its
forward, backward, clipping and optimizer run; every storage counts from its allocation until it is
freed. Attention is CUDA's flash kernel, which keeps row sums, not scores. Not counted: cuDNN's
workspaces, fragmentation of the allocator, the CUDA context.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

from tests.gpu import mock_cuda

mock_cuda.install(memory=80 * 2**30)  # before torch
mock_cuda.record_syncs(False)

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from inference.memory import MemoryPlan, chosen_blocks, with_tokenizer
from inference.models import Conditions, DiffusionModel, quantize_denoiser
from inference.recipe import load_recipe
from tests.gpu.fake_levers import FakeOptimization, average_of, fakeable, move
from train.common import replaced_parameters
from train.config import TrainRecipe, train_schema
from train.losses.denoising import Denoising
from train.memory import objective_without_weights
from train.objectives import drawn_dtype, enable_gradient_checkpointing
from train.optimization import offload
from train.plan import skeleton

GIB = 2**30
BLOCK = 512
"""CUDA's allocator rounds every size up to a multiple of this."""
CUDA = torch.device("cuda")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SAVED = DTYPES | {"fp32": torch.float32}


class Live(TorchDispatchMode):
    """Count the bytes of live CUDA storages, now and at the peak; use it within FakeTensorMode."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.host = self.host_peak = 0
        """Of large tensors on the CPU, in powers of two as PyTorch pins them."""
        self.seen: dict[int, Any] = {}
        self.ops = 0
        self.at_peak: str = ""

    def note(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, if it is new, until it is freed."""
        is_here = tensor.device.type == "cuda"
        if not is_here and (tensor.device.type != "cpu" or tensor.nbytes < offload.WORTH_MOVING):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen:
            return
        if is_here:
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self.now += size
        else:
            size = 1 << (storage.nbytes() - 1).bit_length()
            self.host += size
            self.host_peak = max(self.host_peak, self.host)
        self.seen[key] = weakref.finalize(storage, self.forget, key, size, is_here)

    def forget(self, key: int, size: int, is_here: bool) -> None:
        if key in self.seen:
            del self.seen[key]
            if is_here:
                self.now -= size
            else:
                self.host -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ops += 1
        for one in tree_flatten(out)[0]:
            if isinstance(one, torch.Tensor):
                self.note(one)
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, str(func)
        return out


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    """Use CUDA's flash attention, or the memory-efficient one with a mask or fp32."""
    if torch.is_autocast_enabled("cuda"):  # on autocast's list of lower precision
        kind = torch.get_autocast_dtype("cuda")
        query, key, value = (one.to(kind) for one in (query, key, value))
        attn_mask = (
            attn_mask.to(kind)
            if attn_mask is not None and attn_mask.is_floating_point()
            else attn_mask
        )
    if attn_mask is None and query.dtype != torch.float32 and query.shape[-1] <= 256:
        pad = -query.shape[-1] % 8
        if pad:
            query, key, value = (nn.functional.pad(one, (0, pad)) for one in (query, key, value))
        out = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
        return out[..., : out.shape[-1] - pad] if pad else out
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    needs = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs, dropout_p, is_causal, scale=scale
    )[0]


class Silu(torch.autograd.Function):
    """SiLU as CUDA computes it: its gradient in one kernel, which a CPU-only build lacks."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        return torch.ops.aten.silu(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (inputs,) = ctx.saved_tensors
        return torch.empty_like(inputs)


def make_fake(modules: list[nn.Module], mode: FakeTensorMode) -> None:
    """Replace parameters and buffers on the meta device by fake CUDA ones; tied ones stay tied."""
    new: dict[int, Any] = {}
    for module in modules:
        for inner in module.modules():
            for name, old in list(inner._parameters.items()):
                if old is None or old.device.type == "cuda":
                    continue
                if id(old) not in new:
                    with mode:
                        new[id(old)] = nn.Parameter(
                            torch.empty(old.shape, dtype=old.dtype, device="cuda"),
                            requires_grad=old.requires_grad,
                        )
                    new[id(new[id(old)])] = new[id(old)]
                inner._parameters[name] = new[id(old)]
            for name, old in list(inner._buffers.items()):
                if old is not None and old.device.type != "cuda":
                    with mode:
                        inner._buffers[name] = torch.zeros(
                            old.shape, dtype=old.dtype, device="cuda"
                        )


def tensors_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield path and value of all weights; those of packed layers with their scales."""
    for path, parameter in module.named_parameters():
        yield path, parameter
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            inner = state.state2
            for one in (state.absmax, state.code, state.offset, inner.absmax, inner.code):
                yield path, one
    for path, buffer in module.named_buffers():
        if path.endswith("weight_scale"):
            yield path, buffer


def make_batch(
    recipe: TrainRecipe,
    base: DiffusionModel,
    shape: tuple[int, ...],
    step: int,
    is_cached: bool,
    rows: int | None = None,
) -> dict[str, Any]:
    """Return a batch of zeros; with cached captions it holds prompt states."""
    rows = rows or recipe.train_batch_size * (2 if recipe.data.has_prior else 1)
    prompt = " ".join(["a photo", *getattr(base, "embeddings", {})])
    batch: dict[str, Any] = {
        "step": step, "step_size": rows, "first_position": 0, "positions": list(range(rows)),
        "indices": list(range(rows)), "names": ["a"] * rows, "weight": torch.ones(rows),
        "prompts": [prompt] * rows, "latents": torch.zeros(rows, *shape, device="cuda"),
        "timesteps": torch.full((rows,), 500),
    }  # fmt: skip
    if is_cached:
        tokens, width = base.prompt_shape
        second: Any = base.parts.get("text_encoder_2")
        pooled = None
        if second is not None:
            width_2 = second.config.projection_dim
            pooled = torch.zeros(rows, width_2, dtype=base.dtype, device="cuda")
        states = torch.zeros(rows, tokens, width, dtype=base.dtype, device="cuda")
        batch["prompt_states"] = Conditions(states, pooled)
    return batch


def moments_8bit(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """Allocate what bitsandbytes' 8-bit AdamW keeps for the parameters."""
    kept = []
    for parameter in parameters:
        size, is_packed = parameter.numel(), parameter.numel() >= 4096
        dtype = torch.uint8 if is_packed else torch.float32
        kept += [torch.zeros(size, dtype=dtype, device="cuda") for _ in range(2)]
        if is_packed:
            kept += [torch.zeros(-(-size // 256), device="cuda") for _ in range(2)]
    return kept


class FakeRun:
    """A run's base model and objective as fake CUDA tensors, without weights."""

    def __init__(self, recipe: TrainRecipe) -> None:
        self.recipe = recipe
        self.objective = objective_without_weights(recipe, skeleton(recipe.base_model, "fp32"))
        self.base = self.objective.base
        cast(Any, self.base).alphas_cumprod = torch.linspace(0.999, 0.001, 1000)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.live = Live()
        self.start = 0
        """Bytes before the work of a phase began."""
        make_fake([*self.base.parts.values(), self.objective], self.mode)
        self.trained = [one for one in self.objective.parameters() if one.requires_grad]
        nn.functional.scaled_dot_product_attention = attention
        nn.functional.silu = lambda inputs, inplace=False: Silu.apply(inputs)  # type: ignore[assignment]
        Denoising.noise = lambda self, positions, like: torch.randn_like(like)
        cast(Any, torch.Tensor).pin_memory = lambda self: self  # fake ones cannot be pinned
        self.packing = recipe.base_model.quantization
        with fakeable(self.packing is not None), self.mode:
            if self.packing is not None:
                quantize_denoiser(self.base, self.packing, DTYPES[recipe.mixed_precision])
            self.place()
        cast(Any, self.base.vae).to = lambda *places: self.base.vae  # fake ones cannot be moved

    def place(self) -> None:
        """Let blocks be swapped and parts be moved, where the recipe says so and not `auto`."""
        memory = self.recipe.memory
        if memory.blocks_to_swap:
            for block in chosen_blocks(self.base.blocks(), memory.blocks_to_swap):
                move(block, torch.device("cpu"))
        if memory.blocks_to_swap or memory.offload == "model_offload":
            way = "none" if memory.offload == "none" else "model_offload"
            self.base.place(CUDA, MemoryPlan(way, blocks_to_swap=memory.blocks_to_swap))

    @contextmanager
    def counted(
        self,
        parts: Collection[str],
        has_optimizer: bool,
        has_trained: bool = True,
        is_filling: bool = False,
    ) -> Iterator[Live]:
        """Count from zero: the weights of these parts, what is trained, the moving average.

        Args:
            parts: those on the device, if the recipe leaves that open (`offload: auto`); otherwise
                those that stay there.
            has_optimizer: whether the optimizer's state counts.
            has_trained: whether trained weights and their average count.
            is_filling: whether the denoiser's trained weights and the average are set aside.
        """
        away = set[int]() if has_trained else {id(one) for one in self.trained}
        if is_filling:
            inside = {id(one) for one in self.base.denoiser.parameters()}
            away = inside & {id(one) for one in self.trained}
            has_trained = False
        self.live = Live()
        with fakeable(self.packing is not None), self.mode, self.live:
            is_placed = self.base.placement is not None
            self.base.settle(parts)
            modules = [part for name, part in self.base.parts.items() if is_placed or name in parts]
            for module in (*modules, self.objective):
                for _, one in tensors_of(module):
                    if id(one) not in away:
                        self.live.note(one)
            for name in () if self.base.denoiser_name in parts else self.base.parts:
                for path, parameter in self.base.parts[name].named_parameters():
                    if ".lora_" in path and id(parameter) not in away:  # stays on the device
                        self.live.note(parameter)
            kept: list[Any] = [self.state() if has_optimizer else None]
            self.average = average_of(self.recipe, self.trained) if has_trained else None
            self.start = self.live.peak = self.live.now
            yield self.live
            del kept

    def state(self) -> object:
        """Allocate the optimizer's state."""
        self.optimization = None
        if self.recipe.memory.steps_by_tensor:
            self.optimization = FakeOptimization(self.recipe, self.objective, self.trained)
            return self.optimization
        is_small = self.recipe.optimizer.type == "adamw8bit"
        return moments_8bit(self.trained) if is_small else self.copies(2)

    def copies(self, count: int) -> list[torch.Tensor]:
        """Return fp32 tensors of the trained ones' sizes."""
        return [torch.zeros_like(one) for one in self.trained for _ in range(count)]

    def step(self, parts: Collection[str], shape: tuple[int, ...], is_cached: bool) -> int:
        """Return the peak bytes of a training step; with accumulation of its last micro-batches.

        AdamW is fused (or bitsandbytes'), which takes nothing besides its state.

        Args:
            parts: those on the device.
            shape: of the latents of one example.
            is_cached: whether captions are cached.
        """
        recipe, objective = self.recipe, self.objective
        everywhere = [objective, *self.base.parts.values()]
        if recipe.gradient_checkpointing:
            enable_gradient_checkpointing(objective)
        objective.train()
        precision = DTYPES.get(recipe.mixed_precision)
        with self.counted(parts, has_optimizer=True) as live, with_tokenizer(self.base):
            if self.optimization is not None:
                self.optimization.begin()
            for step in range(min(recipe.gradient_accumulation_steps, 2)):
                batch = make_batch(recipe, self.base, shape, step, is_cached)
                weights = (one for part in everywhere for one in part.parameters())
                with (
                    torch.autocast("cuda", precision, enabled=precision is not None),
                    offload.offloading(weights, recipe.memory, CUDA),
                ):
                    losses = objective(batch)
                loss = losses.mean()
                loss.backward()
                del losses, loss, batch
            gradients = [one.grad for one in self.trained if one.grad is not None]
            if gradients:
                total = nn.utils.get_total_norm(gradients, foreach=True)
                nn.utils.clip_grads_with_norm_(self.trained, 1.0, total)
            del gradients
            if self.optimization is not None:
                self.optimization.step()
            if self.average is not None:
                self.average.step()
            for parameter in self.trained:
                parameter.grad = None
        return live.peak

    def drawing(self, parts: Collection[str], work: Callable[[], object]) -> int:
        """Return the peak bytes of a part of generating, with the weights that previews use.

        These are copies; trained weights, average and optimizer wait on the host, except with
        `offload: none`.
        """
        stays = self.recipe.memory.offload == "none"
        parameters = list(self.objective.parameters())
        names = [name for name, _ in self.objective.named_parameters()]
        alone = self.base.parts_alone()
        with self.counted(parts, stays, has_trained=stays) as live, torch.no_grad(), alone:
            dtypes = [drawn_dtype(self.recipe, self.base, name) for name in names]
            saved = SAVED[self.recipe.saving.save_precision]
            pairs = zip(parameters, dtypes, strict=True)
            values = [one.to(saved).to(dtype) for one, dtype in pairs]
            everywhere = [self.objective, *self.base.parts.values()]
            self.start = live.now
            with replaced_parameters(everywhere, parameters, values), with_tokenizer(self.base):
                work()
        return live.peak

    def filling(self, parts: Collection[str], work: Callable[[], object]) -> int:
        """Return the peak bytes of encoding captions or images before the first step."""
        is_filling = self.recipe.memory.offload != "none"
        with (
            self.counted(parts, has_optimizer=False, is_filling=is_filling) as live,
            self.base.parts_alone(),
            torch.no_grad(),
            with_tokenizer(self.base),
        ):
            work()
        return live.peak

    def denoise(self, latents: tuple[int, ...], prompts: int) -> None:
        """Evaluate the denoiser as a sampler does."""
        base, rows = self.base, latents[0] * prompts
        x = torch.zeros(latents, device="cuda")
        batch = make_batch(self.recipe, base, latents[1:], 0, True, rows)
        timesteps = torch.zeros(rows, dtype=torch.long, device="cuda")
        seen = torch.cat([x] * prompts).to(base.dtype)
        base.predict(seen, timesteps, batch["prompt_states"]).float()


def step_memory(file: str, overrides: list[str], shape: tuple[int, ...], is_cached: bool) -> Any:
    """Return GiB of a training step as the trainer takes it."""
    recipe = load_recipe(file, train_schema, overrides)
    run = FakeRun(recipe)
    parts = {name: run.base.parts[name] for name in (run.base.denoiser_name,)}
    if not is_cached:
        parts |= run.base.text_encoders
    peak = run.step(parts, shape, is_cached)
    return {"peak": round(peak / GIB, 2), "at_peak": run.live.at_peak, "ops": run.live.ops}


def main() -> None:
    """Print a line of JSON for each case."""
    from tests.gpu.plan_cases import CASES

    warnings.simplefilter("ignore")
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, (file, overrides, shape) in CASES.items():
        if wanted not in name:
            continue
        start = time.time()
        is_cached = not any(one in name for one in ("+te", "textual", "combined", "dreambooth"))
        try:
            found = step_memory(file, overrides, shape, is_cached)
        except Exception as error:  # report it and go on
            traceback.print_exc()
            found: dict[str, Any] = {"error": repr(error)[:300]}
        found["seconds"] = round(time.time() - start)
        print(json.dumps({"case": name, **found}), flush=True)


if __name__ == "__main__":
    main()
