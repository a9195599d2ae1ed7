"""Ranks without processes: one thread each, which exchange through lists; and real ones, by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from interpreter import PYTHON
from torch import Tensor

SUPPORT = Path(__file__).parent


class ThreadRanks:
    """`harness.ranks.Ranks` of one of several threads."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.neighbours = rank, len(board), len(board)
        self._board, self._barrier = board, barrier

    def _all(self, tensor: Tensor) -> list[Tensor]:
        self._board[self.rank] = tensor.clone()
        self._barrier.wait(30)
        found = list(self._board)
        self._barrier.wait(30)
        return found

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        assert len(rows) == counts[self.rank]
        return torch.cat(self._all(rows.detach()))

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self._all(tensor)).sum(0))


def on_ranks(size: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """What `work` returns on each of so many threads; the first exception of any is raised."""
    board: list[Any] = [None] * size
    barrier = threading.Barrier(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, board, barrier))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def torchrun(size: int, *arguments: object, script: str | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node SIZE -m inpbench.harness.cli ARGUMENTS`, or a script of this folder instead of the bench."""
    target = ["-m", "inpbench.harness.cli"] if script is None else [str(SUPPORT / script)]
    command = [*PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *target]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if sys.version_info >= (3, 11):
        environment["PYTHONSAFEPATH"] = "1"
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )
