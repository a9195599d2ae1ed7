"""Measured beside published: the paper's number, judged only under the protocol that it was published with.

A pixel metric means something only with its mask rule and its definition (`harness.reported`), so one trained model is tested
under each of PROTOCOLS. A row is judged where the protocol is the published one, and shown for information where it is not. Each
protocol is a record of its own; the model is trained for the first of them and kept for the others. The paper does not say which
source data set its zero-shot numbers come from: they are judged for the one that the user names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from inpbench.harness.errors import BenchError, NothingError, UsageError, did_you_mean
from inpbench.harness.marks import marks_of
from inpbench.harness.metrics import METRICS, PIXEL_METRICS
from inpbench.harness.models import kept_folder
from inpbench.harness.plan import Cell, Request, make_plan
from inpbench.harness.records import new_record
from inpbench.harness.reported import Entry, compare, load_reported
from inpbench.harness.sources import in_words, is_shared
from inpbench.harness.tables import Cell as TableCell
from inpbench.harness.tables import Column, Table

if TYPE_CHECKING:
    from inpbench.harness.api import Progress
    from inpbench.harness.metrics import Variant
    from inpbench.harness.records import Record, RecordStore
    from inpbench.harness.runner import Options
    from inpbench.harness.scoring import MaskRule

    Protocol = tuple[MaskRule, Variant]

# Mask rule and metric definitions: first what INP-Former and Dinomaly published, last what INP-Former's public code computes.
PROTOCOLS: tuple[Protocol, ...] = (("gt0", "dinomaly"), ("gt05", "dinomaly"), ("gt0", "paper"), ("gt05", "paper"))

# Largest accepted |measured - published|, as fractions. Of an official checkpoint: the 0.0005 that rounding in the papers hides,
# and as much again for other versions of the libraries. Of an own training: what users of the official code report between runs
# and machines: up to half a point in the image metrics, a point and more in pixel AP and F1.
TOLERANCES: Mapping[Literal["checkpoint", "training"], Mapping[str, float]] = {
    "checkpoint": dict.fromkeys(METRICS, 0.001),
    "training": {
        "i_auroc": 0.005,
        "i_ap": 0.005,
        "i_f1max": 0.01,
        "p_auroc": 0.003,
        "p_ap": 0.015,
        "p_f1max": 0.015,
        "aupro": 0.005,
    },
}

Verdict = Literal["reproduced", "differs", "not comparable", "not published", "undefined"]


@dataclass(frozen=True)
class Line:
    """One metric under one protocol; numbers are fractions."""

    metric: str
    mask_rule: str
    variant: str
    measured: float | None
    published: float | None
    tolerance: float
    verdict: Verdict
    reason: str = ""
    record: str = ""

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        return None if self.measured is None or self.published is None else self.measured - self.published


def published(method: str, dataset: str, setting: str, shots: int) -> Entry:
    """The published means of a cell. Raises `NothingError` naming what is published of the method instead."""
    ours = [
        entry
        for entry in load_reported()
        if (entry.reference or (entry.setting == "zero_shot" and entry.kind == "paper" and entry.protocol))
        and entry.category is None
        and entry.method == method
    ]
    for entry in ours:
        if (entry.dataset, entry.setting, entry.shots) == (dataset, setting, shots):
            return replace(entry, reference=True)
    known = sorted({f"{e.dataset} {e.setting}" + (f" k={e.shots}" if e.shots else "") for e in ours})
    of = f"k={shots}" if shots else ""
    raise NothingError(
        f"Nothing is published here for {method} on {dataset}, {setting} {of}".rstrip() + ".",
        f"Published: {', '.join(known)}." if known else "Type: bench leaderboard --reported",
    )


def parse_tolerances(text: str | None, trained: bool) -> dict[str, float]:
    """`--tolerance`: one number in per cent points for all metrics, or `p_ap=1.5,aupro=0.5`; the others keep their default."""
    table = dict(TOLERANCES["training" if trained else "checkpoint"])
    for part in (text or "").split(",") if text else []:
        name, equals, value = part.strip().rpartition("=")
        if equals and name not in METRICS:
            raise UsageError(f"--tolerance: unknown metric '{name}'. {did_you_mean(name, METRICS)}", "Type: bench list metrics")
        try:
            number = float(value) / 100
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            raise UsageError(f"--tolerance takes per cent points, found '{part}'.", "Type: --tolerance 0.5, or p_ap=1.5,aupro=0.5")
        table |= {name: number} if equals else dict.fromkeys(METRICS, number)
    return table


# --- one model, several protocols -----------------------------------------------------------------------------------


def plan_protocols(request: Request, store: RecordStore, options: Options) -> list[Cell]:
    """The cell of each protocol and data set. Raises the refusal of the first that cannot run (weights are missing, ...)."""
    cells = []
    for rule, variant in PROTOCOLS:
        scoring = replace(options.scoring, mask_rule=rule)
        cells += make_plan(replace(request, variant=variant), store, options.weights, scoring)
    for cell in cells:
        if cell.status == "impossible":
            raise cell.refusal or NothingError(
                f"{cell.method.name} {cell.setting.name}: {cell.reason}", "Type: bench list settings"
            )
    return cells


def check_comparable(cells: Sequence[Cell], entries: Mapping[str, Entry]) -> None:
    """Raise `NothingError` where no number of a data set could be judged, before anything is trained."""
    for name, entry in entries.items():
        reasons: dict[str, None] = {}
        for cell in (cell for cell in cells if cell.dataset.name == name):
            planned = new_record(cell.identity, cell.label, marks=marks_of(cell))
            found = compare(planned, list(METRICS), entries=[entry], vouched=True)
            if found.values:
                break
            reasons |= dict.fromkeys(found.reasons.values())
        else:
            raise NothingError(
                f"No number on {name} would have the published protocol: {'; '.join(reasons)}.",
                "Leave out what differs from the paper's recipe; bench run compares anything with anything.",
            )


def run_protocols(
    cells: Sequence[Cell], store: RecordStore, options: Options, progress: Callable[[Cell], Progress]
) -> list[Record]:
    """Run what is not done; what the first protocol trained the others test. Raises `BenchError` for a failed cell."""
    from inpbench.harness.runner import run_cell

    for cell in cells:
        if cell.status == "done":
            continue
        assert cell.request is not None
        lender = kept_folder(store, cell.identity) if cell.identity["checkpoint"] is None else None
        if lender is not None:
            cell = replace(cell, request=replace(cell.request, phase="test"))
        scoring = replace(options.scoring, mask_rule=cell.identity["scoring"]["mask_rule"])
        record = run_cell(cell, store, replace(options, scoring=scoring, keep_models=True), progress(cell))
        if record.status != "done":
            error = record.error or {"type": "error", "message": "unknown"}
            raise BenchError(f"{cell.label} failed: {error['type']}: {error['message']}", "Run the same command again.")
        if lender is not None and not is_shared(cell.identity):
            record.notes.append(f"trained by record {lender.stem}; tested here under another protocol")
            store.write(record)
    records = [store.find(cell.id) for cell in cells]
    return [record for record in records if record is not None]


# --- the comparison -------------------------------------------------------------------------------------------------


def compare_records(records: Sequence[Record], entry: Entry, tolerances: Mapping[str, float]) -> list[Line]:
    """A line for each metric and protocol; image metrics, which no protocol changes, once."""
    lines: list[Line] = []
    for record in records:
        first = record is records[0]
        names = [name for name in METRICS if first or name in PIXEL_METRICS]
        allowed = compare(record, names, entries=[entry], vouched=True)
        lines += [_line(record, name, entry, allowed.values, allowed.reasons, tolerances) for name in names]
    order = list(METRICS)
    return sorted(lines, key=lambda line: order.index(line.metric))


def _line(
    record: Record,
    metric: str,
    entry: Entry,
    values: Mapping[str, float],
    reasons: Mapping[str, str],
    tolerances: Mapping[str, float],
) -> Line:
    identity = record.identity
    measured, official, tolerance = record.mean(metric), entry.metrics.get(metric), tolerances[metric]
    verdict: Verdict
    reason = reasons.get(metric, "")
    if official is None:
        verdict, reason = "not published", ""
    elif measured is None:
        verdict = "undefined"
    elif metric not in values:
        verdict = "not comparable"
    else:
        # 1e-9: a difference of exactly the tolerance is within it, whatever the last bit says
        verdict = "reproduced" if abs(measured - official) <= tolerance + 1e-9 else "differs"
    rule, variant = str(identity["scoring"]["mask_rule"]), str(identity["metrics"]["variant"])
    if metric not in PIXEL_METRICS:
        rule = variant = "any"
    return Line(metric, rule, variant, measured, official, tolerance, verdict, reason, record.id)


def judge(lines: Sequence[Line]) -> bool:
    """Whether every comparable number is reproduced. Raises `NothingError` when none is comparable."""
    judged = [line for line in lines if line.verdict in ("reproduced", "differs")]
    if not judged:
        reasons = dict.fromkeys(line.reason for line in lines if line.reason)
        raise NothingError("No measured number has the published protocol: " + "; ".join(reasons) + ".", "Run the paper's recipe.")
    return all(line.verdict == "reproduced" for line in judged)


def table_of(lines: Sequence[Line], record: Record, entry: Entry) -> Table:
    """The lines of one data set as a table; any of its records stands for all."""
    columns = [Column("metric", left=True), Column("masks", left=True), Column("definition", left=True)]
    columns += [Column("measured"), Column("published"), Column("difference"), Column("tolerance"), Column("", left=True)]

    def percent(value: float | None, sign: str = "") -> TableCell:
        return TableCell("-" if value is None else f"{100 * value:{sign}.2f}")

    rows = [
        [
            *(TableCell(METRICS[line.metric].title), TableCell(line.mask_rule), TableCell(line.variant)),
            *(percent(line.measured), percent(line.published), percent(line.difference, "+"), percent(line.tolerance)),
            TableCell(line.verdict),
        ]
        for line in lines
    ]
    rule = entry.protocol.get("mask_rule", "unknown")
    caption = [f"Published: {entry.source}; mask rule {rule}, means over the categories, in per cent"]
    caption += [f"Measured: {in_words(record.identity)}"] if record.identity["source"] else []
    if record.identity["checkpoint"] is not None:
        caption.append(f"Measured: checkpoint {record.identity['checkpoint'][:19]}; that it is the authors' is for you to know")
    if entry.setting == "zero_shot":
        caption.append("The paper does not state the source data set of these numbers.")
    data: list[dict[str, Any]] = [{**line.__dict__, "difference": line.difference} for line in lines]
    setting = f"{entry.setting} k={entry.shots}" if entry.shots else entry.setting
    return Table(f"{record.label} on {entry.dataset}, {setting}", caption, columns, rows, data=data)
