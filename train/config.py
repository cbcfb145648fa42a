"""The typed recipe of training: every option once, with its meaning beneath it."""

from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from omegaconf import MISSING

from inference.config import BaseModelConfig, DrawSettings, ImageConfig
from inference.recipe import RecipeError
from train.data_config import DataConfig
from train.faults import Faults, at_least
from train.objective_configs import OBJECTIVE_CONFIGS, ObjectiveConfig


@dataclass
class LossConfig:
    """Noise, and what an error at each noise level counts."""

    weighting: Literal["uniform", "min_snr", "truncated_snr"] = "uniform"
    """`uniform` is the mean squared error of the prediction; `min_snr` (Hang et al. 2023, arXiv
    2303.09556) weighs the error of the clean picture by min(SNR, gamma); `truncated_snr`
    (Salimans & Ho 2022, arXiv 2202.00512) by SNR held between 1 and gamma."""
    snr_gamma: float = 5.0
    """gamma of `min_snr` and `truncated_snr`."""
    noise_offset: float = 0.0
    """Standard deviation of an extra noise that is constant over each latent channel; lets a model
    learn very dark and bright pictures."""
    min_timestep: int = 0
    """Lowest timestep drawn."""
    max_timestep: int | None = None
    """Timesteps are drawn below this; without it, below the base model's number."""
    prior_weight: float = 1.0
    """What the mean loss of class pictures counts beside that of the subject's (kohya and
    diffusers: prior_loss_weight). Class pictures come from data.concepts."""
    prior_weight_min: float | None = None
    """The weight goes linearly from prior_weight to this; null keeps it (A1111: Scale prior
    loss)."""
    prior_weight_target: int | None = None
    """Step at which prior_weight_min is reached; without it the last one."""

    def faults(self) -> Faults:
        yield from at_least(
            0, prior_weight=self.prior_weight, prior_weight_min=self.prior_weight_min
        )
        yield from at_least(1, prior_weight_target=self.prior_weight_target)
        yield from at_least(0, noise_offset=self.noise_offset, min_timestep=self.min_timestep)
        if self.snr_gamma <= 0:
            yield "snr_gamma", f"must be above 0, got {self.snr_gamma}"
        if self.max_timestep is not None and self.max_timestep <= self.min_timestep:
            yield "max_timestep", f"must be above min_timestep ({self.min_timestep})"

    def idle(self) -> Faults:
        if self.weighting == "uniform" and self.snr_gamma != 5.0:
            yield "snr_gamma", "has no effect with weighting: uniform"
        if self.prior_weight_target is not None and self.prior_weight_min is None:
            yield "prior_weight_target", "has no effect without prior_weight_min"


@dataclass
class OptimizerConfig:
    """How gradients change the weights."""

    type: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW of torch, or bitsandbytes' with 8-bit state."""
    learning_rate: float = 1.0e-4
    """Learning rate of everything that has none of its own."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rate by part of the objective: unet, text_encoder, …"""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the running means of gradient and squared gradient."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    epsilon: float = 1.0e-8
    """Added to the denominator."""

    def faults(self) -> Faults:
        yield from at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        for part, rate in self.learning_rates.items():
            if rate < 0:
                yield f"learning_rates.{part}", f"must not be negative, got {rate}"


def parse_schedule(text: str) -> list[tuple[float, int | None]]:
    """A1111's learning rates by step: (rate, the step before which it holds; None: to the end).

    Raises:
        ValueError: it cannot be read; tells how it should look.
    """
    example = 'expected rates and steps as "0.005:100, 1e-3:1000, 1e-5"'
    entries: list[tuple[float, int | None]] = []
    for part in text.split(","):
        rate, colon, step = part.partition(":")
        try:
            entries.append((float(rate), int(step) if colon else None))
        except ValueError:
            raise ValueError(f"cannot read {part.strip()!r}; {example}") from None
        value, until = entries[-1]
        before = entries[-2][1] if len(entries) > 1 else 0
        if not 0 <= value < float("inf"):
            raise ValueError(f"a rate must be a number from 0 on, got {rate.strip()!r}")
        if before is None:
            raise ValueError(f"a rate without a step ends the schedule; {example}")
        if until == -1:  # A1111's word for the end
            entries[-1] = (value, None)
        elif until is not None and until <= before:
            raise ValueError(f"steps must rise: {until} after {before}; {example}")
    return entries


@dataclass
class LRSchedulerConfig:
    """How the learning rate goes over the run. Counted in optimizer steps."""

    type: Literal[
        "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "schedule"
    ] = "constant"
    """Shape after the warm-up; `schedule` follows the key of that name."""
    schedule: str | None = None
    """A1111's learning rates by step, as in `0.005:100, 1e-3:1000, 1e-5`: 0.005 before step 100,
    0.001 before step 1000, then 1e-5. Where a part has a rate of its own, it is changed in the same
    proportions to optimizer.learning_rate."""
    warmup_steps: int = 0
    """The rate rises linearly from 0 over this many steps (kohya: lr_warmup_steps)."""
    num_cycles: int = 1
    """Restarts of cosine_with_restarts."""
    power: float = 1.0
    """Exponent of polynomial."""

    def faults(self) -> Faults:
        yield from at_least(0, warmup_steps=self.warmup_steps)
        yield from at_least(1, num_cycles=self.num_cycles)
        if (self.type == "schedule") != (self.schedule is not None):
            yield "schedule", "goes with type: schedule, and that with it"
        try:
            parse_schedule(self.schedule or "1")
        except ValueError as error:
            yield "schedule", str(error)

    def idle(self) -> Faults:
        if self.num_cycles != 1 and self.type != "cosine_with_restarts":
            yield "num_cycles", f"has no effect with type: {self.type}"
        if self.power != 1.0 and self.type != "polynomial":
            yield "power", f"has no effect with type: {self.type}"


@dataclass
class EmaConfig:
    """Exponential moving average of what is trained; drawn with and saved in its place."""

    decay: float = 0.9999
    """Share of the old average kept at each step, approached as (1 + step) / (10 + step)."""

    def faults(self) -> Faults:
        if not 0 < self.decay < 1:
            yield "decay", f"must lie between 0 and 1, got {self.decay}"


@dataclass
class SavingConfig:
    """Checkpoints (to resume) and artifacts (to draw with)."""

    save_every_n_steps: int = 500
    """Steps between savings; the last step is always saved."""
    keep_last_n_checkpoints: int = 2
    """Older checkpoints are deleted. Artifacts are all kept."""
    save_precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Number format of the artifacts. Grids are drawn with the weights as they are saved."""

    def faults(self) -> Faults:
        yield from at_least(1, save_every_n_steps=self.save_every_n_steps)
        yield from at_least(1, keep_last_n_checkpoints=self.keep_last_n_checkpoints)


@dataclass
class SamplingConfig:
    """The grid drawn while training."""

    inherits: ClassVar[dict[str, str]] = {"images": "settings"}

    sample_every_n_steps: int = 500
    """Steps between grids; the last step always draws one."""
    settings: DrawSettings = field(default_factory=DrawSettings)
    """What the entries of `images` do not say themselves."""
    images: dict[str, ImageConfig | None] = field(default_factory=dict)
    """The pictures of the grid, by names of your choice."""
    batch_size: int = 8
    """Pictures drawn at once."""
    sanity_prompt: str | None = None
    """One more picture in the grid, of something that shall not change (A1111)."""
    sanity_seed: int = 420420
    """Its seed."""

    def idle(self) -> Faults:
        if self.sanity_prompt is None and self.sanity_seed != 420420:
            yield "sanity_seed", "has no effect without sanity_prompt"

    def faults(self) -> Faults:
        if not 0 <= self.sanity_seed < 2**63:
            yield "sanity_seed", f"must lie in 0 … 2^63-1, got {self.sanity_seed}"
        yield from at_least(1, sample_every_n_steps=self.sample_every_n_steps)
        yield from at_least(1, batch_size=self.batch_size)


@dataclass
class TrainRecipe:
    """A training run."""

    name: str = MISSING
    """Name of the run; its folder is output_dir/name."""
    objective: ObjectiveConfig = MISSING
    base_model: BaseModelConfig = field(default_factory=BaseModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_scheduler: LRSchedulerConfig = field(default_factory=LRSchedulerConfig)
    ema: EmaConfig | None = None
    saving: SavingConfig = field(default_factory=SavingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_train_steps: int = 1000
    """Optimizer steps of the whole run."""
    train_batch_size: int = 1
    """Examples per process and micro-batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third slower."""
    mixed_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Number format of the frozen weights and of the arithmetic; what is trained stays in fp32."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm; null leaves them."""
    max_grad_value: float | None = None
    """Each gradient is held within plus and minus this value; null leaves them."""
    seed: int = 0
    """Every random draw of the run follows from it."""
    log_every_n_steps: int = 10
    """Steps between entries in TensorBoard."""
    output_dir: str = "runs"
    """Folder of all runs."""
    resume: bool = False
    """Go on with the newest checkpoint of the run's folder."""
    plugins: list[str] = field(default_factory=list)
    """Python modules that add objectives to OBJECTIVE_CONFIGS."""

    def faults(self) -> Faults:
        yield from at_least(
            1,
            max_train_steps=self.max_train_steps,
            train_batch_size=self.train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            log_every_n_steps=self.log_every_n_steps,
        )
        if not 0 <= self.seed < 2**63:
            yield "seed", f"must lie in 0 … 2^63-1, got {self.seed}"
        for name, limit in (("norm", self.max_grad_norm), ("value", self.max_grad_value)):
            if limit is not None and limit <= 0:
                yield f"max_grad_{name}", f"must be above 0, got {limit}; null switches it off"
        if not self.name.strip() or "/" in self.name or self.name.startswith("."):
            yield "name", f"must be the name of a folder, got {self.name!r}"
        try:
            last = parse_schedule(self.lr_scheduler.schedule or "1")[-1][1]
        except ValueError:
            last = None  # told by lr_scheduler itself
        if self.lr_scheduler.schedule and not self.optimizer.learning_rate:
            yield "optimizer.learning_rate", "must be above 0: the schedule is measured by it"
        if last is not None and last < self.max_train_steps:
            yield (
                "lr_scheduler.schedule",
                f"ends at step {last}, before max_train_steps ({self.max_train_steps}): give the "
                f"last rate without a step, or max_train_steps={last}",
            )
        if self.lr_scheduler.warmup_steps >= self.max_train_steps:
            steps = self.max_train_steps
            yield "lr_scheduler.warmup_steps", f"must be below max_train_steps ({steps})"
        if self.data.has_concepts and not self.objective.learns_from_captions:
            kind = self.objective.type
            yield "data.concepts", f"go with prompts, which objective.type: {kind} has none of"
        if self.objective.needs_concepts and not self.data.has_concepts:
            yield (
                "data.concepts",
                f"objective.type: {self.objective.type} learns concepts: give data.concepts (or "
                "data.concepts_list), or take objective.type: text_to_image for a folder of "
                "pictures with captions",
            )

    def idle(self) -> Faults:
        if not self.objective.learns_from_captions:
            what = f"objective.type: {self.objective.type} shows reconstructions instead"
            if self.sampling.images:
                yield "sampling.images", f"has no effect: {what}"
            if self.sampling.sanity_prompt is not None:
                yield "sampling.sanity_prompt", f"has no effect: {what}"
        yield from self._idle_prior()

    def _idle_prior(self) -> Faults:
        loss = self.loss
        if not self.data.has_prior:
            why = "has no effect: no concept has class pictures (num_class_images_per)"
            if loss.prior_weight != 1.0:
                yield "loss.prior_weight", why
            if loss.prior_weight_min is not None:
                yield "loss.prior_weight_min", why
        elif loss.prior_weight == 0 and not loss.prior_weight_min:
            yield (
                "loss.prior_weight",
                "0 makes class pictures count nothing, while each costs as much as a subject's; "
                "num_class_images_per: 0 leaves them out",
            )
        target = loss.prior_weight_target
        if target is not None and target > self.max_train_steps:
            yield (
                "loss.prior_weight_target",
                f"{target} is not reached: max_train_steps is {self.max_train_steps}",
            )


def train_schema(untyped: dict[str, Any]) -> type:
    """The dataclass of a training recipe whose `objective` is what the recipe asks for.

    Raises:
        RecipeError: `objective.type` is missing or none of the known ones; a plug-in is not found.
    """
    import importlib

    plugins, objective = untyped.get("plugins"), untyped.get("objective")
    for name in plugins if isinstance(plugins, list) else []:  # anything else is refused later
        try:
            importlib.import_module(str(name))
        except ImportError as error:
            raise RecipeError(f"plugins: {name!r} cannot be imported: {error}") from error
    kind = objective.get("type") if isinstance(objective, dict) else objective
    if not isinstance(kind, str) or kind not in OBJECTIVE_CONFIGS:
        known, got = ", ".join(OBJECTIVE_CONFIGS), "nothing" if kind is None else repr(kind)
        raise RecipeError(f"objective.type: expected one of {known}; got {got}")
    return _recipe_with(OBJECTIVE_CONFIGS[kind])


@cache  # one class per objective: recipes of different classes are never equal
def _recipe_with(objective: type[ObjectiveConfig]) -> type:
    return make_dataclass(
        "TrainRecipe",
        [("objective", objective, field(default_factory=objective))],
        bases=(TrainRecipe,),
        namespace={"__doc__": TrainRecipe.__doc__},
    )
