"""The chunks of a clip, computed by several processes at the same time.

A causal video network works through a clip in chunks of frames, and each of its convolutions reads
the last frames of the chunk before: its halo. Consecutive chunks go to consecutive processes, which
run through the network's layers together: at each convolution every process sends the last frames
of its input to the next one. Chunks beyond the number of processes are computed in further rounds,
the first of each with the halos that the last one of the round before has sent to the first
process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
Mail = tuple[int, Tensor]
"""A process's place in the ring, and what is sent to it, or the buffer for what it sends."""


def chunk_bounds(length: int, size: int) -> list[tuple[int, int]]:
    """Return the first and the last + 1 of the frames in each chunk.

    The remainder joins the first one, which so has up to 2 x size - 1; a shorter clip is one chunk.
    """
    count = max(length // size, 1)
    rest = length - size * count if length >= size else 0
    starts = [0, *(size * number + rest for number in range(1, count))]
    return list(zip(starts, [*starts[1:], length], strict=True))


def chunks_of(place: int, size: int, chunks: int) -> range:
    """Return the numbers of the chunks that the process at a place of `size` computes."""
    return range(place, chunks, size)


class Ring:
    """The processes that compute a clip together, in their order."""

    def __init__(self, group: ProcessGroup | None = None) -> None:
        """Take the processes of a group; without one, all."""
        self.group = group
        self.place = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._met: set[torch.device] = set()

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that gets the frames."""
        return self.place == 0

    def meet(self, device: torch.device) -> None:
        """Exchange something between all processes, before some exchange among themselves.

        NCCL forms a communicator in the first exchange, in which all must take part.
        """
        if device not in self._met:
            dist.all_reduce(torch.zeros(1, device=device), group=self.group)
            self._met.add(device)

    def exchange(self, sent: Sequence[Mail], received: Sequence[Mail]) -> None:
        """Send tensors, and fill the buffers of those that come."""
        operations = [
            dist.P2POp(method, tensor, group=self.group, group_peer=place)
            for method, mails in ((dist.isend, sent), (dist.irecv, received))
            for place, tensor in mails
        ]
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, which have one shape, in every process."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor, group=self.group)
        return parts

    def of_first(self, value: T) -> T:
        """Return the first process's value in every process."""
        values = [value]
        dist.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether a flag is set in any of the processes."""
        flags = torch.tensor([float(flag)], device=device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        return bool(flags.item())


class ImaginedRing(Ring):
    """One process of a ring whose others do not exist, for measuring its memory from shapes."""

    def __init__(self, size: int, place: int = 0) -> None:
        self.place = place
        self.size = size
        self.sent = 0
        """Bytes of all halos that were sent."""

    def meet(self, device: torch.device) -> None:
        pass

    def exchange(self, sent: Sequence[Mail], received: Sequence[Mail]) -> None:
        self.sent += sum(tensor.nbytes for _, tensor in sent)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [torch.empty_like(tensor) for _ in range(self.size)]

    def of_first(self, value: T) -> T:
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        return flag


@dataclass
class Pass:
    """One pass of a network over the chunks of a clip, as one process of a ring sees it."""

    ring: Ring
    chunks: int
    """Of the whole clip."""
    chunk: int = -1
    """The current chunk, of whichever process."""
    kept: deque[Tensor] = field(default_factory=deque)
    """In the first process: the halos of its next chunk, in the order of the convolutions."""

    def advance(self) -> bool:
        """Go to the next chunk; return whether this process computes it."""
        self.chunk += 1
        return self.chunk % self.ring.size == self.ring.place

    def halo(self, inputs: Tensor, frames: int) -> Tensor | None:
        """Return the frames before a convolution's input, (b, c, frames, h, w); None at the start.

        The next process gets its own from here. All processes with a chunk of this round call this
        at the same convolution.

        Args:
            inputs: of the convolution, (b, c, f, h, w).
            frames: how many it reads of the chunk before.
        """
        ring, chunk = self.ring, self.chunk
        place, last = ring.place, self.chunks - 1
        before = self.kept.popleft() if place == 0 and chunk > 0 else None
        came: list[Mail] = [] if place == 0 else [(place - 1, new_halo(inputs, frames))]
        is_long = inputs.shape[2] >= frames
        if not is_long:  # what the next process reads reaches back beyond this chunk
            ring.exchange([], came)
        if place > 0:
            before = came[0][1]
        sent: list[Mail] = []
        if chunk < last:
            sent = [((place + 1) % ring.size, last_frames(before, inputs, frames))]
        following: list[Mail] = []
        if place == 0 and chunk + ring.size <= last:
            following = [(ring.size - 1, new_halo(inputs, frames))]
        ring.exchange(sent, [*(came if is_long else []), *following])
        self.kept.extend(halo for _, halo in following)
        return None if before is None else alike(before, inputs)


def new_halo(inputs: Tensor, frames: int) -> Tensor:
    """Return a buffer for the frames before an input."""
    batch, channels, _, height, width = inputs.shape
    return inputs.new_empty(batch, channels, frames, height, width)


def last_frames(before: Tensor | None, inputs: Tensor, frames: int) -> Tensor:
    """Return the last frames that a convolution reads, also those before a short input."""
    missing = frames - inputs.shape[2]
    if missing > 0:
        before = inputs[:, :, :1].expand(-1, -1, frames, -1, -1) if before is None else before
        inputs = torch.cat([before[:, :, -missing:], inputs], dim=2)
    return inputs[:, :, -frames:].contiguous()


def alike(halo: Tensor, inputs: Tensor) -> Tensor:
    """Return a halo in the memory format of the input, so that the same kernel computes both."""
    last = torch.channels_last_3d
    is_last = inputs.is_contiguous(memory_format=last) and not inputs.is_contiguous()
    return halo.contiguous(memory_format=last) if is_last else halo


def joined_frames(ring: Ring, own: Tensor, lengths: Sequence[int], dim: int) -> Tensor:
    """Return the chunks of all processes in their order, in every process.

    Args:
        ring: the processes.
        own: this process's chunks, one after the other along `dim`.
        lengths: of all chunks along `dim`.
        dim: the dimension of the frames.
    """
    held = [sum(lengths[place :: ring.size]) for place in range(ring.size)]
    padded = own.new_zeros(*own.shape[:dim], max(held), *own.shape[dim + 1 :])
    padded.narrow(dim, 0, held[ring.place]).copy_(own)
    parts = ring.gather(padded)
    taken, chunks = [0] * ring.size, []
    for number, length in enumerate(lengths):
        owner = number % ring.size
        chunks.append(parts[owner].narrow(dim, taken[owner], length))
        taken[owner] += length
    return torch.cat(chunks, dim)


def brought_to_first(
    ring: Ring, own: Tensor, lengths: Sequence[int], device: torch.device
) -> Tensor | None:
    """Return the frames of all processes on the CPU in the first process, None in the others.

    They go over the device one by one, so that it never holds a second one.

    Args:
        ring: the processes.
        own: the frames of this process's chunks, (f, …), on the CPU.
        lengths: the frames of all chunks.
        device: between whose memories the processes exchange tensors.
    """
    frames = own.new_empty(sum(lengths), *own.shape[1:]) if ring.is_first else None
    mine = iter(own)
    number = 0
    for chunk, length in enumerate(lengths):
        owner = chunk % ring.size
        for _ in range(length):
            if owner == ring.place:
                frame = next(mine)
                if frames is None:
                    ring.exchange([(0, frame.to(device).contiguous())], [])
                else:
                    frames[number] = frame
            elif frames is not None:
                buffer = torch.empty(own.shape[1:], dtype=own.dtype, device=device)
                ring.exchange([], [(owner, buffer)])
                frames[number] = buffer.cpu()
            number += 1
    return frames


@contextmanager
def replaced(owner: object, name: str, value: Any) -> Iterator[None]:
    """Give an object another attribute inside the context, and its own back afterwards."""
    attributes = vars(owner)
    kept = {name: attributes[name]} if name in attributes else {}
    attributes[name] = value
    try:
        yield
    finally:
        del attributes[name]
        attributes.update(kept)
