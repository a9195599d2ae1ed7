"""What the page shows, as plain JSON-able data: everything from records and from the files beside them.

A family of comparable records is a section. Numbers are fractions with full precision; the page rounds. A family whose records have
no scores or no kept maps has no curves or pictures, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from inpbench.harness.compare import Overall, overall, overall_table, pair_tables, too_few_datasets
from inpbench.harness.errors import RecordError
from inpbench.harness.families import Family, Row, families, rows_of
from inpbench.harness.kept_maps import KeptMaps, read_inputs, read_maps
from inpbench.harness.leaderboard import build_tables, names_of
from inpbench.harness.metrics import METRICS
from inpbench.harness.metrics.bootstrap import pixel_counts
from inpbench.harness.rank_picture import draw
from inpbench.harness.report.curves import histogram, image_curves, pixel_curves
from inpbench.harness.report.gallery import choose, input_picture, map_picture
from inpbench.harness.statistics import EvidenceStore, across, mean_ranks

if TYPE_CHECKING:
    from inpbench.harness.records import Record, RecordStore

JOINED = "A bar joins methods that these data sets cannot tell apart (Wilcoxon's test, Holm's adjustment)."


def gather(store: RecordStore, records: Sequence[Record], *, images: int) -> dict[str, Any]:
    """The content of a report. images: most pictures a category; 0 for none."""
    evidence = EvidenceStore(store)
    return {
        "version": version("inpbench"),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "metrics": [{"name": name, "title": metric.title} for name, metric in METRICS.items()],
        "families": [_family(store, family, evidence, images) for family in families(records) if rows_of(family)],
        "overall": _overall(records),
        "records": {record.id: record.as_document() for record in records},
    }


def _family(store: RecordStore, family: Family, evidence: EvidenceStore, images: int) -> dict[str, Any]:
    rows = rows_of(family)
    [table] = build_tables(family.records, reported=True, evidence=evidence)
    notes = dict(table.footnotes)
    shown = []
    for row, name, cells, data in zip(rows, names_of(rows), table.rows, table.data, strict=True):
        categories = family.protocol["categories"]
        shown.append(
            data
            | {
                "name": name,
                "notes": [
                    note for mark in cells[0].marks if mark != "‡" and not (note := notes[mark]).startswith("no published value")
                ],
                "ranked": not row.chosen_on_test,
                "categories": {c: {metric: row.mean(metric, c) for metric in METRICS} for c in categories},
            }
        )
    pairs = {metric: found[0].data for metric in METRICS if (found := pair_tables(family.records, metric, evidence))}
    drawn, reasons = _drawn(store, rows, family.protocol["categories"], images)
    return {
        "title": family.title,
        "caption": table.caption,
        "dataset": family.protocol["dataset"],
        "setting": family.protocol["setting"],
        "categories": family.protocol["categories"],
        "rows": shown,
        "pairs": pairs,
        "missing": table.below,
        "drawn": drawn,
        "reasons": reasons,
    }


def _drawn(store: RecordStore, rows: Sequence[Row], categories: Sequence[str], images: int) -> tuple[dict[str, Any], list[str]]:
    """Curves, histograms and pictures of each category, from the first seed of each row; and why some are missing."""
    samples, reasons = [], []
    for row, name in zip(rows, names_of(rows), strict=True):
        try:
            samples.append(store.read_samples(row.first))
        except RecordError as error:
            samples.append({})
            reasons.append(f"{name}: {error.message}")
    drawn: dict[str, Any] = {}
    for category in categories:
        kept = [_kept(store, row, category) for row in rows]
        drawn[category] = {"curves": [], "histograms": [], "pictures": []}
        for table, maps in zip(samples, kept, strict=True):
            found = table.get(category)
            image = {} if found is None else image_curves(found["score"], found["label"])
            drawn[category]["curves"].append({"image": image, "pixel": {} if maps is None else _pixel(maps)})
            known = found is not None and np.isin(found["label"], (0, 1)).all()
            drawn[category]["histograms"].append(histogram(found["score"], found["label"]) if found is not None and known else None)
        if images:
            drawn[category]["pictures"] = _pictures(store, rows, kept, category, images)
    without = [name for row, name in zip(rows, names_of(rows), strict=True) if not _folder(store, row).is_dir()]
    if without:
        reasons.append(f"no pictures and pixel curves of {', '.join(without)}: run with --save-maps to keep their maps")
    return drawn, reasons


def _folder(store: RecordStore, row: Row) -> Any:
    return store.path_of(row.first.identity).with_suffix(".maps")


def _kept(store: RecordStore, row: Row, category: str) -> KeptMaps | None:
    try:
        return read_maps(_folder(store, row), category)
    except RecordError:  # `_drawn` says which rows have none
        return None


def _pixel(kept: KeptMaps) -> dict[str, Any]:
    has_pixels = np.asarray(kept.has_pixels)
    if not has_pixels.any():
        return {}
    return pixel_curves(pixel_counts(np.asarray(kept.maps)[has_pixels], kept.masks[has_pixels]))


def _pictures(store: RecordStore, rows: Sequence[Row], kept: Sequence[KeptMaps | None], category: str, images: int) -> list[Any]:
    """One entry an image: why it is shown, its name, label, input, and for each row its score and map."""
    known = [(index, maps) for index, maps in enumerate(kept) if maps is not None]
    if not known:
        return []
    first = known[0][1]
    same = [(index, maps) for index, maps in known if maps.images == first.images]
    inputs = {}
    for index, _ in same:
        try:
            inputs[index] = read_inputs(_folder(store, rows[index]), category)
        except RecordError:  # kept by an earlier release, without pictures
            continue
    same = [(index, maps) for index, maps in same if index in inputs]
    if not same:
        return []
    found = []
    for place, why in choose([maps.scores for _, maps in same], first.labels, images).items():
        shown = {
            str(index): {
                "score": maps.scores[place],
                "rank": 1 + sum(score > maps.scores[place] for score in maps.scores),
                "map": map_picture(np.array(inputs[index][place]), maps.maps[place], maps),
            }
            for index, maps in same
        }
        picture = input_picture(np.array(inputs[same[0][0]][place]), first.masks[place])
        label = "anomalous" if first.labels[place] == 1 else "normal"
        entry = {"why": why, "image": first.images[place], "label": label, "of": len(first.images), "input": picture}
        found.append(entry | {"rows": shown})
    return found


def _overall(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The comparisons over several data sets: a group of them, with what each metric says that at least two of them have."""
    found: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        for group in overall(records, metric):
            if len(group.datasets) > 1:
                entry = found.setdefault(group.key, {"title": f"Over data sets: {group.title}", "metrics": {}})
                entry["metrics"][metric] = _over(group, metric)
    return list(found.values())


def _over(group: Overall, metric: str) -> dict[str, Any]:
    table = overall_table(group, metric)
    pairs = across(group.scores)
    ranks = mean_ranks(group.scores)
    title = f"Mean rank by {METRICS[metric].title} over {len(group.datasets)} data sets"
    return {
        "datasets": group.datasets,
        "caption": [line for line in table.caption if not line.startswith("Mean rank")],
        "rows": [
            {"name": name, "rank": ranks[name], "scores": group.scores[name], "records": group.records[name]}
            for name in sorted(ranks, key=ranks.__getitem__)
        ],
        "pairs": table.data,
        "note": JOINED if pairs else too_few_datasets(group),
        "picture": draw(ranks, pairs, title),
    }
