"""How clips are drawn: the typed recipe of `type: clip`. Needs neither torch nor diffusers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from omegaconf import MISSING

from inference.config.images import MOST_SEED, Faults
from inference.config.models import ArtifactConfig, BaseModelConfig
from inference.files import pattern_faults
from inference.sampling import SAMPLERS, samplers_of

FORMATS = ("mp4", "gif", "webp")
DynamicCfg = Literal["none", "diffusers", "cosine"]
Offload = Literal["none", "model_offload", "sequential_offload"]
Cache = Literal["none", "pab", "faster_cache", "first_block_cache", "mag_cache"]


@dataclass
class ClipSettings:
    """How a clip is drawn."""

    negative_prompt: str = ""
    """What the clip shall not show."""
    seed: int = 0
    """Clip i of an entry is drawn from seed + i; -1 takes a random one."""
    steps: int = 50
    """Sampling steps. Numbers that divide 1000 (20, 25, 40, 50) are exact; the schedulers take
    others a timestep beside where they belong."""
    cfg_scale: float = 6.0
    """Classifier-free guidance scale; 1 switches guidance off."""
    cfg_scales: list[float] = field(default_factory=list)
    """The scale of every single step, in the place of cfg_scale."""
    dynamic_cfg: DynamicCfg = "none"
    """`cosine` lets guidance grow from 1 to 1 + cfg_scale; `diffusers` is what diffusers'
    pipelines and SAT make of it: the scale jumps from step to step (zai-org/CogVideo issue 267
    says why that is kept)."""
    sampler: str | None = None
    """`ddim` or `dpm`; null takes the one that the model's scheduler_config.json names (published:
    ddim for 2B, dpm for the others). Or a sampler of pictures by its A1111 name, such as Euler a,
    with the schedule type that `Automatic` stands for."""
    eta: float | None = None
    """Share of fresh noise: 0 none, 1 as in DDPM. Null is the sampler's own: 0 in ddim, DDIM and
    DDIM CFG++, 1 in the others that heed it."""
    frames: int | None = None
    """Frames of the clip: 1, 8k or 8k + 1; others are rounded, which is told. Null takes as many as
    the model was made for, of a shorter `video` or `control_video` all it has, and with `window`
    all of them."""
    height: int | None = None
    """In pixels, rounded to what the model can take; null takes the model's own."""
    width: int | None = None
    """In pixels, rounded to what the model can take; null takes the model's own."""
    fps: float | None = None
    """Frames in a second; null is 16 for CogVideoX 1.5 and 8 for all others."""
    image: str | None = None
    """The first frame, of image-to-video models: a picture's file. It is cut to the clip's
    shape."""
    end_image: str | None = None
    """The last frame, of image-to-video models that were trained to be told one."""
    video: str | None = None
    """A clip to draw over (text-to-video models only): a video, an animated picture or a folder of
    pictures. It is read at `fps` and cut to the clip's shape."""
    strength: float = 0.8
    """How much of `video` is drawn anew, up to 1, all: the last steps that are such a share."""
    control_video: str | None = None
    """What a Fun-Control model follows: depths, poses or edges, as a clip."""
    window: int | None = None
    """Frames that the model sees at a time, for clips longer than it was made for; null shows it
    the whole clip."""
    overlap: int = 8
    """Frames that neighbouring windows have in common and are blended over."""

    def faults(self) -> Faults:
        if self.steps < 1 or self.steps > 1000:
            yield "steps", f"must lie in 1 … 1000, got {self.steps}"
        if not -1 <= self.seed < MOST_SEED:
            yield "seed", f"must lie in 0 … 2^63-1, or be -1, got {self.seed}"
        if self.cfg_scale < 1 or any(scale < 1 for scale in self.cfg_scales):
            key = "cfg_scale" if self.cfg_scale < 1 else "cfg_scales"
            yield key, "must be 1 (no guidance) or more"
        if self.cfg_scales and len(self.cfg_scales) != self.steps:
            told = f"{len(self.cfg_scales)} numbers for {self.steps} steps; give one per step"
            yield "cfg_scales", told
        if self.cfg_scales and self.dynamic_cfg != "none":
            yield "dynamic_cfg", "needs one cfg_scale; cfg_scales already says that of every step"
        for name in ("frames", "height", "width", "window"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield name, f"must be at least 1, got {value}"
        if self.fps is not None and not 0 < self.fps <= 240:
            yield "fps", f"must lie above 0 and be 240 at most, got {self.fps}"
        if not 0 <= self.strength <= 1:
            yield "strength", f"must lie in 0 … 1, got {self.strength}"
        elif self.video is not None and int(self.steps * self.strength) < 1:
            yield "strength", f"{self.strength} of {self.steps} steps is none; take more of either"
        yield from self.wrong_sampler()
        yield from self.wrong_sources()
        if self.window is not None and not 0 <= self.overlap < self.window:
            yield "overlap", f"must lie in 0 … window - 1, got {self.overlap}"

    def wrong_sampler(self) -> Faults:
        """A sampler that does not draw clips, or takes another eta."""
        if self.sampler is not None and self.sampler not in (known := samplers_of("clips")):
            yield "sampler", f"expected one of {', '.join(known)}; got {self.sampler!r}"
        if self.eta is not None and not 0 <= self.eta <= 1:
            yield "eta", f"must lie in 0 … 1, got {self.eta}"

    def wrong_sources(self) -> Faults:
        """Sources that exclude each other."""
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
        """Whether the negative prompt is left out."""
        return max(self.cfg_scales, default=self.cfg_scale) <= 1


@dataclass
class ClipConfig(ClipSettings):
    """One clip (or `count` of them). What it leaves out it takes from `settings`."""

    prompt: str = MISSING
    """What the clip shall show."""
    count: int = 1
    """How many clips: seeds seed, seed + 1, …"""

    def faults(self) -> Faults:
        yield from super().faults()
        if self.count < 1:
            yield "count", f"must be at least 1, got {self.count}"


@dataclass
class CacheConfig:
    """How much the cache leaves out. What is null is as in diffusers."""

    skip: int = 2
    """pab, faster_cache: attention is worked out at every so many-th step."""
    timesteps: list[int] = field(default_factory=lambda: [100, 800])
    """pab, faster_cache: the timesteps (0 … 999) between which attention is taken from before."""
    threshold: float | None = None
    """first_block_cache (0.05) and mag_cache (0.06): the change up to which blocks are left out."""
    mag_ratios: list[float] = field(default_factory=list)
    """mag_cache: how the residual grows from step to step, as measured by `calibrate`."""
    calibrate: bool = False
    """mag_cache: leave nothing out, and tell the mag_ratios of each clip."""

    def faults(self) -> Faults:
        if self.skip < 2:
            yield "skip", f"must be at least 2, got {self.skip}"
        ends = self.timesteps
        if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 1000:
            yield "timesteps", f"must be two rising numbers in 0 … 1000, got {ends}"
        if self.threshold is not None and self.threshold <= 0:
            yield "threshold", f"must be above 0, got {self.threshold}"
        if self.calibrate and self.mag_ratios:
            yield "calibrate", "finds mag_ratios; leave out one of them"


@dataclass
class ClipsRecipe:
    """`type: clip`: draws every entry of `clips` with the base model and the artifacts."""

    inherits: ClassVar[dict[str, str]] = {"clips": "settings"}

    type: Literal["clip"] = "clip"
    """What is drawn."""
    base_model: BaseModelConfig = field(
        default_factory=lambda: BaseModelConfig(path="picto-motion")
    )
    artifacts: dict[str, ArtifactConfig | None] = field(default_factory=dict)
    """What the clips are drawn with, by names of your choice; attached in this order."""
    settings: ClipSettings = field(default_factory=ClipSettings)
    """What the entries of `clips` do not say themselves."""
    clips: dict[str, ClipConfig | None] = field(default_factory=dict)
    """The clips, by names of your choice, for example `clips.ball.prompt=…`."""
    compare_strengths: list[float] = field(default_factory=list)
    """Draws everything once per number, the artifacts' strengths multiplied by it. `[0, 1]` shows
    the base model above the artifacts."""
    drop_learned_positions: bool = False
    """Take away the positions that CogVideoX-5B-I2V has learned for one size, so that it takes
    any; for what was trained without them."""
    image_latent_scale: Literal["pipeline", "raw", "scaled"] = "pipeline"
    """On which scale image-to-video models are told the picture: `pipeline` as in diffusers; `raw`
    as SAT draws, and `scaled` as it trains CogVideoX 1.5, where the three differ."""
    output_dir: str = "outputs/clips"
    """Folder of the clips. Nothing in it is ever overwritten."""
    file_name: str = "[number]-[seed]"
    """The clips' names, in A1111's patterns: [seed], [steps], [cfg], [prompt_words], [date], …;
    [number] counts on. A / makes folders."""
    formats: list[str] = field(default_factory=lambda: ["mp4"])
    """Files of each clip: mp4, gif, webp (without loss); each carries its infotext."""
    crf: int = 17
    """Quality of mp4: 0 (best) … 51."""
    contact_sheet: bool = True
    """Also save a picture of frames of all clips, a row for each."""
    save_text: bool = False
    """Also write each clip's infotext into a .txt beside it."""
    memory: Literal["auto", "none", "model_offload", "sequential_offload"] = "auto"
    """Where weights wait: `none` all on the GPU; `model_offload` on the GPU the part at work;
    `sequential_offload` its layer at work (several times slower). `auto` chooses by free memory and
    says what. On a CPU it is of no use."""
    vae_tiling: bool | None = None
    """Decode in tiles, which takes less memory and shows in faint differences; null decides with
    `memory`."""
    cache: Cache = "none"
    """Leave out work by what steps have in common: pab (Pyramid Attention Broadcast),
    faster_cache, first_block_cache or mag_cache. Faster, and a little different."""
    cache_settings: CacheConfig = field(default_factory=CacheConfig)
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Number format of the weights while drawing: fp16 for 2B, bf16 for the others on a GPU."""
    device: str = "auto"
    """`auto` takes the first GPU, else the CPU; or a torch device such as `cuda:1`."""
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
        if self.memory == "sequential_offload" and self.base_model.quantization is not None:
            yield (
                "memory",
                "sequential_offload cannot move packed weights (base_model.quantization)",
            )
        yield from self.cache_faults()

    def cache_faults(self) -> Faults:
        given = self.cache_settings
        if self.cache == "mag_cache" and not given.mag_ratios and not given.calibrate:
            told = "must be given for mag_cache, as they differ from model to model; calibrate: "
            yield "cache_settings.mag_ratios", f"{told}true finds them"
        for name, clip in self.clips.items():
            if self.cache != "none" and clip is not None and clip.window is not None:
                told = "cannot be used with a cache, which remembers one window only"
                yield f"clips.{name}.window", told

    def idle(self) -> Faults:
        if self.crf != 17 and "mp4" not in self.formats:
            yield "crf", "has no effect without mp4 among formats"
        if self.compare_strengths and not self.artifacts:
            yield "compare_strengths", "has no effect without `artifacts`"
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
