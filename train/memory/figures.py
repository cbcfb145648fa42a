"""The memory of a run, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

GIB = 2**30
CONTEXT = GIB // 2
"""Approximate GPU memory of CUDA and its libraries."""
LIBRARIES = GIB // 2
"""Approximate memory of Python with the libraries of a run."""

FILLING = ("captions", "latents")
PREVIEWS = ("prompts", "denoising", "decoding")
STEP = "step"


@dataclass(frozen=True)
class PartMemory:
    """A part of the base model."""

    parameters: int
    format: str
    """That of most weights: fp32, fp16, bf16, fp8, int8 or nf4; fp32 if trained."""
    bytes: int


@dataclass(frozen=True)
class Divided:
    """The bytes that strategies of parallelism divide: all of them, as one process holds them."""

    denoiser: int = 0
    """The denoiser's weights, trained or not, without those of `trained`."""
    trained: int = 0
    """Trained weights besides the base model."""
    learned: int = 0
    """All trained weights, in the base model or besides."""
    gathered: int = 0
    """What is whole at once while the denoiser is at work, if its weights are divided."""
    gradient: int = 0
    """The gradients of the block that has the most."""


@dataclass
class MemoryPlan:
    """Bytes on one device."""

    parts: dict[str, PartMemory] = field(default_factory=dict)
    """The base model."""
    at_work: dict[str, list[str]] = field(default_factory=dict)
    """The parts that are on the device in each phase (`train.placement`)."""
    needs: dict[str, int] = field(default_factory=dict)
    """The temporary memory of each phase. That of `step` is besides gradients."""
    aside: list[str] = field(default_factory=list)
    """Parts that steps do not use."""
    trained: int = 0
    """Weights besides the base model (LoRA, embedding, loss.prior_copy, …)."""
    gradients: int = 0
    optimizer: int = 0
    ema: int = 0
    step: int = 0
    """Copies of one tensor while it takes its step (`train.optimization.trained_bytes`)."""
    swapped: int = 0
    """Weights of the denoiser's blocks that are on the host while others compute."""
    swapped_at_rest: int = 0
    """The same while the denoiser does not compute."""
    casts: int = 0
    """DDP's copies of gradients; with divided weights the largest block's whole gradients."""
    gathered: int = 0
    """With divided weights, those that are whole while the denoiser is at work."""
    whole: Divided = field(default_factory=Divided)
    """What strategies divide, before it is divided."""
    drawn: int = 0
    """Copies of trained weights in the format of generating, while previews are generated."""
    spared: int = 0
    """Trained state that waits on the host while previews are generated."""
    set_aside: int = 0
    """Trained state that waits on the host while caches are filled, besides the optimizer's."""
    prompts: int = 0
    """Cached prompt embeddings on the device."""
    other_activations: int = 0
    """The temporary memory of a step with the opposite setting of gradient checkpointing."""
    whole_decoding: int = 0
    """The temporary memory of decoding preview clips without tiles; 0 for images."""
    host: int = 0
    """Memory of the system while the base model is read, before it moves to the device."""
    host_state: int = 0
    """Optimizer's state and moving average in the system's memory."""
    host_activations: int = 0
    """What the forward pass keeps in the system's memory, pinned."""
    denoiser: str = ""
    """The denoiser's name among the parts."""

    @property
    def weights(self) -> int:
        return sum(part.bytes for part in self.parts.values())

    @property
    def away(self) -> int:
        """Return the weights of the parts that steps do not use."""
        return sum(self.parts[name].bytes for name in self.aside)

    @property
    def activations(self) -> int:
        """Return the forward and backward pass of a micro-batch, in the largest stage."""
        return self.needs[STEP]

    @property
    def encoding(self) -> int:
        """Return the temporary memory of VAE and text encoders before the first step."""
        return max(self.needs[phase] for phase in FILLING)

    @property
    def drawing(self) -> int:
        """Return the temporary memory of previews."""
        return max(self.needs[phase] for phase in PREVIEWS)

    def weights_at_work(self, phase: str) -> int:
        """Return the weights of the base model that are on the device in a phase."""
        away = 0
        if self.denoiser in self.at_work[phase]:
            away = self.swapped if phase in (STEP, "denoising") else self.swapped_at_rest
        return sum(self.parts[name].bytes for name in self.at_work[phase]) - away

    def peak_of(self, phase: str) -> int:
        """Return the peak of a phase; 0 if it does not take place. Steps always do."""
        if phase != STEP and not self.needs.get(phase):
            return 0
        kept = self.weights_at_work(phase) + self.trained + self.ema + self.needs[phase]
        if self.denoiser in self.at_work[phase]:
            kept += self.gathered
        if phase in PREVIEWS:
            kept += self.drawn - self.spared
        if phase in FILLING:
            kept -= self.set_aside
        if phase not in FILLING:
            kept += self.optimizer + self.prompts
        if phase == STEP:
            kept += self.gradients + self.casts + self.step
        return kept + CONTEXT

    @property
    def peaks(self) -> dict[str, int]:
        """Return the peak of each phase."""
        return {phase: self.peak_of(phase) for phase in self.needs}

    @property
    def filling(self) -> int:
        """Return the peak while caches are filled, before the first step."""
        return max(map(self.peak_of, FILLING))

    @property
    def training(self) -> int:
        """Return the peak of a step."""
        return self.peak_of(STEP)

    @property
    def previews(self) -> int:
        """Return the peak while previews are generated, when there are no gradients."""
        return max(map(self.peak_of, PREVIEWS))

    @property
    def peaks_by_offload(self) -> dict[str, int]:
        """Return the peak with all parts on the device, and with those at work alone."""
        everything = {phase: [*self.parts] for phase in self.at_work}
        together = replace(self, at_work=everything, spared=0, set_aside=0)
        return {"none": together.peak, "model_offload": self.peak}

    @property
    def on_host(self) -> int:
        """Return what a step keeps in the system's memory, with Python itself."""
        return LIBRARIES + self.host_state + self.host_activations

    @property
    def process(self) -> int:
        """Return the peak of the process of a run on a CPU, where all parts stay."""
        whole = replace(self, swapped=0, swapped_at_rest=0)
        return whole.peaks_by_offload["none"] - CONTEXT + self.on_host

    @property
    def peak(self) -> int:
        return max(self.peaks.values())


def in_gib(count: int) -> str:
    """Return a number of bytes for people; below 10 MiB in MiB."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.2f} MiB"
