"""A family of rectified flow in one file: a random DiT over the latents of a small VAE."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from inference.config import BaseModelConfig
from inference.memory import Packable
from inference.models import (
    DTYPES,
    Conditions,
    DiffusionModel,
    DrawingConditions,
    ImageModel,
    LoraLayout,
    Match,
    ModelFamily,
    ModelFiles,
    Part,
    PartLayout,
    PromptSettings,
    SizeRules,
    Timeline,
)
from inference.prompts import LearnedVectors, split_composition
from tests.toy_family.dit import ToyDiT
from tests.toy_family.rectified_flow import RectifiedFlow
from train.config import ObjectiveConfig, TrainRecipe
from train.families import ExampleKind, FamilyTraining, check_no_clips_are_given, plain_denoising
from train.losses import Denoising

TOKENS, TEXT = 8, 16
INDEX = "ToyFlowPipeline"


class Letters:
    """A tokenizer of letters."""

    model_max_length = TOKENS

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir()


@dataclass
class ToyFlow(ImageModel):
    """Draws from a table of letters."""

    family_name: ClassVar[str] = "toy_flow"
    denoiser_name: ClassVar[str] = "toy_dit"
    packable: ClassVar[Packable] = Packable(linear=(".attn.", ".ff."))

    path: str
    toy_dit: ToyDiT
    vae: Any
    noise_schedule: dict[str, object]
    dtype: torch.dtype = torch.float32
    prediction_type: str = "flow"
    clip_skip: int = 1
    embeddings: dict[str, LearnedVectors] = field(default_factory=dict)
    letters: Letters = field(default_factory=Letters)

    @property
    def denoiser(self) -> ToyDiT:
        return self.toy_dit

    def blocks(self) -> list[nn.Module]:
        return list(self.toy_dit.blocks)

    @property
    def parametrization(self) -> RectifiedFlow:
        return RectifiedFlow(shift=float(str(self.noise_schedule.get("shift", 1.0))))

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        return {}

    @property
    def tokenizers(self) -> list[Any]:
        return []

    @property
    def size_step(self) -> int:
        return self.vae_scale_factor * ToyDiT.PATCH

    @property
    def sizes(self) -> SizeRules:
        return SizeRules(self.size_step, self.resolution, self.resolution)

    @property
    def resolution(self) -> int:
        return 16

    @property
    def skips_last_text_layers(self) -> bool:
        return False

    @property
    def prompt_shape(self) -> tuple[int, int]:
        return TOKENS, TEXT

    @property
    def sees_masks(self) -> bool:
        return False

    @property
    def align_your_steps(self) -> Literal["SD1", "SDXL"]:
        return "SD1"

    def masked_image_channels(self, pictures: Iterable[tuple[Tensor, Tensor]]) -> Tensor | None:
        return None

    def embeddings_called(self, prompts: Sequence[str]) -> set[str]:
        return set()

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float().clamp(-1, 1)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        codes = [[ord(letter) for letter in prompt[:TOKENS].ljust(TOKENS)] for prompt in prompts]
        angles = torch.tensor(codes, dtype=torch.float32)[..., None] * torch.arange(1, TEXT + 1)
        return Conditions(angles.sin().to(self.device, self.dtype))

    def encode_drawing(
        self, prompts: Sequence[str], negatives: Sequence[str], settings: PromptSettings
    ) -> DrawingConditions:
        def timeline(text: str) -> Timeline:
            return Timeline((settings.steps_total,), (0,), self.encode_prompts([text]))

        positives = [
            [Part(one.weight, timeline(one.text)) for one in split_composition(prompt)]
            for prompt in prompts
        ]
        return DrawingConditions(positives, [timeline(text) for text in negatives], None)

    def predict(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        reported: Tensor | None = None,
        /,
    ) -> Tensor:
        return self.toy_dit(noisy_latents, timesteps, conditions.states)

    def model_index(self, sampler: str) -> dict[str, Any]:
        return {"_class_name": INDEX, "scheduler": ["diffusers", sampler]}

    def use_eager_attention(self) -> None:
        """Leave attention as it is: it has no fused weights."""


class FlowLora(LoraLayout):
    """Names of LoRA layers as in diffusers, with underscores in kohya's files."""

    denoiser = "toy_dit"
    prefixes: Mapping[str, str] = {"toy_dit": "lora_toy"}
    begins: ClassVar = {"lora_toy_": "toy_dit"}
    targets: ClassVar = {"attention": r"to_q|to_k|to_v|0", "feed_forward": "ff"}
    usual_targets = ("attention",)
    text_encoder_targets = None
    untrained_text_encoder = "it has none"
    file_format = "kohya"
    readers = ("to_q", "to_k", "to_v")
    widths: ClassVar = {32: "Toy flow"}
    versions: ClassVar = {32: "toy_flow"}
    linear_widths = (32,)
    made_for = "a toy flow of width {width} ({model}); this base model's has"
    made_for_elsewhere = "a toy flow ({model})"

    def kohya_path(self, part: str, path: str) -> str:
        return path

    def known_names(self, part: str, path: str) -> list[str]:
        return [self.kohya_name(part, path)]

    def diffusers_path(self, part: str, joined: str, name: str) -> str:
        return re.sub(r"_(?=\d)|(?<=\d)_|(?<=attn)_", ".", joined)

    def is_target(self, path: str, module: nn.Module, target: str) -> bool:
        return ".attn." in path and path.rpartition(".")[2] in self.targets[target].split("|")

    def recognizes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return False

    def input_width(self, base: DiffusionModel) -> int:
        return base.denoiser.config.width


class FlowFamily(ModelFamily):
    """Diffusers folders that name the ToyFlowPipeline."""

    name = "toy_flow"
    title = "Toy flow"
    draws = "pictures"
    artifacts = frozenset({"lora", "checkpoint"})
    denoiser_name = "toy_dit"
    parts: ClassVar = {
        "toy_dit": PartLayout("tests.toy_family.dit:ToyDiT", ("heads",), "a toy flow"),
        "vae": PartLayout(
            "diffusers.models.autoencoders.autoencoder_kl:AutoencoderKL",
            ("act_fn", "norm_num_groups", "latent_channels"),
            "a toy flow",
        ),
    }
    single_file = None
    published: ClassVar = {"toy_flow": "Toy flow"}
    architectures: ClassVar = {"toy_flow": "toy-flow"}
    lora_layouts = (FlowLora(),)

    def detect(self, files: ModelFiles) -> Match | None:
        return Match.NAMED if files.index.get("_class_name") == INDEX else None

    def load(self, config: BaseModelConfig, precision: str, device: torch.device | str) -> ToyFlow:
        folder = Path(config.path)
        dit = ToyDiT.from_pretrained(folder, subfolder="toy_dit")
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
        base = ToyFlow(config.path, dit, vae, schedule, DTYPES[precision])
        return frozen(base, config).to(device)

    def skeleton(self, files: ModelFiles, precision: str) -> ToyFlow:
        with torch.device("meta"):
            dit: Any = ToyDiT.from_config(files.read("toy_dit"))
            vae: Any = AutoencoderKL.from_config(files.read("vae"))
        return ToyFlow(files.config.path, dit, vae, {})

    def known_offline(self) -> tuple[str, ...]:
        return ()

    def part_dtype(
        self, base: DiffusionModel, config: BaseModelConfig, precision: str, part: str
    ) -> torch.dtype:
        return DTYPES[precision]

    def lora_layout(self, base: DiffusionModel) -> LoraLayout:
        return self.lora_layouts[0]

    def lora_variant(self, names: Mapping[str, object], width: int | None) -> LoraLayout:
        return self.lora_layouts[0]

    def version(self, base: DiffusionModel) -> str:
        return "toy_flow"

    def metadata(self, base: DiffusionModel) -> dict[str, str]:
        return {"modelspec.implementation": "toy"}

    def inspect(self, folder: Path, index: Mapping[str, Any]) -> dict[str, str]:
        return {"kind": "base model (diffusers folder)", "layout": "Toy flow"}


class FlowTraining(FamilyTraining[ToyFlow]):
    """The training half."""

    examples: ClassVar[ExampleKind] = "pictures"
    truncates_prompts: ClassVar[bool] = True

    def check(self, recipe: TrainRecipe, base: ToyFlow) -> None:
        check_no_clips_are_given(recipe)

    def check_objective(self, config: ObjectiveConfig, base: ToyFlow) -> None:
        """Every option that the objectives have works."""

    def prepare(self, recipe: TrainRecipe, base: ToyFlow) -> None:
        """Leave the model as it was loaded."""

    def frozen_dtype(self, recipe: TrainRecipe, base: ToyFlow, part: str) -> torch.dtype:
        return DTYPES[recipe.mixed_precision]

    def loss(self, recipe: TrainRecipe, base: ToyFlow) -> Denoising:
        return plain_denoising(recipe, base)

    def idle_parts(self, base: ToyFlow, has_latents: bool) -> list[str]:
        return ["vae"] if has_latents else []

    def describe_truncation(self, base: ToyFlow, prompts: Sequence[str]) -> str | None:
        return None

    def prompt_limits(self, base: ToyFlow) -> list[int]:
        return []

    def fill_skeleton(self, base: ToyFlow) -> None:
        """Objectives read no weights of it when they are built."""


def frozen(base: ToyFlow, config: BaseModelConfig) -> ToyFlow:
    """The model, its weights at rest, and where it came from."""
    for part in base.parts.values():
        part.requires_grad_(False).eval()
    base.source = config
    return base


def new_toy_flow(path: str = "toy_flow", seed: int = 0, shift: float = 1.0) -> ToyFlow:
    """Make a random model; the global generator stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=[8, 8],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            norm_num_groups=4,
        )
        dit = ToyDiT(text_width=TEXT)
    schedule = {
        "_class_name": "ToyFlowScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "flow",
        "shift": shift,
    }
    return frozen(ToyFlow(path, dit, vae, schedule), BaseModelConfig(path=path))
