"""The typed recipe of training: every option once, with its meaning beneath it."""

from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from omegaconf import MISSING

from inference.config import BaseModelConfig, DrawSettings, ImageConfig
from inference.recipe import RecipeError
from inference.recipe_imports import Reader
from inference.recipe_schema import got
from inference.recipe_yaml import cut
from inference.video.clip_config import ClipConfig, ClipSettings
from train.data_config import DataConfig
from train.faults import Faults, at_least, fraction
from train.guard_config import GuardConfig
from train.image_condition_config import ImageConditionConfig
from train.kohya_config import KOHYA_SOURCES
from train.mask_config import mask_faults
from train.objective_configs import (
    OBJECTIVE_CONFIGS,
    CombinedConfig,
    ObjectiveConfig,
    combined_config,
)
from train.optimizer_config import LRSchedulerConfig, OptimizerConfig, schedule_faults
from train.prior_config import idle_prediction, prediction_faults
from train.stage_config import StageConfig
from train.stages import largest_batch, stage_faults
from train.streaming_config import streaming_faults
from train.validation_config import ValidationConfig, idle_validation


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
        if self.overwrite and self.resume:
            yield "overwrite", "cannot go with resume: one begins anew, the other goes on"
        if not self.name.strip() or "/" in self.name or self.name.startswith("."):
            yield "name", f"must be the name of a folder, got {self.name!r}"
        steps = "max_train_steps", self.max_train_steps
        yield from schedule_faults(self.lr_scheduler, "lr_scheduler", *steps)
        if self.lr_scheduler.schedule and not self.optimizer.learning_rate:
            yield "optimizer.learning_rate", "must be above 0: the schedule is measured by it"
        if isinstance(self.objective, CombinedConfig):
            yield from self.objective.faults_within(*steps)
        yield from stage_faults(self)
        yield from self._quantization_faults()
        yield from mask_faults(self)
        yield from prediction_faults(self)
        yield from streaming_faults(self)
        if self.data.packs_clips and not self.objective.learns_from_captions:
            kind = self.objective.type
            yield "data.clips.pack", f"is of the transformer; objective.type: {kind} trains the VAE"
        if self.data.has_concepts and not self.objective.learns_from_captions:
            kind = self.objective.type
            yield "data.concepts", f"go with prompts, which objective.type: {kind} has none of"
        if self.data.has_prior and self.data.subsets and not self.objective.learns_from_captions:
            kind = self.objective.type
            yield "data.subsets", f"with is_reg are of prompts, which objective.type: {kind} lacks"
        if self.objective.needs_concepts and not (self.data.has_concepts or self.data.subsets):
            yield (
                "data.concepts",
                f"objective.type: {self.objective.type} learns concepts: give data.concepts (or "
                "data.concepts_list), or take objective.type: text_to_image for a "
                "folder of pictures with captions",
            )

    def _quantization_faults(self) -> Faults:
        kind, key = self.base_model.quantization, "base_model.quantization"
        if kind is not None and self.objective.type != "lora":
            yield key, f"{kind} goes with objective.type: lora; packed weights are not trained"
        elif kind is not None and self.data.clips is None:
            yield key, f"{kind} is of video models, which learn data.clips"

    def idle(self) -> Faults:
        if self.data.clips is None:
            why = "has no effect: it is of clips (data.clips)"
            if self.loss.motion_ratio:
                yield "loss.motion_ratio", why
            if self.image_condition != ImageConditionConfig():
                yield "image_condition", why
            if self.sampling.clips:
                yield "sampling.clips", why
            if self.drop_learned_positions:
                yield "drop_learned_positions", why
        elif self.sampling.images:
            yield "sampling.images", "has no effect: a video model draws sampling.clips"
        if self.data.packs_clips and largest_batch(self) == 1:
            yield "data.clips.pack", "has no effect with train_batch_size: 1, the clips of a row"
        if not self.objective.learns_from_captions:
            what = f"objective.type: {self.objective.type} shows reconstructions instead"
            if self.sampling.images:
                yield "sampling.images", f"has no effect: {what}"
            if self.sampling.sanity_prompt is not None:
                yield "sampling.sanity_prompt", f"has no effect: {what}"
        yield from self._idle_prior()
        yield from idle_prediction(self)
        yield from idle_validation(self)

    def _idle_prior(self) -> Faults:
        loss = self.loss
        if not self.data.has_prior:
            why = "has no effect: no concept has class pictures (num_class_images_per)"
            if self.data.subsets:
                why = "has no effect: no subset is_reg"
            if loss.prior_weight != 1.0:
                yield "loss.prior_weight", why
            if loss.prior_weight_min is not None:
                yield "loss.prior_weight_min", why
        elif loss.prior_weight == 0 and not loss.prior_weight_min:
            yield (
                "loss.prior_weight",
                "0 makes class pictures count nothing, while each costs as much as a subject's; "
                "num_class_images_per: 0 (or no subset with is_reg) leaves them out",
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
        if not all(map(str.isidentifier, str(name).split("."))):
            raise RecipeError(f"plugins: {cut(repr(name))} is no name of a module")
        try:
            importlib.import_module(str(name))
        except ImportError as error:
            raise RecipeError(f"plugins: {name!r} cannot be imported: {error}") from error
    kind = objective.get("type") if isinstance(objective, dict) else objective
    if not isinstance(kind, str) or kind not in OBJECTIVE_CONFIGS:
        beside = ("objective", untyped) if objective is None else ("type", objective)
        known = ", ".join(OBJECTIVE_CONFIGS)
        raise RecipeError(f"objective.type: expected one of {known}; got {got(kind, *beside)}")
    if isinstance(objective, dict) and kind == "combined":
        members = objective.get("members")
        return _recipe_with(combined_config(members if isinstance(members, dict) else {}))
    return _recipe_with(OBJECTIVE_CONFIGS[kind])


@cache  # one class per objective: recipes of different classes are never equal
def _recipe_with(objective: type[ObjectiveConfig]) -> type:
    return make_dataclass(
        "TrainRecipe",
        [("objective", objective, field(default_factory=objective))],
        bases=(TrainRecipe,),
        namespace={"__doc__": TrainRecipe.__doc__},
    )
