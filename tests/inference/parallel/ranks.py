"""Processes of one group on this machine: forks of the test, so that nothing is imported again."""

from __future__ import annotations

import io
import multiprocessing
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = 120


def on_ranks(size: int, work: Callable[[int], T]) -> list[T]:
    """What each of `size` processes makes of its rank, in a gloo group: tensors in containers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    forked = multiprocessing.get_context("fork")
    pipes = [forked.Pipe(duplex=False) for _ in range(size)]
    processes = [
        forked.Process(target=_be_rank, args=(rank, size, port, work, pipes[rank][1]))
        for rank in range(size)
    ]
    try:
        for process in processes:
            process.start()
        results: list[Any] = []
        for (receiving, _), process in zip(pipes, processes, strict=True):
            assert receiving.poll(PATIENCE), f"rank {len(results)} is silent: {process.exitcode}"
            results.append(torch.load(io.BytesIO(receiving.recv_bytes()), weights_only=True))
    finally:
        for process in processes:
            process.kill()
            process.join()
    for result in results:
        assert not isinstance(result, str), result
    return results


def _be_rank(
    rank: int, size: int, port: int, work: Callable[[int], Any], sending: Connection
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=size
    )
    try:
        result = work(rank)
    except BaseException:
        result = traceback.format_exc()
    content = io.BytesIO()
    torch.save(result, content)
    sending.send_bytes(content.getvalue())
    dist.barrier()
