"""Leaderboards: tables from records, and from nothing else.

Each family of comparable records (harness/families.py) becomes a table of its own. A row is a method with its parameters; several
seeds give mean ± sample standard deviation. Only `done` records have rows; what failed, was interrupted or lacks a seed is listed
under the table. With evidence, each number has its 95 % interval and its rank (harness/statistics.py). Best values are marked among
all rows but those whose checkpoint was chosen on the test set (†).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from inpbench.harness import reported as published
from inpbench.harness.doubts import EXPLANATION, Doubt, doubt_data, doubts_of
from inpbench.harness.errors import BenchError, UsageError, did_you_mean
from inpbench.harness.families import Family, Row, families, rows_of
from inpbench.harness.marks import CLAIMED, INFORMATION, ORACLE, obstacles
from inpbench.harness.metrics import METRICS
from inpbench.harness.records import Record, canonical_json
from inpbench.harness.sources import learned_nothing, trained_on
from inpbench.harness.tables import MISSING, Cell, Column, Footnotes, Table, render

if TYPE_CHECKING:
    from inpbench.harness.statistics import EvidenceStore

__all__ = ["build_tables", "names_of", "render"]


def build_tables(
    records: Iterable[Record],
    *,
    by: str = "mean",
    metrics: Sequence[str] = (),
    reported: bool = False,
    evidence: EvidenceStore | None = None,
) -> list[Table]:
    """One table for each family (`by="mean"`), or one for each family and metric with a row for each category (`by="category"`).

    metrics: names of the metrics to show (default all seven). reported: put the published value and the difference under the
    measured one, where the protocol is the same. evidence: also show intervals and ranks with ties. Raises `UsageError` for unknown
    names.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise UsageError(f"Unknown metric '{metric}'. {did_you_mean(metric, METRICS)}", "Type: bench list metrics")
    if by not in ("mean", "category"):
        raise UsageError(f"--by takes mean or category, found '{by}'.", "Type for example: --by category --metrics i_auroc")
    shown = [metric for metric in METRICS if not metrics or metric in metrics]
    tables = []
    for family in families(records):
        rows = rows_of(family)
        if by == "mean":
            tables.append(_mean_table(family, rows, shown, reported, evidence))
        else:
            tables += [_category_table(family, rows, metric, reported, evidence) for metric in shown] if rows else []
    return tables


def _mean_table(
    family: Family, rows: Sequence[Row], metrics: Sequence[str], reported: bool, evidence: EvidenceStore | None
) -> Table:
    notes = Footnotes()
    doubts = {metric: doubts_of(rows, metric, None, evidence) for metric in metrics}
    best = {metric: _best([row.mean(metric) for row in rows if not row.chosen_on_test]) for metric in metrics}
    several_seeds = any(len(row.records) > 1 for row in rows)
    table = Table(title=family.title, caption=family.caption(), columns=[], rows=[], protocol=family.protocol)
    if several_seeds:
        table.caption.append("± is the sample standard deviation over seeds")
    if reported:
        table.caption.append("Second line: the published value and (measured - published), in points")
    table.columns = [Column("method", left=True), Column("seeds"), *(Column(METRICS[metric].title) for metric in metrics)]
    table.columns += [Column(title, left=True, detail=True) for title in ("input", "encoder")]
    table.columns += [Column(title, detail=True) for title in ("fit s", "images/s", "params (M)")]
    table.columns += [Column("commit", left=True, detail=True)]
    if evidence is not None:
        table.caption.append(EXPLANATION)
    for index, (row, name) in enumerate(zip(rows, names_of(rows), strict=True)):
        comparison = published.compare(row.first, metrics) if reported else None
        common = _common_reason([comparison])
        marks = row_marks(row, notes) + ([notes.mark(common)] if common else [])
        data = row_data(family, row, name)
        cells = [Cell(name, tuple(marks)), Cell(str(len(row.seeds)))]
        for metric in metrics:
            doubt = doubts[metric][index]
            cells.append(_metric_cell(row, metric, None, best[metric], None if common else comparison, notes, doubt))
            data |= {metric: row.mean(metric), f"{metric}_sd": row.sd(metric)} | doubt_data(doubt, f"{metric}_")
            if comparison is not None:
                data |= _published_data(row, metric, None, comparison)
        cells += [Cell(input_of(row.first)), Cell(_encoder(row.first) or MISSING)]
        cells += [_timing_cell(row, "fit_s", notes), _timing_cell(row, "predict_images_per_s", notes)]
        parameters = row.cost("parameters_total")
        cells += [Cell(_number(None if parameters is None else parameters / 1e6, 1)), _commit_cell(row, notes)]
        table.rows.append(cells)
        table.data.append(data | _cost_data(row))
    table.caption += _unlike(rows)
    _hardware_line(table, rows)
    table.footnotes = notes.listing()
    _list_missing(table, family, rows)
    return table


def _category_table(family: Family, rows: Sequence[Row], metric: str, reported: bool, evidence: EvidenceStore | None) -> Table:
    """Rows are categories, the means of groups and of all, columns are methods; the best of each row is marked."""
    notes = Footnotes()
    names = names_of(rows)
    categories: list[str | None] = [*family.protocol["categories"], *family.group_means, None]
    comparisons = [[published.compare(row.first, [metric], c) if reported else None for c in categories] for row in rows]
    commons = [_common_reason(column) for column in comparisons]
    title = f"{METRICS[metric].title} by category: {family.title}"
    caption = [*family.caption(), *_unlike(rows)]
    table = Table(title=title, caption=caption, columns=[], rows=[], protocol=family.protocol | {"metric": metric})
    table.columns = [Column("category", left=True)]
    for row, name, common in zip(rows, names, commons, strict=True):
        marks = row_marks(row, notes) + ([notes.mark(common)] if common else [])
        table.columns.append(Column(name + (f" [{','.join(marks)}]" if marks else "")))
    if evidence is not None:
        table.caption.append(EXPLANATION)
    for index, category in enumerate(categories):
        doubts = doubts_of(rows, metric, category, None if category in family.group_means else evidence)
        best = _best([row.mean(metric, category) for row in rows if not row.chosen_on_test])
        cells = [Cell(category or "mean")]
        for row, name, column, common, doubt in zip(rows, names, comparisons, commons, doubts, strict=True):
            comparison = column[index]
            cells.append(_metric_cell(row, metric, category, best, None if common else comparison, notes, doubt))
            value = {"metric": metric, "category": category or "mean", "value": row.mean(metric, category)}
            data = row_data(family, row, name) | value | {"sd": row.sd(metric, category)} | doubt_data(doubt, "")
            if comparison is not None:
                data |= _published_data(row, metric, category, comparison, prefix="")
            table.data.append(data)
        table.rows.append(cells)
    table.footnotes = notes.listing()
    _list_missing(table, family, rows)
    return table


def names_of(rows: Sequence[Row]) -> list[str]:
    """How rows are called: the label, and what else tells two rows of one label apart."""
    labels = [row.first.label + _variant(row.first) for row in rows]
    shown = [(label, input_of(row.first), _encoder(row.first)) for label, row in zip(labels, rows, strict=True)]
    return [
        label if shown.count(key) == 1 else f"{label} v{row.first.identity['method_version']} {row.first.id12[:6]}"
        for label, key, row in zip(labels, shown, rows, strict=True)
    ]


def _variant(record: Record) -> str:
    parts = [] if record.identity["engine"] == "fast" else [f"{record.identity['engine']} engine"]
    if "eval_batch" in record.identity:
        parts.append(f"batches of {record.identity['eval_batch']}")
    if record.identity["checkpoint"] is not None:
        parts.append(f"checkpoint {record.identity['checkpoint'].removeprefix('sha256:')[:8]}")
    return f" [{', '.join(parts)}]" if parts else ""


def row_marks(row: Row, notes: Footnotes) -> list[str]:
    """The footnote symbols of a row: what a reader must know before comparing it."""
    marks = [notes.mark(f"{_choice(row)}: not ranked", "†")] if row.chosen_on_test else []
    if _is_yardstick(row.first.identity["method"]):
        marks.append(notes.mark("a yardstick, not a contender", "‡"))
    texts = dict.fromkeys(mark for record in row.records for mark in record.marks)
    if row.first.identity["checkpoint"] is not None:  # records of before the mark
        texts[CLAIMED] = None
    marks += [notes.mark(f"{text}: not comparable with published numbers") for text in obstacles(texts) if text != ORACLE]
    marks += [notes.mark(text) for text in texts if text in INFORMATION]
    if learned_nothing(row.first.identity):
        marks.append(notes.mark("trained on: nothing"))
    skipped = max(len(record.skipped) for record in row.records)
    return marks + (
        [notes.mark(f"{skipped} finding{'s' if skipped > 1 else ''} about the data set in the record")] if skipped else []
    )


def _choice(row: Row) -> str:
    return ORACLE if row.first.identity["selection"] == "oracle" else "checkpoint chosen on the test set"


def _is_yardstick(method: str) -> bool:
    """A method of an earlier time or another machine may be unknown here; its records still have rows."""
    from inpbench.harness.registry import METHODS

    try:
        return METHODS.get(method).baseline
    except (BenchError, ImportError):
        return False


def _metric_cell(
    row: Row,
    metric: str,
    category: str | None,
    best: float | None,
    comparison: published.Comparison | None,
    notes: Footnotes,
    doubt: Doubt | None,
) -> Cell:
    mean, sd = row.mean(metric, category), row.sd(metric, category)
    if mean is None:
        return Cell(MISSING, (notes.mark(_undefined(row, metric, category)),))
    text = f"{100 * mean:.2f}" + (f" ± {100 * sd:.2f}" if sd is not None else "")
    marks: tuple[str, ...] = ()
    below = []
    if doubt is not None:
        if doubt.interval is None:
            marks = (notes.mark(f"no interval: {doubt.reason}"),)
        else:
            below.append(str(doubt))
            marks = (notes.mark(doubt.reason),) if doubt.reason else ()
    if comparison is not None and metric in comparison.values:
        value = comparison.values[metric]
        below.append(f"{100 * value:.2f} ({100 * (mean - value):+.2f})")
    elif comparison is not None:
        marks += (notes.mark(f"no published value shown: {comparison.reasons[metric]}"),)
        below.append(MISSING)
    return Cell(text, marks, second="; ".join(below), best=mean == best and not row.chosen_on_test)


def _common_reason(comparisons: Sequence[published.Comparison | None]) -> str:
    """One footnote for a whole row or column, where nothing is shown beside any of its cells for the same reason; else ""."""
    known = [comparison for comparison in comparisons if comparison is not None]
    reasons = {reason for comparison in known for reason in comparison.reasons.values()}
    if len(reasons) != 1 or any(comparison.values for comparison in known):
        return ""
    return f"no published value shown: {reasons.pop()}"


def _undefined(row: Row, metric: str, category: str | None) -> str:
    """Why a metric has no value, from the first record and category that say so; metrics of one reason share a footnote."""
    for record in row.records:
        for name, reasons in record.metrics["undefined"].items():
            if metric in reasons and category in (None, name):
                return f"no value on {name}: {reasons[metric]}"
    return f"{METRICS[metric].title} was not measured"


def _published_data(
    row: Row, metric: str, category: str | None, comparison: published.Comparison, prefix: str | None = None
) -> dict[str, Any]:
    prefix = f"{metric}_" if prefix is None else prefix
    value, mean = comparison.values.get(metric), row.mean(metric, category)
    return {
        f"{prefix}published": value,
        f"{prefix}difference": None if value is None or mean is None else mean - value,
        f"{prefix}published_source": comparison.source if value is not None else "",
        f"{prefix}published_reason": comparison.reasons.get(metric, ""),
    }


def row_data(family: Family, row: Row, name: str) -> dict[str, Any]:
    """What identifies a row, as flat data; the same keys in every table."""
    identity = row.first.identity
    return {
        **{key: family.protocol[key] for key in ("dataset", "setting", "shots")},
        "source": (family.protocol["source"] or {}).get("dataset"),
        "mask_rule": family.protocol["scoring"].get("mask_rule"),
        "variant": family.protocol["metrics"].get("variant"),
        "manifest": family.protocol["manifest"],
        "method": identity["method"],
        "name": name,
        "trained_on": trained_on(identity),
        "input": input_of(row.first),
        "encoder": _encoder(row.first),
        "seeds": row.seeds,
        "marks": list(dict.fromkeys(mark for record in row.records for mark in record.marks)),
        "selection": identity["selection"],
        "yardstick": _is_yardstick(identity["method"]),
        "records": [record.id for record in row.records],
    }


def _timing_cell(row: Row, key: str, notes: Footnotes) -> Cell:
    """A cost that depends on the machine; never a mean over several kinds of it."""
    if len(row.hardware) > 1:
        return Cell(MISSING, (notes.mark("its seeds ran on different hardware: bench leaderboard --cost has a table for each"),))
    before = sorted({str(kind) for record in row.records for kind in record.stamp.get("hardware_before") or ()})
    marks = (notes.mark(f"in part on {', '.join(before)}, where the cell was begun"),) if before and key == "fit_s" else ()
    return Cell(_number(row.cost(key), 1), marks)


def _cost_data(row: Row) -> dict[str, Any]:
    keys = ("fit_s", "predict_images_per_s", "peak_memory_mb", "parameters_total", "parameters_trainable", "flops_per_image")
    commits = [(record.stamp.get("git") or {}).get("commit") for record in row.records]
    return {
        **{key: row.cost(key) for key in keys},
        "hardware": row.hardware,
        "commits": list(dict.fromkeys(commit for commit in commits if commit)),
        "dirty": any((record.stamp.get("git") or {}).get("dirty") for record in row.records),
    }


def _commit_cell(row: Row, notes: Footnotes) -> Cell:
    states = [record.stamp.get("git") or {} for record in row.records]
    commits = list(dict.fromkeys(str(state.get("commit", MISSING))[:7] for state in states))
    dirty = any(state.get("dirty") for state in states)
    marks = [notes.mark("run from sources with uncommitted changes", "+")] if dirty else []
    if before := sorted({str(code) for record in row.records for code in record.stamp.get("code_before") or ()}):
        marks.append(notes.mark(f"in part under {'; '.join(before)}, where the cell was begun"))
    return Cell(", ".join(commits), tuple(marks))


def _unlike(rows: Sequence[Row]) -> list[str]:
    """What the records of a table do not share although their protocol is one: the version of torch, the images that were read."""
    records = [record for row in rows for record in row.records]
    versions = sorted({str(known) for r in records if (known := (r.stamp.get("packages") or {}).get("torch"))})
    lines = [f"Run under torch {', '.join(versions)}: numbers of one seed may differ by more than rounding"] if versions[1:] else []
    tested = {canonical_json(record.metrics["counts"]) for record in records}
    if len(tested) > 1:
        lines.append("NOT ALL ROWS WERE TESTED ON THE SAME NUMBER OF IMAGES: some could not be read, see the findings of each")
    return lines


def _hardware_line(table: Table, rows: Sequence[Row]) -> None:
    kinds = sorted({record.hardware for row in rows for record in row.records})
    if kinds:
        table.caption.append(f"Cost measured on: {', '.join(kinds)}" + (" (not comparable across them)" if len(kinds) > 1 else ""))


def _list_missing(table: Table, family: Family, rows: Sequence[Row]) -> None:
    """Failed and interrupted cells, and seeds that some rows have and others lack."""
    for record in sorted(family.records, key=lambda record: (record.label, record.identity["seed"])):
        if record.status == "done":
            continue
        error = record.error or {}
        words = {"failed": f"failed: {error.get('type')}: {error.get('message')}", "trained": "trained, not tested yet"}
        reason = words.get(record.status, "started, not finished")
        table.missing.append({"name": record.label, "seed": record.identity["seed"], "reason": reason, "record": record.id})
    all_seeds = {seed for row in rows for seed in row.seeds}
    listed = {(item["name"], item["seed"]) for item in table.missing}
    for row, name in zip(rows, names_of(rows), strict=True):
        for seed in sorted(all_seeds.difference(row.seeds)):
            if (row.first.label, seed) not in listed:
                table.missing.append({"name": name, "seed": seed, "reason": "not run", "record": None})
    table.below = [f"missing: {item['name']}, seed {item['seed']}: {' '.join(item['reason'].split())}" for item in table.missing]


def input_of(record: Record) -> str:
    """`392`, or `448→392` where a crop follows the resize, or height x width where they differ."""
    resize, crop = (_side(record.identity["input"].get(key)) for key in ("resize", "crop"))
    return crop if resize == crop else f"{resize}→{crop}"


def _side(size: Any) -> str:
    sides = size if isinstance(size, list) else [size]
    return "x".join(map(str, sides[:1] if len(set(map(str, sides))) == 1 else sides))


def _encoder(record: Record) -> str:
    return ", ".join(record.identity["weights"])


def _best(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(values) > 1 and known else None


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"
