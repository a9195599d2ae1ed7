"""Metrics again from kept maps, without a model and without the data set: another definition of them, or a check of a record.

`bench run --save-maps` keeps what the metrics saw. The same maps under the same variant must give the record's numbers; under
another variant they give the record that `bench run --variant` would have written, with the cost and stamp of the first. A record
that was run without intervals, or before there was a jackknife, gets both. The mask rule cannot be changed: the kept masks were
made with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from inpbench.harness.category_result import CategoryResult, measured, result_of
from inpbench.harness.claims import claim
from inpbench.harness.draws import Drawing, seed_of
from inpbench.harness.errors import RecordError
from inpbench.harness.kept_maps import read_maps
from inpbench.harness.metrics import SUITE_VERSION
from inpbench.harness.metrics.category import CategoryMetrics
from inpbench.harness.records import Record, new_record, timestamp
from inpbench.harness.samples import DRAWS, JACKKNIFE
from inpbench.harness.stamp import code_in_words

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from inpbench.harness.metrics import Variant
    from inpbench.harness.records import RecordStore

BATCH = 64  # maps at a time; changes no number


class Change(NamedTuple):
    """A number that the kept maps do not give again."""

    category: str
    metric: str
    recorded: float | None
    again: float | None


def rescore(store: RecordStore, record: Record, variant: Variant) -> Record:
    """The record of the same cell under `variant`, from its kept maps. Raises `RecordError` where maps are missing or of others."""
    folder = store.path_of(record.identity).with_suffix(".maps")
    recorded = store.read_samples(record)
    if variant != record.identity["metrics"]["variant"]:
        _confirm(folder, record)
    results = {}
    for category in record.identity["categories"]:
        results[category] = _measure(folder, category, variant, record.identity["manifest"])
        kept, known = results[category].samples, recorded.get(category)
        if known is None or kept["image"] != known["image"].tolist() or kept["score"] != known["score"].tolist():
            raise RecordError(
                f"The kept maps of {category} are not those of record {record.id12}: images or scores differ.",
                "Run the cell again with --save-maps --force.",
            )
    identity = record.identity | {"metrics": {"suite": SUITE_VERSION, "variant": variant}}
    # Another variant is another record: where its numbers come from stands in its notes.
    same = identity == record.identity
    new = new_record(identity, record.label, marks=record.marks, support=record.support, skipped=record.skipped, notes=record.notes)
    if not same:
        new.notes = [*record.notes, f"rescored from the kept maps of {record.id12}"]
    new.metrics = measured(results)
    new.cost, new.stamp = record.cost, record.stamp if same else record.stamp | {"rescored_by": code_in_words()}
    new.status, new.started, new.finished = "done", record.started, timestamp()
    new.samples = record.samples
    lacking = any(_evidence_of(results[c].samples) > _evidence_of(table) for c, table in recorded.items())
    if not same or (lacking and not changes(record, new)):
        new.samples = store.write_samples(identity, {c: r.samples for c, r in results.items()})
    return new


def add_evidence(store: RecordStore, record: Record, again: Record) -> str:
    """Put the draws and the jackknife of `again` beside a confirmed record that lacks any; says in words what was added, or "".

    again: what `rescore` gave for the same variant. Raises `RecordError` where it cannot be written; the old record then stands.
    """
    if again.samples == record.samples:
        return ""
    before, after = ([_evidence_of(table) for table in store.read_samples(each).values()] for each in (record, again))
    gained: set[str] = set().union(*(new - old for old, new in zip(before, after, strict=True)))
    added = " and ".join(words for key, words in _WORDS.items() if key in gained)
    note = f"{added} added from the kept maps, {timestamp()}"
    with claim(store.path_of(record.identity).with_suffix(".lock"), what=f"cell {record.id12} ({record.label})"):
        store.write(replace(record, samples=again.samples, notes=[*record.notes, note]))
    return added


_WORDS = {DRAWS: "the bootstrap's draws", JACKKNIFE: "the jackknife"}


def _evidence_of(table: Mapping[str, Any]) -> set[str]:
    """What lies beside the scores of a category, for its intervals."""
    return {DRAWS, JACKKNIFE} & set(table)


def changes(before: Record, after: Record) -> list[Change]:
    """The numbers of two records of one cell that differ, by category; an empty list says that the record is confirmed.

    They agree within their stated bounds: another device adds the same numbers in another order.
    """
    found = []
    for category, table in before.metrics["categories"].items():
        again = after.metrics["categories"].get(category, {})
        bounds = [record.metrics["bounds"].get(category, {}) for record in (before, after)]
        for metric, value in table.items():
            other, allowed = again.get(metric), sum(known.get(metric) or 0.0 for known in bounds)
            same = value == other if value is None or other is None else abs(value - other) <= allowed
            if not same:
                found.append(Change(category, metric, value, other))
    return found


def _confirm(folder: Path, record: Record) -> None:
    """Raise `RecordError` where the maps do not give the record's own numbers: then they give no others either."""
    known = record.identity["metrics"]
    if known["suite"] != SUITE_VERSION:  # other metrics than this version's, which the maps cannot be held to
        return
    own = {c: _measure(folder, c, known["variant"], record.identity["manifest"], draw=False) for c in record.identity["categories"]}
    different = changes(record, replace(record, metrics=measured(own)))
    if different:
        raise RecordError(
            f"The kept maps of {different[0].category} are not those of record {record.id12}: they give another "
            f"{different[0].metric} under its own variant.",
            "Run the cell again with --save-maps --force.",
        )


def _measure(folder: Path, category: str, variant: Variant, manifest: str, *, draw: bool = True) -> CategoryResult:
    kept = read_maps(folder, category)
    metrics = CategoryMetrics(variant=variant)
    scores, labels = torch.tensor(kept.scores, dtype=torch.float64), torch.tensor(kept.labels)
    has_pixels = torch.tensor(kept.has_pixels, dtype=torch.bool)
    drawing = Drawing(folder, seed_of(manifest, category)) if draw else None
    try:
        for start in range(0, len(scores), BATCH):
            part = slice(start, start + BATCH)
            maps, masks = torch.from_numpy(np.array(kept.maps[part])), torch.from_numpy(kept.masks[part])
            metrics.update(maps, scores[part], masks, labels[part], has_pixels[part])
            if drawing is not None:
                drawing.add(maps, masks, has_pixels[part])
        samples: dict[str, list[Any]] = {"image": kept.images, "score": kept.scores, "label": kept.labels}
        return result_of(metrics.compute(), samples, drawing, predict_s=0.0)
    finally:
        if drawing is not None:
            drawing.close()
