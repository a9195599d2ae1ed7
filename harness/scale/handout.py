"""Which cells may be worked on now: plain book-keeping, no Ray.

Cells that share one training (harness/sources.py) are not given out at once: the first one trains, and the others follow as soon as
its model is kept, so that no worker waits for another one inside its share of the cluster. A cell is out once at a time; one whose
worker was lost goes back, a bounded number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Handout:
    """Cells by their position; `trainings[i]` names the training that cell i shares, or is None."""

    def __init__(self, trainings: Sequence[str | None], retries: int, kept: Callable[[int], bool]) -> None:
        """kept: whether the model of the training of cell i is there already, asked before each handing out."""
        self._trainings = list(trainings)
        self._retries = retries
        self._kept = kept
        self._waiting = list(range(len(trainings)))
        self._out: set[int] = set()
        self._losses: dict[int, list[str]] = {}
        self.trained: set[str] = set()  # trainings whose model is known to be kept

    @property
    def open(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._out)

    @property
    def left(self) -> tuple[int, int]:
        """How many cells are out, and how many wait."""
        return len(self._out), len(self._waiting)

    def take(self) -> list[int]:
        """Every cell that may be worked on now, in the order of the plan; they are out from here on."""
        taken: list[int] = []
        for cell in list(self._waiting):
            if self._may_go(cell):
                self._waiting.remove(cell)
                self._out.add(cell)
                taken.append(cell)
        return taken

    def _may_go(self, cell: int) -> bool:
        training = self._trainings[cell]
        if training is None or training in self.trained:
            return True
        if self._kept(cell):
            self.trained.add(training)
            return True
        return all(self._trainings[other] != training for other in self._out)

    def finished(self, cell: int, *, well: bool) -> None:
        """A cell came back with its record. well: it did not fail, so that the model it needed is kept."""
        self._out.remove(cell)
        training = self._trainings[cell]
        if well and training is not None:
            self.trained.add(training)

    def lost(self, cell: int, why: str) -> bool:
        """The worker of a cell was lost: back it goes (True), or it was lost too often (False) and is over."""
        self._out.remove(cell)
        self._losses.setdefault(cell, []).append(why)
        again = len(self._losses[cell]) <= self._retries
        if again:
            self._waiting = sorted([*self._waiting, cell])
        return again

    def losses(self, cell: int) -> list[str]:
        """Why each earlier worker of a cell was lost."""
        return list(self._losses.get(cell, ()))
