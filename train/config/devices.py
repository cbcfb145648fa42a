"""Typed options of devices: their memory, and how several processes share a training run."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from inference.config import MemoryConfig, ParallelConfig
from train.config.rules import Faults

Rounding = Literal["stochastic", "kahan", "nearest"]


@dataclass
class TrainMemoryConfig(MemoryConfig):
    """Memory of the GPU in training: where weights and trained state lie (docs/memory.md)."""

    offload: Literal["auto", "none", "model_offload"] = "auto"  # type: ignore[assignment]
    """Where the parts of the base model are kept: `none` all on the GPU; `model_offload` only those
    at work: text encoders while captions are encoded, the VAE while latents are encoded or decoded,
    and in the steps the denoiser with what a step uses. `auto` takes `none` if the plan of the run
    fits into free memory, and prints its choice. What is trained always stays on the GPU. Has no
    effect on a CPU, nor on results. `memory: none` is short for `memory: {offload: none}`."""
    blocks_to_swap: float = 0
    """Blocks of the denoiser (UNet or transformer) whose frozen weights lie in the system's memory,
    and come to the GPU only while they compute, in the backward pass too: a number of blocks, or a
    share below 1 (0.5 is half of them). The next block is copied while one computes. Has no effect
    on a CPU, nor on results."""
    fused_backward: bool = False
    """Take the optimizer's step of each weight as soon as its gradient is known, in the backward
    pass, and free the gradient (kohya: fused_backward_pass): the device holds the gradient of one
    tensor instead of all. The weights are the same as without, byte for byte. It needs
    `max_grad_norm: null`, as no gradient is left when the norm of all is known (kohya clips each
    tensor by its own norm, which is another training); `max_grad_value` works, and the norm is
    logged. A gradient that is not finite ends the run: the tensors whose turn came before have
    changed already, so that the state before the step is not saved. For optimizers whose step is
    computed for each parameter alone."""
    trained_weights: Literal["fp32", "bf16"] = "fp32"
    """Format of the trained weights, of their gradients and of the optimizer's state (kohya:
    full_bf16). `bf16` needs `mixed_precision: bf16` and takes 8 bytes per trained number with AdamW
    instead of 16, 6 with adamw8bit instead of 10. Each tensor's step is computed in fp32, then
    rounded as `rounding` says. The EMA stays in fp32; artifacts have `saving.save_precision`."""
    rounding: Rounding = "stochastic"
    """How bf16 weights take updates below their precision, 1/256 of their value. `stochastic`
    rounds up or down with probabilities that keep the mean (drawn by seed, step and tensor, so that
    a resumed run gives the same bytes). `kahan` keeps what rounding cuts off in a second bf16
    tensor, 2 more bytes per number, and is as exact as 16 bits of mantissa. With both, the
    optimizer's state is rounded stochastically. `nearest` loses small updates: at low learning
    rates training stalls."""
    ema_on_cpu: bool = False
    """Keep the average of `ema` in the system's memory and compute it there: the device has 4 bytes
    per trained number less, and each step copies all trained weights to the CPU. Has no effect on a
    run on CPUs, as the two keys below."""
    optimizer_on_cpu: bool = False
    """Keep the optimizer's state in the system's memory and compute its steps on the CPU (torchao:
    CPUOffloadOptimizer): gradients and weights are copied there and the new weights back, one
    tensor after the other. Slower by the CPU's time for all trained numbers: of use where whole
    networks are trained."""
    activation_offload: bool = False
    """Move what the forward pass keeps for the backward pass to the system's memory and back, but
    not weights and tensors below 64 KiB. With `gradient_checkpointing` these are the inputs of the
    blocks (OneTrainer and kohya: CPU offload checkpointing), which costs little time; without,
    everything, at the speed of the bus. The weights are the same, byte for byte."""

    @property
    def steps_by_tensor(self) -> bool:
        """Whether the optimizer's step is taken for one tensor after the other."""
        return self.fused_backward or self.optimizer_on_cpu or self.trained_weights != "fp32"

    def idle(self) -> Faults:
        if self.rounding != "stochastic" and self.trained_weights == "fp32":
            yield "rounding", "has no effect with trained_weights: fp32"


@dataclass
class TrainParallelConfig(ParallelConfig):
    """How several processes share a training run (docs/many_gpus.md)."""

    short_form: ClassVar[str] = "strategy"

    strategy: Literal["ddp", "fsdp", "zero1", "zero2", "zero3"] = "ddp"
    """What each process holds: `ddp` all weights, gradients and the optimizer's state; `fsdp`
    (PyTorch's FSDP2) and `zero3` (DeepSpeed) a share of each; `zero2` a share of the gradients and
    of the state, `zero1` of the state alone. `parallel: fsdp` is short for `parallel: {strategy:
    fsdp}`."""
    cpu_offload: Literal["none", "optimizer", "all"] = "none"
    """What lies in the system's memory between its uses: the `optimizer`'s state with its step
    (ZeRO), or `all`, the weights too (FSDP2 and zero3)."""
    gradient_compression: Literal["none", "bf16"] = "none"
    """Format in which `ddp` sends gradients between GPUs: `bf16` halves the traffic, and rounds
    them."""

    def faults(self) -> Faults:
        yield from super().faults()
        if self.cpu_offload == "all" and self.strategy not in ("fsdp", "zero3"):
            yield "cpu_offload", f"all is for fsdp and zero3; {self.strategy} keeps whole weights"
        if self.cpu_offload == "optimizer" and not self.strategy.startswith("zero"):
            yield "cpu_offload", f"optimizer is for zero1 to zero3, got strategy: {self.strategy}"
        if self.gradient_compression != "none" and self.strategy != "ddp":
            yield "gradient_compression", f"is for ddp, got strategy: {self.strategy}"
