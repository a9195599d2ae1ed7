"""Which images InCTRL's training sees: half of each batch normal, half anomalous, and fresh prompts for every query.

Normal and anomalous images are walked in permutations without end, drawn from one numpy generator when one is used up (the
original's order, bit for bit). The original tests on the training loader after each epoch, which advances the walk: so does this.
Known deviation: prompts come from a generator of (seed, step), not from the original's loader processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from inpbench.harness.api import Sample
from inpbench.harness.errors import DataError, UsageError

_STEP_STRIDE = 1_000_003  # seeds of steps of neighbouring seeds do not collide


def balanced_batches(normal: Sequence[int], anomalous: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches without end: batch_size // 2 of `normal`, then the rest of `anomalous`."""
    generator = np.random.RandomState(seed)

    def walk(indices: Sequence[int]) -> Iterator[int]:
        while True:
            yield from generator.permutation(np.asarray(indices)).tolist()

    normals, anomalies = walk(normal), walk(anomalous)
    while True:
        yield [*islice(normals, batch_size // 2), *islice(anomalies, batch_size - batch_size // 2)]


class BalancedOrder:
    """The batches of a training by step; implements `methods.training.Order`."""

    def __init__(
        self, normal: Sequence[int], anomalous: Sequence[int], batch_size: int, epochs: int, per_epoch: int, seed: int
    ) -> None:
        self.per_epoch = per_epoch
        stream = balanced_batches(normal, anomalous, batch_size, seed)
        self._batches: list[list[int]] = []
        for _ in range(epochs):
            self._batches += islice(stream, per_epoch)
            list(islice(stream, per_epoch))  # the evaluation after the epoch

    def batch(self, step: int) -> list[int]:
        """The images of one step (0-based): normal ones first."""
        return self._batches[step]


class PromptDraw:
    """K normal images of the query's category for every query of every step; a normal query may be among its own prompts."""

    def __init__(self, samples: Sequence[Sample], shots: int, seed: int) -> None:
        """Raises `UsageError` without shots, `DataError` for a category with fewer normal images than shots."""
        if shots < 1:
            raise UsageError("inctrl compares an image with prompts: expected shots of at least 1, found 0.", "Type: --shots 2,4,8")
        self.shots, self.seed = shots, seed
        self._categories = [sample.category for sample in samples]
        self._normal: dict[str, list[int]] = {category: [] for category in self._categories}
        for index, sample in enumerate(samples):
            if sample.label == 0:
                self._normal[sample.category].append(index)
        for category, found in self._normal.items():
            if len(found) < shots:
                raise DataError(
                    f"inctrl draws {shots} normal images of {category} as prompts, the source has {len(found)}.",
                    f"Type: --shots {max(1, len(found))}, or another --source",
                )

    def of_step(self, step: int, queries: Sequence[int]) -> list[int]:
        """Prompts of the queries of a step: prompt s of query i at s * B + i."""
        generator = random.Random(self.seed * _STEP_STRIDE + step)
        drawn = [generator.sample(self._normal[self._categories[query]], self.shots) for query in queries]
        return [row[shot] for shot in range(self.shots) for row in drawn]
