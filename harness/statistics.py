"""What the test images can and cannot tell: intervals, paired differences, ranks with ties, and tests over data sets.

Within a data set: the draws beside each record (harness/draws.py). A draw holds the same images for every method, so the difference
of two methods is taken draw by draw; it is called significant where its 95 % interval leaves out zero. Pairs are not
adjusted for their number. A row's rank is 1 + the number of rows that are significantly better, so that rows share a rank where the
images cannot tell them apart. Several seeds: draws are averaged over the seeds, never pooled; their spread is the table's ±.

Over data sets: Wilcoxon's signed-rank test on the means of two methods, adjusted by Holm (Benavoli et al., JMLR 2016); fewer than
six data sets cannot reach p < 0.05 and are called not enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inpbench.harness.errors import RecordError
from inpbench.harness.metrics import METRICS
from inpbench.harness.metrics.intervals import Interval, interval, p_of_zero
from inpbench.harness.samples import DRAWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.families import Row
    from inpbench.harness.records import Record, RecordStore

LEAST_DATASETS = 6  # 2 / 2 ** 6 = 0.031 is the first p below 0.05 that the signed-rank test can reach
ALPHA = 0.05
_INDEX = {metric: index for index, metric in enumerate(METRICS)}


@dataclass(frozen=True)
class Evidence:
    """The draws of one row of a table."""

    draws: Mapping[str, NDArray[Any]]  # category -> (7, D), averaged over the seeds
    images: Mapping[str, tuple[str, ...]]  # category -> the tested images, in order

    def values(self, metric: str, category: str | None = None) -> NDArray[np.float64] | None:
        """The metric in every draw (D,): of a category, or the mean over all; None where it has no value."""
        tables = list(self.draws.values()) if category is None else [self.draws[category]] if category in self.draws else []
        if not tables:
            return None
        found = np.mean([table[_INDEX[metric]].astype(np.float64) for table in tables], axis=0)
        return None if np.isnan(found).any() else found

    def interval(self, metric: str, value: float | None, category: str | None = None) -> Interval | None:
        """95 % interval of a metric that was measured as `value`, as fractions; None where there are no draws of it."""
        values = self.values(metric, category)
        return None if values is None or value is None else interval(values, value)


class Difference(NamedTuple):
    """First minus second, as fractions."""

    value: float  # of the measured numbers, not of the draws
    interval: Interval
    p: float  # two-sided: how far zero lies out in the draws

    @property
    def significant(self) -> bool:
        """Whether p is below 0.05, which is where the 95 % interval leaves out zero."""
        return self.p < ALPHA


class EvidenceStore:
    """The evidence of rows, each record's file read once. Why a row has none is in `reasons`, by the record's id."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._found: dict[str, Evidence | None] = {}
        self.reasons: dict[str, str] = {}

    def of(self, row: Row) -> Evidence | None:
        """The evidence of a row, averaged over its seeds; None where any record of it has no draws."""
        parts = [self._of_record(record) for record in row.records]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        if any(part.images != known[0].images for part in known):
            self.reasons[row.first.id] = "its seeds were tested on different images"
            return None
        draws = {category: np.mean([part.draws[category] for part in known], axis=0) for category in known[0].draws}
        return Evidence(draws, known[0].images)

    def _of_record(self, record: Record) -> Evidence | None:
        if record.id not in self._found:
            self._found[record.id] = None
            try:
                samples = self._store.read_samples(record)
            except RecordError as error:
                self.reasons[record.id] = error.message
            else:
                if samples and all(DRAWS in table for table in samples.values()):
                    draws = {category: table[DRAWS] for category, table in samples.items()}
                    images = {category: tuple(table["image"].tolist()) for category, table in samples.items()}
                    self._found[record.id] = Evidence(draws, images)
                else:
                    self.reasons[record.id] = "it was run without intervals; --force runs it again"
        return self._found[record.id]


def paired(
    first: Evidence, second: Evidence, metric: str, values: tuple[float | None, float | None], category: str | None = None
) -> Difference | str:
    """The difference of two rows on the same images, or why there is none. values: what was measured, as fractions."""
    if first.images != second.images:
        return "they were tested on different images"
    a, b = first.values(metric, category), second.values(metric, category)
    if a is None or b is None or values[0] is None or values[1] is None:
        return f"{METRICS[metric].title} has no value or no draws"
    if a.shape != b.shape:
        return "they have different numbers of draws"
    difference, value = a - b, values[0] - values[1]
    if not difference.any() and value == 0:
        return Difference(0.0, Interval(0.0, 0.0), 1.0)
    return Difference(value, interval(difference, value), p_of_zero(difference, value))


def ranks(
    evidence: Sequence[Evidence | None], values: Sequence[float | None], metric: str, category: str | None = None
) -> list[int]:
    """1 + the number of rows that are significantly better; 0 for a row without evidence or value."""
    found = []
    for mine, my_value in zip(evidence, values, strict=True):
        if mine is None or my_value is None:
            found.append(0)
            continue
        better = 0
        for other, value in zip(evidence, values, strict=True):
            if other is not None and other is not mine:
                difference = paired(other, mine, metric, (value, my_value), category)
                better += not isinstance(difference, str) and difference.significant and difference.value > 0
        found.append(1 + better)
    return found


# --- over data sets -------------------------------------------------------------------------------------------------


class AcrossPair(NamedTuple):
    """Two methods over data sets."""

    first: str
    second: str
    difference: float  # median of first - second, as a fraction
    p: float  # Wilcoxon's signed-rank test, two-sided
    adjusted: float  # by Holm, over all pairs


def across(scores: Mapping[str, Sequence[float]]) -> list[AcrossPair]:
    """Every pair of methods over the same data sets, the smallest p first.

    scores: method -> its value on each data set, in one order; at least `LEAST_DATASETS` of them, or the list is empty. Equal
    values count half to each side.
    """
    from scipy import stats

    names = list(scores)
    if len(names) < 2 or len(scores[names[0]]) < LEAST_DATASETS:
        return []
    pairs = []
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            difference = np.asarray(scores[first], np.float64) - np.asarray(scores[second], np.float64)
            p = 1.0 if not difference.any() else float(stats.wilcoxon(difference, zero_method="zsplit").pvalue)
            pairs.append((first, second, float(np.median(difference)), p))
    adjusted = holm([pair[3] for pair in pairs])
    found = [AcrossPair(*pair, value) for pair, value in zip(pairs, adjusted, strict=True)]
    return sorted(found, key=lambda pair: pair.p)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p values, in their order; never above 1, never falling along the sorted values."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = largest
    return adjusted


def mean_ranks(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Method -> its rank averaged over the data sets; 1 is the best, equal values share the mean of their ranks."""
    from scipy import stats

    table = np.asarray([list(values) for values in scores.values()], np.float64)
    ranked = stats.rankdata(-table, axis=0)
    return dict(zip(scores, ranked.mean(axis=1).tolist(), strict=True))
