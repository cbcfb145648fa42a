"""The typed recipe of what is trained: one class for each objective."""

import difflib
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from omegaconf import MISSING, SI

from train.faults import Faults, at_least, fraction

# fmt: off
ACTIVATIONS = (
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "celu", "gelu", "hardshrink",
    "hardsigmoid", "hardswish", "hardtanh", "logsigmoid", "mish", "prelu", "relu6", "rrelu", "selu",
    "silu", "softplus", "softshrink", "softsign", "tanhshrink",
)
# fmt: on
"""Names that a hypernetwork's activation_func may have."""

UNUSABLE_ACTIVATIONS = {
    "glu": "it halves the width",
    "threshold": "A1111 gives it no threshold",
    "multiheadattention": "it is no activation",
    **dict.fromkeys(
        ("softmax", "softmin", "logsoftmax", "softmax2d"),
        "in A1111 it runs along the batch, so that pictures change each other",
    ),
}
"""Names that A1111 offers or knows, and why they are refused."""


@dataclass
class ObjectiveConfig:
    """What is trained. `target` says where the objective's class lives (`module:Class`)."""

    target: ClassVar[str]
    learns_from_captions: ClassVar[bool] = True
    needs_concepts: ClassVar[bool] = False
    type: str = MISSING

    @property
    def word(self) -> str | None:
        """What stands for `[name]` in prompt templates, if not the run's name."""
        return None


@dataclass
class LoraConfig(ObjectiveConfig):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685) of UNet and text encoder."""

    target: ClassVar[str] = "train.objectives.lora:LoraObjective"

    type: Literal["lora"] = "lora"
    rank: int = 16
    """Width of the low-rank layers (kohya: network_dim)."""
    alpha: float = SI("${.rank}")
    """The learned change is scaled by alpha / rank (kohya: network_alpha)."""
    dropout: float = 0.0
    """Share of the layers' inputs dropped while training (kohya: network_dropout)."""
    targets: list[str] = field(default_factory=lambda: ["attention", "feed_forward", "projection"])
    """Which layers of the UNet: attention (to_q, to_k, to_v, to_out), feed_forward and projection
    (proj_in, proj_out) of its transformers, which are what kohya trains; convolution: those of its
    ResNet blocks, which kohya adds with conv_dim."""
    train_text_encoder: bool = False
    """Also train LoRA layers in the text encoder (attention and MLP)."""

    def faults(self) -> Faults:
        yield from at_least(1, rank=self.rank)
        if self.alpha <= 0:
            yield "alpha", f"must be above 0, got {self.alpha}: 0 would switch the LoRA off"
        if not 0 <= self.dropout < 1:
            yield "dropout", f"must lie in 0 … 1 (1 excluded), got {self.dropout}"
        known = ("attention", "feed_forward", "projection", "convolution")
        wrong = [name for name in self.targets if name not in known]
        if wrong or not self.targets:
            yield "targets", f"expected some of {', '.join(known)}; got {self.targets}"


@dataclass
class TextualInversionConfig(ObjectiveConfig):
    """Vectors that stand for a new word (Gal et al. 2022, arXiv 2208.01618)."""

    target: ClassVar[str] = "train.objectives.textual_inversion:TextualInversionObjective"

    type: Literal["textual_inversion"] = "textual_inversion"
    token: str = MISSING
    """The new word. Prompts that spell it take the vectors; choose one that is no word already."""
    initialization_text: str = "*"
    """What the vectors begin as; empty begins with zeros."""
    num_vectors_per_token: int = 1
    """Vectors for the word. More hold more detail and leave less room in prompts (75 tokens)."""
    save_as: Literal["safetensors", "pt", "png"] = "safetensors"
    """`safetensors` as kohya writes it, or A1111's `pt`, which A1111, Forge and ComfyUI load; `png`
    is A1111's picture that carries an embedding."""

    @property
    def word(self) -> str | None:
        return self.token

    def faults(self) -> Faults:
        yield from at_least(1, num_vectors_per_token=self.num_vectors_per_token)
        if not self.token.strip() or self.token != self.token.strip():
            yield "token", f"must be a word without spaces around it, got {self.token!r}"


@dataclass
class HypernetworkConfig(ObjectiveConfig):
    """Small networks before attention's keys and values, as in A1111."""

    target: ClassVar[str] = "train.objectives.hypernetwork:HypernetworkObjective"

    type: Literal["hypernetwork"] = "hypernetwork"
    layer_structure: list[float] = field(default_factory=lambda: [1, 2, 1])
    """Widths of the layers as multiples of the context's; the first and the last are 1."""
    activation_func: str = "linear"
    """Function after every layer but the last: linear (none), relu, leakyrelu, elu, swish (which
    is Hardswish), tanh, sigmoid, or any of torch's activations by its name in lower case."""
    weight_initialization: Literal[
        "Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal"
    ] = "Normal"
    """`Normal` begins with almost no change; the others, without add_layer_norm, with a large one,
    which first destroys what the base model understands."""
    add_layer_norm: bool = False
    """LayerNorm after every layer."""
    dropout_structure: list[float] | None = None
    """Dropout while training, one number for each of layer_structure: the first (never used) and
    the last are 0. Without it there is none."""
    activate_output: bool = False
    """The activation function also after the last layer."""
    sizes: list[int] | None = None
    """Widths of the contexts that are changed (A1111: Modules), for SD 1.x among 768 (prompts),
    320, 640 and 1280; without it all that the base model has."""
    save_as: Literal["pt", "safetensors"] = "pt"
    """`pt` is what A1111, Forge and ComfyUI load; no other program reads the safetensors."""

    def faults(self) -> Faults:
        structure, dropout = self.layer_structure, self.dropout_structure
        if len(structure) < 2 or structure[0] != 1 or structure[-1] != 1:
            yield "layer_structure", f"must begin and end with 1, as [1, 2, 1]; got {structure}"
        elif min(structure) <= 0:
            yield "layer_structure", f"must be above 0 throughout, got {structure}"
        name = self.activation_func.lower()
        if name in UNUSABLE_ACTIVATIONS:
            reason = UNUSABLE_ACTIVATIONS[name]
            yield "activation_func", f"{self.activation_func} cannot be used: {reason}"
        elif name not in ACTIVATIONS:
            near = difflib.get_close_matches(name, ACTIVATIONS, 1)
            hint = f"; did you mean {near[0]}?" if near else f": {', '.join(ACTIVATIONS)}"
            yield "activation_func", f"no activation is called {self.activation_func!r}{hint}"
        if dropout is None:
            return
        if len(dropout) != len(structure):
            want = f"as many numbers as layer_structure ({len(structure)})"
            yield "dropout_structure", f"expected {want}, got {dropout}"
        elif not all(0 <= rate < 1 for rate in dropout):
            yield "dropout_structure", f"must lie in 0 … 1 (1 excluded), got {dropout}"
        elif dropout[-1] or dropout[0]:
            mended = [0, *dropout[1:-1], 0]
            yield (
                "dropout_structure",
                f"the first and the last must be 0, got {dropout}: the last would drop what "
                f"attention gets, and the first is never used. Take {mended}",
            )

    def idle(self) -> Faults:
        if self.activate_output and self.activation_func == "linear":
            yield "activate_output", "has no effect with activation_func: linear"
        if self.dropout_structure is not None and not any(self.dropout_structure):
            yield "dropout_structure", "has no effect: it is 0 throughout"


@dataclass
class WholePartsConfig(ObjectiveConfig):
    """What objectives that train whole parts of the base model have in common."""

    train_text_encoder: bool = False
    """Also train the text encoder; optimizer.learning_rates.text_encoder gives it its own rate."""


@dataclass
class TextToImageConfig(WholePartsConfig):
    """Full fine-tuning of the UNet, and of the text encoder if asked."""

    target: ClassVar[str] = "train.objectives.text_to_image:TextToImageObjective"

    type: Literal["text_to_image"] = "text_to_image"


@dataclass
class DreamboothConfig(WholePartsConfig):
    """DreamBooth (Ruiz et al. 2022, arXiv 2208.12242): whole parts learn subjects.

    Pictures of the subjects' classes keep what was known; both come from data.concepts.
    """

    target: ClassVar[str] = "train.objectives.dreambooth:DreamboothObjective"
    needs_concepts: ClassVar[bool] = True

    type: Literal["dreambooth"] = "dreambooth"
    stop_text_encoder_training: float = 1.0
    """Share of the steps after which the text encoder stays as it is (A1111: stop_text_encoder);
    1 trains it to the end."""

    def faults(self) -> Faults:
        yield from fraction(stop_text_encoder_training=self.stop_text_encoder_training)
        if self.train_text_encoder and self.stop_text_encoder_training == 0:
            yield (
                "stop_text_encoder_training",
                "0 would never train it; train_text_encoder: false says that",
            )

    def idle(self) -> Faults:
        if self.stop_text_encoder_training != 1.0 and not self.train_text_encoder:
            yield "stop_text_encoder_training", "has no effect without train_text_encoder"


@dataclass
class AutoencoderConfig(ObjectiveConfig):
    """The VAE: reconstruction by L1, gradients and perceptual features, with a small KL term."""

    target: ClassVar[str] = "train.objectives.autoencoder:AutoencoderObjective"
    learns_from_captions: ClassVar[bool] = False

    type: Literal["autoencoder"] = "autoencoder"
    part: Literal["whole", "decoder"] = "whole"
    """`decoder` leaves the encoder, so that every UNet made for its latents stays right."""
    l1_weight: float = 1.0
    """Weight of the mean absolute error of pixels (-1 … 1)."""
    gradient_weight: float = 1.0
    """Weight of the mean absolute error of horizontal and vertical pixel differences."""
    perceptual_weight: float = 0.0
    """Weight of the distance in EfficientNet-Lite0 features (needs the extra `pretrain`)."""
    kl_weight: float = 1.0e-6
    """Weight of the divergence of the latents from a standard normal distribution, summed over
    the latent and averaged over examples."""

    def faults(self) -> Faults:
        weights = {
            "l1_weight": self.l1_weight,
            "gradient_weight": self.gradient_weight,
            "perceptual_weight": self.perceptual_weight,
            "kl_weight": self.kl_weight,
        }
        yield from at_least(0, **weights)
        if not any((self.l1_weight, self.gradient_weight, self.perceptual_weight)):
            yield "l1_weight", "must be above 0 when gradient_weight and perceptual_weight are 0"

    def idle(self) -> Faults:
        if self.part == "decoder" and self.kl_weight != 1.0e-6:
            yield "kl_weight", "has no effect with part: decoder, which leaves the latents alone"


OBJECTIVE_CONFIGS: dict[str, type[ObjectiveConfig]] = {
    "lora": LoraConfig,
    "textual_inversion": TextualInversionConfig,
    "hypernetwork": HypernetworkConfig,
    "text_to_image": TextToImageConfig,
    "dreambooth": DreamboothConfig,
    "autoencoder": AutoencoderConfig,
}
"""The known objectives. A plug-in named in `plugins` adds its config class here."""
