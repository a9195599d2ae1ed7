"""The processes that train one model together, as a method sees them: each has a part of every batch (`Context.ranks`).

Alone (the default) nothing is sent and torch.distributed is not imported. `process_group.Team` is the other kind: what torchrun
starts. A method that says `MethodInfo.parallel` keeps to one rule: all processes call `gather` and `sum_` in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Ranks(Protocol):
    """See the module docstring."""

    @property
    def rank(self) -> int:
        """Which process this is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    @property
    def neighbours(self) -> int:
        """How many of them share this machine's memory, this one included."""
        ...

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows (counts[rank], ...) -> those of all processes in rank order (sum(counts), ...), bit for bit, without a gradient."""
        ...

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place: the same bits everywhere."""
        ...


class Alone:
    """A single process."""

    rank = 0
    size = 1
    neighbours = 1

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows themselves."""
        return rows

    def sum_(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


def shares(total: int, size: int) -> list[int]:
    """How many of `total` things each of `size` processes takes: neighbours in order, as even as can be, perhaps none.

    >>> shares(5, 2), shares(1, 3)
    ([3, 2], [1, 0, 0])
    """
    return [total // size + (rank < total % size) for rank in range(size)]
