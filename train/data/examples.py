"""Examples by position, their caches, and the loader of batches."""

import random
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from inference.conditions import Conditions
from inference.diffusion_model import DiffusionModel
from train.batch import Batch
from train.data.captions import FILEWORDS, all_captions, make_caption
from train.data.folder import DataError, Picture
from train.data.stream import MicroBatches, Stream
from train.data.transforms import Square, cut_square
from train.data_config import DataConfig
from train.randomness import derive_seed, normal

PROMPT_CACHE_BYTES = 2 * 2**30
"""More than this for text embeddings is not kept; they are then encoded in the step."""

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps a sequence in a progress bar with a title."""


class Examples(Dataset[dict[str, Any]]):
    """The example at each position of the stream, as a function of (seed, epoch, index).

    Class pictures have a stream of their own, at the positions below 0, and stand behind all
    others in `pictures`.
    """

    def __init__(
        self,
        pictures: list[Picture],
        config: DataConfig,
        resolution: int,
        seed: int,
        template: Sequence[str] = (FILEWORDS,),
    ) -> None:
        self.pictures = list(pictures)
        self.config = config
        self.resolution = resolution
        self.seed = seed
        self.template = template
        self.stream = Stream(seed, len(pictures))
        self.class_stream: Stream | None = None
        self.latents: list[dict[str, Tensor]] | None = None
        """What is cached of every picture, in the place of its pixels."""

    def add_class_pictures(self, pictures: Sequence[Picture]) -> None:
        """Pictures of the subjects' classes, to come along with every example."""
        self.pictures += pictures
        self.class_stream = Stream(derive_seed(self.seed, "class order"), len(pictures))

    def __len__(self) -> int:
        return len(self.pictures)

    def square(self, index: int, epoch: int = 0) -> Square:
        """What is cut out of a picture in an epoch."""
        draw = random.Random(derive_seed(self.seed, "augmentation", epoch, index))
        return cut_square(self.pictures[index].path, self.config, self.resolution, draw)

    def place(self, position: int) -> tuple[int, int]:
        """(epoch, index of the picture) at a position of the stream."""
        if position >= 0:
            return self.stream[position]
        assert self.class_stream is not None
        epoch, index = self.class_stream[~position]
        return epoch, self.stream.num_pictures + index

    def content(self, index: int, epoch: int = 0) -> dict[str, Tensor]:
        """What a batch holds of a picture in an epoch: `pixels`, and with them `sizes`."""
        return self.square(index, epoch)._asdict()

    def pixels(self, index: int, epoch: int = 0) -> Tensor:
        """(3, resolution, resolution) of a picture in an epoch."""
        return self.content(index, epoch)["pixels"]

    def prompt(self, index: int, epoch: int) -> str:
        """The caption of a picture in an epoch."""
        captions = self.pictures[index].captions or ("",)
        draw = random.Random(derive_seed(self.seed, "caption", epoch, index))
        return make_caption(captions, self.config.captions, draw, self.template)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, index = self.place(position)
        example: dict[str, Any] = {
            "positions": position,
            "indices": index,
            "names": str(self.pictures[index].path),
            "weight": torch.tensor(1.0),
            "prompts": self.prompt(index, epoch),
        }
        kept = self.latents
        return example | (self.content(index, epoch) if kept is None else kept[index])

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]] | DataError:
        """The examples of a micro-batch, or what is wrong with one of them.

        As a value, since an exception would leave a loader's worker as the text of a traceback.
        """
        try:
            return [self[position] for position in positions]
        except DataError as error:
            return error

    def all_prompts(self) -> list[str]:
        """Every caption that can come up, sorted; where captions keep their words."""
        texts = {
            text
            for picture in self.pictures
            for text in all_captions(picture.captions or ("",), self.template)
        }
        if self.config.captions.dropout_rate:
            texts.add("")
        return sorted(texts)


def collate(examples: list[dict[str, Any]] | DataError) -> Batch | DataError:
    """Stacks tensors, lists everything else."""
    if isinstance(examples, DataError):
        return examples
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    return {  # pyright: ignore[reportReturnType]
        name: torch.stack(values) if isinstance(values[0], Tensor) else values
        for name, values in columns.items()
    }


@torch.no_grad()
def cache_latents(examples: Examples, base: DiffusionModel, batch_size: int, track: Track) -> None:
    """Encodes every picture once, if nothing random stands before the encoder.

    `once` draws from the distribution by (seed, picture); `random` keeps its width too.
    """
    if examples.config.cache == "off" or examples.config.is_random:
        return
    kept: list[dict[str, Tensor]] = []
    indices = range(len(examples))
    starts = indices[::batch_size]
    for start in track(starts, "encoding pictures"):
        chunk = indices[start : start + batch_size]
        contents = [examples.content(index) for index in chunk]
        mean, std = base.encode_images(torch.stack([one.pop("pixels") for one in contents]))
        if examples.config.latent_sampling == "once":
            mean = mean + std * normal(mean, examples.seed, "latents once", chunk)
        encoded = {"latents": mean.cpu()}
        if examples.config.latent_sampling == "random":
            encoded["latents_std"] = std.cpu()
        for row, content in enumerate(contents):
            kept.append(content | {name: value[row] for name, value in encoded.items()})
    examples.latents = kept


class PromptStates:
    """What frozen text encoders make of captions; encodes those that it does not know."""

    def __init__(self, base: DiffusionModel) -> None:
        self.base = base
        self.known: dict[str, Conditions] = {}

    @torch.no_grad()
    def fill(self, prompts: list[str], track: Track, batch_size: int = 64) -> None:
        """Encodes the captions beforehand, unless they would take too much memory."""
        length, width = self.base.prompt_shape
        if len(prompts) * width * length * self.base.dtype.itemsize > PROMPT_CACHE_BYTES:
            return
        for start in track(range(0, len(prompts), batch_size), "encoding captions"):
            chunk = prompts[start : start + batch_size]
            together = self.base.encode_prompts(chunk)
            each = [together[row : row + 1] for row in range(len(chunk))]
            if together.states.shape[1] > length:  # a caption over 75 tokens: at its own length
                each = [self.base.encode_prompts([prompt]) for prompt in chunk]
            self.known |= dict(zip(chunk, each, strict=True))

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Conditions:
        """The conditions of b prompts."""
        found = [self.known.get(prompt) for prompt in prompts]
        known = [one for one in found if one is not None]
        if len(known) < len(prompts) or len({one.states.shape for one in known}) > 1:
            return self.base.encode_prompts(prompts)
        return Conditions.cat(known)


def build_loader(examples: Examples, batches: MicroBatches) -> DataLoader[Batch | DataError]:
    """Batches in the order of the stream; the same with any number of workers."""
    workers = examples.config.num_workers
    loader: Any = DataLoader(
        examples,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
        worker_init_fn=ignore_interrupts,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
    return loader


def ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the workers end when their trainer does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
