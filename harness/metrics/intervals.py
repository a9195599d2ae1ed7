"""Percentile intervals of bootstrap draws, apart from the counting (bootstrap.py): what reads records needs no more than this."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.errors import MetricError

DRAWS = 1000
LEVEL = 0.95


class Interval(NamedTuple):
    """Where a metric lies in the middle `level` of the draws, as fractions."""

    low: float
    high: float


def interval(values: NDArray[Any], level: float = LEVEL) -> Interval:
    """The percentile interval of the values of the draws (D,); raises `MetricError` for a level outside (0, 1)."""
    if not 0 < level < 1:
        raise MetricError(f"The level lies in (0, 1), found {level}.", "Use level=0.95.")
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(low), float(high))
