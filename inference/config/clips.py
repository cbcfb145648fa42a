"""The typed recipe of `type: clip`. Imports neither torch nor diffusers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from inference.config.images import MOST_PIXELS, MOST_SEED, Faults
from inference.config.memory import MemoryConfig, swapping_faults
from inference.config.models import (
    ArtifactConfig,
    BaseModelConfig,
    clips_have_their_own_vae,
)
from inference.config.parallel import ParallelConfig
from inference.config.speed import DrawingSpeedConfig, merging_faults, merging_idle, prefixed
from inference.files import pattern_faults
from inference.recipe import MISSING, NO_LIMIT
from inference.sampling import SAMPLERS, samplers_of

FORMATS = ("mp4", "gif", "webp")
DynamicCfg = Literal["none", "diffusers", "cosine"]
Cache = Literal["none", "pab", "faster_cache", "first_block_cache", "mag_cache"]


MOST_FRAMES = 100_000


@dataclass
class ClipSettings:
    """Settings of a generated clip."""

    paths: ClassVar[tuple[str, ...]] = ("image", "end_image", "video", "control_video")
    limits: ClassVar[dict[str, float]] = {
        "seed": NO_LIMIT,
        "frames": MOST_FRAMES,
        "window": MOST_FRAMES,
        "width": MOST_PIXELS,
        "height": MOST_PIXELS,
        "count": 1_000_000,
    }

    negative_prompt: str = ""
    """What the clip should not show."""
    seed: int = 0
    """Clip i of an entry uses seed + i; -1 picks a random seed."""
    steps: int = 50
    """Sampling steps. Numbers that divide 1000 (20, 25, 40, 50) are exact; for others the
    schedulers' timesteps are off by one."""
    cfg_scale: float = 6.0
    """Classifier-free guidance scale; 1 switches guidance off."""
    cfg_scales: list[float] = field(default_factory=list)
    """Guidance scale of each step, instead of cfg_scale."""
    dynamic_cfg: DynamicCfg = "none"
    """`cosine` increases the guidance scale from 1 to 1 + cfg_scale; `diffusers` reproduces what
    diffusers' pipelines and SAT do: the scale jumps from step to step (zai-org/CogVideo issue 267
    explains why that is kept)."""
    sampler: str | None = None
    """`ddim` or `dpm`; null uses the one that the model's scheduler_config.json names (published
    models: ddim for 2B, dpm for the others). Or an image sampler by its A1111 name, such as Euler
    a, with the schedule type that `Automatic` stands for."""
    eta: float | None = None
    """Fraction of fresh noise: 0 none, 1 as in DDPM. Null is the sampler's default: 0 in ddim, DDIM
    and DDIM CFG++, 1 in the others that use it."""
    frames: int | None = None
    """Number of frames: 1, 8k or 8k + 1; other numbers are rounded, with a warning. Null uses the
    number that the model was trained for, all frames of a shorter `video` or `control_video`, and
    with `window` all of their frames."""
    height: int | None = None
    """Height in pixels, rounded to a size that the model supports; null uses the model's default.
    """
    width: int | None = None
    """Width in pixels, rounded to a size that the model supports; null uses the model's default."""
    fps: float | None = None
    """Frames per second; null is 16 for CogVideoX 1.5 and 8 for all others."""
    image: str | None = None
    """First frame, for image-to-video models: an image file. It is cropped to the clip's aspect
    ratio."""
    end_image: str | None = None
    """Last frame, for image-to-video models that were trained with last-frame conditioning."""
    video: str | None = None
    """Clip for video-to-video (text-to-video models only): a video, an animated image or a folder
    of images. It is read at `fps` and cropped to the clip's aspect ratio."""
    strength: float = 0.8
    """Denoising strength for `video`, 0 … 1: the fraction of the steps that is run, counted from
    the last."""
    control_video: str | None = None
    """Conditioning of a Fun-Control model: a clip of depth maps, poses or edges."""
    window: int | None = None
    """Frames that the model sees at once, for clips longer than it was trained for; null gives it
    the whole clip."""
    overlap: int = 8
    """Frames that neighbouring windows share and over which they are blended."""

    def faults(self) -> Faults:
        if self.steps < 1 or self.steps > 1000:
            yield "steps", f"must lie in 1 … 1000, got {self.steps}"
        if not -1 <= self.seed < MOST_SEED:
            yield "seed", f"must lie in 0 … 2^63-1, or be -1, got {self.seed}"
        yield from self.wrong_guidance()
        yield from self.wrong_sizes()
        if not 0 <= self.strength <= 1:
            yield "strength", f"must lie in 0 … 1, got {self.strength}"
        elif self.video is not None and int(self.steps * self.strength) < 1:
            yield (
                "strength",
                f"{self.strength} of {self.steps} steps is less than one; increase either",
            )
        yield from self.wrong_sampler()
        yield from self.wrong_sources()
        if self.window is not None and not 0 <= self.overlap < self.window:
            yield "overlap", f"must lie in 0 … window - 1, got {self.overlap}"

    def wrong_guidance(self) -> Faults:
        """Yield the errors in the guidance scales."""
        if self.cfg_scale < 1 or any(scale < 1 for scale in self.cfg_scales):
            key = "cfg_scale" if self.cfg_scale < 1 else "cfg_scales"
            yield key, "must be 1 (no guidance) or more"
        if self.cfg_scales and len(self.cfg_scales) != self.steps:
            counts = f"{len(self.cfg_scales)} numbers for {self.steps} steps"
            yield "cfg_scales", f"{counts}; give one per step"
        if self.cfg_scales and self.dynamic_cfg != "none":
            yield "dynamic_cfg", "needs one cfg_scale; cfg_scales already sets that of every step"

    def wrong_sizes(self) -> Faults:
        """Yield the errors in frame counts, sizes and the frame rate."""
        for name in ("frames", "height", "width", "window"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield name, f"must be at least 1, got {value}"
        if self.fps is not None and not 0 < self.fps <= 240:
            yield "fps", f"must be above 0 and at most 240, got {self.fps}"

    def wrong_sampler(self) -> Faults:
        """Yield the error of a sampler that cannot generate clips, or of an invalid eta."""
        if self.sampler is not None and self.sampler not in (known := samplers_of("clips")):
            yield "sampler", f"expected one of {', '.join(known)}; got {self.sampler!r}"
        if self.eta is not None and not 0 <= self.eta <= 1:
            yield "eta", f"must lie in 0 … 1, got {self.eta}"

    def wrong_sources(self) -> Faults:
        """Yield an error for sources that exclude each other."""
        given = [name for name in ("image", "video", "control_video") if getattr(self, name)]
        if len(given) > 1:
            yield given[1], f"cannot be used beside {given[0]}: no model takes both"
        if self.end_image is not None and self.image is None:
            yield "end_image", "needs image, the first frame"

    def idle(self) -> Faults:
        used = SAMPLERS.get(self.sampler or "")
        if self.eta and used is not None and used.default_eta is None:
            why = ", which adds noise of its own" if used.always_draws else ""
            yield "eta", f"has no effect with sampler: {self.sampler}{why}"
        if self.strength != 0.8 and self.video is None:
            yield "strength", "has no effect without video"
        if self.overlap != 8 and self.window is None:
            yield "overlap", "has no effect without window"
        if self.is_unguided and self.negative_prompt:
            yield "negative_prompt", "has no effect without guidance (cfg_scale: 1)"
        if self.is_unguided and self.dynamic_cfg != "none":
            yield "dynamic_cfg", "has no effect without guidance (cfg_scale: 1)"

    @property
    def is_unguided(self) -> bool:
        """Return whether the negative prompt is ignored."""
        return max(self.cfg_scales, default=self.cfg_scale) <= 1


@dataclass
class ClipConfig(ClipSettings):
    """One clip (or `count` of them). Fields that are not set are taken from `settings`."""

    prompt: str = MISSING
    """What the clip should show."""
    count: int = 1
    """Number of clips, with the seeds seed, seed + 1, …"""

    def faults(self) -> Faults:
        yield from super().faults()
        if self.count < 1:
            yield "count", f"must be at least 1, got {self.count}"


@dataclass
class CacheConfig:
    """How much the cache skips. Null means diffusers' default."""

    skip: int = 2
    """pab, faster_cache: attention is computed at every n-th step."""
    timesteps: list[int] = field(default_factory=lambda: [100, 800])
    """pab, faster_cache: the range of timesteps (0 … 999) in which cached attention is used."""
    threshold: float | None = None
    """first_block_cache (0.05) and mag_cache (0.06): the largest change for which blocks are
    skipped."""
    mag_ratios: list[float] = field(default_factory=list)
    """mag_cache: growth of the residual from step to step, as measured by `calibrate`."""
    calibrate: bool = False
    """mag_cache: skip nothing, and print the mag_ratios of each clip."""

    def faults(self) -> Faults:
        if self.skip < 2:
            yield "skip", f"must be at least 2, got {self.skip}"
        ends = self.timesteps
        if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 1000:
            yield "timesteps", f"must be two rising numbers in 0 … 1000, got {ends}"
        if self.threshold is not None and self.threshold <= 0:
            yield "threshold", f"must be above 0, got {self.threshold}"
        if any(ratio < 0 for ratio in self.mag_ratios):
            yield "mag_ratios", f"must not be negative, got {min(self.mag_ratios)}"
        if self.calibrate and self.mag_ratios:
            yield "calibrate", "finds mag_ratios; leave out one of them"


@dataclass
class ClipsRecipe:
    """`type: clip`: generates every entry of `clips` with the base model and the artifacts."""

    paths: ClassVar[tuple[str, ...]] = ("output_dir",)
    inherits: ClassVar[dict[str, str]] = {"clips": "settings"}

    type: Literal["clip"] = "clip"
    """What is generated."""
    base_model: BaseModelConfig = field(
        default_factory=lambda: BaseModelConfig(path="picto-motion")
    )
    artifacts: dict[str, ArtifactConfig | None] = field(default_factory=dict)
    """Artifacts to generate with, under names of your choice; attached in this order."""
    settings: ClipSettings = field(default_factory=ClipSettings)
    """Settings for the fields that entries of `clips` do not set."""
    clips: dict[str, ClipConfig | None] = field(default_factory=dict)
    """The clips, under names of your choice, for example `clips.ball.prompt=…`."""
    compare_strengths: list[float] = field(default_factory=list)
    """Generate everything once per number, with the artifacts' strengths multiplied by it. `[0, 1]`
    shows the base model above the artifacts."""
    drop_learned_positions: bool = False
    """Remove the position embeddings that CogVideoX-5B-I2V learned for one size, so that it accepts
    any size; for artifacts that were trained without them."""
    image_latent_scale: Literal["pipeline", "raw", "scaled"] = "pipeline"
    """Scale of the first frame's latents for image-to-video models: `pipeline` as in diffusers;
    `raw` as SAT generates with CogVideoX 1.5, and `scaled` as SAT trains it, where the three
    differ."""
    output_dir: str = "outputs/clips"
    """Output folder. Nothing in it is ever overwritten."""
    file_name: str = "[number]-[seed]"
    """File name pattern, with A1111's patterns: [seed], [steps], [cfg], [prompt_words], [date], …;
    [number] counts up. A / creates folders."""
    formats: list[str] = field(default_factory=lambda: ["mp4"])
    """Files of each clip: mp4, gif, webp (lossless); each contains its infotext."""
    crf: int = 17
    """Quality of mp4: 0 (best) … 51."""
    contact_sheet: bool = True
    """Also save a contact sheet: frames of all clips, one row per clip."""
    save_text: bool = False
    """Also write each clip's infotext to a .txt beside it."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    vae_tiling: bool | None = None
    """Encode and decode with the VAE in tiles, which takes less memory and causes slight
    differences; null decides together with `memory`."""
    cache: Cache = "none"
    """Skip computations that consecutive steps share: pab (Pyramid Attention Broadcast),
    faster_cache, first_block_cache or mag_cache. Faster, with slightly different results."""
    cache_settings: CacheConfig = field(default_factory=CacheConfig)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Data type of the weights: fp16 for 2B, bf16 for the others on a GPU. `auto` is fp32 on a CPU;
    on a GPU the one that the first artifact was trained in (`mixed_precision`), if it records it,
    otherwise bf16, or fp16 on GPUs before Ampere."""
    device: str = "auto"
    """`auto` uses the first GPU, otherwise the CPU; or a torch device such as `cuda:1`."""
    deterministic: bool = False
    """Give the same bytes each time on a GPU too, slower and with more memory; needed to draw again
    exactly what a training run with `deterministic: true` drew. CPUs do so anyway."""
    speed: DrawingSpeedConfig = field(default_factory=DrawingSpeedConfig)
    plugins: list[str] = field(default_factory=list)
    """Python modules with extensions of your own (docs/extending.md); loaded only if the command
    line or LIMNER_PLUGINS names them too."""

    def faults(self) -> Faults:
        if not self.clips:
            yield "clips", 'is empty: name at least one, for example clips.one.prompt="a ball"'
        if not self.formats:
            yield "formats", f"is empty: name some of {', '.join(FORMATS)}"
        for name in self.formats:
            if name not in FORMATS:
                yield "formats", f"expected some of {', '.join(FORMATS)}; got {name!r}"
        if len(set(self.formats)) != len(self.formats):
            yield "formats", "names one twice"
        if not 0 <= self.crf <= 51:
            yield "crf", f"must lie in 0 … 51, got {self.crf}"
        for fault in pattern_faults(self.file_name):
            yield "file_name", fault
        yield from swapping_faults(self.memory, self.base_model)
        yield from clips_have_their_own_vae(self.base_model)
        yield from prefixed(self.speed.conflicts(self.deterministic, self.base_model, self.memory))
        yield from merging_faults(self.speed, self.base_model)
        yield from self.cache_faults()
        yield from self.context_faults()

    def context_faults(self) -> Faults:
        if self.parallel.context == 1:
            return
        if self.cache in ("first_block_cache", "mag_cache"):
            yield (
                "cache",
                f"{self.cache} compares the tokens around a block, of which each process has only "
                "a part with parallel.context; take pab or faster_cache",
            )
        if self.speed.compile != "none":
            yield (
                "speed.compile",
                "cannot be used with parallel.context, whose attention waits for other processes",
            )

    def cache_faults(self) -> Faults:
        given = self.cache_settings
        if self.cache == "mag_cache" and not given.mag_ratios and not given.calibrate:
            problem = "must be given for mag_cache, as they differ from model to model; calibrate: "
            yield "cache_settings.mag_ratios", f"{problem}true finds them"
        for name, clip in self.clips.items():
            if self.cache != "none" and clip is not None and clip.window is not None:
                problem = "cannot be used with a cache, which stores only one window"
                yield f"clips.{name}.window", problem
            used = SAMPLERS.get((clip and clip.sampler) or "")
            if self.cache != "mag_cache" or used is None:
                continue
            if used.is_second_order or used.takes_range_only:
                problem = "does not evaluate the model once a step, as mag_cache expects"
                yield f"clips.{name}.sampler", problem

    def idle(self) -> Faults:
        if self.crf != 17 and "mp4" not in self.formats:
            yield "crf", "has no effect without mp4 among formats"
        if self.compare_strengths and not self.artifacts:
            yield "compare_strengths", "has no effect without `artifacts`"
        yield from prefixed(self.speed.without_effect(self.base_model, for_clips=True))
        yield from merging_idle(self.speed, self.artifacts, self.compare_strengths)
        yield from self.idle_cache_settings()

    def idle_cache_settings(self) -> Iterator[tuple[str, str]]:
        heeded = {
            "pab": ("skip", "timesteps"),
            "faster_cache": ("skip", "timesteps"),
            "first_block_cache": ("threshold",),
            "mag_cache": ("threshold", "mag_ratios", "calibrate"),
        }.get(self.cache, ())
        usual = CacheConfig()
        for name in ("skip", "timesteps", "threshold", "mag_ratios", "calibrate"):
            value = getattr(self.cache_settings, name)
            if name not in heeded and value != getattr(usual, name):
                yield f"cache_settings.{name}", f"has no effect with cache: {self.cache}"
