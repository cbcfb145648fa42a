"""The typed training recipe: every option once, with its description below it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from inference.config import (
    MOST_AT_ONCE,
    BaseModelConfig,
    ClipConfig,
    ClipSettings,
    DrawSettings,
    ImageConfig,
    SpeedConfig,
)
from inference.recipe import MISSING, NO_LIMIT, Reader
from train.config.clips import ImageConditionConfig
from train.config.data import DataConfig
from train.config.devices import TrainMemoryConfig, TrainParallelConfig
from train.config.objectives import (
    ObjectiveConfig,
)
from train.config.optimization import (
    GuardConfig,
    LRSchedulerConfig,
    OptimizerConfig,
)
from train.config.rules import Faults, artifact_name_fault, at_least, fraction
from train.config.stages import StageConfig, ValidationConfig
from train.kohya import KOHYA_SOURCES

if TYPE_CHECKING:
    pass


@dataclass
class LossConfig:
    """Noise, and the loss weight at each noise level."""

    limits: ClassVar[dict[str, float]] = {"min_timestep": 1_000_000, "max_timestep": 1_000_000}

    weighting: Literal["uniform", "min_snr", "truncated_snr"] = "uniform"
    """`uniform` is the mean squared error of the prediction; `min_snr` (Hang et al. 2023, arXiv
    2303.09556) weights the error of the clean image by min(SNR, gamma); `truncated_snr` (Salimans &
    Ho 2022, arXiv 2202.00512) by SNR clamped to 1 … gamma."""
    snr_gamma: float = 5.0
    """gamma of `min_snr` and `truncated_snr`."""
    timestep_sampling: Literal["uniform", "stratified"] = "uniform"
    """`stratified` distributes the timesteps of an optimizer step (over all processes and
    micro-batches) so that each comes from its own interval: with the same probabilities, and a much
    steadier loss (explicit uniform sampling: Yang et al. 2024, arXiv 2408.06072, section 3.3)."""
    motion_ratio: float = 0.0
    """For clips: fraction of the loss that compares differences between frames instead (X-Fun's
    motion_sub_loss_ratio, 0.25 there)."""
    noise_offset: float = 0.0
    """Standard deviation of additional noise that is constant over each latent channel; lets a
    model learn very dark and bright images."""
    min_timestep: int = 0
    """Smallest timestep."""
    max_timestep: int | None = None
    """Exclusive upper limit of timesteps; default: the base model's number of timesteps."""
    prior: Literal["class_images", "prediction"] = "class_images"
    """Target for class images: the images themselves, or `prediction`, what the base model predicts
    for them without the trained weights (OneTrainer: prior prediction). It takes another forward
    pass of each, and prior_copy for objectives that train the base model's own weights."""
    prior_copy: bool = False
    """Keep a copy of the base model's weights that are trained, in the format of training, for
    prior: prediction."""
    prior_weight: float = 1.0
    """Weight of the mean loss of class images, relative to that of instance images (kohya and
    diffusers: prior_loss_weight). Class images come from data.concepts."""
    prior_weight_min: float | None = None
    """The weight changes linearly from prior_weight to this value; null keeps it constant (A1111:
    Scale prior loss)."""
    prior_weight_target: int | None = None
    """Step at which prior_weight_min is reached; default: the last one."""

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
    """Exponential moving average (EMA) of the trained weights, used for previews and artifacts."""

    decay: float = 0.9999
    """Fraction of the old average kept at each step, approached as (1 + step) / (10 + step)."""

    def faults(self) -> Faults:
        if not 0 < self.decay < 1:
            yield "decay", f"must lie between 0 and 1, got {self.decay}"


@dataclass
class SavingConfig:
    """Checkpoints (to resume from) and artifacts (to generate with)."""

    save_every_n_steps: int = 500
    """Save every n optimizer steps; the last step is always saved."""
    keep_last_n_checkpoints: int = 2
    """Number of checkpoints to keep; older ones are deleted. All artifacts are kept."""
    save_precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Precision of the artifacts. Preview grids are generated with weights in this precision."""
    output_name: str | None = None
    """Name of the artifacts' files: NAME-000500.safetensors for step 500 and NAME.safetensors for
    the newest, instead of step-000500 and last (kohya: output_name). A1111 and ComfyUI call
    embeddings and LoRAs by the name of their file."""

    def faults(self) -> Faults:
        name = self.output_name
        if name is not None and (fault := artifact_name_fault(name)) is not None:
            yield "output_name", fault
        yield from at_least(1, save_every_n_steps=self.save_every_n_steps)
        yield from at_least(1, keep_last_n_checkpoints=self.keep_last_n_checkpoints)


@dataclass
class MetadataConfig:
    """What safetensors artifacts say about themselves, as A1111's and ComfyUI's cards show it."""

    paths: ClassVar[tuple[str, ...]] = ("thumbnail",)

    author: str | None = None
    """Author (`modelspec.author`)."""
    license: str | None = None
    """Licence (`modelspec.license`); by default the base model's, where it is known."""
    tags: list[str] = field(default_factory=list)
    """Tags (`modelspec.tags`)."""
    description: str | None = None
    """Description (`modelspec.description`)."""
    trigger_phrase: str | None = None
    """Words to use in prompts (`modelspec.trigger_phrase`)."""
    usage_hint: str | None = None
    """How to use it (`modelspec.usage_hint`)."""
    thumbnail: str | None = None
    """An image file; a copy of at most 256x256 pixels is stored (`modelspec.thumbnail`)."""
    comment: str | None = None
    """Comment on the training (`ss_training_comment`)."""
    caption_tags: bool = True
    """Store how often each tag of the captions occurs, which A1111 shows as training tags
    (`ss_tag_frequency`); false keeps the captions to yourself."""
    dates: bool = False
    """Store when the training began and ended. Two runs of the same recipe then differ in these
    bytes, also a resumed one from one that was never stopped."""


@dataclass
class SamplingConfig:
    """The preview grid."""

    inherits: ClassVar[dict[str, str]] = {"images": "settings", "clips": "clip_settings"}
    limits: ClassVar[dict[str, float]] = {"sanity_seed": NO_LIMIT, "batch_size": MOST_AT_ONCE}

    sample_every_n_steps: int = 500
    """Generate a preview grid every n optimizer steps, and always at the last step."""
    settings: DrawSettings = field(default_factory=DrawSettings)
    """Defaults for the entries of `images`."""
    images: dict[str, ImageConfig | None] = field(default_factory=dict)
    """The images of the preview grid, by names of your choice."""
    batch_size: int = 8
    """Images generated at once, by one process; of several, each takes a batch in turns
    (docs/many_gpus.md)."""
    clip_settings: ClipSettings = field(default_factory=ClipSettings)
    """Defaults for the entries of `clips`."""
    clips: dict[str, ClipConfig | None] = field(default_factory=dict)
    """For video models: the preview clips, by names of your choice."""
    sanity_prompt: str | None = None
    """Prompt of one more image in the preview grid, of something that should not change (A1111)."""
    sanity_seed: int = 420420
    """Seed of this image."""

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
                yield f"images.{name}.styles", "are for drawing recipes; write their text here"


@dataclass
class TrainRecipe:
    """A training run."""

    paths: ClassVar[tuple[str, ...]] = ("output_dir",)
    begins_anew: ClassVar[tuple[str, ...]] = ("objective",)
    quiet_in_bases: ClassVar[tuple[str, ...]] = ("memory.ema_on_cpu",)
    limits: ClassVar[dict[str, float]] = {
        "seed": NO_LIMIT,
        "train_batch_size": MOST_AT_ONCE,
        "gradient_accumulation_steps": 1_000_000,
    }
    imports: ClassVar[dict[str, Reader]] = KOHYA_SOURCES

    name: str = MISSING
    """Name of the run; its folder is output_dir/name."""
    objective: ObjectiveConfig = MISSING
    base_model: BaseModelConfig = field(default_factory=BaseModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    drop_learned_positions: bool = False
    """Remove the positions that CogVideoX-5B-I2V learned for 49 frames of 720x480, so that it
    accepts any size; generate with `drop_learned_positions: true` too after training so."""
    loss: LossConfig = field(default_factory=LossConfig)
    image_condition: ImageConditionConfig = field(default_factory=ImageConditionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_scheduler: LRSchedulerConfig = field(default_factory=LRSchedulerConfig)
    ema: EmaConfig | None = None
    memory: TrainMemoryConfig = field(default_factory=TrainMemoryConfig)
    parallel: TrainParallelConfig = field(default_factory=TrainParallelConfig)
    vae_tiling: bool | None = None
    """Encode and decode with the VAE in tiles, which takes less memory and causes slight
    differences. null encodes whole images and clips, and decodes the previews of clips in tiles
    where the GPU's memory is too small."""
    saving: SavingConfig = field(default_factory=SavingConfig)
    metadata: MetadataConfig = field(default_factory=MetadataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    validation: ValidationConfig | None = None
    stages: dict[str, StageConfig | None] = field(default_factory=dict)
    """Parts of the run with their own example sizes (progressive resolution), by names of your
    choice, in this order; `resume` continues in any of them."""
    max_train_steps: int = 1000
    """Optimizer steps of the whole run."""
    train_batch_size: int = 1
    """Examples per process and micro-batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    mixed_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the frozen weights and of computation; trained weights stay in fp32, unless
    memory.trained_weights is bf16."""
    deterministic: bool = False
    """Make a run on a GPU exact: only then do resuming and `limner rerun` give the same bytes
    there. It takes more time, and more memory: attention keeps its scores, heads x tokens² numbers
    per layer. Runs on CPUs are exact anyway."""
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    max_grad_norm: float | None = 1.0
    """Clip gradients to this norm; null does not clip."""
    max_grad_value: float | None = None
    """Clip each gradient value to plus or minus this value; null does not clip."""
    guards: GuardConfig = field(default_factory=GuardConfig)
    seed: int = 0
    """Seed from which every random number of the run is derived."""
    log_every_n_steps: int = 10
    """Log to TensorBoard every n optimizer steps."""
    output_dir: str = "runs"
    """Folder of all runs."""
    resume: bool = False
    """Continue from the newest checkpoint in the run's folder."""
    overwrite: bool = False
    """Start over if a run of this name exists; the old folder is kept as NAME.1."""
    plugins: list[str] = field(default_factory=list)
    """Python modules with objectives, optimizers, samplers, … of your own (docs/extending.md);
    loaded only if the command line or LIMNER_PLUGINS names them too."""


def named_stages(recipe: TrainRecipe) -> dict[str, StageConfig]:
    """Return the stages that are not disabled by null."""
    return {name: stage for name, stage in recipe.stages.items() if stage is not None}


def largest_batch(recipe: TrainRecipe) -> int:
    """Return the size of the largest micro-batch of all stages."""
    sizes = [stage.train_batch_size for stage in named_stages(recipe).values()]
    return max((size or recipe.train_batch_size for size in sizes), default=recipe.train_batch_size)


def recipe_in(recipe: TrainRecipe, config: StageConfig) -> TrainRecipe:
    """Return the run's recipe with the settings of a stage."""
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
    """Return the recipe of each stage in order; without stages the recipe alone."""
    return [recipe_in(recipe, stage) for stage in named_stages(recipe).values()] or [recipe]
