"""Typed options of objectives, one class each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from inference.config import ADAPTERS
from inference.prompts import misread
from inference.recipe import MISSING, RecipeError, got, is_word, option_faults, reference
from train.config.optimization import LRSchedulerConfig, schedule_faults
from train.config.rules import Faults, at_least, fraction

if TYPE_CHECKING:
    pass


# fmt: off
ACTIVATIONS = (
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "celu", "gelu", "hardshrink",
    "hardsigmoid", "hardswish", "hardtanh", "logsigmoid", "mish", "prelu", "relu6", "rrelu", "selu",
    "silu", "softplus", "softshrink", "softsign", "tanhshrink",
)
# fmt: on
"""Possible values of a hypernetwork's activation_func."""

UNUSABLE_ACTIVATIONS = {
    "glu": "it halves the width",
    "threshold": "A1111 gives it no threshold",
    "multiheadattention": "it is not an activation",
    **dict.fromkeys(
        ("softmax", "softmin", "logsoftmax", "softmax2d"),
        "in A1111 it runs along the batch, so that pictures change each other",
    ),
}
"""Activations that A1111 offers or knows, and why they are rejected."""


@dataclass
class ObjectiveConfig:
    """What is trained. `target` is the path of the objective's class (`module:Class`)."""

    target: ClassVar[str]
    learns_from_captions: ClassVar[bool] = True
    is_combinable: ClassVar[bool] = False
    """Whether it can be combined with others: it trains something that is attached to the base
    model."""
    needs_concepts: ClassVar[bool] = False
    learns_clips: ClassVar[bool] = False
    """Whether it can train video models."""
    type: Any = MISSING  # a literal in each subclass

    @property
    def word(self) -> str | None:
        """Return the replacement of `[name]` in prompts; None stands for the run's name."""
        return None

    @property
    def reads_weights(self) -> bool:
        """Whether it trains or begins from values of the base model, which are then read in fp32.

        Otherwise they are read in the precision of the run.
        """
        return True


ADAPTER_GIVEN = ("target", "rank", "alpha", "dropout", "generator")
"""Parameters of an adapter's `create` that are not among its options."""


@dataclass
class LoraConfig(ObjectiveConfig):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685) of UNet, transformer, text encoder."""

    limits: ClassVar[dict[str, float]] = {"rank": 65_536}

    target: ClassVar[str] = "train.objectives.lora:LoraObjective"
    learns_clips: ClassVar[bool] = True
    is_combinable: ClassVar[bool] = True

    registries: ClassVar[dict[str, Mapping[str, Any]]] = {"algorithm": ADAPTERS}

    @property
    def reads_weights(self) -> bool:
        """Whether the algorithm is a plug-in's, which may; plain LoRA takes shapes alone."""
        return self.algorithm != "lora"

    type: Literal["lora"] = "lora"
    algorithm: str = "lora"
    """What each layer learns: `lora`, or an adapter that a plug-in registers
    (docs/extending.md)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of an algorithm other than lora, by their names."""
    rank: int = 16
    """Rank of the layers (kohya: network_dim)."""
    alpha: float = reference(".rank")
    """The learned change is scaled by alpha / rank (kohya: network_alpha)."""
    dropout: float = 0.0
    """Dropout during training (kohya: network_dropout)."""
    dropout_on: Literal["input", "rank"] = "input"
    """What dropout acts on: `input`, the inputs of the layers, as in peft; or `rank`, what the down
    half makes of them, as in kohya's sd-scripts."""
    targets: list[str] | None = None
    """Which layers of the UNet to train: attention (to_q, to_k, to_v, to_out), feed_forward and
    projection (proj_in, proj_out) of its transformers, which kohya trains and which are the
    default; convolution: those of its ResNet blocks, which kohya adds with conv_dim. Of a video
    model's transformer: attention, which is the default, feed_forward, and projection (those of
    text and patches, and proj_out, as far as linear)."""
    train_text_encoder: bool = False
    """Also train LoRA layers in the text encoder (attention and MLP), in both of SDXL's; that of a
    video model cannot be trained."""
    comfyui_twin: bool = False
    """For video models: beside each artifact NAME.safetensors, in diffusers' format, also write
    NAME.comfyui.safetensors, in the format from which ComfyUI-CogVideoXWrapper reads alpha."""

    def faults(self) -> Faults:
        yield from self._algorithm_faults()
        yield from at_least(1, rank=self.rank)
        if self.alpha <= 0:
            yield "alpha", f"must be above 0, got {self.alpha}: 0 would switch the LoRA off"
        if not 0 <= self.dropout < 1:
            yield "dropout", f"must lie in 0 … 1 (1 excluded), got {self.dropout}"
        known = ("attention", "feed_forward", "projection", "convolution")
        wrong = [name for name in self.targets or () if name not in known]
        if wrong or self.targets == []:
            yield "targets", f"expected some of {', '.join(known)}; got {self.targets}"
        if self.dropout_on == "rank" and self.algorithm != "lora":
            yield "dropout_on", f"rank is for algorithm: lora; {self.algorithm} has input alone"

    def idle(self) -> Faults:
        if self.dropout_on == "rank" and not self.dropout:
            yield "dropout_on", "has no effect with dropout: 0"

    def _algorithm_faults(self) -> Faults:
        kind = ADAPTERS.get(self.algorithm)
        if kind is None:
            known = ", ".join(ADAPTERS)
            yield "algorithm", f"expected one of {known}; got {self.algorithm!r}"
        elif isinstance(kind, str):
            for name in self.options:
                yield f"options.{name}", f"algorithm: {self.algorithm} takes no options"
        else:
            create: Any = kind.create  # type: ignore[attr-defined]
            for name, message in option_faults(create, self.options, ADAPTER_GIVEN):
                yield f"options.{name}", message


@dataclass
class TextualInversionConfig(ObjectiveConfig):
    """Vectors for a new token (Gal et al. 2022, arXiv 2208.01618)."""

    limits: ClassVar[dict[str, float]] = {"num_vectors_per_token": 10_000}

    target: ClassVar[str] = "train.objectives.textual_inversion:TextualInversionObjective"
    is_combinable: ClassVar[bool] = True

    type: Literal["textual_inversion"] = "textual_inversion"
    token: str = MISSING
    """The new token. Prompts that contain it use the vectors; choose one that is not a word
    already, and that prompts take literally (not `[v]`, `(sks)`, AND)."""
    initialization_text: str = "*"
    """Text whose embedding initializes the vectors; empty initializes them with zeros."""
    num_vectors_per_token: int = 1
    """Vectors for the token. More hold more detail and leave less room in prompts (75 tokens)."""
    max_norm: float | None = None
    """Vectors that grow longer than this are scaled back after every step; null does not limit
    them. Token embeddings of SD 1.x have a norm of about 0.4, and vectors far above it drown the
    rest of a prompt."""
    save_as: Literal["safetensors", "pt", "png"] = "safetensors"
    """`safetensors` as kohya writes it, or A1111's `pt`, which A1111, Forge and ComfyUI load; `png`
    is A1111's image that contains an embedding, which has no room for SDXL's two."""

    @property
    def word(self) -> str | None:
        return self.token

    def faults(self) -> Faults:
        yield from at_least(1, num_vectors_per_token=self.num_vectors_per_token)
        if self.max_norm is not None and self.max_norm <= 0:
            yield "max_norm", f"must be above 0, got {self.max_norm}"
        if not self.token.strip() or self.token != self.token.strip():
            yield "token", f"must be a word without spaces around it, got {self.token!r}"
        elif reading := misread(self.token):
            yield (
                "token",
                f"{self.token!r} cannot be written in a prompt, where {reading}, so that the "
                "embedding would not be found; take a word such as my-style",
            )


@dataclass
class HypernetworkConfig(ObjectiveConfig):
    """Small networks before the keys and values of attention, as in A1111."""

    target: ClassVar[str] = "train.objectives.hypernetwork:HypernetworkObjective"
    is_combinable: ClassVar[bool] = True

    @property
    def reads_weights(self) -> bool:
        return False

    type: Literal["hypernetwork"] = "hypernetwork"
    layer_structure: list[float] = field(default_factory=lambda: [1, 2, 1])
    """Widths of the layers as multiples of the context's width; the first and the last are 1."""
    activation_func: str = "linear"
    """Activation after every layer but the last: linear (none), relu, leakyrelu, elu, swish (which
    is Hardswish), tanh, sigmoid, or any of torch's activations by its name in lower case. ComfyUI
    knows these, softsign and mish."""
    weight_initialization: Literal[
        "Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal"
    ] = "Normal"
    """`Normal` changes the output very little at first; the others, without add_layer_norm, change
    it so much that they destroy what the base model knows."""
    add_layer_norm: bool = False
    """LayerNorm after every layer. With an activation, ComfyUI needs activate_output too."""
    dropout_structure: list[float] | None = None
    """Dropout during training, one rate for each of layer_structure: the first (never used) and the
    last are 0. By default there is none."""
    activate_output: bool = False
    """Apply the activation after the last layer too."""
    sizes: list[int] | None = None
    """Widths of the contexts that are changed (A1111: Modules), for SD 1.x among 768 (prompts),
    320, 640 and 1280, for SDXL among 2048 (prompts), 640 and 1280; default: all that the base model
    has."""
    save_as: Literal["pt", "safetensors"] = "pt"
    """`pt` is what A1111 and ComfyUI load (Forge loads it too, and does not apply it); no other
    program reads the safetensors."""

    def faults(self) -> Faults:
        structure, dropout = self.layer_structure, self.dropout_structure
        if len(structure) < 2 or structure[0] != 1 or structure[-1] != 1:
            yield "layer_structure", f"must begin and end with 1, as [1, 2, 1]; got {structure}"
        elif min(structure) <= 0:
            yield "layer_structure", f"must be above 0 throughout, got {structure}"
        if self.sizes is not None and any(size < 1 for size in self.sizes):
            yield "sizes", f"must be at least 1, got {min(self.sizes)}"
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
    """Common options of objectives that train whole parts of the base model."""

    train_text_encoder: bool = False
    """Also train the text encoder; optimizer.learning_rates.text_encoder sets its learning rate,
    and text_encoder_2 that of SDXL's second one."""
    save_as: Literal["diffusers", "safetensors"] = "diffusers"
    """`diffusers` writes a folder; `safetensors` the whole model as one file, which A1111, Forge
    and ComfyUI open."""


@dataclass
class TextToImageConfig(WholePartsConfig):
    """Full fine-tuning of the UNet, and optionally of the text encoder."""

    target: ClassVar[str] = "train.objectives.whole_parts:TextToImageObjective"
    learns_clips: ClassVar[bool] = True

    type: Literal["text_to_image"] = "text_to_image"


@dataclass
class DreamboothConfig(WholePartsConfig):
    """DreamBooth (Ruiz et al. 2022, arXiv 2208.12242): fine-tune whole parts on subjects.

    Class images preserve the prior; both kinds of images come from data.concepts.
    """

    target: ClassVar[str] = "train.objectives.whole_parts:DreamboothObjective"
    needs_concepts: ClassVar[bool] = True

    type: Literal["dreambooth"] = "dreambooth"
    stop_text_encoder_training: float = 1.0
    """Fraction of the steps after which the text encoder is frozen (A1111: stop_text_encoder); 1
    trains it to the end."""

    def faults(self) -> Faults:
        yield from fraction(stop_text_encoder_training=self.stop_text_encoder_training)
        if self.train_text_encoder and self.stop_text_encoder_training == 0:
            yield (
                "stop_text_encoder_training",
                "0 would never train it; use train_text_encoder: false",
            )

    def idle(self) -> Faults:
        if self.stop_text_encoder_training != 1.0 and not self.train_text_encoder:
            yield "stop_text_encoder_training", "has no effect without train_text_encoder"


@dataclass
class AutoencoderConfig(ObjectiveConfig):
    """The VAE: reconstruction by L1, gradients and perceptual features, with a small KL term."""

    target: ClassVar[str] = "train.objectives.autoencoder:AutoencoderObjective"
    learns_clips: ClassVar[bool] = True
    learns_from_captions: ClassVar[bool] = False

    type: Literal["autoencoder"] = "autoencoder"
    part: Literal["whole", "decoder"] = "whole"
    """`decoder` freezes the encoder, so that every UNet trained on its latents remains valid."""
    l1_weight: float = 1.0
    """Weight of the mean absolute error of pixels (-1 … 1)."""
    gradient_weight: float = 1.0
    """Weight of the mean absolute error of horizontal and vertical pixel differences."""
    perceptual_weight: float = 0.0
    """Weight of the distance in EfficientNet-Lite0 features (needs the extra `pretrain`)."""
    kl_weight: float = 1.0e-6
    """Weight of the divergence of the latents from a standard normal distribution, summed over the
    latent and averaged over examples."""

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


@dataclass
class MemberConfig:
    """One of several objectives that are trained together, with its learning rate."""

    objective: ObjectiveConfig = MISSING
    learning_rate: float | None = None
    """Learning rate of this objective; default: optimizer.learning_rate."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rate by part of this objective: unet, text_encoder, …"""
    weight_decay: float | None = None
    """Weight decay of this objective; default: optimizer.weight_decay."""
    lr_scheduler: LRSchedulerConfig | None = None
    """LR schedule up to the last step of this objective; default: that of the run."""
    stop_step: int | None = None
    """Train for this many optimizer steps, then freeze; the objective remains active for
    generation. Default: train to the end."""

    def faults(self) -> Faults:
        rates = {f"learning_rates.{part}": rate for part, rate in self.learning_rates.items()}
        yield from at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        yield from at_least(0, **rates)
        yield from at_least(1, stop_step=self.stop_step)


@dataclass
class CombinedConfig(ObjectiveConfig):
    """Several objectives train on the same batches, in one run; each is saved to its own file."""

    target: ClassVar[str] = "train.objectives.combined:CombinedObjective"

    type: Literal["combined"] = "combined"
    members: dict[str, MemberConfig] = field(default_factory=dict)
    """The objectives, by names of your choice; each is saved in artifacts/NAME/."""

    @property
    def reads_weights(self) -> bool:
        return any(member.objective.reads_weights for member in self.by_name.values())

    @property
    def by_name(self) -> dict[str, MemberConfig]:
        """Return the members.

        The class of a recipe has a field for each, so that each has its own keys.
        """
        return dict(self.members if isinstance(self.members, dict) else vars(self.members))

    @property
    def word(self) -> str | None:
        words = (member.objective.word for member in self.by_name.values())
        return next((word for word in words if word is not None), None)

    def faults(self) -> Faults:
        if len(self.by_name) < 2:
            yield "members", "expected two objectives or more; train a single one by itself"
        words: set[str] = set()
        for name, member in self.by_name.items():
            kind, word = member.objective, member.objective.word
            if not kind.is_combinable:
                known = ", ".join(k for k, c in OBJECTIVE_CONFIGS.items() if c.is_combinable)
                key = f"members.{name}.objective.type"
                yield key, f"{kind.type} cannot be trained together with others; {known} can"
            if word in words:
                yield f"members.{name}.objective.token", f"{word!r} is trained by another already"
            words |= {word} if word is not None else set()

    def faults_within(self, name: str, steps: int) -> Faults:
        """Yield what does not fit into a run of `steps` steps, whose recipe key is `name`."""
        ends = []
        for key, member in self.by_name.items():
            key = f"objective.members.{key}"
            ends.append(steps if member.stop_step is None else member.stop_step)
            if member.lr_scheduler is not None:
                limit = (name, steps) if member.stop_step is None else ("stop_step", ends[-1])
                yield from schedule_faults(member.lr_scheduler, f"{key}.lr_scheduler", *limit)
            if ends[-1] > steps:
                yield f"{key}.stop_step", f"must not be above {name} ({steps}), got {ends[-1]}"
        if ends and max(ends) < steps:
            yield name, f"is above the stop_step of all members; the last stops at {max(ends)}"


def combined_config(members: Mapping[str, Any]) -> type[CombinedConfig]:
    """Return the class of a combined objective with these members, each with the keys of its type.

    Raises:
        RecipeError: a member's type is missing or unknown, or its name is not an identifier.
    """
    kinds: list[tuple[str, str]] = []
    for name, member in members.items():
        key = f"objective.members.{name}"
        if not is_word(name):
            raise RecipeError(f"{key}: a member's name is a word of letters, digits and _")
        objective = member.get("objective") if isinstance(member, dict) else None
        kind = objective.get("type") if isinstance(objective, dict) else None
        if not isinstance(kind, str) or kind not in OBJECTIVE_CONFIGS or kind == "combined":
            known = ", ".join(k for k, c in OBJECTIVE_CONFIGS.items() if c.is_combinable)
            found = got(kind, "type", objective)
            raise RecipeError(f"{key}.objective.type: expected one of {known}; got {found}")
        kinds.append((name, kind))
    return _combined_config(tuple(kinds))


@cache  # one class for the same members: recipes of different classes are never equal
def _combined_config(kinds: tuple[tuple[str, str], ...]) -> type[CombinedConfig]:
    fields = []
    for name, kind in kinds:
        objective = OBJECTIVE_CONFIGS[kind]
        own = [("objective", objective, field(default_factory=objective))]
        member = make_dataclass("MemberConfig", own, bases=(MemberConfig,))
        fields.append((name, member, field(default_factory=member)))
    named = make_dataclass("Members", fields)
    own = [("members", named, field(default_factory=named))]
    return make_dataclass("CombinedConfig", own, bases=(CombinedConfig,))


OBJECTIVE_CONFIGS: dict[str, type[ObjectiveConfig]] = {
    "lora": LoraConfig,
    "textual_inversion": TextualInversionConfig,
    "hypernetwork": HypernetworkConfig,
    "text_to_image": TextToImageConfig,
    "dreambooth": DreamboothConfig,
    "autoencoder": AutoencoderConfig,
    "combined": CombinedConfig,
}
"""The known objectives. A plug-in adds its config class here."""
