"""Two methods at a time: on the same images of a data set, and over data sets (harness/statistics.py does the sums).

Within a family of comparable records every pair of rows is one line: the difference, its interval and what may be said. Over data
sets, families that differ in nothing but the data belong together (`_SAME`), and only the methods that were run on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from inpbench.harness.errors import UsageError, did_you_mean
from inpbench.harness.families import Family, Row, families, rows_of
from inpbench.harness.leaderboard import names_of
from inpbench.harness.metrics import METRICS
from inpbench.harness.records import Record, canonical_json
from inpbench.harness.sources import in_words
from inpbench.harness.statistics import ALPHA, EvidenceStore, across, least_datasets, mean_ranks, paired
from inpbench.harness.tables import MISSING, Cell, Column, Table

_SAME = ("setting", "setting_version", "shots", "scoring", "metrics", "limit")


class Overall(NamedTuple):
    """What was measured of several methods on several data sets, for one metric."""

    key: str  # what its families share
    title: str
    datasets: list[str]
    scores: dict[str, list[float]]  # method -> fractions, in the order of the data sets
    records: dict[str, list[list[str]]]  # method -> the ids behind each of them
    described: list[str]  # the data sets with what tells each from another choice of the same name
    left_out: list[str]  # methods that were not run on all of them in one version


class _Column(NamedTuple):
    """One data set in `overall`."""

    named: dict[str, Row]  # by method, all with a value
    family: Family
    choices: int  # tables of this data set that there were

    @property
    def size(self) -> tuple[int, int]:
        return len(self.named), len(self.family.protocol["categories"])

    def in_words(self) -> str:
        """`visa from real_iad, 12 categories (one of 2 tables of it)`."""
        protocol = self.family.protocol
        name = " ".join(filter(None, (protocol["dataset"], in_words(protocol))))
        others = f" (one of {self.choices} tables of it)" if self.choices > 1 else ""
        return f"{name}, {len(protocol['categories'])} categories{others}"


def pair_tables(records: Iterable[Record], metric: str, evidence: EvidenceStore) -> list[Table]:
    """One table for each family of at least two rows. Raises `UsageError` for an unknown metric."""
    if metric not in METRICS:
        raise UsageError(f"Unknown metric '{metric}'. {did_you_mean(metric, METRICS)}", "Type: bench list metrics")
    return [_pairs(family, rows, metric, evidence) for family in families(records) if len(rows := _ranked(family)) > 1]


def _ranked(family: Family) -> list[Row]:
    return [row for row in rows_of(family) if not row.chosen_on_test]


def _pairs(family: Family, rows: Sequence[Row], metric: str, evidence: EvidenceStore) -> Table:
    title = METRICS[metric].title
    table = Table(
        title=f"{title} in pairs: {family.title}",
        caption=[
            *family.caption(),
            "Difference in points, first - second, with the 95% interval of the same 1,000 draws of test images for both; pairs "
            "are not adjusted for their number",
        ],
        columns=[Column(name, left=name in ("first", "second", "verdict")) for name in _PAIR_COLUMNS],
        rows=[],
        protocol=family.protocol | {"metric": metric},
    )
    names = names_of(rows)
    for index, (first, first_name) in enumerate(zip(rows, names, strict=True)):
        for second, second_name in zip(rows[index + 1 :], names[index + 1 :], strict=True):
            _add_pair(table, (first, second), (first_name, second_name), metric, evidence)
    return table


_PAIR_COLUMNS = ("first", "second", "difference", "low", "high", "p", "verdict")


def _chance(p: float) -> str:
    """A p value: no number of draws or images makes it 0."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _add_pair(table: Table, rows: tuple[Row, Row], names: tuple[str, str], metric: str, evidence: EvidenceStore) -> None:
    values = (rows[0].mean(metric), rows[1].mean(metric))
    found = [evidence.of(row) for row in rows]
    data: dict[str, Any] = {"first": names[0], "second": names[1], "metric": metric}
    if found[0] is None or found[1] is None:
        missing = next(row for row, mine in zip(rows, found, strict=True) if mine is None)
        result = next((evidence.reasons[r.id] for r in missing.records if r.id in evidence.reasons), "no draws")
    else:
        outcome = paired(found[0], found[1], metric, values)
        if not isinstance(outcome, str):
            verdict = f"{names[outcome.better < 0]} is better" if outcome.better else "no difference shown"
            numbers = [f"{100 * number:+.2f}" for number in (outcome.value, *outcome.interval)]
            table.rows.append([Cell(text) for text in (*names, *numbers, _chance(outcome.p), verdict)])
            interval = {"low": outcome.interval.low, "high": outcome.interval.high}
            table.data.append(data | {"difference": outcome.value, **interval, "p": outcome.p, "verdict": verdict})
            return
        result = outcome
    table.rows.append([Cell(text) for text in (*names, *[MISSING] * 4, f"not compared: {result}")])
    table.data.append(data | {"verdict": f"not compared: {result}"})


def overall(records: Iterable[Record], metric: str) -> list[Overall]:
    """Groups of families that differ in nothing but the data set, with the methods that all of them have."""
    groups: dict[str, list[Family]] = {}
    for family in families(records):
        same = {key: family.protocol[key] for key in _SAME}
        groups.setdefault(canonical_json(same), []).append(family)
    found = []
    for key, group in groups.items():
        chosen: dict[str, _Column] = {}
        for family in group:
            rows, dataset = _ranked(family), family.protocol["dataset"]
            named = {name: row for name, row in zip(names_of(rows), rows, strict=True) if row.mean(metric) is not None}
            if len(named) < 2:
                continue
            # Two versions of one data set are no two data sets: the one with more methods counts, then with more categories.
            before, column = chosen.get(dataset), _Column(named, family, 1)
            if before is not None:
                better = column if column.size > before.size else before
                column = better._replace(choices=before.choices + 1)
            chosen[dataset] = column
        columns = [column.named for column in chosen.values()]
        every = dict.fromkeys(name for named in columns for name in named)
        # One name may be of two versions or weights: then the methods are two, each on some of the data sets.
        kinds = {name: {_kind(named[name]) for named in columns if name in named} for name in every}
        common = [name for name in every if all(name in named for named in columns) and len(kinds[name]) == 1]
        if len(common) < 2:
            continue
        first = group[0].protocol
        shots = f", {first['shots']} shots" if first["shots"] else ""
        title = (
            f"{first['setting']}{shots}, mask rule {first['scoring'].get('mask_rule')}, variant {first['metrics'].get('variant')}"
        )
        scores = {name: [row.mean(metric) or 0.0 for row in (named[name] for named in columns)] for name in common}
        ids = {name: [[record.id for record in named[name].records] for named in columns] for name in common}
        described, left_out = [column.in_words() for column in chosen.values()], [name for name in every if name not in common]
        found.append(Overall(key, title, list(chosen), scores, ids, described, left_out))
    return found


def _kind(row: Row) -> str:
    """What makes a method of one name one method, whatever the data."""
    return canonical_json([row.first.identity[key] for key in ("method", "method_version", "params", "weights")])


def too_few_datasets(group: Overall) -> str:
    """Why there is no test."""
    methods = len(group.scores)
    pairs = methods * (methods - 1) // 2
    needed = least_datasets(methods)
    return f"not enough data sets for a test of {pairs} pair{'s' * (pairs > 1)}: {len(group.datasets)}, at least {needed}"


def overall_table(group: Overall, metric: str) -> Table:
    """Mean ranks, and each pair by Wilcoxon with Holm's adjustment, or why there is no test."""
    title = METRICS[metric].title
    table = Table(
        title=f"{title} over data sets: {group.title}",
        caption=[f"Data sets: {'; '.join(group.described)}"],
        columns=[Column(name, left=name in ("first", "second", "verdict")) for name in _OVER_COLUMNS],
        rows=[],
    )
    if group.left_out:
        table.caption.append(f"Left out, not run alike on all of them: {', '.join(group.left_out)}")
    ranks = mean_ranks(group.scores)
    table.caption.append("Mean rank: " + ", ".join(f"{name} {rank:.2f}" for name, rank in sorted(ranks.items(), key=_second)))
    pairs = across(group.scores)
    if not pairs:
        table.below.append(too_few_datasets(group))
    for pair in pairs:
        better = pair.first if pair.difference > 0 else pair.second
        verdict = f"{better} is better" if pair.adjusted < ALPHA else "no difference shown"
        numbers = (f"{100 * pair.difference:+.2f}", _chance(pair.p), _chance(pair.adjusted))
        table.rows.append([Cell(text) for text in (pair.first, pair.second, *numbers, verdict)])
        table.data.append({**pair._asdict(), "metric": metric, "datasets": len(group.datasets), "verdict": verdict})
    return table


_OVER_COLUMNS = ("first", "second", "median difference", "p (Wilcoxon)", "p (Holm)", "verdict")


def _second(pair: tuple[str, float]) -> float:
    return pair[1]
