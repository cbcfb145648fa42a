"""The typed recipe of training: every option once, with its meaning beneath it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from omegaconf import MISSING

from inference.config import BaseModelConfig, ClipConfig, ClipSettings, DrawSettings, ImageConfig
from inference.recipe import Reader
from train.config.clips import ImageConditionConfig
from train.config.data import DataConfig
from train.config.objectives import (
    ObjectiveConfig,
)
from train.config.optimization import (
    GuardConfig,
    LRSchedulerConfig,
    OptimizerConfig,
)
from train.config.rules import Faults, at_least, fraction
from train.config.stages import StageConfig, ValidationConfig
from train.kohya import KOHYA_SOURCES

if TYPE_CHECKING:
    pass


@dataclass
class LossConfig:
    """Noise, and what an error at each noise level counts."""

    weighting: Literal["uniform", "min_snr", "truncated_snr"] = "uniform"
    """`uniform` is the mean squared error of the prediction; `min_snr` (Hang et al. 2023, arXiv
    2303.09556) weighs the error of the clean picture by min(SNR, gamma); `truncated_snr`
    (Salimans & Ho 2022, arXiv 2202.00512) by SNR held between 1 and gamma."""
    snr_gamma: float = 5.0
    """gamma of `min_snr` and `truncated_snr`."""
    timestep_sampling: Literal["uniform", "stratified"] = "uniform"
    """`stratified` deals the timesteps of an optimizer step (of all processes and micro-batches)
    so that each comes from a part of its own: as likely as before, and the loss is much steadier
    (explicit uniform sampling: Yang et al. 2024, arXiv 2408.06072, section 3.3)."""
    motion_ratio: float = 0.0
    """Clips: share of the loss that looks at the differences between frames instead (X-Fun's
    motion_sub_loss_ratio, 0.25 there)."""
    noise_offset: float = 0.0
    """Standard deviation of an extra noise that is constant over each latent channel; lets a model
    learn very dark and bright pictures."""
    min_timestep: int = 0
    """Lowest timestep drawn."""
    max_timestep: int | None = None
    """Timesteps are drawn below this; without it, below the base model's number."""
    prior: Literal["class_images", "prediction"] = "class_images"
    """What class pictures teach: what they show, or `prediction`, what the base model predicts of
    them without what is learned (OneTrainer: prior prediction). It takes another forward pass of
    each, and of objectives that train the base model's own weights prior_copy."""
    prior_copy: bool = False
    """Keep a copy in fp32 of the base model's weights that are trained, for prior: prediction."""
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
        yield from fraction(motion_ratio=self.motion_ratio)
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

    inherits: ClassVar[dict[str, str]] = {"images": "settings", "clips": "clip_settings"}

    sample_every_n_steps: int = 500
    """Steps between grids; the last step always draws one."""
    settings: DrawSettings = field(default_factory=DrawSettings)
    """What the entries of `images` do not say themselves."""
    images: dict[str, ImageConfig | None] = field(default_factory=dict)
    """The pictures of the grid, by names of your choice."""
    batch_size: int = 8
    """Pictures drawn at once."""
    clip_settings: ClipSettings = field(default_factory=ClipSettings)
    """What the entries of `clips` do not say themselves."""
    clips: dict[str, ClipConfig | None] = field(default_factory=dict)
    """Video models: the clips drawn while training, by names of your choice."""
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
        for name, clip in self.clips.items():
            if clip is not None and clip.seed == -1:
                yield f"clips.{name}.seed", "-1 is random; grids are compared, so give a number"
        for name, image in self.images.items():
            if image is not None and image.has_random_seed:
                yield f"images.{name}.seed", "-1 is random; grids are compared, so give a number"
            if image is not None and image.styles:
                yield f"images.{name}.styles", "are of drawing recipes; write their words here"


@dataclass
class TrainRecipe:
    """A training run."""

    begins_anew: ClassVar[tuple[str, ...]] = ("objective",)
    imports: ClassVar[dict[str, Reader]] = KOHYA_SOURCES

    name: str = MISSING
    """Name of the run; its folder is output_dir/name."""
    objective: ObjectiveConfig = MISSING
    base_model: BaseModelConfig = field(default_factory=BaseModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    drop_learned_positions: bool = False
    """Take away the positions that CogVideoX-5B-I2V has learned for 49 frames of 720x480, so that
    it takes any size; what is trained so is drawn with `drop_learned_positions: true` too."""
    loss: LossConfig = field(default_factory=LossConfig)
    image_condition: ImageConditionConfig = field(default_factory=ImageConditionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_scheduler: LRSchedulerConfig = field(default_factory=LRSchedulerConfig)
    ema: EmaConfig | None = None
    saving: SavingConfig = field(default_factory=SavingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    validation: ValidationConfig | None = None
    stages: dict[str, StageConfig | None] = field(default_factory=dict)
    """Parts of the run with examples of their own size (progressive resolution), by names of your
    choice, in this order; with `resume` a run goes on in any of them."""
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
    guards: GuardConfig = field(default_factory=GuardConfig)
    seed: int = 0
    """Every random draw of the run follows from it."""
    log_every_n_steps: int = 10
    """Steps between entries in TensorBoard."""
    output_dir: str = "runs"
    """Folder of all runs."""
    resume: bool = False
    """Go on with the newest checkpoint of the run's folder."""
    overwrite: bool = False
    """Begin anew where a run of this name lies already; its folder is kept beside it, as NAME.1."""
    plugins: list[str] = field(default_factory=list)
    """Python modules with objectives, optimizers, samplers, … of your own (docs/extending.md);
    loaded only if the command line or LIMNER_PLUGINS names them too."""


def named_stages(recipe: TrainRecipe) -> dict[str, StageConfig]:
    """Those that are not switched off by null."""
    return {name: stage for name, stage in recipe.stages.items() if stage is not None}


def largest_batch(recipe: TrainRecipe) -> int:
    """Examples of the largest micro-batch of all stages."""
    sizes = [stage.train_batch_size for stage in named_stages(recipe).values()]
    return max((size or recipe.train_batch_size for size in sizes), default=recipe.train_batch_size)


def recipe_in(recipe: TrainRecipe, config: StageConfig) -> TrainRecipe:
    """The run's recipe as it is in a stage."""
    data = recipe.data
    if config.resolution is not None:
        data = replace(data, resolution=config.resolution)
    if config.clip_size and data.clips is not None:
        data = replace(data, clips=replace(data.clips, **config.clip_size))
    batch, accumulation = config.train_batch_size, config.gradient_accumulation_steps
    return replace(
        recipe,
        data=data,
        train_batch_size=batch or recipe.train_batch_size,
        gradient_accumulation_steps=accumulation or recipe.gradient_accumulation_steps,
    )


def stage_recipes(recipe: TrainRecipe) -> list[TrainRecipe]:
    """Return the recipe of each stage in order; of a run without stages the recipe alone."""
    return [recipe_in(recipe, stage) for stage in named_stages(recipe).values()] or [recipe]
