"""Settings of a generated image: the recipe, in A1111's terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from inference.prompts import split_composition
from inference.recipe import MISSING, NO_LIMIT
from inference.runtime import InputError
from inference.sampling import SAMPLERS, SCHEDULES, resolve_schedule, samplers_of, schedule_types


def check_size(name: str, size: int, step: int) -> None:
    """Raise InputError unless the size is a multiple of the step; name the nearest ones."""
    if size % step or size < step:
        lower = size // step * step
        nearest = f"{lower} or {lower + step}" if lower else str(step)
        raise InputError(
            f"{name}: {size} pixels do not fit this base model, whose sizes are multiples of "
            f"{step}; take {nearest}"
        )


Idle = Iterator[tuple[str, str]]
"""(key, why it has no effect)."""


def idle_settings(settings: DrawSettings, prompt: str | None = None) -> Idle:
    """Yield settings without effect; without a prompt, assume one whose parts have no weights."""
    chosen: list[tuple[str | None, str | None]] = [(settings.sampler, settings.schedule_type)]
    if settings.hires is not None:
        chosen.append((settings.hires.sampler, settings.hires.schedule_type))
    if any(fault for names in chosen for fault in unknown_names(*names)):
        return  # an error, which `faults` reports
    passes = passes_of(settings)
    samplers = list(dict.fromkeys(sampler for sampler, _ in passes))
    yield from idle_schedule(settings, passes)
    yield from idle_noise(settings, samplers)
    yield from idle_guidance(settings, samplers, prompt)


def idle_hires(hires: HiresConfig) -> Idle:
    """Yield settings of the second pass that have no effect."""
    if hires.upscale != 2 and (hires.resize_x or hires.resize_y):
        yield "upscale", "has no effect beside resize_x and resize_y"
    if hires.denoising_strength == 0:
        for name in ("steps", "sampler", "schedule_type", "prompt", "negative_prompt"):
            if getattr(hires, name):
                yield name, "has no effect with denoising_strength: 0"


def passes_of(settings: DrawSettings) -> list[tuple[str, str]]:
    """Return sampler and schedule type of each pass; the type is empty if the sampler has none."""
    first = settings.sampler, resolve_schedule(settings.sampler, settings.schedule_type)
    if SAMPLERS[settings.sampler].takes_range_only and settings.img2img is None:
        first = settings.sampler, ""
    hires = settings.hires
    if hires is None or hires.denoising_strength == 0:
        return [first]
    sampler = hires.sampler or settings.sampler
    return [
        first,
        (sampler, resolve_schedule(sampler, hires.schedule_type or settings.schedule_type)),
    ]


def idle_schedule(settings: DrawSettings, passes: Sequence[tuple[str, str]]) -> Idle:
    """Yield what has no effect of `schedule_type` and `schedule`."""
    types = {schedule for _, schedule in passes}
    names = " and ".join(f"{sampler}, {schedule or 'any type'}" for sampler, schedule in passes)
    if types == {""} and settings.schedule_type != "Automatic":
        yield "schedule_type", f"has no effect with {settings.sampler}, except in img2img"
    schedule = settings.schedule
    of_range = tuple(name for name, one in SCHEDULES.items() if one.heeds_range)
    with_rho = tuple(name for name, one in SCHEDULES.items() if one.default_rho is not None)
    heeding = dict.fromkeys(("sigma_min", "sigma_max", "use_old_karras"), of_range)
    heeding |= {"rho": with_rho, "beta_alpha": ("Beta",), "beta_beta": ("Beta",)}
    usual = type(schedule)()
    for name, heeded_by in heeding.items():
        if getattr(schedule, name) != getattr(usual, name) and types.isdisjoint(heeded_by):
            others = ", ".join(heeded_by)
            yield f"schedule.{name}", f"has no effect with {names}; it is for {others}"
    if schedule.use_old_karras and schedule.sigma_min and schedule.sigma_max:
        yield "schedule.use_old_karras", "has no effect beside sigma_min and sigma_max"
    always_discards = all(
        SAMPLERS[sampler].discards_penultimate or not kind for sampler, kind in passes
    )
    if schedule.discard_next_to_last_sigma and always_discards:
        yield "schedule.discard_next_to_last_sigma", f"has no effect with {names}"


def idle_noise(settings: DrawSettings, samplers: Sequence[str]) -> Idle:
    """Yield the noise settings that have no effect."""
    names, used = " and ".join(samplers), [SAMPLERS[name] for name in samplers]
    if settings.eta is not None and all(one.default_eta is None for one in used):
        yield "eta", f"has no effect with {names}"
    is_churned = settings.s_churn > 0 and any(one.uses_churn for one in used)
    if settings.s_churn and not is_churned:
        churned = ", ".join(name for name, one in SAMPLERS.items() if one.uses_churn)
        yield "s_churn", f"has no effect with {names}; it is for {churned}"
    is_heeded = is_churned or any(one.uses_s_noise for one in used)
    if settings.s_noise != 1 and not is_heeded:
        yield "s_noise", f"has no effect with {names}"
    if settings.ensd:
        eta, s_churn = settings.eta, settings.s_churn
        if not any(one.draws_further_noise(eta, s_churn) for one in used):
            yield "ensd", f"has no effect with {names}, which draws no further noise"
    yield from idle_bounds(settings)


def idle_bounds(settings: DrawSettings) -> Idle:
    """Yield the limits of churn, and the settings of the first noise, that have no effect."""
    if not settings.s_churn:
        for name in ("s_tmin", "s_tmax"):
            if getattr(settings, name):
                yield name, "has no effect without s_churn"
    if settings.variation_seed != -1 and settings.variation_strength == 0:
        yield "variation_seed", "has no effect without variation_strength"
    if settings.sgm_noise_multiplier and settings.img2img is not None:
        yield "sgm_noise_multiplier", "has no effect with img2img"
    elif settings.sgm_noise_multiplier and SAMPLERS[settings.sampler].is_scaled:
        yield "sgm_noise_multiplier", f"has no effect with {settings.sampler}"


def idle_guidance(settings: DrawSettings, samplers: Sequence[str], prompt: str | None) -> Idle:
    """Yield the settings of the negative prompt that have no effect."""
    weights = [part.weight for part in split_composition(prompt or "")]
    needing = [name for name in samplers if SAMPLERS[name].needs_uncond]
    is_guided = settings.cfg_scale != 1 or weights != [1.0] or bool(needing)
    if not is_guided:
        for name in ("negative_prompt", "pad_conds", "s_min_uncond", "skip_early_cond"):
            if getattr(settings, name):
                yield name, "has no effect with cfg_scale: 1"
    elif needing == list(samplers):
        for name in ("s_min_uncond", "skip_early_cond"):
            if getattr(settings, name):
                yield name, f"has no effect with {' and '.join(needing)}"


Faults = Iterator[tuple[str, str]]


def unknown_names(sampler: str | None, schedule_type: str | None) -> Faults:
    """Yield errors for unknown samplers and schedule types."""
    samplers, types = samplers_of("pictures"), schedule_types()
    if sampler is not None and sampler not in samplers:
        yield "sampler", f"expected one of {', '.join(samplers)}; got {sampler!r}"
    if schedule_type is not None and schedule_type not in types:
        yield "schedule_type", f"expected one of {', '.join(types)}; got {schedule_type!r}"


RESIZE_MODES = (
    "Just resize",
    "Crop and resize",
    "Resize and fill",
    "Just resize (latent upscale)",
)

MOST_SEED = 2**63
MOST_STEPS = 10_000
MOST_PIXELS = 16_384
"""Maximum width and height."""
MOST_AT_ONCE = 65_536
"""Maximum batch size."""


@dataclass
class ScheduleConfig:
    """Changes to the noise schedule, like A1111's settings. Null keeps the sampler's default."""

    sigma_min: float | None = None
    """Lowest noise level, for Karras, Exponential, Polyexponential, SGM Uniform, KL Optimal,
    Normal, Beta."""
    sigma_max: float | None = None
    """Highest noise level, for the same schedule types."""
    rho: float | None = None
    """Exponent of Karras (default 7) and Polyexponential (default 1)."""
    beta_alpha: float = 0.6
    """First parameter of schedule type Beta."""
    beta_beta: float = 0.6
    """Second parameter of schedule type Beta."""
    discard_next_to_last_sigma: bool = False
    """Skip the next-to-last noise level, as DPM2, DPM2 a and DPM++ 3M SDE always do."""
    use_old_karras: bool = False
    """The same schedule types between 0.1 and 10, as in old versions of A1111."""

    def faults(self) -> Faults:
        for name in ("sigma_min", "sigma_max", "rho", "beta_alpha", "beta_beta"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                yield name, f"must be above 0, got {value}"
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            yield "sigma_min", f"must be below sigma_max, got {low} and {high}"


@dataclass
class HiresConfig:
    """A1111's Hires. fix: generate small, upscale, and denoise again."""

    limits: ClassVar[dict[str, float]] = {
        "upscale": 16,
        "resize_x": MOST_PIXELS,
        "resize_y": MOST_PIXELS,
        "steps": MOST_STEPS,
    }

    upscale: float = 2.0
    """Factor of both sides; has no effect with resize_x and resize_y."""
    resize_x: int = 0
    """Width of the upscaled image in pixels; 0 derives it from the height, or from `upscale`."""
    resize_y: int = 0
    """Height of the upscaled image in pixels; 0 derives it from the width, or from `upscale`."""
    upscaler: str = "Latent"
    """Latent, Latent (antialiased), Latent (bicubic), Latent (bicubic antialiased), Latent
    (nearest), Latent (nearest-exact), None, Lanczos, Nearest, or one that a plug-in registers."""
    steps: int = 0
    """Steps of the second pass; 0 uses as many as in the first."""
    denoising_strength: float = 0.7
    """How much the second pass changes: 0 nothing, 1 everything."""
    sampler: str | None = None
    """Sampler of the second pass; null uses that of the first."""
    schedule_type: str | None = None
    """Schedule type of the second pass; null uses that of the first."""
    prompt: str | None = None
    """Prompt of the second pass; null uses that of the first."""
    negative_prompt: str | None = None
    """Negative prompt of the second pass; null uses that of the first."""

    def faults(self) -> Faults:
        if self.upscale <= 0:
            yield "upscale", f"must be above 0, got {self.upscale}"
        for name, side in (("resize_x", self.resize_x), ("resize_y", self.resize_y)):
            if side < 0 or 0 < side < 8:
                yield name, f"must be at least 8 pixels, or 0, got {side}"
        if self.steps < 0:
            yield "steps", f"must not be negative, got {self.steps}; 0 means as many as `steps`"
        if not 0 <= self.denoising_strength <= 1:
            yield "denoising_strength", f"must lie in 0 … 1, got {self.denoising_strength}"
        yield from unknown_names(self.sampler, self.schedule_type)

    def idle(self) -> Faults:
        yield from idle_hires(self)


@dataclass
class InpaintConfig:
    """Generates only inside a mask, like A1111's Inpaint tabs."""

    paths: ClassVar[tuple[str, ...]] = ("mask", "sketch")
    limits: ClassVar[dict[str, float]] = {"padding": MOST_PIXELS}

    mask: str | None = None
    """Mask file: white is generated anew (in an image with transparency, its alpha channel is the
    mask). A folder of masks with the names of the init images, or one mask for all."""
    sketch: str | None = None
    """Inpaint sketch: the init image with paint on it. Pixels that differ are generated anew,
    starting from the paint."""
    mask_transparency: float = 0.0
    """Inpaint sketch: 0 … 100, how much of the original shines through the paint."""
    mask_blur: int = 4
    """Blur of the mask's edge in pixels."""
    mask_mode: Literal["Inpaint masked", "Inpaint not masked"] = "Inpaint masked"
    """Which side of the mask is generated."""
    masked_content: Literal["fill", "original", "latent noise", "latent nothing"] = "original"
    """Initial content of the masked area."""
    area: Literal["Whole picture", "Only masked"] = "Whole picture"
    """`Only masked` generates the mask's surroundings alone, at full resolution, and pastes them
    back."""
    padding: int = 32
    """Pixels around the mask that `Only masked` includes."""
    soft_edges: bool = False
    """Keep the mask's grey values when blending in the latents, instead of a hard edge."""
    conditioning_mask_strength: float = 1.0
    """For inpainting models (9 channels): how strictly the masked part is hidden, 0 … 1."""

    def faults(self) -> Faults:
        if self.mask is None and self.sketch is None:
            yield (
                "mask",
                "must be given (a mask image, white where content is generated), or sketch",
            )
        if self.mask is not None and self.sketch is not None:
            yield "sketch", "and mask exclude each other; give one of them"
        if not 0 <= self.mask_blur <= 64:
            yield "mask_blur", f"must lie in 0 … 64 pixels, got {self.mask_blur}"
        if self.padding < 0:
            yield "padding", f"must not be negative, got {self.padding}"
        if not 0 <= self.mask_transparency <= 100:
            yield "mask_transparency", f"must lie in 0 … 100, got {self.mask_transparency}"
        if not 0 <= self.conditioning_mask_strength <= 1:
            value = self.conditioning_mask_strength
            yield "conditioning_mask_strength", f"must lie in 0 … 1, got {value}"

    def idle(self) -> Faults:
        if self.padding != 32 and self.area == "Whole picture":
            yield "padding", "has no effect with area: Whole picture"
        if self.mask_transparency and self.sketch is None:
            yield "mask_transparency", "has no effect without sketch"


@dataclass
class ImageToImageConfig:
    """A1111's img2img: generates from an init image."""

    paths: ClassVar[tuple[str, ...]] = ("init_image",)

    init_image: str = MISSING
    """The init image; for a folder, every image in it (A1111's Batch)."""
    denoising_strength: float = 0.75
    """How much of it changes: 0 nothing, 1 everything."""
    resize_mode: str = "Just resize"
    """Just resize, Crop and resize, Resize and fill, or Just resize (latent upscale)."""
    noise_multiplier: float = 1.0
    """Factor of the noise added to it (A1111's initial_noise_multiplier)."""
    extra_noise: float = 0.0
    """Additional noise, as a fraction of the noise level."""
    exact_steps: bool = False
    """Run exactly `steps` steps; otherwise only the fraction given by denoising_strength."""
    color_correction: bool = False
    """Match the colours of the result to those of the init image."""
    background_color: str = "#ffffff"
    """Background for transparent parts of the init image."""
    inpaint: InpaintConfig | None = None
    """Generate only inside a mask."""

    def faults(self) -> Faults:
        if not 0 <= self.denoising_strength <= 1:
            yield "denoising_strength", f"must lie in 0 … 1, got {self.denoising_strength}"
        if self.resize_mode not in RESIZE_MODES:
            names = ", ".join(RESIZE_MODES)
            yield "resize_mode", f"expected one of {names}; got {self.resize_mode!r}"
        for name in ("noise_multiplier", "extra_noise"):
            if getattr(self, name) < 0:
                yield name, f"must not be negative, got {getattr(self, name)}"
        if self.exact_steps and self.denoising_strength == 0:
            yield "exact_steps", "needs a denoising_strength above 0"

    def idle(self) -> Faults:
        is_cut_out = self.inpaint is not None and self.inpaint.area == "Only masked"
        if is_cut_out and self.resize_mode != "Just resize":
            yield "resize_mode", "has no effect with area: Only masked"


@dataclass
class DrawSettings:
    """Settings of a generated image. Names and meanings are A1111's."""

    limits: ClassVar[dict[str, float]] = {
        "seed": NO_LIMIT,
        "variation_seed": NO_LIMIT,
        "steps": MOST_STEPS,
        "width": MOST_PIXELS,
        "height": MOST_PIXELS,
        "seed_resize_from_width": MOST_PIXELS,
        "seed_resize_from_height": MOST_PIXELS,
        "count": 1_000_000,
    }

    negative_prompt: str = ""
    """What the image should not show."""
    styles: list[str] = field(default_factory=list)
    """Names of styles in the styles file, which are added to the prompts."""
    seed: int = 0
    """Image i of a batch uses seed + i; -1 picks a random seed."""
    steps: int = 20
    """Sampling steps."""
    cfg_scale: float = 7.0
    """Classifier-free guidance scale; 1 switches guidance off."""
    sampler: str = "DPM++ 2M"
    """A1111 name of the sampler: Euler, Euler a, LMS, Heun, DPM2, DPM2 a, DPM++ 2M, DPM++ SDE,
    DPM++ 2M SDE, DPM++ 2M SDE Heun, DPM++ 2S a, DPM++ 3M SDE, DPM fast, DPM adaptive, Restart,
    DDIM, DDIM CFG++, PLMS, UniPC, LCM."""
    schedule_type: str = "Automatic"
    """A1111 name of the noise schedule: Automatic (the sampler's default), Uniform, Karras,
    Exponential, Polyexponential, SGM Uniform, KL Optimal, Align Your Steps, Simple, Normal, DDIM,
    Beta."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eta: float | None = None
    """Fraction of fresh noise in samplers named `a` or `SDE`, DPM fast and DPM adaptive (default
    1), and in DDIM and DDIM CFG++ (default 0)."""
    s_churn: float = 0.0
    """Noise that is added and removed again in every step, for Euler, Heun and DPM2 (A1111's Sigma
    churn)."""
    s_tmin: float = 0.0
    """Noise level below which s_churn adds nothing."""
    s_tmax: float = 0.0
    """Noise level above which s_churn adds nothing; 0 means no limit."""
    s_noise: float = 1.0
    """Factor of the noise added while sampling."""
    width: int | None = None
    """Width in pixels; null uses the base model's default."""
    height: int | None = None
    """Height in pixels; null uses the base model's default."""
    rng: Literal["CPU", "GPU", "NV"] = "CPU"
    """Source of noise: CPU is the same on every machine, NV emulates an NVIDIA GPU, GPU uses the
    device's own generator."""
    ensd: int = 0
    """Eta noise seed delta: added to the seed for the noise that samplers add while sampling
    (except those named `SDE`)."""
    variation_seed: int = -1
    """Seed of the noise that is mixed in; -1 picks a random seed."""
    variation_strength: float = 0.0
    """How much of it is mixed in: 0 nothing, 1 everything."""
    seed_resize_from_width: int = 0
    """Width of the image whose seed is to give a similar image here; 0 is off."""
    seed_resize_from_height: int = 0
    """Height of the image whose seed is to give a similar image here; 0 is off."""
    emphasis: Literal["Original", "No norm", "Ignore", "None"] = "Original"
    """What `(word:1.2)` does. `No norm` omits A1111's normalisation, `Ignore` parses the brackets
    without weighting, `None` treats them as text."""
    comma_padding_backtrack: int = 20
    """At the end of a chunk of 75 tokens, text after a comma that is at most this many tokens back
    moves to the next chunk."""
    pad_conds: bool = False
    """Pad the shorter of prompt and negative prompt, so that both run in one batch."""
    old_prompt_editing: bool = False
    """`[a:b:N]` as before A1111 1.6: N below 1 is a fraction, otherwise a step."""
    s_min_uncond: float = 0.0
    """Noise level below which every second step omits the negative prompt (A1111's NGMS)."""
    skip_early_cond: float = 0.0
    """Fraction of the steps, from the first, that run without the negative prompt."""
    sgm_noise_multiplier: bool = False
    """Start from noise as Stability's own code does, a little stronger. DDIM, DDIM CFG++, PLMS and
    UniPC always do; img2img does not."""
    tiling: bool = False
    """Generate an image that tiles without a seam."""
    restore_faces: str | None = None
    """Face restoration: CodeFormer or GFPGAN, once a plug-in registers it."""
    hires: HiresConfig | None = None
    """Upscale and denoise again (Hires. fix)."""
    img2img: ImageToImageConfig | None = None
    """Start from an image."""

    def faults(self) -> Faults:
        if self.steps < 1:
            yield "steps", f"must be at least 1, got {self.steps}"
        yield from self.wrong_numbers()
        yield from unknown_names(self.sampler, self.schedule_type)
        if self.comma_padding_backtrack < 0:
            value = self.comma_padding_backtrack
            yield "comma_padding_backtrack", f"must not be negative, got {value}"
        yield from self.wrong_sizes()
        if self.hires is not None and self.img2img is not None:
            yield "hires", "starts from noise, img2img from an image; give one of them"

    def wrong_numbers(self) -> Faults:
        """Yield the seeds, scales and fractions that are out of range."""
        for name in ("seed", "variation_seed"):
            if not -1 <= getattr(self, name) < MOST_SEED:
                yield name, f"must lie in 0 … 2^63-1, or be -1, got {getattr(self, name)}"
        if self.cfg_scale < 0:
            yield "cfg_scale", f"must not be negative, got {self.cfg_scale}; 1 means no guidance"
        for name in ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "s_min_uncond"):
            if (value := getattr(self, name)) is not None and value < 0:
                yield name, f"must not be negative, got {value}"
        for name in ("variation_strength", "skip_early_cond"):
            if not 0 <= getattr(self, name) <= 1:
                yield name, f"must lie in 0 … 1, got {getattr(self, name)}"

    @property
    def has_random_seed(self) -> bool:
        """Return whether two generations with these settings differ."""
        return self.seed == -1 or (self.variation_strength > 0 and self.variation_seed == -1)

    def wrong_sizes(self) -> Faults:
        for name, size in (("width", self.width), ("height", self.height)):
            if size is not None and size < 8:
                yield name, f"must be at least 8 pixels, got {size}"
        resize_from = self.seed_resize_from_width, self.seed_resize_from_height
        if any(resize_from) and min(resize_from) < 8:
            rule = "and seed_resize_from_height must both be 8 pixels at least, or both 0"
            yield "seed_resize_from_width", rule

    def idle(self) -> Faults:
        yield from idle_settings(self)


@dataclass
class ImageConfig(DrawSettings):
    """One image (or `count` of them). Fields that are not set are taken from `settings`."""

    prompt: str = MISSING
    """What the image should show."""
    count: int = 1
    """Number of images, with the seeds seed, seed + 1, …"""

    def faults(self) -> Faults:
        yield from super().faults()
        if self.count < 1:
            yield "count", f"must be at least 1, got {self.count}"

    def idle(self) -> Faults:
        yield from idle_settings(self, self.prompt)
