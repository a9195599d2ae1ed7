"""Percentile intervals of bootstrap draws, apart from the counting (bootstrap.py): what reads records needs no more than this."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.errors import MetricError

DRAWS = 1000
LEVEL = 0.95
_NORMAL = NormalDist()


class Interval(NamedTuple):
    """Where a metric lies in the middle `level` of the draws, as fractions."""

    low: float
    high: float


def interval(values: NDArray[Any], value: float | None = None, level: float = LEVEL) -> Interval:
    """The percentile interval of the values of the draws (D,); with the measured `value`, bias-corrected (Efron, 1981).

    Best-threshold F1 and average precision come out higher in a draw than in the images it is drawn from, because a draw repeats
    images; the correction moves the percentiles by how many draws lie below `value`. Over simulated data sets of 50 to 200 images
    the corrected 95 % interval held the truth of AUROC in 94-95 % of them, of AP in 90-92 % and of F1max in 85-89 % (uncorrected:
    94, 89-92 and 75 %): the F1max that is measured is itself too high for few images.
    Raises `MetricError` for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise MetricError(f"The level lies in (0, 1), found {level}.", "Use level=0.95.")
    tails = ((1 - level) / 2, (1 + level) / 2)
    if value is not None:
        shift = 2 * _normal_score(values, value)
        tails = (_NORMAL.cdf(shift + _NORMAL.inv_cdf(tails[0])), _NORMAL.cdf(shift + _NORMAL.inv_cdf(tails[1])))
    low, high = np.quantile(values, tails)
    return Interval(float(low), float(high))


def p_of_zero(values: NDArray[Any], value: float) -> float:
    """Two-sided p of a difference of zero: 1 - the level of the widest `interval(values, value, level)` that leaves it out."""
    tail = _NORMAL.cdf(_normal_score(values, 0.0) - 2 * _normal_score(values, value))
    return min(1.0, 2 * min(tail, 1 - tail))


def _normal_score(values: NDArray[Any], at: float) -> float:
    """The normal quantile of the part of the draws below `at`, equal ones counted half; finite: at least half a draw is outside."""
    below = ((values < at).mean() + (values <= at).mean()) / 2
    edge = 0.5 / values.size
    return _NORMAL.inv_cdf(float(min(max(below, edge), 1 - edge)))
