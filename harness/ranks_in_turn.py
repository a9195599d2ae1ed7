"""Several ranks of one training in one process, for tests: threads of which one runs at a time, from collective to collective.

Each rank has generators of its own (Python's, numpy's, torch's), which are exchanged when the turn goes on: what a rank draws is
what a process of its own would draw. No socket is opened and torch.distributed is not imported. On the CPU.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class OutOfStepError(RuntimeError):
    """The ranks do not call the same collectives in the same order."""


def in_turn(work: Callable[[RankInTurn], T], size: int = 2) -> list[T]:
    """What `work` returns in each rank, in rank order. Raises the first error of any rank; its own generators are left alone."""
    before = _generators()
    table: _Table[T] = _Table(size)
    threads = [threading.Thread(target=table.sit, args=(rank, work), name=f"rank {rank}", daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    table.go[0].release()
    for thread in threads:
        thread.join()
    _set_generators(before)
    if table.errors:
        raise table.errors[0]
    return [table.results[rank] for rank in range(size)]


class RankInTurn:
    """One of them: `harness.ranks.Ranks`. calls: how many collectives it has called."""

    def __init__(self, rank: int, size: int, exchange: Callable[[int, str, Tensor], list[Tensor]]) -> None:
        self.rank, self.size, self.neighbours = rank, size, size
        self.calls = 0
        self._exchange = exchange

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """See `harness.ranks.Ranks`. Raises `OutOfStepError`, also for counts that are not those of the rows."""
        if len(counts) != self.size or len(rows) != counts[self.rank]:
            raise OutOfStepError(f"rank {self.rank} gathers {len(rows)} rows, its counts are {list(counts)}")
        return torch.cat(self._all(f"gather of {list(counts)} rows {tuple(rows.shape[1:])}", rows))

    def sum_(self, tensor: Tensor) -> Tensor:
        """See `harness.ranks.Ranks`. Raises `OutOfStepError`."""
        parts = self._all(f"sum_ of {tuple(tensor.shape)}", tensor)
        with torch.no_grad():
            return tensor.copy_(torch.stack(parts).sum(0))

    def _all(self, what: str, tensor: Tensor) -> list[Tensor]:
        self.calls += 1
        return self._exchange(self.rank, f"{what} {tensor.dtype}", tensor.detach().clone())


class _Table(Generic[T]):
    """Where the ranks sit: whose turn it is, and what they have laid down in each round of collectives."""

    def __init__(self, size: int) -> None:
        self.go = [threading.Semaphore(0) for _ in range(size)]
        self.results: dict[int, T] = {}
        self.errors: list[Exception] = []
        self._size = size
        self._left: set[int] = set()
        self._rounds: list[dict[int, tuple[str, Tensor]]] = []
        self._number = [0] * size  # of each rank's next round

    def sit(self, rank: int, work: Callable[[RankInTurn], T]) -> None:
        """The whole of a rank's thread."""
        self.go[rank].acquire()
        try:
            self.results[rank] = work(RankInTurn(rank, self._size, self._exchange))
        except Exception as error:  # raised by `in_turn`, in the thread that asked
            self.errors.append(error)
        finally:
            self._left.add(rank)
            self._pass_on(rank)

    def _pass_on(self, rank: int) -> None:
        order = [(rank + step) % self._size for step in range(1, self._size + 1)]
        following = next((each for each in order if each not in self._left), None)
        if following is not None:
            self.go[following].release()

    def _exchange(self, rank: int, what: str, tensor: Tensor) -> list[Tensor]:
        number = self._number[rank]
        self._number[rank] += 1
        if number == len(self._rounds):
            self._rounds.append({})
        laid = self._rounds[number]
        laid[rank] = (what, tensor)
        mine = _generators()
        self._pass_on(rank)
        self.go[rank].acquire()
        _set_generators(mine)
        if len(laid) < self._size:
            raise OutOfStepError(f"rank {rank} waits in a {what}, another has ended")
        if len({said for said, _ in laid.values()}) > 1:
            raise OutOfStepError("; ".join(f"rank {each}: {laid[each][0]}" for each in range(self._size)))
        return [laid[each][1] for each in range(self._size)]


def _generators() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_generators(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
