"""The regression check: records against committed baselines, metric by metric.

A baseline is matched by what was asked for (`KEY`: method and changed parameters, data set, setting, seed, ...) and compared only
under the same protocol and kind of hardware; else it is `incomparable`, with the reason. Verdicts:

    ok            within the tolerance          improved      better by more than the tolerance: look at it, then --update
    regressed     worse by more than it, or the cell fails, or the metric has lost its value
    incomparable  protocol, version, weights, data or hardware differ         missing  no record       new  no baseline

Exit code 1 when anything regressed, 4 when nothing could be compared, else 0 (also with improvements: they are a notice).
For metrics the number of CPU cores is not a kind of hardware (`cpu-x86_64-2` is compared with `cpu-x86_64-8`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inpbench.harness.baselines import PROTOCOL, Baseline, Entry, key_of, load, metric_hardware, protocol_of, update
from inpbench.harness.errors import EXIT_NEGATIVE, EXIT_NOTHING, EXIT_OK
from inpbench.harness.records import Record, RecordStore, canonical_json
from inpbench.harness.sources import in_words

__all__ = ["COMPARED", "VERDICTS", "CheckResult", "Finding", "cell_name", "check", "differences", "update"]

VERDICTS = ("regressed", "improved", "ok", "incomparable", "missing", "new")
COMPARED = frozenset({"regressed", "improved", "ok"})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One verdict: on one metric of one cell, or on the whole cell (metric "")."""

    verdict: str
    cell: str  # e.g. inp_former, synthetic, multi_class, seed 0
    metric: str = ""
    baseline: float | None = None  # fractions
    measured: float | None = None
    tolerance: float | None = None
    reason: str = ""
    record: str = ""  # id of the record
    file: str = ""  # name of the baseline's file

    @property
    def difference(self) -> float | None:
        """Measured - baseline, or None where either is missing."""
        return None if self.baseline is None or self.measured is None else self.measured - self.baseline

    def as_data(self) -> dict[str, Any]:
        """The finding as JSON-able data."""
        return {**self.__dict__, "difference": self.difference}


@dataclass
class CheckResult:
    """All verdicts of a check."""

    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # broken records

    def count(self, verdict: str) -> int:
        """Number of findings with this verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    @property
    def compared(self) -> int:
        """Number of metrics that were compared."""
        return sum(self.count(verdict) for verdict in COMPARED)

    @property
    def exit_code(self) -> int:
        """1 regressed, 4 nothing compared, else 0."""
        if self.count("regressed"):
            return EXIT_NEGATIVE
        return EXIT_OK if self.compared else EXIT_NOTHING

    def headline(self) -> str:
        """One line: how much was compared, and the verdicts."""
        counts = ", ".join(f"{number} {verdict}" for verdict in VERDICTS if (number := self.count(verdict)))
        entries = sum(finding.verdict != "new" for finding in self.findings)
        if not self.compared:
            return f"check: 0 of {entries} baseline entries could be compared ({counts or 'no baselines, no records'})."
        notice = " Improvements also need: bench check --update --reason TEXT." if self.count("improved") else ""
        return f"check: compared {self.compared} of {entries} ({counts}).{notice}"


def check(store: RecordStore, folder: Path, **filters: Any) -> CheckResult:
    """Compare the records of `store` with the baselines in `folder`.

    filters: identity keys (`dataset="synthetic"`, `method=[...]`), for records and baselines alike. Raises `RecordError` for a
    broken baseline file; broken records become warnings.
    """
    listing = store.all(**filters)
    result = CheckResult(warnings=listing.warnings)
    records: dict[str, list[Record]] = {}
    for record in listing:
        records.setdefault(canonical_json(key_of(record)), []).append(record)
    known = set()
    for baseline in load(folder):
        if not _selected(baseline.key, filters):
            continue
        text = canonical_json(baseline.key)
        known.add(text)
        result.findings += _check_baseline(baseline, records.get(text, []))
    for text, found in sorted(records.items()):
        newest = _newest(found)
        if text not in known and newest is not None:
            result.findings.append(Finding(verdict="new", cell=cell_name(key_of(newest)), record=newest.id, reason="no baseline"))
    order = {verdict: index for index, verdict in enumerate(VERDICTS)}
    result.findings.sort(key=lambda finding: (order[finding.verdict], finding.cell))
    return result


def cell_name(key: dict[str, Any]) -> str:
    """A cell in words, for messages."""
    shots = f", {key['shots']} shots" if key["shots"] else ""
    limit = f", limit {key['limit']}" if key["limit"] is not None else ""
    source = f" {words}" if (words := in_words(key)) else ""
    return f"{key['label']}, {key['dataset']}, {key['setting']}{source}{shots}, seed {key['seed']}{limit}"


def _selected(key: dict[str, Any], filters: dict[str, Any]) -> bool:
    for name, wanted in filters.items():
        accepted = wanted if isinstance(wanted, (list, tuple, set, frozenset)) else [wanted]
        if wanted is not None and name in key and key[name] not in accepted:
            return False
    return True


def _newest(records: Iterable[Record]) -> Record | None:
    """The done record that was finished last."""
    done = [record for record in records if record.status == "done"]
    return max(done, key=lambda record: (record.finished, record.id)) if done else None


def _check_baseline(baseline: Baseline, records: Sequence[Record]) -> list[Finding]:
    """The verdicts on one baseline file: on the entry of the record's hardware, the others being for other machines."""
    cell = cell_name(baseline.key)
    newest = _newest(records)
    latest = max(records, key=lambda record: (record.finished or record.started, record.id), default=None)
    if latest is not None and latest.status == "failed" and (newest is None or latest.finished > newest.finished):
        assert latest.error is not None
        reason = f"the cell fails now: {latest.error['type']}: {latest.error['message']}"
        return [Finding(verdict="regressed", cell=cell, reason=reason, record=latest.id, file=baseline.name)]
    if newest is None:
        reason = "no record" if latest is None else "the cell was started, not finished"
        return [Finding(verdict="missing", cell=cell, reason=reason, file=baseline.name)]
    # Other data under one name (`folder`) is another matter; of the same data the last run counts, comparable or not.
    manifests = {entry.protocol.get("manifest") for entry in baseline.entries}
    record = _newest(r for r in records if r.identity["manifest"] in manifests) or newest
    hardware = metric_hardware(record.hardware)
    fitting = [entry for entry in baseline.entries if metric_hardware(entry.hardware) == hardware]
    if fitting:
        reason = "; ".join(differences(fitting[0], record))
        if not reason:
            return [_judge(baseline, fitting[0], metric, record) for metric in fitting[0].metrics]
    else:
        measured_on = ", ".join(sorted({entry.hardware for entry in baseline.entries}))
        reason = f"hardware {record.hardware}, baseline measured on {measured_on}"
    return [Finding(verdict="incomparable", cell=cell, reason=reason, record=record.id, file=baseline.name)]


def differences(entry: Entry, record: Record) -> list[str]:
    """What of the protocol differs between a baseline entry and a record, in words; empty when they may be compared."""
    now, then = protocol_of(record), entry.protocol
    found = []
    for name in PROTOCOL:
        mine, theirs = now.get(name), then.get(name)
        if mine == theirs:
            continue
        if isinstance(mine, dict) and isinstance(theirs, dict):
            keys = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
            found += [f"{name}.{key} {_brief(mine.get(key))}, baseline {_brief(theirs.get(key))}" for key in keys]
        else:
            found.append(f"{name} {_brief(mine)}, baseline {_brief(theirs)}")
    return found


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:20]}..."


def _judge(baseline: Baseline, entry: Entry, metric: str, record: Record) -> Finding:
    expected, tolerance = entry.metrics[metric].value, entry.metrics[metric].tolerance
    measured = record.mean(metric)
    facts: dict[str, Any] = {
        "cell": cell_name(baseline.key),
        "metric": metric,
        "baseline": expected,
        "measured": measured,
        "tolerance": tolerance,
        "record": record.id,
        "file": baseline.name,
    }
    if measured is None:
        return Finding(verdict="regressed", reason="the metric has no value any more", **facts)
    gain = (measured - expected) if entry.metrics[metric].higher_is_better else (expected - measured)
    # Differences of decimal fractions carry rounding noise: 0.9 - 0.895 is not to fail a tolerance of 0.005.
    allowed = tolerance + 1e-12
    verdict = "regressed" if gain < -allowed else "improved" if gain > allowed else "ok"
    return Finding(verdict=verdict, **facts)
