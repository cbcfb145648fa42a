"""A third family: a transformer of two blocks over latents, random, without anything of SD."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from inference.config import BaseModelConfig
from inference.models.base import DTYPES, DiffusionModel, made_ready
from inference.models.conditions import Conditions
from inference.models.drawing_prompts import DrawingConditions, Part, PromptSettings, Timeline
from inference.models.family import Match, ModelFamily, PartLayout
from inference.models.image_model import ImageModel
from inference.models.lora_layout import LoraLayout
from inference.models.model_files import ModelFiles
from inference.models.parametrization import DiscreteVP, discrete_vp
from inference.models.size_rules import SizeRules
from inference.prompts import LearnedVectors, split_composition

TOKENS, WIDTH = 8, 16


class Block(nn.Module):
    """Self-attention and a feed-forward layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.mlp = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        x = x + self.to_out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(x.relu())


class ToyTransformer(ModelMixin, ConfigMixin):
    """Latents, prompt and timestep as tokens; predicts noise."""

    @register_to_config
    def __init__(self, channels: int = 4, width: int = WIDTH) -> None:
        super().__init__()
        self.into = nn.Linear(channels, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.out = nn.Linear(width, channels)

    def forward(self, latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        batch, _, height, width = latents.shape
        x = self.into(latents.flatten(2).transpose(1, 2)) + timesteps.view(batch, 1, 1) / 1000
        count = x.shape[1]
        x = torch.cat([x, states], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.out(x[:, :count]).transpose(1, 2).reshape(batch, -1, height, width)


class Letters:
    """A tokenizer of letters."""

    model_max_length = TOKENS

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir()


@dataclass
class ToyModel(ImageModel):
    """Draws from a table of letters."""

    family_name: ClassVar[str] = "toy"
    denoiser_name: ClassVar[str] = "toy_transformer"

    path: str
    transformer: ToyTransformer
    vae: Any
    alphas_cumprod: Tensor
    noise_schedule: dict[str, object]
    dtype: torch.dtype = torch.float32
    prediction_type: str = "epsilon"
    tokenizer: Any = field(default_factory=Letters)
    clip_skip: int = 1
    embeddings: dict[str, LearnedVectors] = field(default_factory=dict)

    @property
    def denoiser(self) -> ToyTransformer:
        return self.transformer

    @property
    def parametrization(self) -> DiscreteVP:
        return discrete_vp(self.alphas_cumprod, self.prediction_type)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        return {}

    @property
    def tokenizers(self) -> list[Any]:
        return []

    @property
    def size_step(self) -> int:
        return self.vae_scale_factor

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
        return TOKENS, WIDTH

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
        angles = torch.tensor(codes, dtype=torch.float32)[..., None] * torch.arange(1, WIDTH + 1)
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
        told: Tensor | None = None,
        /,
    ) -> Tensor:
        return self.transformer(noisy_latents, timesteps, conditions.states)

    def model_index(self, sampler: str) -> dict[str, Any]:
        return {"_class_name": "ToyPipeline", "scheduler": ["diffusers", sampler]}

    def use_eager_attention(self) -> None:
        pass


class ToyLora(LoraLayout):
    """Names as kohya would give them."""

    denoiser = "toy_transformer"
    prefixes: Mapping[str, str] = {"toy_transformer": "lora_toy"}
    begins: ClassVar = {"lora_toy_": "toy_transformer"}
    targets: ClassVar = {"attention": r"to_qkv|to_out", "feed_forward": "mlp"}
    usual_targets = ("attention",)
    text_encoder_targets = None
    untrained_text_encoder = "it has none"
    file_format = "kohya"
    readers = ("to_qkv",)
    widths: ClassVar = {WIDTH: "Toy"}
    versions: ClassVar = {WIDTH: "toy"}
    linear_widths = (WIDTH,)
    made_for = "a toy of width {width} ({model}); this base model's has"
    made_for_elsewhere = "a toy ({model})"

    def kohya_path(self, part: str, path: str) -> str:
        return path

    def known_names(self, part: str, path: str) -> list[str]:
        return [self.kohya_name(part, path)]

    def diffusers_path(self, part: str, joined: str, name: str) -> str:
        return joined.replace("blocks_0_", "blocks.0.").replace("blocks_1_", "blocks.1.")

    def is_target(self, path: str, module: nn.Module, target: str) -> bool:
        return path.rpartition(".")[2] in self.targets[target].split("|")

    def recognizes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return False

    def input_width(self, base: DiffusionModel) -> int:
        return base.denoiser.config.width


class ToyFamily(ModelFamily):
    """Diffusers folders that name the ToyPipeline."""

    name = "toy"
    title = "Toy"
    draws = "pictures"
    artifacts = frozenset({"lora", "checkpoint"})
    denoiser_name = "toy_transformer"
    parts: ClassVar = {
        "toy_transformer": PartLayout(
            "tests.inference.models.toy_family:ToyTransformer", ("width",), "a toy"
        ),
        "vae": PartLayout(
            "diffusers.models.autoencoders.autoencoder_kl:AutoencoderKL",
            ("act_fn", "norm_num_groups", "latent_channels"),
            "a toy",
        ),
    }
    single_file = None
    published: ClassVar = {"toy": "Toy"}
    architectures: ClassVar = {"toy": "toy"}
    lora_layouts = (ToyLora(),)

    def detect(self, files: ModelFiles) -> Match | None:
        return Match.NAMED if files.index.get("_class_name") == "ToyPipeline" else None

    def load(self, config: BaseModelConfig, precision: str, device: torch.device | str) -> ToyModel:
        folder = Path(config.path)
        transformer = ToyTransformer.from_pretrained(folder, subfolder="toy_transformer")
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        scheduler = folder / "scheduler" / "scheduler_config.json"
        base = toy(config.path, transformer, vae, json.loads(scheduler.read_text("utf-8")))
        base.dtype = DTYPES[precision]
        return made_ready(base, config).to(device)

    def skeleton(self, files: ModelFiles, precision: str) -> ToyModel:
        with torch.device("meta"):
            transformer: Any = ToyTransformer.from_config(files.read("toy_transformer"))
            vae: Any = AutoencoderKL.from_config(files.read("vae"))
        return toy(files.config.path, transformer, vae, {})

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
        return "toy"

    def metadata(self, base: DiffusionModel) -> dict[str, str]:
        return {"modelspec.implementation": "toy"}

    def inspect(self, folder: Path, index: Mapping[str, Any]) -> dict[str, str]:
        return {"kind": "base model (diffusers folder)", "layout": "Toy"}


def toy(path: str, transformer: Any, vae: Any, schedule: dict[str, object]) -> ToyModel:
    """Put a model together, with the noise schedule of DDPM."""
    alphas = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000), dim=0)
    return ToyModel(path, transformer, vae, alphas, schedule)


def new_toy(path: str = "toy", seed: int = 0) -> ToyModel:
    """Make a random model; neither a file nor the global generator is touched."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=[8, 8],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            norm_num_groups=4,
        )
        base = toy(path, ToyTransformer(), vae, {"num_train_timesteps": 1000})
    return made_ready(base, BaseModelConfig(path=path))
