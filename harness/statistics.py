"""What the test images can and cannot tell: intervals, paired differences, ranks with ties, and tests over data sets.

Within a data set: the draws and the jackknife beside each record (harness/draws.py), which metrics/intervals.py turns into
intervals. A draw holds the same images for every method, so the difference of two methods is taken draw by draw; it is called
significant where its 95 % interval leaves out zero. Pairs are not adjusted for their number. A row's rank is 1 + the number of
rows that are significantly better, so that rows share a rank where the images cannot tell them apart. Several seeds: draws are
averaged over the seeds, never pooled; their spread is the table's ±.

Over data sets: Wilcoxon's signed-rank test on the means of two methods, adjusted by Holm (Benavoli et al., JMLR 2016). Where so
many pairs cannot reach p < 0.05 on so few data sets whatever was measured, the data sets are called not enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inpbench.harness.errors import RecordError
from inpbench.harness.metrics import METRICS
from inpbench.harness.metrics.intervals import Estimate, Interval, Resampled, difference_interval, estimate, interval, p_of_zero
from inpbench.harness.samples import DRAWS, JACKKNIFE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.families import Row
    from inpbench.harness.records import Record, RecordStore

ALPHA = 0.05
ADDED_BY = "bench rescore RECORD adds them where maps were kept, bench run --force elsewhere"
_INDEX = {metric: index for index, metric in enumerate(METRICS)}


@dataclass(frozen=True)
class Evidence:
    """What stands beside the records of one row of a table, averaged over its seeds."""

    draws: Mapping[str, NDArray[Any]]  # category -> (7, D)
    images: Mapping[str, tuple[str, ...]]  # category -> the tested images, in order
    labels: Mapping[str, NDArray[Any]]  # category -> (I,) 0 normal, 1 anomalous
    jackknife: Mapping[str, NDArray[Any] | None]  # category -> (7, I); None for a record of before there was one

    @property
    def complete(self) -> bool:
        """Whether there is a jackknife of every category."""
        return all(table is not None for table in self.jackknife.values())

    def parts(self, metric: str, category: str | None = None) -> list[Resampled] | None:
        """The metric in one category, or in each of them; None where any has no value."""
        index, found = _INDEX[metric], []
        for name in sorted(self.draws) if category is None else [category]:
            if name not in self.draws or np.isnan(draws := self.draws[name][index].astype(np.float64)).any():
                return None
            jackknife = self.jackknife[name]
            changes = None if jackknife is None else jackknife[index].astype(np.float64)
            found.append(Resampled(draws, changes, self.labels[name]))
        return found or None

    def estimate(self, metric: str, value: float | None, category: str | None = None) -> Estimate | None:
        """What is known of a metric that was measured as `value`; None where there are no draws of it."""
        parts = self.parts(metric, category)
        return None if parts is None or value is None else estimate(metric, value, parts)

    def interval(self, metric: str, value: float | None, category: str | None = None) -> Interval | None:
        """Its 95 % interval, as fractions."""
        found = self.estimate(metric, value, category)
        return None if found is None else interval(found)


class Difference(NamedTuple):
    """First minus second, as fractions."""

    value: float  # of the measured numbers
    interval: Interval  # about the value without its bias
    p: float  # two-sided, of no difference

    @property
    def significant(self) -> bool:
        """Whether p is below 0.05, which is where the 95 % interval leaves out zero."""
        return self.p < ALPHA

    @property
    def better(self) -> int:
        """1 where the first is significantly better, -1 where the second is, else 0."""
        return 0 if not self.significant else 1 if self.interval.low > 0 else -1


class EvidenceStore:
    """The evidence of rows, each record's file read once. Why a row has none is in `reasons`, by the record's id."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._found: dict[str, Evidence | None] = {}
        self._rows: dict[tuple[str, ...], Evidence | None] = {}
        self.reasons: dict[str, str] = {}

    def of(self, row: Row) -> Evidence | None:
        """The evidence of a row, averaged over its seeds; None where any record of it has no draws."""
        key = tuple(record.id for record in row.records)
        if key not in self._rows:
            self._rows[key] = self._averaged(row)
        return self._rows[key]

    def _averaged(self, row: Row) -> Evidence | None:
        parts = [self._of_record(record) for record in row.records]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        if any(part.images != known[0].images for part in known):
            self.reasons[row.first.id] = "its seeds were tested on different images"
            return None
        draws = {category: np.mean([part.draws[category] for part in known], axis=0) for category in known[0].draws}
        jackknife = {category: _mean([part.jackknife[category] for part in known]) for category in known[0].draws}
        return Evidence(draws, known[0].images, known[0].labels, jackknife)

    def _of_record(self, record: Record) -> Evidence | None:
        if record.id not in self._found:
            self._found[record.id] = None
            try:
                samples = self._store.read_samples(record)
            except RecordError as error:
                self.reasons[record.id] = error.message
            else:
                if samples and all(DRAWS in table for table in samples.values()):
                    self._found[record.id] = Evidence(
                        draws={category: table[DRAWS] for category, table in samples.items()},
                        images={category: tuple(table["image"].tolist()) for category, table in samples.items()},
                        labels={category: table["label"] for category, table in samples.items()},
                        jackknife={category: table.get(JACKKNIFE) for category, table in samples.items()},
                    )
                else:
                    self.reasons[record.id] = f"it was run without intervals; {ADDED_BY}"
        return self._found[record.id]


def _mean(tables: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """The mean of the tables; None where any is missing."""
    known = [table for table in tables if table is not None]
    found: NDArray[Any] | None = np.mean(known, axis=0) if len(known) == len(tables) else None
    return found


def paired(
    first: Evidence, second: Evidence, metric: str, values: tuple[float | None, float | None], category: str | None = None
) -> Difference | str:
    """The difference of two rows on the same images, or why there is none. values: what was measured, as fractions."""
    if first.images != second.images:
        return "they were tested on different images"
    ours, theirs = first.parts(metric, category), second.parts(metric, category)
    if ours is None or theirs is None or values[0] is None or values[1] is None:
        return f"{METRICS[metric].title} has no value or no draws"
    if any(a.draws.shape != b.draws.shape for a, b in zip(ours, theirs, strict=True)):
        return "they have different numbers of draws"
    parts = []
    for a, b in zip(ours, theirs, strict=True):
        changes = None if a.changes is None or b.changes is None else a.changes - b.changes
        parts.append(Resampled(a.draws - b.draws, changes, a.labels))
    found = estimate(metric, values[0] - values[1], parts)
    return Difference(found.value, difference_interval(found), p_of_zero(found))


def ranks(
    evidence: Sequence[Evidence | None], values: Sequence[float | None], metric: str, category: str | None = None
) -> list[int]:
    """1 + the number of rows that are significantly better; 0 for a row without evidence or value."""
    places = [int(mine is not None and value is not None) for mine, value in zip(evidence, values, strict=True)]
    for i, first in enumerate(evidence):
        for j, second in enumerate(evidence[:i]):
            if first is None or second is None or not (places[i] and places[j]):
                continue
            difference = paired(first, second, metric, (values[i], values[j]), category)
            if not isinstance(difference, str) and difference.better:
                places[i if difference.better < 0 else j] += 1
    return places


# --- over data sets -------------------------------------------------------------------------------------------------


class AcrossPair(NamedTuple):
    """Two methods over data sets."""

    first: str
    second: str
    difference: float  # median of first - second, as a fraction
    p: float  # Wilcoxon's signed-rank test, two-sided
    adjusted: float  # by Holm, over all pairs


def least_datasets(methods: int) -> int:
    """The first number n of data sets on which one of all pairs of methods can be significant: pairs x 2 / 2 ** n < 0.05."""
    pairs = methods * (methods - 1) // 2
    return math.floor(1 + math.log2(pairs / ALPHA)) + 1 if pairs else 1


def across(scores: Mapping[str, Sequence[float]]) -> list[AcrossPair]:
    """Every pair of methods over the same data sets, the smallest p first.

    scores: method -> its value on each data set, in one order; at least `least_datasets` of them, or the list is empty. Equal
    values count half to each side.
    """
    from scipy import stats

    names = list(scores)
    if len(names) < 2 or len(scores[names[0]]) < least_datasets(len(names)):
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
