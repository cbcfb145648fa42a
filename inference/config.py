"""The typed recipes of drawing, and the pieces that training recipes share with them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from omegaconf import MISSING

from inference.recipe import RecipeError

Faults = Iterator[tuple[str, str]]

SAMPLERS = (
    "Euler",
    "Euler a",
    "LMS",
    "Heun",
    "DPM2",
    "DPM2 a",
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 2S a",
    "DPM++ 3M SDE",
    "DPM fast",
    "DPM adaptive",
    "Restart",
    "DDIM",
    "DDIM CFG++",
    "PLMS",
    "UniPC",
    "LCM",
)
"""The samplers of `inference.samplers`, by their A1111 names."""

SAMPLERS_WITHOUT_ETA = (
    "Euler",
    "LMS",
    "Heun",
    "DPM2",
    "DPM++ 2M",
    "Restart",
    "PLMS",
    "UniPC",
    "LCM",
)
"""Those that add no fresh noise, or leave no choice how much."""

SCHEDULE_TYPES = (
    "Automatic",
    "Uniform",
    "Karras",
    "Exponential",
    "Polyexponential",
    "SGM Uniform",
    "KL Optimal",
    "Align Your Steps",
    "Simple",
    "Normal",
    "DDIM",
    "Beta",
)
"""The noise schedules of `inference.schedules`, by their A1111 names."""


@dataclass
class BaseModelConfig:
    """The model that is trained upon and drawn with."""

    path: str = "picto"
    """`picto` (comes with Limner), a diffusers folder, a hub id such as `org/model`, or a single
    file (`.safetensors` or `.ckpt`) as A1111 opens it."""
    revision: str | None = None
    """Branch, tag or commit on the hub. Only for hub ids."""
    variant: str | None = None
    """Which weight files of the folder to take, for example `fp16` for `*.fp16.safetensors`."""
    clip_skip: int = 1
    """A1111's Clip skip: 1 takes the text encoder's last layer, 2 the one before it. In SDXL 1 is
    the layer before the last, as it was made (and as A1111 draws, whatever its Clip skip says)."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What a single file's model predicts, if the file does not say it or says it wrongly. Folders
    say it themselves."""
    vae_precision: Literal["fp32", "fp16", "bf16"] | None = "fp32"
    """Number format of the VAE; null takes that of the rest. SDXL's overflows in fp16, as its
    config says (`force_upcast`): null then means fp32 there, and fp16 is refused."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """`sdpa` is the fast fused attention; `eager` spells it out (on CPUs its backward pass is
    several times faster in bf16)."""

    def faults(self) -> Faults:
        if not self.path.strip():
            yield "path", "must name a base model: `picto`, a diffusers folder, or a hub id"
        if self.clip_skip < 1:
            yield "clip_skip", f"must be at least 1 (the last layer), got {self.clip_skip}"

    def idle(self) -> Faults:
        is_single_file = self.path.lower().endswith((".safetensors", ".ckpt"))
        if self.revision is not None and self.path == "picto":
            yield "revision", "has no effect: picto comes with Limner and is not on a hub"
        elif self.revision is not None and is_single_file:
            yield "revision", "has no effect: a single file is not on a hub"
        if self.variant is not None and is_single_file:
            yield "variant", "has no effect: a single file is read as it is"
        if self.prediction_type is not None and not is_single_file:
            yield "prediction_type", "has no effect: the folder's scheduler_config.json says it"


@dataclass
class DrawSettings:
    """How a picture is drawn. The words and meanings are A1111's."""

    negative_prompt: str = ""
    """What the picture shall not show."""
    seed: int = 0
    """Picture i of a batch is drawn from seed + i. The noise comes from the CPU generator."""
    steps: int = 20
    """Sampling steps."""
    cfg_scale: float = 7.0
    """Classifier-free guidance scale; 1 switches guidance off."""
    sampler: str = "DPM++ 2M"
    """A1111 name of the sampler: Euler, Euler a, LMS, Heun, DPM2, DPM2 a, DPM++ 2M, DPM++ SDE,
    DPM++ 2M SDE, DPM++ 2M SDE Heun, DPM++ 2S a, DPM++ 3M SDE, DPM fast, DPM adaptive, Restart,
    DDIM, DDIM CFG++, PLMS, UniPC, LCM."""
    schedule_type: str = "Automatic"
    """A1111 name of the noise schedule: Automatic (the sampler's own), Uniform, Karras,
    Exponential, Polyexponential, SGM Uniform, KL Optimal, Align Your Steps, Simple, Normal, DDIM,
    Beta."""
    eta: float | None = None
    """Share of fresh noise of samplers named `a` or `SDE`, DPM fast and DPM adaptive (default 1),
    and of DDIM and DDIM CFG++ (default 0)."""
    width: int | None = None
    """Width in pixels; without it the base model's own size."""
    height: int | None = None
    """Height in pixels; without it the base model's own size."""

    def faults(self) -> Faults:
        if self.steps < 1:
            yield "steps", f"must be at least 1, got {self.steps}"
        if not 0 <= self.seed < 2**63:
            yield "seed", f"must lie in 0 … 2^63-1, got {self.seed}"
        if self.cfg_scale < 0:
            yield "cfg_scale", f"must not be negative, got {self.cfg_scale}; 1 means no guidance"
        if self.eta is not None and self.eta < 0:
            yield "eta", f"must not be negative, got {self.eta}"
        if self.sampler not in SAMPLERS:
            yield "sampler", f"expected one of {', '.join(SAMPLERS)}; got {self.sampler!r}"
        if self.schedule_type not in SCHEDULE_TYPES:
            names = ", ".join(SCHEDULE_TYPES)
            yield "schedule_type", f"expected one of {names}; got {self.schedule_type!r}"
        for name, size in (("width", self.width), ("height", self.height)):
            if size is not None and size < 8:
                yield name, f"must be at least 8 pixels, got {size}"

    def idle(self) -> Faults:
        if self.eta is not None and self.sampler in SAMPLERS_WITHOUT_ETA:
            yield "eta", f"has no effect with {self.sampler}"


@dataclass
class ImageConfig(DrawSettings):
    """One picture (or `count` of them). What it leaves out it takes from `settings`."""

    prompt: str = MISSING
    """What the picture shall show."""
    count: int = 1
    """How many pictures: seeds seed, seed + 1, …"""

    def faults(self) -> Faults:
        yield from super().faults()
        if self.count < 1:
            yield "count", f"must be at least 1, got {self.count}"


@dataclass
class ArtifactConfig:
    """A trained artifact and how strongly it works."""

    path: str = MISSING
    """The artifact's file or folder. What it is is found out by its content."""
    strength: float = 1.0
    """0 is the base model, 1 the strength it was trained at."""


@dataclass
class ImagesRecipe:
    """`type: images`: draws every entry of `images` with the base model and the artifacts."""

    inherits: ClassVar[dict[str, str]] = {"images": "settings"}

    type: Literal["images"] = "images"
    """What is drawn."""
    base_model: BaseModelConfig = field(default_factory=BaseModelConfig)
    artifacts: dict[str, ArtifactConfig | None] = field(default_factory=dict)
    """What the pictures are drawn with, by names of your choice; attached in this order."""
    settings: DrawSettings = field(default_factory=DrawSettings)
    """What the entries of `images` do not say themselves."""
    images: dict[str, ImageConfig | None] = field(default_factory=dict)
    """The pictures, by names of your choice, for example `images.front.prompt=…`."""
    compare_strengths: list[float] = field(default_factory=list)
    """Draws everything once per number, the artifacts' strengths multiplied by it: one row of the
    grid each. `[0, 1]` shows the base model above the artifacts."""
    output_dir: str = "outputs"
    """Folder of the pictures. Nothing in it is ever overwritten."""
    batch_size: int = 8
    """Pictures drawn at once. Changes memory and speed, and pictures by rounding only."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Number format of the weights while drawing."""
    device: str = "auto"
    """`auto` takes the first GPU, else the CPU; or a torch device such as `cuda:1`."""
    grid: bool = True
    """Also save all pictures as one grid."""

    def faults(self) -> Faults:
        if not self.images:
            yield "images", 'is empty: name at least one, for example images.one.prompt="a cat"'
        if self.batch_size < 1:
            yield "batch_size", f"must be at least 1, got {self.batch_size}"

    def idle(self) -> Faults:
        if self.compare_strengths and not self.artifacts:
            yield "compare_strengths", "has no effect without `artifacts`"


DRAWING_RECIPES: dict[str, type] = {"images": ImagesRecipe}


def draw_schema(untyped: dict[str, Any]) -> type:
    """The dataclass of a drawing recipe, chosen by its `type`.

    Raises:
        RecipeError: `type` is none of the known ones.
    """
    kind = untyped.get("type", "images")
    if not isinstance(kind, str) or kind not in DRAWING_RECIPES:
        raise RecipeError(f"type: expected one of {', '.join(DRAWING_RECIPES)}; got {kind!r}")
    return DRAWING_RECIPES[kind]
