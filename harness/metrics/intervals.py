"""95 % intervals and p values from bootstrap draws and a jackknife, apart from the counting: what reads records needs no more.

What is estimated is the metric of the population: of all images of this kind, normal and anomalous ones mixed as in the test
set (F1max: the largest F1 over thresholds of the population). The draws say how far a metric is off on average, which is taken
away from the centre (best-threshold F1 is optimistic on few images) and counts as uncertain by its own size, and how it
scatters. Leaving out one image at a time says the latter again, and on how few images that knowledge rests: the larger of the
two is the standard error, and Student's t with Satterthwaite's degrees of freedom takes the place of the normal distribution. A
metric's interval is made on the logit scale, so that it lies in (0, 1) and is longer to the side where there is room; that of a
difference is symmetric.

`benchmarks/interval_coverage.py` measures how often the truth is inside; docs/protocols/statistics.md says where it is not 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.errors import MetricError

DRAWS = 1000
LEVEL = 0.95
LEAST_FREEDOM = 3.0  # the smallest whole number for which Student's t has a variance
FEW = 10.0  # degrees of freedom below which a table says that an interval rests on few images
# A draw is as noisy as half as many images: draws lie above the value by what halving the images adds to its bias. A bias that
# falls with 1 / n is just that; that of a maximum over a flat stretch of thresholds falls with 1 / sqrt(n), and is 2.4 times that.
_OF_A_MAXIMUM = 1 / (math.sqrt(2) - 1)
_ROUNDING = 1e-18  # variances below are those of sums in floats

Vector = NDArray[np.float64]


class Interval(NamedTuple):
    """Where the population's value lies with the confidence that was asked for, as fractions."""

    low: float
    high: float


class Resampled(NamedTuple):
    """One metric of one category, or the difference of two methods in it."""

    draws: NDArray[Any]  # (D,) the value in every draw
    changes: NDArray[Any] | None  # (I,) what leaving out image i adds to the value; NaN: image not used; None: an old record
    labels: NDArray[Any]  # (I,) 0 normal, 1 anomalous


class Estimate(NamedTuple):
    """What is known of a metric: of a category, or of the mean over several."""

    value: float  # as it was measured
    bias: float  # of the value, from the draws
    error: float  # standard error; 0 where no draw and no image makes a difference
    freedom: float  # degrees of freedom of the error
    images: int  # of the class with the fewest
    parts: int  # categories
    chance: float  # what an image that says nothing leaves of the metric
    floor: float  # the least value of the metric, whatever the scores are

    @property
    def centre(self) -> float:
        """The value without its bias."""
        return self.value - self.bias

    @property
    def few(self) -> bool:
        """Whether the doubt rests on few images, or none."""
        return self.error == 0 or self.freedom < FEW

    def hidden(self, level: float) -> float:
        """Where nothing scatters: by how much images that behave otherwise may move the metric without one of them in the test set.

        A share s of them stays unseen in n images with probability (1 - s) ** n.
        """
        unseen: float = 1 - ((1 - level) / 2) ** (1 / self.images)
        return unseen / self.parts


def estimate(metric: str, value: float, parts: Sequence[Resampled]) -> Estimate:
    """metric: its name. value: the plain mean over categories as it was measured. parts: the categories, drawn independently."""
    chance = 0.5 if metric.endswith("auroc") else 0.0
    # Calling every image anomalous finds all of them.
    anomalous = [part.labels.mean() for part in parts]  # shares of the images
    floor = float(np.mean([2 * share / (1 + share) for share in anomalous])) if metric == "i_f1max" else 0.0
    spreads = [_spread(part) for part in parts]
    rate = _OF_A_MAXIMUM if metric.endswith("f1max") else 1.0
    bias = rate * (sum(mean for mean, _, _ in spreads) / len(parts) - value)
    total, images = sum(variance for _, variance, _ in spreads), min(_smaller_class(part) for part in parts)
    if total <= _ROUNDING:
        return Estimate(value, 0.0, 0.0, math.inf, images, len(parts), chance, floor)
    freedom = total**2 / sum(variance**2 / degrees for _, variance, degrees in spreads)
    # Each category's correction is uncertain by its own size, and for itself.
    error = math.hypot(math.sqrt(total) / len(parts), bias / math.sqrt(len(parts)))
    return Estimate(value, bias, error, freedom, images, len(parts), chance, floor)


def _spread(part: Resampled) -> tuple[float, float, float]:
    """Mean of the draws; variance of the metric, and its degrees of freedom: few where few images carry it."""
    mean = float(part.draws.sum()) / part.draws.size
    about = part.draws - mean
    drawn = float(about @ about) / (about.size - 1)
    smaller = _smaller_class(part)
    if part.changes is None:
        return mean, drawn * smaller / (smaller - 1), max(LEAST_FREEDOM, smaller - 1.0)
    variance, noise = 0.0, 0.0
    for label in (0, 1):
        changes = part.changes[(part.labels == label) & ~np.isnan(part.changes)]
        n = changes.size
        if n > 1:
            square = (changes - changes.sum() / n) ** 2
            second, fourth = float(square.sum()) / n, float(square @ square) / n
            variance += (n - 1) * second  # the jackknife's variance, (n - 1) / n times the sum of squares
            noise += (n - 1) ** 2 * max(0.0, fourth - second**2 * (n - 3) / (n - 1)) / n
    freedom = 2 * variance**2 / noise if noise > 0 else float(smaller)
    return mean, max(variance, drawn), max(LEAST_FREEDOM, freedom)


def _smaller_class(part: Resampled) -> int:
    counts = [number for label in (0, 1) if (number := int((part.labels == label).sum())) > 1]
    return min(counts, default=2)


def interval(found: Estimate, level: float = LEVEL) -> Interval:
    """The interval of a metric, inside [0, 1]. Raises `MetricError` for a level outside (0, 1).

    Where nothing scatters (a flawless category, say), its far end is where so many images would have shown the others among them.
    """
    _check(level)
    if found.error == 0:
        hidden = found.hidden(level)
        low = found.value - hidden * max(0.0, found.value - found.chance)
        return Interval(max(found.floor, low), found.value + hidden * (1 - found.value))
    # The correction ends half-way to the ends of the scale, where the bias is no more than the draws' own noise.
    centre = min(max(found.centre, found.floor, found.value / 2), (1 + found.value) / 2)
    reach = _quantile(found.freedom, level) * found.error / (centre * (1 - centre))
    middle = math.log(centre / (1 - centre))
    return Interval(max(found.floor, _logistic(middle - reach)), max(found.floor, _logistic(middle + reach)))


def difference_interval(found: Estimate, level: float = LEVEL) -> Interval:
    """The interval of the difference of two methods, symmetric about its centre. Raises `MetricError` as `interval`."""
    _check(level)
    reach = found.hidden(level) if found.error == 0 else _quantile(found.freedom, level) * found.error
    return Interval(found.centre - reach, found.centre + reach)


def p_of_zero(found: Estimate) -> float:
    """Two-sided p of a difference of zero: 1 - the level of the widest `difference_interval` that leaves zero out."""
    from scipy.special import stdtr

    if found.error == 0:
        return min(1.0, 2 * max(0.0, 1 - found.parts * abs(found.centre)) ** found.images)
    return float(2 * stdtr(found.freedom, -abs(found.centre) / found.error))


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise MetricError(f"The level lies in (0, 1), found {level}.", "Use level=0.95.")


def _quantile(freedom: float, level: float) -> float:
    from scipy.special import ndtri, stdtrit

    tail = (1 + level) / 2
    return float(ndtri(tail) if math.isinf(freedom) else stdtrit(freedom, tail))


def _logistic(at: float) -> float:
    return 1 / (1 + math.exp(-at)) if at > -700 else 0.0
