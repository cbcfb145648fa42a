"""Examples by position, their caches, and the loader of batches."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from inference.base_model import BaseModel
from train.batch import Batch
from train.config import DataConfig
from train.data.captions import make_caption
from train.data.folder import Picture
from train.data.stream import MicroBatches, Stream
from train.data.transforms import square_pixels
from train.randomness import derive_seed, generator

PROMPT_CACHE_BYTES = 2 * 2**30
"""More than this for text embeddings is not kept; they are then encoded in the step."""

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps a sequence in a progress bar with a title."""


class Examples(Dataset[dict[str, Any]]):
    """The example at each position of the stream, as a function of (seed, epoch, index)."""

    def __init__(
        self,
        pictures: list[Picture],
        config: DataConfig,
        resolution: int,
        seed: int,
    ) -> None:
        self.pictures = pictures
        self.config = config
        self.resolution = resolution
        self.seed = seed
        self.stream = Stream(seed, len(pictures))
        self.latents: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, index: int, epoch: int = 0) -> Tensor:
        """(3, resolution, resolution) of a picture in an epoch."""
        draw = random.Random(derive_seed(self.seed, "augmentation", epoch, index))
        return square_pixels(self.pictures[index].path, self.config, self.resolution, draw)

    def prompt(self, index: int, epoch: int) -> str:
        """The caption of a picture in an epoch."""
        captions = self.pictures[index].captions
        draw = random.Random(derive_seed(self.seed, "caption", epoch, index))
        return make_caption(captions, self.config.captions, draw) if captions else ""

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, index = self.stream[position]
        example: dict[str, Any] = {
            "positions": position,
            "names": str(self.pictures[index].path),
            "weight": torch.tensor(1.0),
            "prompts": self.prompt(index, epoch),
        }
        if self.latents is None:
            example["pixels"] = self.pixels(index, epoch)
        else:
            example |= {name: values[index] for name, values in self.latents.items()}
        return example

    def all_prompts(self) -> list[str]:
        """Every caption that can come up, sorted; only for captions without shuffle and tag loss."""
        texts = {text for picture in self.pictures for text in picture.captions}
        if self.config.captions.dropout_rate:
            texts.add("")
        return sorted(texts)


def collate(examples: list[dict[str, Any]]) -> Batch:
    """Stacks tensors, lists everything else."""
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    stacked = {
        name: torch.stack(values) if isinstance(values[0], Tensor) else values
        for name, values in columns.items()
    }
    return stacked  # pyright: ignore[reportReturnType]


@torch.no_grad()
def cache_latents(examples: Examples, base: BaseModel, batch_size: int, track: Track) -> None:
    """Encodes every picture once, if nothing random stands before the encoder.

    `once` draws from the distribution by (seed, picture); `random` keeps its standard deviation too.
    """
    if examples.config.cache == "off" or examples.config.is_random:
        return
    means, stds = [], []
    indices = range(len(examples))
    starts = indices[::batch_size]
    for start in track(starts, "encoding pictures"):
        chunk = indices[start : start + batch_size]
        mean, std = base.encode_images(torch.stack([examples.pixels(index) for index in chunk]))
        if examples.config.latent_sampling == "once":
            draws = [
                torch.randn(mean.shape[1:], generator=generator(examples.seed, "latents once", i))
                for i in chunk
            ]
            mean = mean + std * torch.stack(draws).to(std)
        means.append(mean.cpu())
        stds.append(std.cpu())
    examples.latents = {"latents": torch.cat(means)}
    if examples.config.latent_sampling == "random":
        examples.latents["latents_std"] = torch.cat(stds)


class PromptStates:
    """States of a frozen text encoder, kept by caption; encodes what it does not know."""

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def fill(self, prompts: list[str], track: Track, batch_size: int = 64) -> None:
        """Encodes the captions beforehand, unless they would take too much memory."""
        width = self.base.text_encoder.config.hidden_size
        length = self.base.tokenizer.model_max_length
        if len(prompts) * width * length * self.base.dtype.itemsize > PROMPT_CACHE_BYTES:
            return
        for start in track(range(0, len(prompts), batch_size), "encoding captions"):
            chunk = prompts[start : start + batch_size]
            self.known |= {p: self.base.encode_prompts([p])[0] for p in chunk}

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Tensor:
        """(b, tokens, dim)."""
        found = [self.known.get(prompt) for prompt in prompts]
        states = [state for state in found if state is not None]
        if len(states) < len(prompts) or len({state.shape for state in states}) > 1:
            return self.base.encode_prompts(prompts)
        return torch.stack(states)


def build_loader(examples: Examples, batches: MicroBatches) -> DataLoader[Batch]:
    """Batches in the order of the stream; the same with any number of workers."""
    workers = examples.config.num_workers
    return DataLoader(
        examples,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
