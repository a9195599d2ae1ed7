"""What the test images say of each number of a table: its interval and its rank with ties (harness/statistics.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from inpbench.harness.families import Row
    from inpbench.harness.metrics.intervals import Interval
    from inpbench.harness.statistics import EvidenceStore

EXPLANATION = (
    "[low, high] is the 95% interval for other test images of the same kind (bootstrap of whole images); ~ where it rests on few "
    "images (docs: statistics); rows share a rank # where the same images cannot tell them apart; pairs are not adjusted"
)
DRAWS_ALONE = "an older record: its intervals are of draws alone, without the jackknife's"


class Doubt(NamedTuple):
    """Of one number."""

    interval: Interval | None
    rank: int  # with ties; 0 for a row that is not ranked
    reason: str  # why there is no interval, or what it was made without
    few: bool = False  # whether it rests on few images

    def __str__(self) -> str:
        if self.interval is None:
            return ""
        return f"{'~' * self.few}[{100 * self.interval.low:.2f}, {100 * self.interval.high:.2f}]" + (
            f" #{self.rank}" if self.rank else ""
        )


def doubts_of(rows: Sequence[Row], metric: str, category: str | None, evidence: EvidenceStore | None) -> list[Doubt | None]:
    """Of each row's metric; rows whose checkpoint was chosen on the test set have no rank and take none from others."""
    if evidence is None:
        return [None] * len(rows)
    from inpbench.harness.metrics.intervals import interval
    from inpbench.harness.statistics import ADDED_BY, ranks

    found = [evidence.of(row) for row in rows]
    ranked = [None if row.chosen_on_test else mine for row, mine in zip(rows, found, strict=True)]
    places = ranks(ranked, [row.mean(metric, category) for row in rows], metric, category)
    doubts: list[Doubt | None] = []
    for row, mine, place in zip(rows, found, places, strict=True):
        reasons = [evidence.reasons[record.id] for record in row.records if record.id in evidence.reasons]
        known = None if mine is None else mine.estimate(metric, row.mean(metric, category), category)
        reason = next(iter(reasons), "too few images to draw from")
        if mine is None or known is None:
            doubts.append(Doubt(None, 0, reason))
        else:
            doubts.append(Doubt(interval(known), place, "" if mine.complete else f"{DRAWS_ALONE}; {ADDED_BY}", known.few))
    return doubts


def doubt_data(doubt: Doubt | None, prefix: str) -> dict[str, Any]:
    """The same for programs, under `prefix`low, high, rank and few_images; nothing where no evidence was asked for."""
    if doubt is None:
        return {}
    low, high = doubt.interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high, f"{prefix}rank": doubt.rank or None, f"{prefix}few_images": doubt.few}
