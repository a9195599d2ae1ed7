"""Tolerances learned from repeated runs: how far a number may move when nothing but chance has changed.

A change of the code that alters no mathematics may still draw other random numbers, as another seed does. So the spread over seeds
is the noise. A baseline is one run, and it is compared with one other: with n runs of standard deviation s, they differ by at most
t(n - 1) s sqrt(2) at LEVEL. That is the tolerance, but not below FLOOR: a few equal runs do not prove that nothing can move.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.harness.atomic import write_text
from inpbench.harness.baselines import Baseline, Entry, Value, key_of, load, metric_hardware, protocol_of, to_text
from inpbench.harness.errors import NothingError, UsageError

if TYPE_CHECKING:
    from inpbench.harness.records import Record, RecordStore

LEVEL = 0.99
FLOOR = 0.0005  # 0.05 points: another processor's rounding
LEAST = 3  # runs; two say next to nothing about a spread


def learn(store: RecordStore, folder: Path, runs: int, **filters: Any) -> list[Path]:
    """Replace the tolerances of every baseline that has at least `runs` runs with different seeds; gives the changed files.

    A run counts for the entry of its hardware, under the entry's protocol. Raises `UsageError` for fewer than LEAST runs and
    `NothingError` when no baseline has enough.
    """
    if runs < LEAST:
        raise UsageError(f"--learn needs at least {LEAST} runs, found {runs}.", "Type: bench check --learn 5")
    records = list(store.all(status="done", **filters))
    changed, most, known = [], 0, False
    for baseline in load(folder):
        entries = []
        for entry in baseline.entries:
            found = _repeated(baseline, entry, records)
            most = max(most, len(found))
            known |= len(found) >= runs
            entries.append(_learned(entry, found) if len(found) >= runs else entry)
        if tuple(entries) != baseline.entries:
            write_text(folder / baseline.name, to_text(replace(baseline, entries=tuple(entries))))
            changed.append(folder / baseline.name)
    if not known:
        seeds = ",".join(map(str, range(1, runs + 1)))
        raise NothingError(
            f"No baseline in {folder} has {runs} runs with different seeds in {store.folder}; the most are {most}.",
            f"Type: bench run ... --seeds {seeds}, with the baseline's other options, then again: bench check --learn {runs}",
        )
    return changed


def half_width(values: list[float]) -> float:
    """How far one more run may lie from one run at LEVEL, learned from `values`; at least FLOOR."""
    from scipy import stats

    count = len(values)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
    return max(FLOOR, quantile * statistics.stdev(values) * math.sqrt(2))


def _repeated(baseline: Baseline, entry: Entry, records: list[Record]) -> list[Record]:
    """The newest run of each seed of a baseline's cell, on the entry's hardware, under its protocol."""
    asked = {name: value for name, value in baseline.key.items() if name != "seed"}
    by_seed: dict[int, Record] = {}
    for record in sorted(records, key=lambda record: (record.finished, record.id)):
        mine = {name: value for name, value in key_of(record).items() if name != "seed"}
        same = mine == asked and protocol_of(record) == entry.protocol
        if same and metric_hardware(record.hardware) == metric_hardware(entry.hardware):
            by_seed[record.identity["seed"]] = record
    return [by_seed[seed] for seed in sorted(by_seed)]


def _learned(entry: Entry, records: list[Record]) -> Entry:
    metrics: dict[str, Value] = {}
    for metric, value in entry.metrics.items():
        values = [found for record in records if (found := record.mean(metric)) is not None]
        metrics[metric] = replace(value, tolerance=half_width(values)) if len(values) == len(records) else value
    return replace(entry, metrics=metrics, learned={"seeds": [r.identity["seed"] for r in records], "level": LEVEL})
