"""The typed recipes of generation, and the parts that training recipes share with them."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from inference.config.clips import ClipConfig, ClipSettings, ClipsRecipe
from inference.config.images import MOST_AT_ONCE, DrawSettings, Faults, ImageConfig
from inference.config.memory import MemoryConfig, pictures_have_no_groups, swapping_faults
from inference.config.models import ArtifactConfig, BaseModelConfig
from inference.config.speed import (
    DrawingSpeedConfig,
    SpeedConfig,
    merging_faults,
    merging_idle,
    prefixed,
)
from inference.files import pattern_faults
from inference.recipe import DRAWING_GROUPS, RecipeError, load_plugins

PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)
"""Presets of x264."""


@dataclass
class ImagesRecipe:
    """`type: images`: generates every entry of `images` with the base model and the artifacts."""

    paths: ClassVar[tuple[str, ...]] = ("artifact_dirs", "styles_file", "output_dir")
    inherits: ClassVar[dict[str, str]] = {"images": "settings"}
    limits: ClassVar[dict[str, float]] = {"batch_size": MOST_AT_ONCE}

    type: Literal["images"] = "images"
    """What is generated."""
    base_model: BaseModelConfig = field(default_factory=BaseModelConfig)
    artifacts: dict[str, ArtifactConfig | None] = field(default_factory=dict)
    """Artifacts to generate with, under names of your choice; attached in this order."""
    artifact_dirs: list[str] = field(default_factory=list)
    """Folders (searched recursively) with the artifacts that prompts name: `<lora:name:1>`,
    `<hypernet:name:1>`, and embeddings by their names."""
    styles_file: str | None = None
    """The styles file, A1111's styles.csv."""
    settings: DrawSettings = field(default_factory=DrawSettings)
    """Settings for the fields that entries of `images` do not set."""
    images: dict[str, ImageConfig | None] = field(default_factory=dict)
    """The images, under names of your choice, for example `images.front.prompt=…`."""
    compare_strengths: list[float] = field(default_factory=list)
    """Generate everything once per number, with the artifacts' strengths multiplied by it: one row
    of the grid each. `[0, 1]` shows the base model above the artifacts."""
    output_dir: str = "outputs"
    """Output folder. Nothing in it is ever overwritten."""
    file_name: str = "[number]-[seed]"
    """File name pattern, with A1111's patterns: [seed], [steps], [cfg], [prompt_words], [date], …;
    [number] counts up. A / creates folders."""
    file_format: Literal["png", "jpg", "webp", "avif"] = "png"
    """Format of the images; each contains its infotext."""
    quality: int = 80
    """Quality of jpg, webp and avif, 1 … 100."""
    save_text: bool = False
    """Also write each image's infotext to a .txt beside it."""
    batch_size: int = 1
    """Images generated at once. Larger batches are faster, but change images by rounding (a pixel
    here and there by one grey level); with 1, each image is reproduced byte for byte from its
    infotext."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    vae_tiling: bool | None = None
    """Encode and decode with the VAE in tiles, which takes less memory and causes slight
    differences; null decides together with `memory`."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Data type of the weights. `auto` is fp32 on a CPU; on a GPU the one that the first artifact
    was trained in (`mixed_precision`), if it records it, otherwise bf16, or fp16 on GPUs before
    Ampere."""
    device: str = "auto"
    """`auto` uses the first GPU, otherwise the CPU; or a torch device such as `cuda:1`."""
    deterministic: bool = False
    """Give the same bytes each time on a GPU too, slower and with more memory; needed to draw again
    exactly what a training run with `deterministic: true` drew. CPUs do so anyway."""
    speed: DrawingSpeedConfig = field(default_factory=DrawingSpeedConfig)
    grid: bool = True
    """Also save all images as one image grid."""
    plugins: list[str] = field(default_factory=list)
    """Python modules with samplers or upscalers of your own (docs/extending.md); loaded only if the
    command line or LIMNER_PLUGINS names them too."""

    def faults(self) -> Faults:
        if not self.images:
            yield "images", 'is empty: name at least one, for example images.one.prompt="a cat"'
        if self.batch_size < 1:
            yield "batch_size", f"must be at least 1, got {self.batch_size}"
        for name, image in self.images.items():
            if image is not None and image.styles and self.styles_file is None:
                yield f"images.{name}.styles", "needs styles_file, A1111's styles.csv"
        if not 1 <= self.quality <= 100:
            yield "quality", f"must lie in 1 … 100, got {self.quality}"
        for fault in pattern_faults(self.file_name):
            yield "file_name", fault
        yield from pictures_have_no_groups(self.memory)
        yield from swapping_faults(self.memory, self.base_model)
        yield from prefixed(self.speed.conflicts(self.deterministic, self.base_model, self.memory))
        yield from merging_faults(self.speed, self.base_model)

    def idle(self) -> Faults:
        if self.quality != 80 and self.file_format == "png":
            yield "quality", "has no effect with file_format: png"
        if self.compare_strengths and not self.artifacts:
            yield "compare_strengths", "has no effect without `artifacts`"
        yield from prefixed(self.speed.without_effect(self.base_model, for_clips=False))
        yield from merging_idle(self.speed, self.artifacts, self.compare_strengths)


@dataclass
class AnimationRecipe:
    """`type: animation`: a Deforum animation, from a settings file, or from `settings`, or both."""

    paths: ClassVar[tuple[str, ...]] = ("artifact_dirs", "settings_file", "output_dir")
    limits: ClassVar[dict[str, float]] = {"batch_size": MOST_AT_ONCE}

    type: Literal["animation"] = "animation"
    """What is generated."""
    base_model: BaseModelConfig = field(default_factory=BaseModelConfig)
    artifacts: dict[str, ArtifactConfig | None] = field(default_factory=dict)
    """Artifacts to generate with, under names of your choice; attached in this order."""
    artifact_dirs: list[str] = field(default_factory=list)
    """Folders (searched recursively) with the artifacts that prompts name and the base models of
    `checkpoint_schedule`."""
    settings_file: str | None = None
    """A settings file (.txt, .json) of Deforum: of A1111's extension, Forge's, or the notebook."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Deforum's settings by name, and additional ones (`depth_model`, `network_schedules`, …:
    docs/deforum.md); they override those in the file. `prompts.30: a cat` changes one prompt of the
    file."""
    compat: Literal["fixed", "deforum-3.0"] = "fixed"
    """`deforum-3.0` reproduces the bugs of Deforum for A1111 3.0 that affect images."""
    cadence_blend: bool = True
    """Fade in each new frame between diffused frames, as in Deforum; false shows it at once, moved
    by the camera alone."""
    output_dir: str = "outputs/animations"
    """Folder in which each animation gets its own folder, named by `batch_name`."""
    resume: bool = False
    """Continue an animation that was stopped: the one in the settings file's folder, otherwise the
    last one in the folder of `batch_name`."""
    subtitles: bool = True
    """Write an .srt with the settings of each frame."""
    subtitle_fields: list[str] = field(default_factory=list)
    """What it shows besides frame, seed and prompt, for example `Zoom`; if empty, everything that
    changes."""
    embed_subtitles: bool = True
    """Also embed them in the video."""
    crf: int = 17
    """Quality of the video: 0 (best) … 51."""
    preset: str = "slow"
    """x264's preset, ultrafast … veryslow."""
    contact_sheet: bool = True
    """Also save a contact sheet: frames from beginning to end, with a table of the values that
    change."""
    upscaler: str = "Lanczos"
    """Upscaler of `r_upscale_video`: Lanczos, Nearest, or one that a plug-in registers."""
    batch_size: int = 4
    """Frames generated at once where none depends on another (Interpolation, Video Input)."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    vae_tiling: bool | None = None
    """Encode and decode with the VAE in tiles, which takes less memory and causes slight
    differences; null decides together with `memory`."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Data type of the weights. `auto` is fp32 on a CPU; on a GPU the one that the first artifact
    was trained in (`mixed_precision`), if it records it, otherwise bf16, or fp16 on GPUs before
    Ampere."""
    device: str = "auto"
    """`auto` uses the first GPU, otherwise the CPU; or a torch device such as `cuda:1`."""
    deterministic: bool = False
    """Give the same bytes each time on a GPU too, slower and with more memory; needed to draw again
    exactly what a training run with `deterministic: true` drew. CPUs do so anyway."""
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    plugins: list[str] = field(default_factory=list)
    """Python modules with samplers or upscalers of your own (docs/extending.md); loaded only if the
    command line or LIMNER_PLUGINS names them too."""

    def faults(self) -> Faults:
        if self.settings_file is None and not self.settings:
            yield "settings_file", "must be given (a Deforum settings file), or `settings`"
        if self.batch_size < 1:
            yield "batch_size", f"must be at least 1, got {self.batch_size}"
        if not 0 <= self.crf <= 51:
            yield "crf", f"must lie in 0 … 51, got {self.crf}"
        if self.preset not in PRESETS:
            yield "preset", f"expected one of {', '.join(PRESETS)}; got {self.preset!r}"
        yield from pictures_have_no_groups(self.memory)
        yield from swapping_faults(self.memory, self.base_model)
        yield from prefixed(self.speed.conflicts(self.deterministic, self.base_model, self.memory))

    def idle(self) -> Faults:
        if self.subtitle_fields and not self.subtitles:
            yield "subtitle_fields", "has no effect without subtitles"
        yield from prefixed(self.speed.without_effect(self.base_model, for_clips=False))


__all__ = [
    "AnimationRecipe",
    "ArtifactConfig",
    "BaseModelConfig",
    "ClipConfig",
    "ClipSettings",
    "ClipsRecipe",
    "DrawSettings",
    "Faults",
    "ImageConfig",
    "ImagesRecipe",
    "draw_schema",
]

DRAWING_RECIPES: dict[str, type] = {
    "images": ImagesRecipe,
    "animation": AnimationRecipe,
    "clip": ClipsRecipe,
}


def draw_schema(untyped: dict[str, Any]) -> type:
    """Return the dataclass of a recipe for `python -m inference`, chosen by its `type`.

    Raises:
        RecipeError: `type` is unknown, or the recipe is one for training; a plug-in is not found,
            or named without consent.
    """
    if "objective" in untyped and "type" not in untyped:
        raise RecipeError(
            "is a recipe for training (it has an objective): python -m train reads it"
        )
    load_plugins(untyped, DRAWING_GROUPS)
    kind = untyped.get("type", "images")
    if not isinstance(kind, str) or kind not in DRAWING_RECIPES:
        raise RecipeError(f"type: expected one of {', '.join(DRAWING_RECIPES)}; got {kind!r}")
    return DRAWING_RECIPES[kind]
