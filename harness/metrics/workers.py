"""Threads that share the counting of pixels: NumPy and torch let go of the interpreter while they work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
MOST_THREADS = 4  # each holds a group of pixels and a histogram
THREAD_PIXELS = 1 << 22  # for fewer a thread is not worth its start: systems leave short ones on the processor of the first


class Workers:
    """Runs a function on each of several things, one thread each."""

    def __init__(self, threads: int, pool: ThreadPoolExecutor | None) -> None:
        self.threads = threads
        self._pool = pool

    def __call__(self, function: Callable[[T], R], things: Sequence[T]) -> list[R]:
        """What it gives, in the order of the things."""
        return list(map(function, things) if self._pool is None else self._pool.map(function, things))


@contextlib.contextmanager
def workers(device: torch.device, pixels: int) -> Iterator[Workers]:
    """As many threads as torch may use and `pixels` are worth; one where `device` is not the CPU. Torch works in one meanwhile.

    The barriers of torch's threads cost more than the few operations between them, and its idle threads keep the processor busy.
    """
    usual = torch.get_num_threads()
    threads = max(1, min(usual, pixels // THREAD_PIXELS, MOST_THREADS)) if device.type == "cpu" else 1
    torch.set_num_threads(1)
    try:
        if threads == 1:
            yield Workers(1, None)
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield Workers(threads, pool)
    finally:
        torch.set_num_threads(usual)
